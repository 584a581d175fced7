"""From the compiler's host code to a :class:`Program`.

IREE's ``inline-dynamic`` execution model at ``--compile-to=hal`` says everything that a runtime would do: which kernels
in which order, on what memory, with what constants. Whatever is not understood here is refused: host code that was
read half is wrong code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from optgen.errors import LoweringError
from optgen.native.program import (
    Check,
    Copy,
    Dispatch,
    Export,
    Fill,
    Let,
    Literal,
    Number,
    Place,
    Program,
    Scalar,
    ScalarArgument,
    Statement,
    TensorArgument,
    TensorResult,
)

#: What a workspace's pieces are aligned to, in bytes: kernels assume it.
PIECE = 64

_SCALARS = ("i1", "i8", "i16", "i32", "i64", "index", "f32", "f64")
# The arithmetic that host code may do. Anything else is refused.
_ARITHMETIC = frozenset((
    "addi", "subi", "muli", "andi", "ori", "xori", "shli", "shrsi", "shrui", "divsi", "divui", "remsi", "remui",
    "maxsi", "minsi", "maxui", "minui", "ceildivsi", "ceildivui", "floordivsi", "index_cast", "index_castui", "trunci",
    "extsi", "extui", "bitcast", "select", "addf", "subf", "mulf", "divf", "negf", "maximumf", "minimumf", "maxnumf",
    "minnumf", "truncf", "extf", "sitofp", "uitofp", "fptosi", "fptoui",
))  # fmt: skip
_MATHEMATICS = frozenset((
    "sqrt", "rsqrt", "expm1", "exp", "exp2", "log", "log1p", "log2", "powf", "sin", "cos", "tanh", "absf", "floor",
    "ceil", "fma",
))  # fmt: skip
_INTEGERS = ("eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge")
_FLOATS = (
    "false", "oeq", "ogt", "oge", "olt", "ole", "one", "ord", "ueq", "ugt", "uge", "ult", "ule", "une", "uno", "true",
)  # fmt: skip
# IREE's element types: the kind in the upper byte, the bits in the lower.
_KINDS = {0x00: "b", 0x10: "i", 0x11: "i", 0x12: "u", 0x13: "i", 0x21: "f", 0x22: "bf"}


def parse_program(
    text: str,
    query: str,
    *,
    alignment: int,
    names: Iterable[str] = (),
    declared: Sequence[tuple[str, tuple[int, ...]]] = (),
) -> Program:
    """Reads host code.

    Args:
        text: the module at ``--compile-to=hal``, with one public function.
        query: the library's symbol.
        alignment: that the kernels were compiled for, in bytes.
        names: of the arguments; else ``argument0``...
        declared: dtype and shape of each argument, for those that host code does not use, and says nothing of.

    Returns:
        The program.

    Raises:
        LoweringError: for control flow, memory of unknown size, state that is set up beforehand, and any operation that
            is not known, which it names.
    """
    from iree.compiler import ir

    with ir.Context() as context:
        module = ir.Module.parse(text, context)
        operations = [op.operation for op in module.body.operations]
        for op in operations:
            _check_top_level(op)
        public = [op for op in operations if op.name == "util.func" and _symbol(op, "sym_visibility") == "public"]
        if len(public) != 1:
            raise LoweringError(f"host code must have one public function (it has {len(public)})")
        return _Reader(query, alignment, tuple(names), declared).read(public[0])


def _symbol(op: Any, name: str) -> str:
    return str(op.attributes[name]).strip('"@') if name in op.attributes else "public"


def _check_top_level(op: Any) -> None:
    if op.name == "util.initializer":
        inside = {inner.operation.name for block in op.regions[0].blocks for inner in block.operations}
        if "hal_loader.executable.load" not in inside:
            raise LoweringError("host code sets up state before its first call: compile without constant hoisting")
    elif op.name == "util.global":
        kind = str(op.attributes["type"])
        if kind not in ("!hal.executable", "!hal.device"):
            raise LoweringError(f"host code keeps a global of type {kind}: compile without constant hoisting")
    elif op.name != "util.func":
        raise LoweringError(f"host code has an unknown declaration '{op.name}'")


class _Reader:
    def __init__(
        self, query: str, alignment: int, names: tuple[str, ...], declared: Sequence[tuple[str, tuple[int, ...]]]
    ) -> None:
        self.query, self.alignment, self.names, self.declared = query, alignment, names, declared
        self.values: dict[Any, Any] = {}
        self.statements: list[Statement] = []
        self.exports: dict[str, Export] = {}
        self.constants: list[bytes] = []
        self.workspace = 0
        self.count = 0
        self.arguments: list[TensorArgument | ScalarArgument] = []
        self.results: tuple[TensorResult | Number, ...] = ()

    def read(self, function: Any) -> Program:
        blocks = function.regions[0].blocks
        if len(blocks) != 1:
            error = LoweringError("host code has control flow, which plain C is not written from")
            error.where = str([each.operation.location for block in blocks for each in block.operations][-1])
            raise error
        for index, argument in enumerate(blocks[0].arguments):
            name = self.names[index] if index < len(self.names) else f"argument{index}"
            kind = str(argument.type)
            if kind == "!hal.buffer_view":
                self.values[argument] = index
                self.arguments.append(TensorArgument(name, "", ()))
            elif kind in _SCALARS:
                self.values[argument] = Scalar(name, kind)
                self.arguments.append(ScalarArgument(name, kind))
            else:
                raise LoweringError(f"argument '{name}' must be a tensor or a number (it is {kind})")
        for op in blocks[0].operations:
            try:
                self.operation(op.operation)
            except LoweringError as error:
                error.where = str(op.operation.location)
                raise
        self.finish()
        return Program(
            _symbol(function, "sym_name"), self.query, tuple(self.arguments), tuple(self.statements), self.results,
            tuple(self.exports.values()), tuple(self.constants), self.workspace, self.alignment,
        )  # fmt: skip

    def finish(self) -> None:
        """What only the whole body says: argument types and shapes, and which arguments are written."""
        written = {r.argument for r in self.results if isinstance(r, TensorResult)}
        for index, argument in enumerate(self.arguments):
            if not isinstance(argument, TensorArgument):
                continue
            dtype, shape = argument.dtype, argument.shape
            if not dtype:
                if index >= len(self.declared):
                    raise LoweringError(f"host code does not use argument '{argument.name}', nor say what it is")
                dtype, shape = self.declared[index]
            self.arguments[index] = TensorArgument(argument.name, dtype, shape, index in written)

    def operation(self, op: Any) -> None:
        dialect, _, name = op.name.partition(".")
        if dialect in ("arith", "math"):
            return self.arithmetic(op, name)
        handler: Callable[[Any], None] | None = getattr(self, "on_" + op.name.replace(".", "_"), None)
        if handler is None:
            raise LoweringError(f"host code has an operation that is not known: {str(op)[:160]}")
        return handler(op)

    def arithmetic(self, op: Any, name: str) -> None:
        from iree.compiler import ir

        kind = str(op.results[0].type)
        if name == "constant":
            attribute = op.attributes["value"]
            value: float | int
            if kind in ("f32", "f64"):
                value = ir.FloatAttr(attribute).value
            elif kind == "i1":
                value = int(str(attribute).startswith("true") or str(attribute).startswith("-1"))
            else:
                value = ir.IntegerAttr(attribute).value
            self.values[op.results[0]] = Literal(value, kind)
            return
        if name in ("cmpi", "cmpf"):
            predicates = _INTEGERS if name == "cmpi" else _FLOATS
            name = f"{name}.{predicates[ir.IntegerAttr(op.attributes['predicate']).value]}"
        elif name not in _ARITHMETIC and name not in _MATHEMATICS:
            raise LoweringError(f"host code computes with an operation that is not known: '{op.name}'")
        operands = tuple(self.number(v) for v in op.operands)
        if kind not in _SCALARS or any(o.type not in _SCALARS for o in operands):
            raise LoweringError(f"host code computes with types that are not known: {str(op)[:160]}")
        self.let(op.results[0], name, operands)

    def let(self, result: Any, name: str, operands: tuple[Number, ...]) -> None:
        scalar = Scalar(f"v{self.count}", str(result.type))
        self.count += 1
        self.values[result] = scalar
        self.statements.append(Let(scalar, name, operands))

    def number(self, value: Any) -> Number:
        found = self.values.get(value)
        if not isinstance(found, Scalar | Literal):
            raise LoweringError(f"host code computes with something that is no number: {value}")
        return found

    def integer(self, value: Any) -> int:
        number = self.number(value)
        if not isinstance(number, Literal):
            raise LoweringError("host code needs memory whose size is known only when it runs")
        return int(number.value)

    def place(self, value: Any, offset: Any = None) -> Place:
        found = self.values.get(value)
        if not isinstance(found, Place):
            raise LoweringError(f"host code uses memory that is not known: {value}")
        if offset is None:
            return found
        number = self.number(offset)
        if isinstance(number, Literal):
            return Place(found.root, found.index, found.start + int(number.value), found.offset)
        if found.offset is not None:
            raise LoweringError("host code adds unknown offsets to one another")
        return Place(found.root, found.index, found.start, number)

    # What follows is named after the operations.

    def on_util_assume_int(self, op: Any) -> None:
        for operand, result in zip(op.operands, op.results, strict=True):
            self.values[result] = self.values[operand]

    on_util_optimization_barrier = on_util_assume_int

    def on_util_global_load(self, op: Any) -> None:
        self.values[op.results[0]] = None

    def on_hal_inline_buffer_view_dim(self, op: Any) -> None:
        from iree.compiler import ir

        argument = self.view(op.operands[0])
        axis = ir.IntegerAttr(op.attributes["index"]).value
        self.let(op.results[0], "dim", (Literal(argument, "index"), Literal(axis, "index")))

    def view(self, value: Any) -> int:
        found = self.values.get(value)
        if not isinstance(found, int):
            raise LoweringError("host code looks into a view that is no argument")
        return found

    def on_hal_inline_buffer_view_assert(self, op: Any) -> None:
        operands = list(op.operands)
        argument = self.view(operands[0])
        kind, shape = self.integer(operands[1]), tuple(self.number(v) for v in operands[3:])
        dtype = element_type(kind)
        extents = tuple(int(n.value) if isinstance(n, Literal) else None for n in shape)
        self.arguments[argument] = TensorArgument(self.arguments[argument].name, dtype, extents)
        self.statements.append(Check(argument, shape))

    def on_hal_inline_buffer_view_buffer(self, op: Any) -> None:
        self.values[op.results[0]] = Place("argument", self.view(op.operands[0]))

    def on_hal_inline_buffer_storage(self, op: Any) -> None:
        self.values[op.results[0]] = self.place(op.operands[0])

    def on_hal_inline_buffer_length(self, op: Any) -> None:
        self.place(op.operands[0])
        self.values[op.results[0]] = None  # said along with the memory, whose size is known; no number to compute with

    def on_hal_inline_buffer_allocate(self, op: Any) -> None:
        sizes = [self.integer(v) for v in op.operands]  # alignment and size, whose order has changed between versions
        size, alignment = max(sizes), min(sizes)
        if "alignment(" in str(op):
            named = re.search(r"alignment\((%\S+?)\)", str(op))
            order = [v.get_name() for v in op.operands]
            if named and named.group(1) in order:
                at = order.index(named.group(1))
                alignment, size = sizes[at], sizes[1 - at]
        if alignment > PIECE:
            raise LoweringError(f"host code needs memory aligned to {alignment} bytes (at most {PIECE} are given)")
        place = Place("workspace", 0, self.workspace)
        self.workspace += -(-size // PIECE) * PIECE
        for result in op.results:
            self.values[result] = place

    def on_util_buffer_subspan(self, op: Any) -> None:
        self.values[op.results[0]] = self.place(op.operands[0], op.operands[2])

    def on_hal_inline_buffer_subspan(self, op: Any) -> None:
        self.values[op.results[0]] = self.place(op.operands[0], op.operands[1])

    def on_util_buffer_constant(self, op: Any) -> None:
        from iree.compiler import ir

        data = np.array(ir.DenseElementsAttr(op.attributes["value"])).tobytes()
        self.values[op.results[0]] = Place("constant", len(self.constants))
        self.constants.append(data)

    def on_util_buffer_copy(self, op: Any) -> None:
        source, _, source_offset, target, _, target_offset, length = op.operands
        self.statements.append(
            Copy(self.place(source, source_offset), self.place(target, target_offset), self.number(length))
        )

    def on_util_buffer_load(self, op: Any) -> None:
        raise LoweringError(
            f"host code looks at a number in memory ({op.results[0].type}), which plain C is not written from"
        )

    def on_util_buffer_fill(self, op: Any) -> None:
        pattern, target, _, offset, length = op.operands
        number = self.number(pattern)
        if number.type not in ("i8", "i16", "i32"):
            raise LoweringError(f"host code fills memory with a pattern of type {number.type}")
        self.statements.append(Fill(number, self.place(target, offset), self.number(length)))

    def on_hal_loader_executable_lookup_function(self, op: Any) -> None:
        name = re.findall(r"@([^:\s)]+)", str(op.attributes["entry_point"]))[-1].strip('"')
        self.exports.setdefault(name, Export(name, -1, -1))
        self.values[op.results[0]] = name

    def on_hal_loader_executable_dispatch(self, op: Any) -> None:
        sizes = [int(i) for i in re.findall(r"\d+", str(op.attributes["operandSegmentSizes"]).split(":")[1])]
        operands, parts = list(op.operands), []
        for size in sizes:
            parts.append(operands[:size])
            operands = operands[size:]
        if len(parts) != 9 or operands:
            raise LoweringError("host code calls a kernel in a form that is not known")
        _, function, x, y, z, constants, buffers, offsets, lengths = parts
        name = self.values.get(function[0])
        if not isinstance(name, str):
            raise LoweringError("host code calls a kernel that it has not looked up")
        export = Export(name, len(constants), len(buffers))
        if self.exports[name] not in (export, Export(name, -1, -1)):
            raise LoweringError(f"kernel '{name}' is called with different numbers of constants or bindings")
        self.exports[name] = export
        self.statements.append(
            Dispatch(
                list(self.exports).index(name),
                (self.number(x[0]), self.number(y[0]), self.number(z[0])),
                tuple(self.number(c) for c in constants),
                tuple(
                    (self.place(b, o), self.number(n)) for b, o, n in zip(buffers, offsets, lengths, strict=True)
                ),
            )
        )  # fmt: skip

    def on_hal_inline_buffer_view_create(self, op: Any) -> None:
        buffer, offset, length, kind, _, *shape = op.operands
        self.values[op.results[0]] = TensorResult(
            self.place(buffer, offset), self.number(length), element_type(self.integer(kind)),
            tuple(self.number(v) for v in shape),
        )  # fmt: skip

    def on_util_return(self, op: Any) -> None:
        results: list[TensorResult | Number] = []
        for value in op.operands:
            found = self.values.get(value)
            if isinstance(found, int):
                raise LoweringError(f"host code returns argument '{self.arguments[found].name}' as it is")
            if not isinstance(found, TensorResult | Scalar | Literal):
                raise LoweringError("host code returns something that is neither a tensor nor a number")
            results.append(found)
        self.results = tuple(results)


def element_type(code: int) -> str:
    """IREE's number for an element type, as a dtype's name: ``f32``, ``i64``, ``u8``..."""
    kind, bits = code >> 24 & 0xFF, code & 0xFFFF
    if kind not in _KINDS:
        raise LoweringError(f"host code uses an element type that is not known ({code:#x})")
    return "bool" if bits == 8 and kind == 0 else f"{_KINDS[kind]}{bits}"
