"""The self-test of a step without a runtime: its probe, and what each argument holds, in any language."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from optgen.dtypes import to_float64
from optgen.hyper import Part, part
from optgen.lower import rounded
from optgen.native.selftest import SelfTest, Source, samples_of, source_of
from optgen.probes.generate import Fill, filled
from optgen.probes.noise import Noise
from optgen.probes.step import first_values, probe_step
from optgen.train.plan import StepPlan, leaf_of

_FLOATS = ("f16", "bf16", "f32", "f64")


def step_selftest(plan: StepPlan, compute: str, entry: str, names: Mapping[str, str]) -> SelfTest:
    """The self-test of one program of a step.

    Args:
        plan: of the step.
        compute: the arithmetic of the update.
        entry: the program.
        names: what the generated code calls arguments and results, by their names in the plan.
    """
    found = next(e for e in plan.entries(plan.parts(compute)) if e.name == entry)
    probe = probe_step(plan, compute, entry, samples=samples_of(2, len(found.results)))
    calls = probe.info.calls
    first = _first_state(plan, compute, probe.info.fills, calls[0].seed, calls[0].hypers)
    sources = {}
    for index in found.takes:
        argument = plan.arguments[index]
        if argument.hyper is not None:
            scalar = argument.hyper
            numbers = tuple(_part(call.hypers[scalar.hyper], scalar.part) for call in calls)
            source = Source(again=True, numbers=numbers)
        elif argument.name in first:
            source = first[argument.name]
        else:
            again = argument.role not in ("param", "frozen")
            source = Source(probe.info.fills[index], index, again)
        sources[names[argument.name]] = source
    return SelfTest(probe, sources, tuple(names[leaf.path] for leaf in probe.info.results))


def _part(value: float, which: Part) -> float:
    """A part of a hyperparameter, with a logarithm that is the same on every processor."""
    return float(rounded.log(value)) if which == "log" and value > 0 else part(value, which)


def _first_state(
    plan: StepPlan, compute: str, fills: Mapping[int, Fill], seed: int, hypers: Mapping[str, float]
) -> dict[str, Source]:
    """What state holds at the first call, by argument."""
    made: dict[str, tuple[Source, str, np.ndarray]] = {}
    for index, argument in enumerate(plan.arguments):
        if argument.role in ("param", "frozen") and index in fills:
            leaf = leaf_of(argument, compute)
            array = filled(fills[index], leaf.shape, leaf.dtype, seed, index)
            wide = to_float64(array, leaf.dtype) if leaf.dtype in _FLOATS else array
            made[argument.name] = Source(fills[index], index), leaf.dtype, wide
    parts = plan.parts(compute)
    values = first_values(plan, parts.get("initial"), {n: a for n, (_, _, a) in made.items()}, hypers, Noise(0))
    found = {}
    for argument in plan.arguments:
        if argument.name in values:
            dtype = leaf_of(argument, compute).dtype
            array = np.asarray(values[argument.name])
            copied = (source for source, other, each in made.values() if other == dtype and np.array_equal(each, array))
            found[argument.name] = next(copied, None) or source_of(array, dtype)
    return found
