"""The graph of a traced rule: StableHLO with its shapes removed, every value a scalar or a whole leaf.

A rule is traced on a placeholder shape. This module reads that StableHLO and forgets the shape, which is sound only
where every operation is elementwise, a broadcast of a scalar, or a reduction over the whole leaf. Anything that
relates one element to another (transpose, slice, cumulative sum, matmul, iota) raises :class:`CrossElementError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optgen.dsl.ops import TREE_PREFIX
from optgen.errors import LoweringError
from optgen.lower.ops import OPS, REDUCTIONS

ValueKind = Literal["leaf", "scalar"]


class CrossElementError(LoweringError):
    """The rule reads other elements than the one it writes, so the in-place kernel would not be safe."""


@dataclass(frozen=True)
class Value:
    """One value of a graph.

    Attributes:
        index: unique in the graph.
        kind: ``leaf``, one number for each element, or ``scalar``.
        dtype: MLIR element type: f16, bf16, f32, f64, i1, i32...
    """

    index: int
    kind: ValueKind
    dtype: str


@dataclass(frozen=True)
class Node:
    """One operation: ``result = op(*operands)``.

    Attributes:
        op: a StableHLO name without its dialect, ``reduce_add`` and the like for whole-leaf reductions, ``size`` for
            the number of elements, or ``constant``.
        result: what it defines.
        operands: what it reads.
        attribute: a constant's number, a comparison's direction, or ``tree`` for a reduction over all leaves.
    """

    op: str
    result: Value
    operands: tuple[Value, ...]
    attribute: float | str | None = None


@dataclass(frozen=True)
class Graph:
    """A rule for any leaf: inputs, nodes in order, outputs."""

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    def producer(self) -> dict[Value, Node]:
        """From each value that is not an input to the node that defines it."""
        return {node.result: node for node in self.nodes}

    def __str__(self) -> str:
        lines = []
        for node in self.nodes:
            attribute = "" if node.attribute is None else f" {node.attribute}"
            operands = ", ".join(f"%{v.index}" for v in node.operands)
            lines.append(
                f"%{node.result.index}: {node.result.kind} {node.result.dtype} = {node.op}{attribute} {operands}"
            )
        return "\n".join([*lines, "return " + ", ".join(f"%{v.index}" for v in self.outputs)])


def graph_of(text: str, shape: tuple[int, ...], other: tuple[str, tuple[int, ...]] | None = None) -> Graph:
    """Reads StableHLO text that was traced on a leaf of ``shape``.

    Args:
        text: a module whose ``main`` is the kernel.
        shape: of the placeholder leaf.
        other: the same rule traced on another shape, with that shape. Where given, a rule that depends on its leaf's
            shape is found out, and a constant that equals the number of elements in both becomes ``size``.

    Raises:
        CrossElementError: if the graph relates elements to one another, or differs between the two shapes.
        LoweringError: for an operation that this lowering does not know.
    """
    graph = _Reader(shape).read(text)
    if other is None:
        return graph
    second = _Reader(other[1]).read(other[0])
    return _generalise(graph, _count(shape), second, _count(other[1]))


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


def _generalise(graph: Graph, size: int, other: Graph, other_size: int) -> Graph:
    nodes = []
    same = len(graph.nodes) == len(other.nodes) and graph.outputs == other.outputs
    for mine, theirs in zip(graph.nodes, other.nodes, strict=False):
        if mine == theirs:
            nodes.append(mine)
        elif mine.op == theirs.op == "constant" and (mine.attribute, theirs.attribute) == (size, other_size):
            nodes.append(Node("size", mine.result, ()))
        else:
            same = False
    if not same:
        raise CrossElementError("the rule computes something else for leaves of another shape")
    return Graph(graph.inputs, tuple(nodes), graph.outputs)


class _Reader:
    """Walks a module's ``main``, with its calls inlined."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = list(shape)
        self.nodes: list[Node] = []
        self.known: dict[tuple[Any, ...], Value] = {}
        self.counter = 0
        self.over_tree = False  # inside a function of dsl.ops that reduces the whole tree

    def read(self, text: str) -> Graph:
        from iree.compiler import ir

        with ir.Context():
            try:
                module = ir.Module.parse(text)
            except ir.MLIRError as error:
                raise LoweringError("the rule's trace has operations that are not StableHLO's") from error
            self.ir = ir
            self.functions = {ir.StringAttr(f.attributes["sym_name"]).value: f for f in module.body.operations}
            block = self.functions["main"].regions[0].blocks[0]
            inputs = tuple(self.fresh(self.kind_of(a.type), self.dtype_of(a.type)) for a in block.arguments)
            outputs = self.walk(block, inputs)
            return Graph(inputs, tuple(self.nodes), outputs)

    def fresh(self, kind: ValueKind, dtype: str) -> Value:
        self.counter += 1
        return Value(self.counter - 1, kind, dtype)

    def add(self, op: str, kind: ValueKind, dtype: str, operands: tuple[Value, ...], attribute: Any = None) -> Value:
        # The same operation on the same values is one node: XLA and LLVM would find it, the edge's C would not.
        key = (op, kind, dtype, operands, repr(attribute))
        if key not in self.known:
            self.known[key] = self.fresh(kind, dtype)
            self.nodes.append(Node(op, self.known[key], operands, attribute))
        return self.known[key]

    def dtype_of(self, type_: Any) -> str:
        return str(self.ir.RankedTensorType(type_).element_type)

    def kind_of(self, type_: Any) -> ValueKind:
        ranked = self.ir.RankedTensorType(type_)
        if ranked.rank == 0:
            return "scalar"
        if list(ranked.shape) == self.shape:
            return "leaf"
        raise CrossElementError(
            f"a value has shape {tuple(ranked.shape)} where the leaf has {tuple(self.shape)}, so the rule relates "
            "elements of a leaf to one another"
        )

    def walk(self, block: Any, arguments: tuple[Value, ...]) -> tuple[Value, ...]:
        values: dict[Any, Value] = dict(zip(block.arguments, arguments, strict=True))
        for operation in block.operations:
            op = operation.operation
            name = op.name.split(".")[-1]
            if name == "return":
                return tuple(values[v] for v in op.operands)
            operands = [values[v] for v in op.operands]
            try:
                results = self.visit(name, op, operands)
            except LoweringError as error:
                raise type(error)(f"{op.name}{_line(op)}: {error}") from None
            for result, value in zip(op.results, results, strict=True):
                values[result] = value
        raise LoweringError("a function of the traced module does not return")

    def visit(self, name: str, op: Any, operands: list[Value]) -> tuple[Value, ...]:
        if name in ("call", "composite"):
            attribute = op.attributes["callee" if name == "call" else "decomposition"]
            symbol = self.ir.FlatSymbolRefAttr(attribute).value
            before, self.over_tree = self.over_tree, self.over_tree or symbol.startswith(TREE_PREFIX)
            results = self.walk(self.functions[symbol].regions[0].blocks[0], tuple(operands))
            self.over_tree = before
            return results
        if name == "reduce":
            return self.reduce(op, operands)
        kind, dtype = self.kind_of(op.results[0].type), self.dtype_of(op.results[0].type)
        if name in ("broadcast_in_dim", "reshape", "optimization_barrier"):
            # A rank-0 value everywhere, or a leaf as it is: the shapes were checked, and a permuted broadcast has
            # dims that are not 0, 1, 2...
            dims = list(op.attributes["broadcast_dimensions"]) if name == "broadcast_in_dim" else []
            if operands[0].kind == "leaf" and dims != list(range(len(dims))):
                raise CrossElementError("the rule transposes a leaf")
            if operands[0].kind == "leaf" and kind == "scalar":
                raise CrossElementError("the rule reads a single element of a leaf")
            return (operands[0],)
        if name == "constant":
            return (self.constant(op, dtype),)
        if name == "convert" and operands[0].dtype == dtype:
            return (operands[0],)
        if name not in OPS:
            raise CrossElementError(f"'{name}' is not elementwise, or not known to be")
        attribute = _direction(op) if name == "compare" else None
        # A leaf-shaped operation on scalars alone is a scalar operation that was broadcast too early.
        kind = "leaf" if any(v.kind == "leaf" for v in operands) else "scalar"
        return (self.add(name, kind, dtype, tuple(operands), attribute),)

    def constant(self, op: Any, dtype: str) -> Value:
        elements = self.ir.DenseElementsAttr(op.attributes["value"])
        if not elements.is_splat:
            raise CrossElementError("a constant differs from element to element")
        text = re.search(r"dense<([^>]*)>", str(op.attributes["value"]))
        assert text is not None
        return self.add("constant", "scalar", dtype, (), _number(text.group(1), dtype))

    def reduce(self, op: Any, operands: list[Value]) -> tuple[Value, ...]:
        body = list(op.regions[0].blocks[0].operations)
        name = f"reduce_{body[0].operation.name.split('.')[-1]}"
        if len(body) != 2 or name not in REDUCTIONS or len(operands) != 2:
            raise CrossElementError("a reduction that is not a plain sum, product, minimum or maximum")
        if operands[0].kind != "leaf" or self.kind_of(op.results[0].type) != "scalar":
            raise CrossElementError("a reduction over some of a leaf's axes")
        # The initial value is the neutral element for every reduction that jax.numpy writes.
        scope = "tree" if self.over_tree else None
        return (self.add(name, "scalar", self.dtype_of(op.results[0].type), (operands[0],), scope),)


def _direction(op: Any) -> str:
    match = re.search(r"comparison_direction (\w+)", str(op.attributes["comparison_direction"]))
    assert match is not None
    return match.group(1)


_SPECIAL: Mapping[str, float] = {"true": 1.0, "false": 0.0}


def _number(text: str, dtype: str) -> float:
    """The number that MLIR prints as ``text``: a literal, a truth value, or the bits in hexadecimal."""
    import struct

    if text in _SPECIAL:
        return _SPECIAL[text]
    if not text.startswith("0x"):
        return float(text)
    bits = int(text, 16)
    if dtype == "bf16":
        return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])
    code, size = {"f16": ("<e", 2), "f32": ("<f", 4), "f64": ("<d", 8)}[dtype]
    return float(struct.unpack(code, bits.to_bytes(size, "little"))[0])


def _line(op: Any) -> str:
    """Where the rule's author wrote this operation, as far as the trace tells: `` (my_rules.py:12)``."""
    places: list[tuple[str, str]] = re.findall(r'loc\("([^"]+\.py)":(\d+)', str(op.location))
    places += re.findall(r'"([^"]+\.py)":(\d+)', str(op.location))
    for path, line in places:
        if "/optgen/dsl/" not in path.replace("\\", "/"):
            return f" ({path.replace(chr(92), '/').rsplit('/', 1)[-1]}, line {line})"
    return ""
