"""Writing a plan as MLIR: the skeleton comes from ``templates/``, the operations from the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from optgen import resources
from optgen.dsl.variant import KernelSpec, Operand
from optgen.dtypes import SIZES
from optgen.errors import LoweringError
from optgen.lower.graph import Graph, Node, Value
from optgen.lower.halves import convert_half
from optgen.lower.ops import OPS, REDUCTIONS, constant
from optgen.lower.pairs import OPAQUE_ZERO, write_pair_nodes
from optgen.lower.plan import Pass, Plan


@dataclass(frozen=True)
class Style:
    """What differs between kernels for different kinds of device.

    Attributes:
        accumulator: element type of inexact reductions; f64 where the device has it, since f32 sums of 16M
            elements are off by 3e-2.
        pairs: whether f64 inside kernels is made of pairs of f32, because the device lacks it.
        halves: whether f16 is converted by integer arithmetic, because the device lacks it.
        vector: for CPUs, the elements that the loop handles at once. Such kernels take a table of rows and update a
            whole tree in one dispatch; None gives kernels that take lists of leaves.
    """

    accumulator: str = "f64"
    pairs: bool = False
    halves: bool = False
    vector: int | None = None

    def abi(self, plan: Plan) -> str:
        """How a module for ``plan`` is called: ``rows``, or ``list`` where that is wanted or the rule needs the size
        of each leaf."""
        if self.vector is None or plan.reductions or any(n.op == "size" for n in plan.update.entry):
            return "list"
        return "rows"


@cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.templates()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **context: Any) -> str:
    """One of the skeletons in ``templates/``, filled in."""
    text: str = _environment().get_template(template).render(**context)
    return text


def write_nodes(
    nodes: Iterable[Node], name: Callable[[Value], str], size: str | None = None, *, halves: bool = False
) -> list[str]:
    """The MLIR of ``nodes``, each value under ``name(value)``.

    Args:
        nodes: in order.
        name: gives the SSA name of a value.
        size: SSA name of the number of elements, an index; needed where the nodes use it.
        halves: whether f16 is converted by integer arithmetic.

    Raises:
        LoweringError: for an operation on a type that it does not exist for.
    """
    lines: list[str] = []
    for node in nodes:
        result, operands = name(node.result), [name(v) for v in node.operands]
        if node.op == "constant":
            assert isinstance(node.attribute, float)
            lines.append(constant(result, node.attribute, node.result.dtype))
        elif node.op == "size":
            lines.append(f"{result}_i = arith.index_cast {size} : index to i64")
            lines.append(f"{result} = arith.sitofp {result}_i : i64 to {node.result.dtype}")
        elif "f16" in (node.result.dtype, node.operands[0].dtype):
            ends = node.operands[0].dtype, node.result.dtype
            lines += convert_half(node.op, result, operands[0], *ends, native=not halves)
        else:
            dtype = node.operands[0].dtype
            extra = str(node.attribute) if node.op == "compare" else node.result.dtype
            try:
                lines += OPS[node.op].write(result, operands, dtype, extra)
            except ValueError as error:
                raise LoweringError(f"'{node.op}' cannot be lowered: {error}") from None
    return lines


def emit_in_place(spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> str:
    """The module that updates any tree in place: one tied dispatch for all leaves, or for each.

    Its one entry point is ``apply``. By rows (CPUs) it takes a view for each operand, the table of rows and the
    scalars, and returns the views of what it updated; else it takes a list of views for each operand and the scalars,
    and returns the number of leaves.
    """
    return _InPlace(spec, graph, plan, style).render()


class _InPlace:
    """Names and types of everything in one in-place module."""

    def __init__(self, spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> None:
        self.spec, self.plan, self.style = spec, plan, style
        self.pairs = style.pairs and spec.dtypes.compute == "f64"
        # What is in memory, as the kernel sees it.
        self.operands = operands = tuple(
            dataclasses.replace(o, dtype="i16" if o.dtype == "f16" else o.dtype) for o in _named(spec.operands)
        )
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
        by_rows = self.style.abi(self.plan) == "rows"
        return render(
            "tied_rows.mlir.j2" if by_rows else "tied_list.mlir.j2",
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
            captures=self.parts(update.captures, self.host if by_rows else lambda v: f"%c{v.index}", "%k"),
            reductions=reductions,
            extracted=[(*self.reduced[v], f"%r{v.index}") for v in update.reductions],
            entry=entry + self.write(update.entry, name, "%count", "%q"),
            body=self.write(update.body, name, "%count", "%p"),
            outputs=[name(v) for v in update.results],
            returned=[self.host(v) for v in self.plan.returned],
            vector=self.style.vector,
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


def emit_out_of_place(spec: KernelSpec, stablehlo: str, shape: tuple[int, ...]) -> str:
    """The module that computes new leaves of one static shape with the traced StableHLO itself.

    Same entry point as the in-place module; the lists come back holding new buffers.
    """
    lines = stablehlo.strip().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("module"))
    inner = "\n".join(lines[start + 1 : -1]).replace("func.func public @main", "func.func private @main")
    return render(
        "untied_list.mlir.j2",
        name=module_name(spec),
        operands=_named(spec.operands),
        results=[_index(spec.operands, o.name) for o in spec.results],
        scalars=spec.scalars,
        compute=spec.dtypes.compute,
        prologue=[],
        returned=[],
        pairs=[],
        opaque=False,
        coefficients=[(f"%{s.name}", f"%{s.name}", spec.dtypes.compute) for s in spec.scalars],
        dims="".join(f"{extent}x" for extent in shape),
        functions=inner,
    )


def module_name(spec: KernelSpec) -> str:
    """An MLIR symbol for the module: ``adamw_f32``. It shows in traces and profiles."""
    text = f"{spec.variant.name}_{spec.dtypes.name}"
    return "".join(c if c.isalnum() else "_" for c in text)


def alignment(spec: KernelSpec) -> int:
    """The alignment in bytes that the kernel's operands have at least: that of their smallest element."""
    return min(SIZES[o.dtype] for o in spec.operands)


def _named(operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
    """The operands under names that no template uses, whatever the rule's author has called them."""
    return tuple(dataclasses.replace(o, name=f"x_{o.name}") for o in operands)


def _index(operands: tuple[Any, ...], name: str) -> int:
    return next(i for i, o in enumerate(operands) if o.name == name)
