"""Writing a plan for callers without a runtime: one function that updates one leaf of any length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optgen.dsl.variant import KernelSpec
from optgen.errors import LoweringError
from optgen.lower.graph import Graph, Node, Value
from optgen.lower.ops import OPS, REDUCTIONS, constant, widen
from optgen.lower.plan import Pass, Plan
from optgen.lower.style import module_name, operands_in_memory, render, write_nodes


def emit_leaf(spec: KernelSpec, graph: Graph, plan: Plan, *, name: str = "", halves: bool = False) -> str:
    """The module that updates one leaf for each call.

    Its one function takes a view of one dimension for each operand, all of the same length, and the scalars; it returns
    the views of what it updated, which are the same memory, and scalar state.

    Args:
        spec: rule, structure, dtypes.
        graph: the rule without shapes.
        plan: the graph, arranged.
        name: the module's and function's; every symbol of the compiled library begins with it.
        halves: whether f16 is converted by integer arithmetic.

    Returns:
        The module's text.

    Raises:
        LoweringError: for a rule that reduces the whole tree, or rounds at random: a call sees one leaf.
    """
    if plan.trees:
        raise LoweringError(
            f"rule '{spec.variant.rule.name}' reduces the whole tree (a global norm, a check for non-finite grads), "
            "and a function for one leaf sees no other: compile the whole training step instead"
        )
    if any(o.coded for o in spec.operands):
        raise LoweringError("8-bit state and rounding at random need the place of a leaf in the tree, which a function "
                            "for one leaf does not know: use f32 or bf16 state, rounded to nearest")  # fmt: skip
    return _Leaf(spec, graph, plan, halves).render(name or module_name(spec))


class _Leaf:
    def __init__(self, spec: KernelSpec, graph: Graph, plan: Plan, halves: bool) -> None:
        self.spec, self.plan, self.halves = spec, plan, halves
        self.operands = operands = operands_in_memory(spec)
        self.tensors = dict(zip(graph.inputs[: len(operands)], operands, strict=True))
        names = (f"%h_{s.name}" for s in spec.scalars)
        self.scalars = dict(zip(graph.inputs[len(operands) :], names, strict=True))
        self.reduced: dict[Value, tuple[str, str]] = {}  # value -> its rank-0 tensor and that one's element type

    def render(self, name: str) -> str:
        update, spec = self.plan.update, self.spec
        reductions = []
        for index, each in enumerate(self.plan.reductions):
            reductions.append(self.reduction(index, each.work, each.nodes))
            for position, node in enumerate(each.nodes):
                result = f"%red{index}" if len(each.nodes) == 1 else f"%red{index}#{position}"
                self.reduced[node.result] = (result, self.accumulator(node))
        results = [i for i, o in enumerate(self.operands) if o.role != "input"]
        inner = self.namer(update, "%k")
        entry: list[str] = []
        for value in update.reductions:
            entry += widen(f"%r{value.index}", self.reduced[value][1], inner(value), value.dtype)
        # Behind reductions the coefficients pass a barrier, and are called otherwise from there on.
        outer: Callable[[Value], str] = (lambda v: f"%c{v.index}") if reductions else self.host
        return render(
            "leaf.mlir.j2",
            name=name,
            operands=self.operands,
            results=results,
            reads=[
                i
                for v, i in zip(self.tensors, range(len(self.operands)), strict=True)
                if v in update.leaves and i not in results
            ],
            scalars=list(self.scalars.values()),
            compute=spec.dtypes.compute,
            prologue=write_nodes(self.plan.prologue, self.host),
            coefficients=[(self.host(v), f"%c{v.index}", v.dtype) for v in self.plan.coefficients],
            captures=[(outer(v), f"%k{v.index}", v.dtype) for v in update.captures],
            reductions=reductions,
            extracted=[(*self.reduced[v], f"%r{v.index}") for v in update.reductions],
            entry=entry + write_nodes(update.entry, inner, "%count", halves=self.halves),
            body=write_nodes(update.body, inner, "%count", halves=self.halves),
            outputs=[inner(v) for v in update.results],
            returned=[self.host(v) for v in self.plan.returned],
        )

    def host(self, value: Value) -> str:
        """The name of a scalar in the prologue."""
        return self.scalars.get(value, f"%s{value.index}")

    def namer(self, work: Pass, capture: str) -> Callable[[Value], str]:
        """Names inside a pass."""

        def name(value: Value) -> str:
            if value in self.tensors:
                return f"%e_{self.tensors[value].name}"
            return f"{capture if value in work.captures else '%v'}{value.index}"

        return name

    def accumulator(self, node: Node) -> str:
        """f64 for sums, whatever the processor: in f32 those of large leaves are wrong in the third digit."""
        return node.result.dtype if REDUCTIONS[node.op].exact else "f64"

    def reduction(self, index: int, work: Pass, nodes: tuple[Node, ...]) -> dict[str, Any]:
        name = self.namer(work, "%c")
        lines: list[str] = []
        for value in work.reductions:
            lines += widen(f"%d{value.index}", self.reduced[value][1], name(value), value.dtype)
        lines += write_nodes((*work.entry, *work.body), name, "%n", halves=self.halves)
        results, outputs = [], []
        for position, (node, value) in enumerate(zip(nodes, work.results, strict=True)):
            reduction, dtype, source = REDUCTIONS[node.op], self.accumulator(node), name(value)
            if dtype != value.dtype:
                lines += OPS["convert"].write(f"%w{position}", [source], value.dtype, dtype)
                source = f"%w{position}"
            lines.append(f"%o{position} = {reduction.combine} {source}, %a{position} : {dtype}")
            results.append((constant(f"%neutral{index}_{position}", reduction.neutral, dtype), dtype))
            outputs.append(f"%o{position}")
        return {
            "leaves": [(f"%{self.tensors[v].name}_t", name(v), self.tensors[v].dtype) for v in work.leaves],
            "earlier": [(self.reduced[v][0], f"%d{v.index}", self.reduced[v][1]) for v in work.reductions],
            "results": results,
            "lines": lines,
            "outputs": outputs,
        }
