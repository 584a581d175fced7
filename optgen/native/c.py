"""A host program as the body of a C99 function."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from optgen.errors import LoweringError
from optgen.native.c_ops import TYPES, expression, literal
from optgen.native.program import (
    Check,
    Copy,
    Dispatch,
    Fill,
    Let,
    Literal,
    Number,
    Place,
    Program,
    Scalar,
    Statement,
    TensorArgument,
)

#: C's type for the elements of each dtype.
ELEMENTS = {
    "f64": "double", "f32": "float", "f16": "uint16_t", "bf16": "uint16_t", "i64": "int64_t", "i32": "int32_t",
    "i16": "int16_t", "i8": "int8_t", "u64": "uint64_t", "u32": "uint32_t", "u16": "uint16_t", "u8": "uint8_t",
    "bool": "uint8_t",
}  # fmt: skip
#: Bytes of an element.
SIZES = {name: 1 if name == "bool" else int(name.lstrip("bfiu")) // 8 for name in ELEMENTS}


@dataclass
class Body:
    """The statements of a function, and what they use.

    Attributes:
        lines: of C.
        bitcasts: pairs of types whose bits are reinterpreted.
        extrema: ``maximum`` and ``minimum``, with the type.
        copies, fills: whether memory is copied or filled.
        scalars: names of the scalar arguments that are used.
        returned: the numbers that are used at the end.
    """

    lines: list[str] = field(default_factory=list)
    bitcasts: set[tuple[str, str]] = field(default_factory=set)
    extrema: set[tuple[str, str]] = field(default_factory=set)
    copies: bool = False
    fills: bool = False
    scalars: set[str] = field(default_factory=set)
    returned: list[str] = field(default_factory=list)


def write_body(
    program: Program,
    exports: Sequence[str],
    memory: Mapping[int, str],
    scalars: Mapping[str, str],
    length: str | None = None,
    returned: Sequence[Number] = (),
) -> Body:
    """Writes a program's statements, without those whose results nobody uses.

    Args:
        program: what to write.
        exports: the kernels' names, in the object file's order.
        memory: the C expression of each argument in memory, by index.
        scalars: the C name of each scalar argument, by name.
        length: the C name of the extent that is known only at run time, an int64_t; None where there is none.
        returned: numbers that are used at the end.

    Raises:
        LoweringError: for what C is not written for; it says what that is.
    """
    return _Writer(program, exports, memory, scalars, length).write(returned)


def address(place: Place, memory: Mapping[int, str]) -> str:
    """The address of a place, without an offset that is known only at run time, as C has it."""
    if place.root == "argument":
        base = f"BYTES({memory[place.index]})"
    elif place.root == "workspace":
        base = "BYTES(workspace)"
    elif place.root == "constant":
        base = f"BYTES(constant{place.index})"
    else:
        raise LoweringError(f"a host program uses memory of an unknown kind: {place.root}")
    return f"{base} + {place.start}" if place.start else base


class _Writer:
    def __init__(
        self,
        program: Program,
        exports: Sequence[str],
        memory: Mapping[int, str],
        scalars: Mapping[str, str],
        length: str | None,
    ) -> None:
        self.program, self.exports, self.memory, self.names, self.length = program, exports, memory, scalars, length
        self.values: dict[Scalar, str] = {}
        self.dynamic: set[Scalar] = set()
        self.body = Body()

    def write(self, returned: Sequence[Number]) -> Body:
        used = self.used(returned)
        for statement in self.program.statements:
            if not isinstance(statement, Let) or statement.result in used:
                self.statement(statement)
        self.body.returned = [self.number(n) for n in returned]
        return self.body

    def used(self, returned: Sequence[Number]) -> set[Scalar]:
        found = {n for n in returned if isinstance(n, Scalar)}
        for statement in reversed(self.program.statements):
            if not isinstance(statement, Let) or statement.result in found:
                found |= {n for n in _numbers(statement) if isinstance(n, Scalar)}
        return found

    def statement(self, statement: Statement) -> None:
        """Adds the lines of one."""
        handlers: dict[type, Callable[..., None]] = {
            Let: self.let, Check: self.check, Dispatch: self.dispatch, Copy: self.copy, Fill: self.fill,
        }  # fmt: skip
        handlers[type(statement)](statement)

    def number(self, number: Number) -> str:
        """A number as C has it."""
        if isinstance(number, Literal):
            return literal(number)
        if number in self.values:
            return self.values[number]
        if number.name not in self.names:
            raise LoweringError(f"a host program uses '{number.name}' before it is computed")
        self.body.scalars.add(self.names[number.name])
        return self.names[number.name]

    def cast(self, kind: str, number: Number) -> str:
        """A number that is not negative, as an unsigned type."""
        small = isinstance(number, Literal) and 0 <= number.value < 2**31
        return self.number(number) if small else f"({kind}){self.number(number)}"

    def let(self, let: Let) -> None:
        if let.op == "dim":
            self.dim(let)
            return
        kind, source = let.result.type, let.operands[0].type
        if let.op == "bitcast" and kind != source:
            self.body.bitcasts.add((source, kind))
        if let.op in ("maximumf", "minimumf"):
            self.body.extrema.add((let.op[:-1], kind))
        name = f"value{let.result.name.removeprefix('v')}"
        self.body.lines.append(
            f"const {TYPES[kind]} {name} = {expression(let, [self.number(n) for n in let.operands])};"
        )
        self.values[let.result] = name

    def dim(self, let: Let) -> None:
        argument, axis = (int(n.value) if isinstance(n, Literal) else -1 for n in let.operands)
        tensor = self.program.arguments[argument]
        assert isinstance(tensor, TensorArgument)
        extent = tensor.shape[axis]
        if extent is not None:
            self.values[let.result] = str(extent)
            return
        if self.length is None:
            raise LoweringError(f"argument '{tensor.name}' must have a shape that is known (it has {tensor.shape})")
        self.values[let.result] = self.length
        self.dynamic.add(let.result)

    def check(self, check: Check) -> None:
        """Nothing to do at run time: extents are known, or all the one that the caller gives."""
        tensor = self.program.arguments[check.argument]
        assert isinstance(tensor, TensorArgument)
        for extent, number in zip(tensor.shape, check.shape, strict=True):
            known = isinstance(number, Literal) and extent == int(number.value)
            if not known and not (extent is None and number in self.dynamic):
                raise LoweringError(f"argument '{tensor.name}' must have a shape that is known (it is {check.shape})")

    def place(self, place: Place) -> str:
        """An address."""
        base = address(place, self.memory)
        return base if place.offset is None else f"{base} + (size_t){self.number(place.offset)}"

    def dispatch(self, dispatch: Dispatch) -> None:
        export = self.program.exports[dispatch.export]
        if (len(dispatch.constants), len(dispatch.bindings)) != (export.constants, export.bindings):
            raise LoweringError(
                f"kernel '{export.name}' takes {export.constants} constants and {export.bindings} bindings "
                f"(it is given {len(dispatch.constants)} and {len(dispatch.bindings)})"
            )
        if any(n.type != "i32" for n in dispatch.constants):
            raise LoweringError(f"kernel '{export.name}' must be given constants of 32 bits")
        index = self.exports.index(export.name)
        constants = [self.cast("uint32_t", n) for n in dispatch.constants]
        places = [self.place(place) for place, _ in dispatch.bindings]
        lengths = [self.cast("size_t", n) for _, n in dispatch.bindings]
        grid = ", ".join(self.cast("uint32_t", n) for n in dispatch.workgroups)
        given = "constants" if constants else "NULL"
        self.body.lines += [
            f"{{ /* {export.name} */",
            *(_wrapped_lines("const uint32_t constants[] = {", constants) if constants else []),
            *_wrapped_lines("void *const bindings[] = {", places),
            *_wrapped_lines("const size_t lengths[] = {", lengths),
            f"    const int status = dispatch(lib, {index}, {grid}, {given}, bindings, lengths, threads);",
            "    if (status)",
            "        return status;",
            "}",
        ]

    def copy(self, copy: Copy) -> None:
        self.writable(copy.target)
        self.body.copies = True
        source, target = self.place(copy.source), self.place(copy.target)
        self.body.lines.append(f"copy_bytes({target}, {source}, (size_t){self.number(copy.length)});")

    def fill(self, fill: Fill) -> None:
        self.writable(fill.target)
        self.body.fills = True
        width = SIZES[fill.pattern.type]
        pattern, length = self.number(fill.pattern), self.number(fill.length)
        self.body.lines.append(
            f"fill_bytes({self.place(fill.target)}, (uint32_t){pattern}, {width}, (size_t){length});"
        )

    def writable(self, place: Place) -> None:
        tensor = self.program.arguments[place.index] if place.root == "argument" else None
        if place.root == "constant" or (isinstance(tensor, TensorArgument) and not tensor.written):
            raise LoweringError("a host program writes to memory that is only to be read")


def wrapped(head: str, items: Sequence[str]) -> str:
    """``head``, the items and a parenthesis, on lines of 120 columns that are indented as ``head`` is long."""
    return _fill(head, items, ")", 120, len(head))


def _wrapped_lines(head: str, items: Sequence[str]) -> list[str]:
    return _fill(f"    {head}", items, "};", 112, 8).splitlines()


def _fill(head: str, items: Sequence[str], end: str, width: int, indent: int) -> str:
    text = ", ".join(item.replace(" ", "\xa0") for item in items) + end
    filled = textwrap.fill(
        text, width, initial_indent=head, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace("\xa0", " ")


def _numbers(statement: Statement) -> list[Number]:
    """The numbers that a statement reads."""
    if isinstance(statement, Let):
        return [] if statement.op == "dim" else list(statement.operands)
    if isinstance(statement, Check):
        return list(statement.shape)
    if isinstance(statement, Dispatch):
        found = [*statement.workgroups, *statement.constants, *(n for _, n in statement.bindings)]
        places = [place for place, _ in statement.bindings]
    elif isinstance(statement, Copy):
        found, places = [statement.length], [statement.source, statement.target]
    elif isinstance(statement, Fill):
        found, places = [statement.pattern, statement.length], [statement.target]
    else:
        raise LoweringError(f"a host program has a statement that C is not written for: {statement}")
    return [*found, *(place.offset for place in places if place.offset is not None)]
