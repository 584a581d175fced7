"""Writing a plan as MLIR: the skeleton comes from ``templates/``, the operations from the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from optgen import resources
from optgen.dsl.variant import KernelSpec
from optgen.dtypes import SIZES
from optgen.errors import LoweringError
from optgen.lower.graph import Graph, Node, Value
from optgen.lower.ops import OPS, REDUCTIONS, constant
from optgen.lower.plan import Pass, Plan


@dataclass(frozen=True)
class Style:
    """What differs between kernels for different kinds of device.

    Attributes:
        accumulator: element type of inexact reductions; f64 where the device has it, since f32 sums of 16M
            elements are off by 3e-2.
        vector: elements that the CPU's loop handles at once, or None for the compiler's choice.
    """

    accumulator: str = "f64"
    vector: int | None = None


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


def write_nodes(nodes: Iterable[Node], name: Callable[[Value], str], size: str | None = None) -> list[str]:
    """The MLIR of ``nodes``, each value under ``name(value)``.

    Args:
        nodes: in order.
        name: gives the SSA name of a value.
        size: SSA name of the number of elements, an index; needed where the nodes use it.

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
        else:
            dtype = node.operands[0].dtype
            extra = str(node.attribute) if node.op == "compare" else node.result.dtype
            try:
                lines += OPS[node.op].write(result, operands, dtype, extra)
            except ValueError as error:
                raise LoweringError(f"'{node.op}' cannot be lowered: {error}") from None
    return lines


def emit_in_place(spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> str:
    """The module that updates lists of leaves in place: one tied dispatch for each leaf.

    Its one entry point, ``apply``, takes a list of buffer views for each operand and then the scalars, and returns the
    number of leaves.
    """
    operands = spec.operands
    tensors = dict(zip(graph.inputs[: len(operands)], operands, strict=True))
    names = {value: f"%{o.name}_t" for value, o in tensors.items()}
    scalars = dict(zip(graph.inputs[len(operands) :], spec.scalars, strict=True))

    def host(value: Value) -> str:
        return f"%{scalars[value].name}" if value in scalars else f"%s{value.index}"

    def accumulator(node: Node) -> str:
        return node.result.dtype if REDUCTIONS[node.op].exact else style.accumulator

    reductions = []
    reduced: dict[Value, tuple[str, str]] = {}  # value -> (SSA name of its rank-0 tensor, element type)
    for index, each in enumerate(plan.reductions):
        reductions.append(_reduction_context(index, each.work, each.nodes, names, tensors, reduced, host, accumulator))
        for position, node in enumerate(each.nodes):
            result = f"%red{index}" if len(each.nodes) == 1 else f"%red{index}#{position}"
            reduced[node.result] = (result, accumulator(node))
    update = plan.update
    results = [_index(operands, o.name) for o in spec.results]
    reads = [i for i, value in enumerate(graph.inputs[: len(operands)]) if value in update.leaves]
    inside = {v: f"%e_{tensors[v].name}" for v in tensors}

    def body(value: Value) -> str:
        if value in tensors:
            return inside[value]
        return f"%k{value.index}" if value in update.captures else f"%v{value.index}"

    extracted = []
    for value in update.reductions:
        source, dtype = reduced[value]
        extracted.append(_Extracted(source, dtype, f"%v{value.index}", value.dtype, f"d{value.index}"))
    return render(
        "tied_list.mlir.j2",
        name=module_name(spec),
        operands=operands,
        results=results,
        reads=[i for i in reads if i not in results],
        scalars=spec.scalars,
        compute=spec.dtypes.compute,
        prologue=write_nodes(plan.prologue, host),
        coefficients=[(host(v), f"%c{v.index}", v.dtype) for v in plan.coefficients],
        captures=[(f"%c{v.index}", f"%k{v.index}", v.dtype) for v in update.captures],
        reductions=reductions,
        extracted=extracted,
        entry=write_nodes(update.entry, body, "%count"),
        body=write_nodes(update.body, body),
        outputs=[body(v) for v in update.results],
        vector=style.vector,
    )


@dataclass(frozen=True)
class _Extracted:
    """A reduction's result on its way into the update kernel."""

    source: str
    accumulator: str
    value: str
    dtype: str
    argument: str


def _reduction_context(
    index: int,
    work: Pass,
    nodes: tuple[Node, ...],
    names: Mapping[Value, str],
    tensors: Mapping[Value, Any],
    reduced: Mapping[Value, tuple[str, str]],
    host: Callable[[Value], str],
    accumulator: Callable[[Node], str],
) -> dict[str, Any]:
    def inner(value: Value) -> str:
        if value in tensors:
            return f"%e_{tensors[value].name}"
        return f"%c{value.index}" if value in work.captures else f"%v{value.index}"

    before: list[str] = []
    for value in work.reductions:
        dtype = reduced[value][1]
        before += (
            OPS["convert"].write(inner(value), [f"%d{value.index}"], dtype, value.dtype)
            if dtype != value.dtype
            else [f"{inner(value)} = arith.select %always, %d{value.index}, %d{value.index} : {dtype}"]
        )
    lines = before + write_nodes(work.entry, inner, "%n") + write_nodes(work.body, inner)
    results, outputs = [], []
    for position, (node, value) in enumerate(zip(nodes, work.results, strict=True)):
        reduction, dtype = REDUCTIONS[node.op], accumulator(node)
        source = inner(value)
        if dtype != value.dtype:
            lines += OPS["convert"].write(f"%w{position}", [source], value.dtype, dtype)
            source = f"%w{position}"
        lines.append(f"%o{position} = {reduction.combine} {source}, %a{position} : {dtype}")
        results.append((constant(f"%neutral{index}_{position}", reduction.neutral, dtype), dtype))
        outputs.append(f"%o{position}")
    return {
        "leaves": [(names[v], f"%e_{tensors[v].name}", tensors[v].dtype) for v in work.leaves],
        "earlier": [(reduced[v][0], f"%d{v.index}", reduced[v][1]) for v in work.reductions],
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
        operands=spec.operands,
        results=[_index(spec.operands, o.name) for o in spec.results],
        scalars=spec.scalars,
        compute=spec.dtypes.compute,
        prologue=[],
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


def _index(operands: tuple[Any, ...], name: str) -> int:
    return next(i for i, o in enumerate(operands) if o.name == name)
