"""Writing a plan as MLIR: the skeleton comes from ``templates/``, the operations from the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from optgen.dsl.variant import KernelSpec
from optgen.dtypes import SIZES
from optgen.errors import LoweringError
from optgen.lower.graph import Graph, Node, Value
from optgen.lower.ops import OPS, REDUCTIONS, constant
from optgen.lower.pairs import OPAQUE_ZERO, write_pair_nodes
from optgen.lower.plan import Pass, Plan
from optgen.lower.rows import emit_rows
from optgen.lower.split import with_wide_sums
from optgen.lower.style import Style, module_name, named, operands_in_memory, render, write_nodes


def emit_in_place(spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> str:
    """The module that updates any tree in place: by rows (see :func:`emit_rows`) or by lists of leaves.

    By lists its one entry point is ``apply``: it takes a list of views for each operand and the scalars, and returns
    the number of leaves. There is one tied dispatch for each leaf.
    """
    if style.abi == "stages":
        return emit_rows(spec, graph, plan, style)
    if any(o.coded for o in spec.operands):
        raise LoweringError("8-bit state and rounding at random are for CPUs: kernels for others have no table of rows")
    return _InList(spec, graph, plan, style).render()


class _InList:
    """Names and types of everything in one module that loops over leaves."""

    def __init__(self, spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> None:
        self.spec, self.plan, self.style = spec, plan, style
        self.pairs = style.pairs and spec.dtypes.compute == "f64"
        # What is in memory, as the kernel sees it.
        self.operands = operands = operands_in_memory(spec)
        self.tensors = dict(zip(graph.inputs[: len(operands)], operands, strict=True))
        self.scalars = dict(zip(graph.inputs[len(operands) :], spec.scalars, strict=True))
        self.reduced: dict[Value, tuple[str, str]] = {}  # value -> its rank-0 tensor and that one's element type

    def render(self) -> str:
        """The module's text."""
        spec, update, operands = self.spec, self.plan.update, self.operands
        reductions = []
        for index, each in enumerate(self.plan.reductions):
            reductions.append(self.reduction(index, each.work, each.nodes))
            for position, node in enumerate(each.nodes):
                result = f"%red{index}" if len(each.nodes) == 1 else f"%red{index}#{position}"
                self.reduced[node.result] = (result, self.accumulator(node))
        results = [_index(spec.operands, o.name) for o in spec.results]
        name = self.namer(update, "%k")
        entry = []
        for value in update.reductions:
            entry += self.widen(f"%r{value.index}", self.reduced[value][1], name(value), value.dtype)
        return render(
            "tied_list.mlir.j2",
            name=module_name(spec),
            operands=operands,
            results=results,
            reads=[
                i
                for v, i in zip(self.tensors, range(len(operands)), strict=True)
                if v in update.leaves and i not in results
            ],
            scalars=spec.scalars,
            compute=spec.dtypes.compute,
            prologue=write_nodes(self.plan.prologue, self.host),
            pairs=[(self.host(v), v.dtype) for v in self.plan.coefficients if self.is_pair(v)] if self.pairs else [],
            opaque=self.pairs,
            coefficients=self.parts(self.plan.coefficients, self.host, "%c"),
            captures=self.parts(update.captures, lambda v: f"%c{v.index}", "%k"),
            reductions=reductions,
            extracted=[(*self.reduced[v], f"%r{v.index}") for v in update.reductions],
            entry=entry + self.write(update.entry, name, "%count", "%q"),
            body=self.write(update.body, name, "%count", "%p"),
            outputs=[name(v) for v in update.results],
            returned=[self.host(v) for v in self.plan.returned],
        )

    def host(self, value: Value) -> str:
        """The name of a scalar in the prologue."""
        return f"%{self.scalars[value].name}" if value in self.scalars else f"%s{value.index}"

    def is_pair(self, value: Value) -> bool:
        """Whether kernels see ``value`` as a pair of f32."""
        return self.pairs and value.dtype == "f64"

    def parts(self, values: Iterable[Value], outer: Callable[[Value], str], inner: str) -> list[tuple[str, str, str]]:
        """Scalars that are handed on: name outside, name inside, type."""
        handed = []
        for value in values:
            ends = [("_h", "f32"), ("_l", "f32")] if self.is_pair(value) else [("", value.dtype)]
            handed += [(f"{outer(value)}{end}", f"{inner}{value.index}{end}", dtype) for end, dtype in ends]
        if self.pairs:
            handed.append((OPAQUE_ZERO, OPAQUE_ZERO, "i32"))
        return handed

    def namer(self, work: Pass, capture: str) -> Callable[[Value], str]:
        """Names inside a pass."""

        def name(value: Value) -> str:
            if value in self.tensors:
                return f"%e_{self.tensors[value].name}"
            return f"{capture if value in work.captures else '%v'}{value.index}"

        return name

    def write(self, nodes: Iterable[Node], name: Callable[[Value], str], size: str, prefix: str) -> list[str]:
        """Nodes inside a kernel."""
        if not self.pairs:
            return write_nodes(nodes, name, size, halves=self.style.halves)
        nodes = list(nodes)
        if any(n.op == "size" for n in nodes):
            lines = []
            for node in nodes:
                if node.op == "size":
                    single = Node("size", Value(node.result.index, "scalar", "f32"), ())
                    lines += write_nodes([single], lambda v: f"%size{v.index}", size)
                    lines += self.widen(f"%size{node.result.index}", "f32", name(node.result), "f64")
            return lines + self.write([n for n in nodes if n.op != "size"], name, size, prefix)
        return write_pair_nodes(nodes, name, prefix, halves=self.style.halves)

    def accumulator(self, node: Node) -> str:
        """The element type that a reduction is accumulated in."""
        if REDUCTIONS[node.op].exact:
            return "f32" if self.is_pair(node.result) else node.result.dtype
        return self.style.accumulator

    def widen(self, source: str, have: str, result: str, want: str) -> list[str]:
        """A number of type ``have`` as the graph's value ``result`` of type ``want``."""
        if want == "f64" and self.pairs:
            zero = constant(f"{result}_l", 0.0, "f32")
            keep = constant(f"{result}_z", -0.0, "f32")
            return [zero, keep, f"{result}_h = arith.addf {source}, {result}_z : f32"]
        if have == want:
            return [constant(f"{result}_z", -0.0, have), f"{result} = arith.addf {source}, {result}_z : {have}"]
        return OPS["convert"].write(result, [source], have, want)

    def reduction(self, index: int, work: Pass, nodes: tuple[Node, ...]) -> dict[str, Any]:
        """What the template needs to know of one reduction pass."""
        name = self.namer(work, "%c")
        lines: list[str] = []
        for value in work.reductions:
            lines += self.widen(f"%d{value.index}", self.reduced[value][1], name(value), value.dtype)
        lines += self.write(work.entry, name, "%n", "%q") + self.write(work.body, name, "%n", "%p")
        results, outputs = [], []
        for position, (node, value) in enumerate(zip(nodes, work.results, strict=True)):
            reduction, dtype = REDUCTIONS[node.op], self.accumulator(node)
            source, have = (f"{name(value)}_h", "f32") if self.is_pair(value) else (name(value), value.dtype)
            if dtype != have:
                lines += OPS["convert"].write(f"%w{position}", [source], have, dtype)
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


def emit_out_of_place(spec: KernelSpec, stablehlo: str, shape: tuple[int, ...], style: Style) -> str:
    """The module that computes new leaves of one static shape with the traced StableHLO itself.

    Same entry point as the in-place module; the lists come back holding new buffers.
    """
    text = with_wide_sums(stablehlo) if style.accumulator == "f64" else stablehlo
    lines = text.strip().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("module"))
    inner = "\n".join(lines[start + 1 : -1]).replace("func.func public @main", "func.func private @main")
    return render(
        "untied_list.mlir.j2",
        name=module_name(spec),
        operands=named(spec.operands),
        results=[_index(spec.operands, o.name) for o in spec.results],
        scalars=spec.scalars,
        compute=spec.dtypes.compute,
        prologue=[],
        returned=[],
        pairs=[],
        opaque=False,
        coefficients=[(f"%{s.name}", f"%{s.name}", spec.dtypes.compute) for s in spec.scalars],
        dims={o.name: "".join(f"{extent}x" for extent in o.shape_for(shape)) for o in named(spec.operands)},
        functions=inner,
    )


def alignment(spec: KernelSpec) -> int:
    """The alignment in bytes that the kernel's operands have at least: that of their smallest element."""
    return min(SIZES[o.dtype] for o in spec.operands)


def _index(operands: tuple[Any, ...], name: str) -> int:
    return next(i for i, o in enumerate(operands) if o.name == name)
