"""From a kernel spec to MLIR that iree-compile takes, and what is known about it on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from optgen.dsl.faults import UntraceableError
from optgen.dsl.ops import TREE_PREFIX
from optgen.dsl.trace import trace
from optgen.dsl.variant import KernelSpec
from optgen.errors import LoweringError
from optgen.lower.emit import emit_in_place, emit_out_of_place
from optgen.lower.expand import expand
from optgen.lower.graph import CrossElementError as CrossElementError
from optgen.lower.graph import Graph as Graph
from optgen.lower.graph import graph_of as graph_of
from optgen.lower.plain import emit_plain
from optgen.lower.plan import Plan as Plan
from optgen.lower.plan import plan_of as plan_of
from optgen.lower.repair import repair
from optgen.lower.style import Style as Style
from optgen.lower.style import render as render

#: The shapes that a rule is traced on. Of different rank, so that nothing but an elementwise rule gives the same
#: graph on both, and of different and unusual size, so that a constant equal to it is that size and no accident.
PLACEHOLDERS: tuple[tuple[int, ...], tuple[int, ...]] = ((7,), (2, 3, 5))


@dataclass(frozen=True)
class Kernel:
    """A lowered kernel.

    Attributes:
        spec: rule, structure, dtypes.
        stablehlo: the rule as JAX traced it, on ``shape`` or on the first placeholder.
        in_place: whether the update writes into the memory that it reads.
        reason: why not in place; empty where it is.
        shape: the one leaf shape that it is for; None for any.
        graph: the rule without shapes; None where it relates elements to one another.
        plan: the graph, arranged; None likewise.
    """

    spec: KernelSpec
    stablehlo: str
    in_place: bool
    reason: str = ""
    shape: tuple[int, ...] | None = None
    graph: Graph | None = None
    plan: Plan | None = None

    def abi(self, style: Style) -> str:
        """How a module of that style is called: ``stages`` with a table of rows, else ``list`` with lists of leaves, or
        ``leaves`` where it must know more of them than their memory."""
        if self.plan is None:
            return "list"
        if style.vector is not None:
            return "stages"
        return "leaves" if self.plan.leafwise or self.spec.random else "list"

    def mlir(self, style: Style) -> str:
        """The module as iree-compile takes it, for one kind of device."""
        if self.graph is None or self.plan is None:
            assert self.shape is not None
            return emit_out_of_place(self.spec, self.stablehlo, self.shape, style)
        return emit_in_place(self.spec, *self.expanded(pairs=style.pairs), style)

    def plain(self, style: Style) -> str:
        """The module for callers without Python: one leaf as plain tensors. See :mod:`optgen.lower.plain`.

        Raises:
            LoweringError: if the rule does not run in place on one leaf alone.
        """
        if self.graph is None or self.plan is None:
            raise LoweringError(f"a plain module runs in place, which this rule cannot: {self.reason}")
        return emit_plain(self.spec, *self.expanded(pairs=style.pairs), style)

    def expanded(self, *, pairs: bool = False) -> tuple[Graph, Plan]:
        """Graph and plan with the functions written out that kernels lack; with ``pairs``, of f32, they have all."""
        assert self.graph is not None
        assert self.plan is not None
        if pairs:
            return self.graph, self.plan
        graph = expand(self.graph)
        return (self.graph, self.plan) if graph is self.graph else (graph, plan_of(graph, self.spec.returned))


def lower(spec: KernelSpec, shapes: Sequence[tuple[int, ...]] | None = None) -> tuple[Kernel, ...]:
    """Lowers a kernel: in place for leaves of any shape where that is provably safe, else out of place per shape.

    Args:
        spec: rule, structure and dtypes.
        shapes: the leaf shapes that it is for; needed only for a rule that cannot run in place.

    Returns:
        One kernel for any shape, or one out-of-place kernel for each different shape.

    Raises:
        LoweringError: for a rule that cannot run in place where ``shapes`` is None.
        RuleError: for a rule that does not fit its declaration.
    """
    try:
        if spec.shaped:
            raise CrossElementError(f"has state '{spec.shaped[0]}' of another shape than its param's")
        first, second = (trace(spec, shape, locations=True) for shape in PLACEHOLDERS)
        graph = graph_of(first, PLACEHOLDERS[0], (second, PLACEHOLDERS[1]))
    except (CrossElementError, UntraceableError) as error:
        # A rule for matrices alone does not even trace on a vector. If it traces on nothing, shapes are not why.
        if isinstance(error, UntraceableError) and shapes is None and not _traces_on_some_shape(spec):
            raise
        reason = str(error).splitlines()[0].removeprefix(f"rule '{spec.variant.rule.name}' ")
        if spec.returned:
            raise LoweringError(
                f"rule '{spec.variant.rule.name}' has scalar state and must run in place (it cannot: {reason})"
            ) from error
        if shapes is None:
            raise LoweringError(
                f"rule '{spec.variant.rule.name}' cannot run in place on leaves of any shape: {reason}. "
                "Give the leaves' shapes (like=params), to compile it out of place for those"
            ) from error
        if any(o.coded for o in spec.operands):
            raise LoweringError(
                f"rule '{spec.variant.rule.name}' runs out of place, without 8-bit state and rounding at random"
            ) from error
        # Exact arithmetic is a promise of elementwise kernels; a matmul in f64 would not even compile for Vulkan.
        spec = spec.variant.kernel(dataclasses.replace(spec.dtypes, compute=spec.dtypes.state))
        kernels = []
        for shape in dict.fromkeys(tuple(s) for s in shapes):
            text = repair(trace(spec, shape))
            if TREE_PREFIX in text:
                raise LoweringError(
                    f"rule '{spec.variant.rule.name}' reduces the whole tree and must run in place (it cannot: "
                    f"{reason}): out of place, each leaf would be reduced for itself"
                ) from error
            kernels.append(Kernel(spec, text, False, reason, shape))
        return tuple(kernels)
    return (Kernel(spec, trace(spec, PLACEHOLDERS[0]), True, graph=graph, plan=plan_of(graph, spec.returned)),)


def _traces_on_some_shape(spec: KernelSpec) -> bool:
    for shape in (*PLACEHOLDERS, (4, 4), (4, 5), ()):
        try:
            trace(spec, shape)
        except UntraceableError:
            continue
        return True
    return False
