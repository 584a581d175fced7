"""Probes of whole training steps: the traced gradient and update, run one after the other in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from optgen.artifact.manifest import LeafInfo
from optgen.artifact.step import EntryInfo, StepArgument
from optgen.hyper import Hyper, part
from optgen.probes.build import PROJECTIONS, SAMPLES, Recipe, make_probe, work_of
from optgen.probes.generate import Fill
from optgen.probes.info import Probe
from optgen.probes.interpret import interpret
from optgen.probes.noise import Noise
from optgen.probes.rounding import rounded
from optgen.runtime.groups import Groups

if TYPE_CHECKING:
    from optgen.train.parts import Part
    from optgen.train.plan import StepPlan

#: The parts that the programs are made of.
_PARTS = {
    "step": ("gradient", "update"), "micro": ("gradient", "mean"), "evaluate": ("evaluation",), "init": ("initial",),
}  # fmt: skip

#: For how many steps grads are accumulated where a probe must not get to the update.
_NEVER = 1000


def probe_step(
    plan: StepPlan, compute: str, entry: str = "step", *, samples: int = SAMPLES, projections: int = PROJECTIONS
) -> Probe:
    """The probe of one program of a step: two consecutive calls of ``step`` and ``micro``, one of the others.

    Args:
        plan: from :func:`optgen.train.settings.plan_step`.
        compute: the arithmetic, ``f32`` or ``f64``.
        entry: the program: ``step``, ``micro``, ``evaluate`` or ``init``.
        samples: how many elements of each result are looked at.
        projections: how many sums with random signs are made of each result.

    Raises:
        KeyError: if the plan has no such program.
    """
    parts = plan.parts(compute)
    found = {e.name: e for e in plan.entries(parts)}[entry]
    return make_probe(step_recipe(plan, compute, parts, found), samples, projections)[0]


def step_recipes(plan: StepPlan, traced: Mapping[str, tuple[Mapping[str, Part], Sequence[EntryInfo]]]) -> list[Recipe]:
    """The recipes of all programs, for each arithmetic.

    Args:
        plan: of the step.
        traced: by the arithmetic, its parts and programs.
    """
    return [
        step_recipe(plan, compute, parts, entry) for compute, (parts, entries) in traced.items() for entry in entries
    ]


def step_recipe(plan: StepPlan, compute: str, parts: Mapping[str, Part], entry: EntryInfo) -> Recipe:
    """What :func:`optgen.probes.build.make_probe` needs of one program of a step."""
    from optgen.train.plan import leaf_of

    arguments = {i: leaf_of(plan.arguments[i], compute) for i in entry.takes}
    wanted = [a for a in plan.arguments if a.role in ("param", "frozen", "state", "count", "scalar")]
    if entry.name in ("step", "micro"):  # state may be begun from params that the program itself does not read
        arguments |= {i: leaf_of(a, compute) for i, a in enumerate(plan.arguments) if a.role in ("param", "frozen")}
    fills = {i: _fill(plan, i) for i in arguments}
    chain = [parts[key] for key in _PARTS[entry.name]]

    def begin(known: Mapping[str, Any], hypers: Mapping[str, float], noise: Noise) -> dict[str, Any]:
        return first_values(plan, parts.get("initial"), known, hypers, noise)

    def run(known: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
        return run_parts(chain, known, noise)

    def numbers(hypers: Mapping[str, float]) -> dict[str, float]:
        return {a.name: part(hypers[a.hyper.hyper], a.hyper.part) for a in plan.arguments if a.hyper is not None}

    calls = 2 if entry.name in ("step", "micro") else 1
    return Recipe(
        entry=entry.name,
        compute=compute,
        arguments=arguments,
        fills=fills,
        kept=frozenset(a.name for a in wanted),
        hypers=tuple(_hypers(plan, entry.name, call) for call in range(calls)),
        numbers=numbers,
        begin=begin,
        run=run,
        results=entry.results,
        work=sum(work_of(each.jaxpr.jaxpr) for each in chain),
    )


def _fill(plan: StepPlan, index: int) -> Fill:
    role = plan.arguments[index].role
    if role == "hyper":
        return Fill("number")
    return Fill("initial") if role in ("state", "count", "scalar") else plan.fills[index]


def _hypers(plan: StepPlan, entry: str, call: int) -> dict[str, float]:
    """Hyperparameters of a call: the defaults, moved a little at the second."""
    found = {h.name: moved(h, call) for h in plan.update.hypers}
    if plan.update.every:
        found[plan.update.every] = 1 if entry == "step" else _NEVER
    return found


def moved(hyper: Hyper, call: int) -> float:
    """A number for a hyperparameter, another at each call, so that no constant can stand in for it."""
    if hyper.kind == "step":
        return 2 if hyper.default is None else hyper.default
    if hyper.kind == "seed":
        return 20261101 + 65537 * call
    first = {"lr": 0.05, "momentum": 0.9}.get(hyper.name, 0.1) if hyper.default is None else hyper.default
    if not call:
        return first
    return first * 0.99 if hyper.kind == "decay" else first * 0.75 if first else 0.01


def run_parts(chain: Sequence[Part], arguments: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    """The results of parts that are called one after the other, by name."""
    known = dict(arguments)
    made: dict[str, Any] = {}
    for each in chain:
        # A program does not take the numbers that its parts do nothing with.
        given = [known[leaf.path] if leaf.path in known else np.zeros(leaf.shape) for leaf in each.inputs]
        found = interpret(each.jaxpr, given, noise)
        made.update(zip((leaf.path for leaf in each.outputs), found, strict=True))
        known.update(made)
    return made


def first_values(
    plan: StepPlan, initial: Part | None, known: Mapping[str, Any], hypers: Mapping[str, float], noise: Noise
) -> dict[str, Any]:
    """The state before the first step, as :func:`optgen.runtime.step_state.first_state` makes it."""
    declared = {h.name: h for h in plan.update.hypers}
    groups = Groups(plan.groups, lambda name: declared.get(name, Hyper(name, signed=True)), {})
    computed = {} if initial is None else run_parts([initial], known, noise)
    found: dict[str, Any] = {}
    number = -1
    for argument in plan.arguments:
        if argument.role == "count":
            found[argument.name] = np.zeros((), np.int32)
        elif argument.role == "scalar":
            found[argument.name] = np.asarray(plan.update.scalars[argument.path], np.float64)
        elif argument.role == "state":
            number += 1
            found[argument.name] = _first(plan, argument, number, known, computed, groups, hypers)
    return found


def _first(
    plan: StepPlan,
    argument: StepArgument,
    number: int,
    known: Mapping[str, Any],
    computed: Mapping[str, Any],
    groups: Groups,
    hypers: Mapping[str, float],
) -> np.ndarray:
    initial = argument.initial
    assert initial is not None
    leaf = LeafInfo(argument.name, argument.shape, argument.dtype)
    if initial.kind == "computed":
        return np.asarray(computed[leaf.path])
    if initial.kind == "copy":
        return rounded(np.asarray(known[f"params/{initial.path}".rstrip("/")]), leaf.dtype)
    if initial.kind == "stored":
        return rounded(np.asarray(plan.update.stored[str(number)]).reshape(leaf.shape), leaf.dtype)
    value = initial.number
    if initial.kind == "hyper":
        own = groups.of(argument.path.partition("/")[2]).numbers
        value = own.get(initial.path, hypers.get(initial.path, 0.0))
    return np.broadcast_to(rounded(np.array(float(value)), leaf.dtype), leaf.shape)
