"""Splitting the update of a whole tree: what can run in place, leaf by leaf, and what must be computed before.

The traced update is one function of all leaves. It is split in two:

* The *head* only reads. It returns scalars (a bias correction, a global norm, a trust ratio, the new count) and those
  new leaves that are not elementwise (a factored moment, an orthogonalised matrix).
* *Bodies* then update the other leaves in place: each is elementwise over tensors of one shape, with the head's
  scalars, so it is the same kind of tied dispatch that rules become. Leaves with the same arithmetic share one.

The head runs to its end before a body writes, and its results are copied to their places after the last body: whatever
reads an old value reads it before anything is written. No aliasing of the compiler's is needed, and none is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.dtypes import SIZES
from optgen.errors import LoweringError
from optgen.lower.graph import CrossElementError, Graph, Node, Value, ValueKind, _Reader
from optgen.lower.ops import OPS

#: A dtype and a role for each tensor of a body: ``param`` where it is replaced, else ``input``.
Signature = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Body:
    """An elementwise update of tensors of one shape, whatever that is.

    Attributes:
        tensors: dtype and role of each operand.
        graph: its inputs are the tensors and then the scalars, its outputs the new values of those that it replaces.
        compute: the type that scalars travel in.
    """

    tensors: Signature
    graph: Graph
    compute: str


@dataclass(frozen=True)
class Use:
    """One application of a body.

    Attributes:
        body: which.
        tensors: for each operand of the body, the argument of the traced update.
        scalars: for each scalar of the body, the head's result.
    """

    body: int
    tensors: tuple[int, ...]
    scalars: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """A traced update, split.

    Attributes:
        head: StableHLO whose ``main`` takes the arguments ``reads`` and returns the scalars and then the new values of
            the arguments ``writes``; None where it would return nothing.
        reads: arguments of the traced update that the head reads.
        scalars: dtypes of the scalars.
        writes: the arguments that the head computes anew.
        bodies: the kernels.
        uses: their applications.
        reasons: for each argument in ``writes`` of rank 1 or more, why it is not updated in place.
    """

    head: str | None
    reads: tuple[int, ...]
    scalars: tuple[str, ...]
    writes: tuple[int, ...]
    bodies: tuple[Body, ...]
    uses: tuple[Use, ...]
    reasons: Mapping[int, str]


def split_update(text: str, results: Sequence[int], refused: Mapping[int, str] | None = None) -> Split:
    """Splits a traced update.

    Args:
        text: StableHLO whose ``main`` is the update.
        results: for each of its results, the argument that it replaces.
        refused: arguments that are not to be updated in place, and why.

    Raises:
        LoweringError: if the update is not StableHLO alone.
    """
    from iree.compiler import ir
    from iree.compiler.passmanager import PassManager

    with ir.Context(), ir.Location.unknown():
        try:
            module = ir.Module.parse(text)
        except ir.MLIRError as error:
            raise LoweringError(f"the update cannot be read: {_first(str(error))}") from error
        _run(PassManager, module, "inline,symbol-dce,canonicalize,cse")
        _hoist_branches(ir, module)
        _run(PassManager, module, "canonicalize,cse")
        return _Splitter(ir, module, list(results), refused or {}).run(PassManager)


#: A sum over some axes of f32 numbers, as StableHLO is printed.
_SUM = re.compile(
    r"(%\w+) = stablehlo\.reduce\((%[\w#]+) init: (%[\w#]+)\) applies stablehlo\.add across dimensions = "
    r"(\[[\d, ]*\]) : \(tensor<((?:\d+x)*)f32>, tensor<f32>\) -> tensor<((?:\d+x)*)f32>"
)


def with_wide_sums(text: str) -> str:
    """``text`` with its f32 sums accumulated in f64, for devices that have it: a sum of 16M elements is off by 3e-2
    where the compiler adds them up one after the other in f32."""

    def widen(match: re.Match[str]) -> str:
        result, x, start, axes, extents, kept = match.groups()
        name = result.removeprefix("%")
        return "\n    ".join(
            (
                f"%wide_{name} = stablehlo.convert {x} : (tensor<{extents}f32>) -> tensor<{extents}f64>",
                f"%start_{name} = stablehlo.convert {start} : (tensor<f32>) -> tensor<f64>",
                f"%sum_{name} = stablehlo.reduce(%wide_{name} init: %start_{name}) applies stablehlo.add across "
                f"dimensions = {axes} : (tensor<{extents}f64>, tensor<f64>) -> tensor<{kept}f64>",
                f"{result} = stablehlo.convert %sum_{name} : (tensor<{kept}f64>) -> tensor<{kept}f32>",
            )
        )

    return _SUM.sub(widen, text)


def _first(text: str) -> str:
    lines = [line for line in text.splitlines() if "error:" in line] or text.splitlines()
    return lines[0].partition("error:")[2].strip()[:200] or lines[0][:200]


def _run(pass_manager: Any, module: Any, passes: str) -> None:
    pass_manager.parse(f"builtin.module({passes})").run(module.operation)


def _main(ir: Any, module: Any) -> Any:
    return next(f for f in module.body.operations if ir.StringAttr(f.attributes["sym_name"]).value == "main")


#: What may be done for nothing: operations of a branch that is not taken are computed all the same once it is a select.
_CHEAP = {*OPS, "square", "broadcast_in_dim", "reshape", "constant", "reduce", "optimization_barrier"}


def _hoist_branches(ir: Any, module: Any) -> None:
    """Replaces branches of cheap operations by selects, the innermost first: an update that is made every k-th time
    only, as gradient accumulation does it, is then elementwise."""
    block = _main(ir, module).regions[0].blocks[0]
    found: list[Any] = []

    def visit(inner: Any) -> None:
        for operation in inner.operations:
            op = operation.operation
            for region in op.regions:
                for each in region.blocks:
                    visit(each)
            if op.name in ("stablehlo.case", "stablehlo.if") and len(op.regions) == 2:
                found.append(op)

    visit(block)
    for op in found:
        branches = [region.blocks[0] for region in op.regions]
        bodies = [list(branch.operations)[:-1] for branch in branches]
        if any(o.operation.name.split(".")[-1] not in {*_CHEAP, "select"} for body in bodies for o in body):
            continue
        ends = [list(list(branch.operations)[-1].operands) for branch in branches]
        for body in bodies:
            for each in body:
                each.operation.move_before(op)
        with ir.InsertionPoint(op):
            condition = op.operands[0]
            if op.name == "stablehlo.case":  # branch 0 for index 0, else branch 1
                kind = ir.RankedTensorType(condition.type)
                zero = ir.DenseElementsAttr.get_splat(kind, ir.IntegerAttr.get(kind.element_type, 0))
                constant = ir.Operation.create("stablehlo.constant", [kind], attributes={"value": zero}).result
                direction = ir.Attribute.parse("#stablehlo<comparison_direction EQ>")
                truth = ir.RankedTensorType.get([], ir.IntegerType.get_signless(1))
                condition = ir.Operation.create(
                    "stablehlo.compare", [truth], [condition, constant], {"comparison_direction": direction}
                ).result
            for result, first, second in zip(op.results, *ends, strict=True):
                if first == second:
                    result.replace_all_uses_with(first)
                    continue
                chosen = ir.Operation.create("stablehlo.select", [result.type], [condition, first, second]).result
                result.replace_all_uses_with(chosen)
        op.erase()


class _TreeReader(_Reader):
    """Reads values of a function of many leaves, those of one shape at a time, and keeps what it has read."""

    def __init__(self, ir: Any, module: Any) -> None:
        super().__init__(())
        self.ir = ir
        self.functions = {ir.StringAttr(f.attributes["sym_name"]).value: f for f in module.body.operations}
        self.values: dict[Any, Value] = {}
        self.sources: dict[Value, Any] = {}  # scalars that the head must return, with the MLIR value of each
        self.arguments: dict[Value, int] = {}
        self.constants: dict[Value, float] = {}
        self.order = {
            result: index
            for index, op in enumerate(_main(ir, module).regions[0].blocks[0].operations)
            for result in op.results
        }

    def kind_of(self, type_: Any) -> ValueKind:
        """As for rules; what has one element, though a rank, is a scalar beside a leaf that has more."""
        extents = list(self.ir.RankedTensorType(type_).shape)
        if extents != self.shape and all(extent == 1 for extent in extents):
            return "scalar"
        return super().kind_of(type_)

    def read_value(self, value: Any) -> Value:
        """``value``, of the shape of the current leaf, with everything that it depends on."""
        needed: dict[Any, None] = {}
        stack = [value]
        while stack:
            each = stack.pop()
            if each in needed:
                continue
            self.kind_of(each.type)  # raises for another shape
            if each in self.values:
                continue
            needed[each] = None
            if each in self.order and self.kind_of(each.type) == "leaf":
                stack.extend(self.operands_of(each))
        for each in sorted(needed, key=lambda v: self.order.get(v, -1)):
            self.values[each] = self.define(each)
        return self.values[value]

    def operands_of(self, value: Any) -> list[Any]:
        op = value.owner
        if op.name == "stablehlo.optimization_barrier":
            return [op.operands[list(op.results).index(value)]]
        return list(op.operands)

    def define(self, value: Any) -> Value:
        if value not in self.order:
            result = self.fresh(self.kind_of(value.type), self.dtype_of(value.type))
            if result.kind == "scalar":
                self.sources[result] = value
            else:
                self.arguments[result] = self.ir.BlockArgument(value).arg_number
            return result
        op = value.owner.operation if hasattr(value.owner, "operation") else value.owner
        name = op.name.split(".")[-1]
        if self.kind_of(value.type) == "scalar" and name != "constant":
            result = self.fresh("scalar", self.dtype_of(value.type))
            self.sources[result] = value
            return result
        operands = [self.values[v] for v in self.operands_of(value)]
        if name == "square":
            name, operands = "multiply", operands * 2
        try:
            (result,) = (operands[0],) if name == "optimization_barrier" else self.visit(name, op, operands)
        except LoweringError as error:
            raise type(error)(f"{op.name}: {error}") from None
        if result.kind == "scalar" and result not in self.sources and result not in self.constants:
            self.scalar(name, result, operands, value)
        return result

    def scalar(self, name: str, result: Value, operands: Sequence[Value], value: Any) -> None:
        """A scalar that was broadcast before it was computed: a number if it depends on nothing, else the head's."""
        node = self.nodes[-1]
        if node.result == result and node.op == "constant":
            assert isinstance(node.attribute, float)
            self.constants[result] = node.attribute
        elif result.dtype in ("f32", "f64") and name in OPS and all(v in self.constants for v in operands):
            kinds: dict[str, Any] = {"f32": np.float32, "f64": np.float64}
            if name not in ("compare", "convert") and all(v.dtype in kinds for v in operands):
                with np.errstate(all="ignore"):
                    number: Any = OPS[name].evaluate(*(kinds[v.dtype](self.constants[v]) for v in operands))
                self.constants[result] = float(number)
                return
            self.sources[result] = value
        else:
            self.sources[result] = value


class _Splitter:
    """Decides what goes where."""

    def __init__(self, ir: Any, module: Any, results: list[int], refused: Mapping[int, str]) -> None:
        self.ir, self.module, self.results, self.refused = ir, module, results, refused
        self.block = _main(ir, module).regions[0].blocks[0]
        self.reader = _TreeReader(ir, module)
        self.reasons: dict[int, str] = {}

    def run(self, pass_manager: Any) -> Split:
        terminator = list(self.block.operations)[-1].operation
        outputs = list(terminator.operands)
        arguments = list(self.block.arguments)
        read: dict[int, Value] = {}  # by argument, its new value
        head: dict[int, Any] = {}
        for output, target in zip(outputs, self.results, strict=True):
            if output == arguments[target]:
                continue  # stays as it is
            head[target] = output
            type_ = self.ir.RankedTensorType(output.type)
            if type_.rank == 0:
                continue
            try:
                if target in self.refused:
                    raise CrossElementError(self.refused[target])
                read[target] = self.elementwise(output, arguments[target], list(type_.shape))
            except CrossElementError as error:
                self.reasons[target] = str(error)
            else:
                del head[target]
        producer = {node.result: node for node in self.reader.nodes}
        bodies: dict[Body, int] = {}
        uses: list[tuple[int, tuple[int, ...], tuple[Value, ...]]] = []
        for group in self.components(read, producer):
            try:
                if all(read[t] in self.reader.arguments for t in group):
                    raise LoweringError("it becomes a copy of another leaf, with nothing to compute")
                body, tensors, scalars = self.body({t: read[t] for t in group}, producer)
            except LoweringError as error:
                for target in group:
                    self.reasons[target] = str(error)
                    head[target] = outputs[self.results.index(target)]
                continue
            uses.append((bodies.setdefault(body, len(bodies)), tensors, scalars))
        wanted = tuple(dict.fromkeys(v for _, _, scalars in uses for v in scalars))
        head = dict(sorted(head.items()))
        text, reads = self.head(pass_manager, terminator, wanted, list(head.values()))
        return Split(
            head=text,
            reads=reads,
            scalars=tuple(_travels(v.dtype) for v in wanted),
            writes=tuple(head),
            bodies=tuple(bodies),
            uses=tuple(Use(b, t, tuple(wanted.index(v) for v in scalars)) for b, t, scalars in uses),
            reasons={target: reason for target, reason in self.reasons.items() if target in head},
        )

    def elementwise(self, output: Any, argument: Any, shape: list[int]) -> Value:
        self.reader.shape = shape
        if (dtype := self.reader.dtype_of(argument.type)) not in SIZES:
            raise CrossElementError(f"kernels do not update {dtype} in place")
        return self.reader.read_value(output)

    def slice(self, values: Sequence[Value], producer: Mapping[Value, Node]) -> set[Value]:
        """What ``values`` depend on, down to arguments, the head's scalars and constants."""
        needed: set[Value] = set()
        stack = list(values)
        while stack:
            value = stack.pop()
            if value in needed:
                continue
            needed.add(value)
            if value not in self.reader.sources and value not in self.reader.constants and value in producer:
                stack.extend(producer[value].operands)
        return needed

    def components(self, read: Mapping[int, Value], producer: Mapping[Value, Node]) -> list[list[int]]:
        """The results in groups: those that read or write a common tensor belong together."""
        parent: dict[int, int] = {}

        def root(index: int) -> int:
            while parent.setdefault(index, index) != index:
                index = parent[index]
            return index

        for target, value in read.items():
            for each in self.slice([value], producer):
                if each in self.reader.arguments:
                    parent[root(self.reader.arguments[each])] = root(target)
            root(target)
        groups: dict[int, list[int]] = {}
        for target in sorted(read):
            groups.setdefault(root(target), []).append(target)
        return list(groups.values())

    def body(
        self, new: Mapping[int, Value], producer: Mapping[Value, Node]
    ) -> tuple[Body, tuple[int, ...], tuple[Value, ...]]:
        """The kernel of one group, with names that do not tell which leaves it came from."""
        reader, arguments = self.reader, list(self.block.arguments)
        needed = self.slice(list(new.values()), producer)
        inputs = {reader.arguments[v]: v for v in needed if v in reader.arguments}
        tensors = tuple(sorted({*inputs, *new}))
        scalars = tuple(sorted((v for v in needed if v in reader.sources), key=lambda v: v.index))
        for value in needed:
            if value.dtype not in (*SIZES, "i1"):
                raise LoweringError(f"it computes in {value.dtype}")
        dtypes = [reader.dtype_of(arguments[t].type) for t in tensors]
        compute = "f64" if "f64" in {v.dtype for v in needed} | set(dtypes) else "f32"
        builder = _Builder(compute)
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            value = builder.input("leaf", dtype)
            if tensor in inputs:
                builder.values[inputs[tensor]] = value
        for scalar in scalars:
            builder.values[scalar] = builder.input("scalar", compute)
        builder.widen_inputs(list(inputs.values()), scalars)
        for value in sorted((v for v in needed if v in reader.constants), key=lambda v: v.index):
            builder.constant(value, reader.constants[value])
        for node in reader.nodes:
            if node.result in needed and node.result not in builder.values:
                builder.node(node)
        order = [t for t in tensors if t in new]
        results = [builder.result(new[t], dtypes[tensors.index(t)]) for t in order]
        signature = tuple((d, "param" if t in new else "input") for t, d in zip(tensors, dtypes, strict=True))
        return Body(signature, builder.graph(results), compute), tensors, scalars

    def head(
        self, pass_manager: Any, terminator: Any, scalars: Sequence[Value], leaves: Sequence[Any]
    ) -> tuple[str | None, tuple[int, ...]]:
        """The function with other results: the scalars, each as it travels, and the leaves."""
        ir = self.ir
        if not scalars and not leaves:
            return None, ()
        with ir.InsertionPoint(terminator):
            results = [self.extract(self.reader.sources[v], _travels(v.dtype)) for v in scalars] + list(leaves)
            ir.Operation.create("func.return", [], results)
        terminator.erase()
        main = _main(ir, self.module).operation
        for attribute in ("res_attrs", "arg_attrs"):
            if attribute in main.attributes:
                del main.attributes[attribute]
        self.retype(main, [v.type for v in results])
        _run(pass_manager, self.module, "canonicalize,cse,symbol-dce")
        block = _main(ir, self.module).regions[0].blocks[0]
        types = [v.type for v in list(block.operations)[-1].operands]
        unused = [i for i, a in enumerate(block.arguments) if not list(a.uses)]
        reads = tuple(i for i in range(len(block.arguments)) if i not in unused)
        for index in reversed(unused):
            block.erase_argument(index)
        self.retype(_main(ir, self.module).operation, types)
        self.module.operation.verify()
        return str(self.module), reads

    def retype(self, main: Any, results: Sequence[Any]) -> None:
        block = main.regions[0].blocks[0]
        kind = self.ir.FunctionType.get([a.type for a in block.arguments], list(results))
        main.attributes["function_type"] = self.ir.TypeAttr.get(kind)

    def extract(self, value: Any, dtype: str) -> Any:
        """``value``, all of whose elements are the same, as a scalar of type ``dtype``."""
        ir = self.ir
        type_ = ir.RankedTensorType(value.type)
        element = ir.Type.parse(dtype)
        if type_.element_type != element:
            # First, since devices have no truth values in memory that a slice could be taken of.
            wanted = ir.RankedTensorType.get(type_.shape, element)
            value = ir.Operation.create("stablehlo.convert", [wanted], [value]).result
        if type_.rank > 0:
            zeros, ones = (ir.DenseI64ArrayAttr.get([number] * type_.rank) for number in (0, 1))
            small = ir.RankedTensorType.get([1] * type_.rank, element)
            attributes = {"start_indices": zeros, "limit_indices": ones, "strides": ones}
            value = ir.Operation.create("stablehlo.slice", [small], [value], attributes).result
            value = ir.Operation.create("stablehlo.reshape", [ir.RankedTensorType.get([], element)], [value]).result
        return value


def _travels(dtype: str) -> str:
    """The type in which the head returns a scalar of type ``dtype``."""
    return "f64" if dtype == "f64" else "f32"


class _Builder:
    """A graph with 16-bit numbers computed in f32, and scalars in the type that they travel in."""

    def __init__(self, compute: str) -> None:
        self.compute = compute
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.values: dict[Value, Value] = {}
        self.made: dict[tuple[Any, ...], Value] = {}
        self.count = 0

    def fresh(self, kind: Any, dtype: str) -> Value:
        self.count += 1
        return Value(self.count - 1, kind, dtype)

    def input(self, kind: Any, dtype: str) -> Value:
        value = self.fresh(kind, dtype)
        self.inputs.append(value)
        return value

    def add(self, op: str, kind: Any, dtype: str, operands: tuple[Value, ...], attribute: Any = None) -> Value:
        key = (op, kind, dtype, operands, repr(attribute))
        if key not in self.made:
            self.made[key] = self.fresh(kind, dtype)
            self.nodes.append(Node(op, self.made[key], operands, attribute))
        return self.made[key]

    def widen_inputs(self, tensors: Sequence[Value], scalars: Sequence[Value]) -> None:
        for value in tensors:
            given = self.values[value]
            if given.dtype in ("f16", "bf16"):
                self.values[value] = self.add("convert", "leaf", "f32", (given,))
        for value in scalars:
            given, wanted = self.values[value], _wide(value.dtype)
            if wanted == given.dtype:
                continue
            # Of the kind `leaf`, though it is none: so it is done in the kernel, and not by the VM, which lacks it.
            if value.dtype == "i1":
                zero = self.add("constant", "scalar", given.dtype, (), 0.0)
                self.values[value] = self.add("compare", "leaf", "i1", (given, zero), "NE")
            else:
                self.values[value] = self.add("convert", "leaf", wanted, (given,))

    def constant(self, value: Value, number: float) -> None:
        self.values[value] = self.add("constant", "scalar", _wide(value.dtype), (), number)

    def node(self, node: Node) -> None:
        operands = tuple(self.values[v] for v in node.operands)
        dtype = node.result.dtype
        if node.op == "convert":
            (x,) = operands
            if dtype in ("f16", "bf16"):  # asked for in so many words: round, and go on in f32
                x = self.add("convert", "leaf", dtype, (x,)) if x.dtype != dtype else x
                dtype = "f32"
            self.values[node.result] = x if x.dtype == dtype else self.add("convert", "leaf", dtype, (x,))
            return
        self.values[node.result] = self.add(node.op, "leaf", _wide(dtype), operands, node.attribute)

    def result(self, value: Value, dtype: str) -> Value:
        found = self.values[value]
        return found if found.dtype == dtype else self.add("convert", "leaf", dtype, (found,))

    def graph(self, results: Sequence[Value]) -> Graph:
        return Graph(tuple(self.inputs), tuple(self.nodes), tuple(results))


def _wide(dtype: str) -> str:
    return "f32" if dtype in ("f16", "bf16") else dtype
