"""Steps for code generators: one function in MLIR, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from optgen.artifact.manifest import LeafInfo
from optgen.artifact.step import StepArgument
from optgen.compiler.blame import Sources
from optgen.compiler.driver import compile_and_print
from optgen.compiler.searched import program_flags
from optgen.errors import LoweringError
from optgen.hyper import Hyper, Part, part
from optgen.lower.hazard import Hazard, find_hazards
from optgen.train.parts import sources_of
from optgen.train.plan import StepPlan, leaf_of
from optgen.train.settings import plan_step


@dataclass(frozen=True)
class ProgramArgument:
    """An argument of a program.

    Attributes:
        name: ``params/w``, ``state/m/w``, ``state/step``, ``batch/x``, ``rng``, ``lr``, ``beta1/complement``.
        role: ``param``, ``frozen``, ``state``, ``count``, ``scalar``, ``batch``, ``rng``, ``hyper``, ``eval_batch``.
        shape: of the tensor.
        dtype: of its elements.
        result: the position of the result that is its new value; None if it is only read.
        aliased: whether the program writes that result over the argument. Else the caller copies it there.
        number: for a hyperparameter with a default, the number to pass; for ``count``, ``scalar`` and state that begins
            with one number, that number. None where there is no such number.
        hyper: for a hyperparameter, which.
        part: which part of it.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    result: int | None
    aliased: bool
    number: float | None = None
    hyper: Hyper | None = None
    part: Part = "value"


@dataclass(frozen=True)
class StepProgram:
    """One program of a step, as MLIR with one public function.

    Attributes:
        name: of the loss function.
        entry: the public function: ``step``, ``micro``, ``evaluate``.
        mlir: StableHLO, and where asked for ``linalg``; tensors in, tensors out.
        arguments: in order.
        results: in order: ``loss``, ``metrics/...``, ``result/...``, or the name of the argument that they replace.
        compute: the arithmetic of the update.
        plan: what the step was planned as.
        sources: where its functions come from, for :mod:`optgen.compiler.blame`.
    """

    name: str
    entry: str
    mlir: str
    arguments: tuple[ProgramArgument, ...]
    results: tuple[LeafInfo, ...]
    compute: str
    plan: StepPlan = field(repr=False)
    sources: Sources = field(default=(), repr=False, compare=False)

    def hazards(self, flags: Sequence[str], *, movable: bool = False) -> list[Hazard]:
        """Compiles the program with ``flags`` and gives the hazards of its aliasing: empty where it is safe.

        Args:
            flags: for iree-compile.
            movable: True for GPUs; see :func:`optgen.lower.hazard.find_hazards`.
        """
        return find_hazards(compile_and_print(self.mlir, flags).printed, movable=movable)


def lower_step(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    optimizer: Any,
    *,
    entry: str = "step",
    in_place: bool = True,
    apart: Sequence[str] = (),
    fuse: bool = False,
    **settings: Any,
) -> StepProgram:
    """A whole training step as MLIR with one public function, for code generators.

    Args:
        loss_fn, params, batch, optimizer, settings: as for :func:`compile_step`. ``bake=`` makes hyperparameters part
            of the program, so that only those that are left are arguments.
        entry: which program: ``step``; ``micro`` where grads are accumulated; ``evaluate`` where there is an
            ``eval_fn``; ``init`` where an optax state must be computed.
        in_place: whether params and state are overwritten. Whether that is safe depends on the compiler's flags: ask
            :meth:`StepProgram.hazards`.
        apart: names of arguments that are not overwritten, because they had a hazard.
        fuse: whether the new values of each leaf are one ``linalg.generic`` over the memory that they replace: with
            IREE one kernel for each leaf, without scratch memory. Without it the program is StableHLO alone.

    Flags: those of :func:`step_flags` are safe. ``--iree-dispatch-creation-enable-aggressive-fusion`` is not: it
    miscompiles losses, a softmax after another operation among them.

    Raises:
        LoweringError: if there is no such program.
        Others as :func:`compile_step`.

    Example:
        >>> import numpy as np
        >>> def loss(params, batch):
        ...     return ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean()
        >>> batch = {"x": np.ones((4, 3), np.float32), "y": np.ones(4, np.float32)}
        >>> program = lower_step(loss, {"w": np.zeros(3, np.float32)}, batch, "sgd", compute_dtype="f32")
        >>> [(a.name, a.shape, a.result) for a in program.arguments if a.role == "param"]
        [('params/w', (3,), 0)]
    """
    plan = plan_step(loss_fn, params, batch, optimizer, **settings)
    compute = plan.update.compute(plan.asked)
    parts = plan.parts(compute)
    entries = {e.name: e for e in plan.entries(parts)}
    if entry not in entries:
        raise LoweringError(f"the step has no program '{entry}' (it has {', '.join(entries)})")
    chosen = entries[entry]
    out = [i for i, a in enumerate(plan.arguments) if a.name in apart]
    text = plan.text(compute, parts, [chosen], out, in_place=in_place, fuse=fuse, name=f"{plan.name}_{entry}")
    written = set(plan.overwritten(chosen)) - set(out) if in_place else set()
    arguments = tuple(
        ProgramArgument(
            argument.name,
            argument.role,
            argument.shape,
            leaf_of(argument, compute).dtype,
            chosen.gives.index(i) if i in chosen.gives else None,
            i in written,
            _number(plan, argument),
            *_hyper(plan, argument),
        )
        for i, argument in ((i, plan.arguments[i]) for i in chosen.takes)
    )
    return StepProgram(plan.name, entry, text, arguments, chosen.results, compute, plan, sources_of(parts))


def _hyper(plan: StepPlan, argument: StepArgument) -> tuple[Hyper | None, Part]:
    if (scalar := argument.hyper) is None:
        return None, "value"
    return next(h for h in plan.update.hypers if h.name == scalar.hyper), scalar.part


def _number(plan: StepPlan, argument: StepArgument) -> float | None:
    if argument.hyper is not None:
        default = next(h.default for h in plan.update.hypers if h.name == argument.hyper.hyper)
        return None if default is None else part(default, argument.hyper.part)
    if argument.role == "count":
        return 0.0
    if argument.role == "scalar":
        return plan.update.scalars[argument.path]
    if argument.initial is not None and argument.initial.kind == "fill":
        return float(argument.initial.number)
    return None


#: The compiler's flags for a step: what :meth:`StepProgram.hazards` was asked with is safe with these alone.
step_flags = program_flags
