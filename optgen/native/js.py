"""Host programs in JavaScript: one function that does what a runtime would do for one call."""

from __future__ import annotations

from optgen.errors import LoweringError
from optgen.native.js_arithmetic import expression, half, literal
from optgen.native.program import (
    Copy,
    Dispatch,
    Fill,
    Let,
    Literal,
    Number,
    Place,
    Program,
    Scalar,
    ScalarArgument,
    TensorResult,
)

#: What the function's body uses of the library's file.
HELPERS = ("low", "high", "bitsOf32", "bitsOf64", "floatOf32", "floatOf64")
_PATTERN_BYTES = {"i8": 1, "i16": 2, "i32": 4}


def write_program(program: Program) -> list[str]:
    """The body of ``function program(library, addresses, extents, numbers)``.

    ``addresses`` has those of tensor arguments at their places among the arguments, ``extents`` their shapes,
    ``numbers`` the scalar arguments, one after the other. All it says is in what order, and on what, the library's
    ``dispatch``, ``copy`` and ``fill`` are called; it returns an address or a number for each result. That arguments
    have their shapes is for the caller to check.

    Raises:
        LoweringError: for an operation that there is none for in JavaScript.
    """
    return _Writer(program).lines()


class _Writer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.made = {s.result: s for s in program.statements if isinstance(s, Let)}
        self.halves = {r: found for r, let in self.made.items() if (found := half(let, self.made)) is not None}
        self.names: dict[Scalar, str] = {
            Scalar(a.name, a.type): f"s{i}"
            for i, a in enumerate(a for a in program.arguments if isinstance(a, ScalarArgument))
        }

    def lines(self) -> list[str]:
        lines = []
        for i, argument in enumerate(a for a in self.program.arguments if isinstance(a, ScalarArgument)):
            text = f"Math.fround(numbers[{i}])" if argument.type == "f32" else f"numbers[{i}]"
            lines.append(f"const s{i} = {text}; // {argument.name}")
        used = self.used()
        for statement in self.program.statements:
            if isinstance(statement, Let):
                if statement.result in used:
                    lines.append(f"const {statement.result.name} = {self.let(statement)};")
            elif isinstance(statement, Dispatch):
                lines += self.dispatch(statement)
            elif isinstance(statement, Copy):
                places = f"{self.place(statement.target)}, {self.place(statement.source)}"
                lines.append(f"library.copy({places}, {self.number(statement.length)});")
            elif isinstance(statement, Fill):
                size = _PATTERN_BYTES[statement.pattern.type]
                pattern = f"{self.number(statement.length)}, {self.number(statement.pattern)}, {size}"
                lines.append(f"library.fill({self.place(statement.target)}, {pattern});")
        results = [self.place(r.place) if isinstance(r, TensorResult) else self.number(r) for r in self.program.results]
        return [*lines, f"return [{', '.join(results)}];"]

    def used(self) -> set[Scalar]:
        """The results of ``Let`` that something comes of."""
        wanted: set[Scalar] = set()
        for result in self.program.results:
            wanted |= self.scalars([result.place] if isinstance(result, TensorResult) else [result])
        for statement in reversed(self.program.statements):
            if isinstance(statement, Let):
                if statement.result in wanted:
                    inside = self.halves.get(statement.result)
                    wanted |= self.scalars(statement.operands if inside is None else [inside[1]])
            elif isinstance(statement, Dispatch):
                wanted |= self.scalars([*statement.workgroups, *statement.constants])
                wanted |= self.scalars([each for binding in statement.bindings for each in binding])
            elif isinstance(statement, Copy):
                wanted |= self.scalars([statement.source, statement.target, statement.length])
            elif isinstance(statement, Fill):
                wanted |= self.scalars([statement.pattern, statement.target, statement.length])
        return wanted

    @staticmethod
    def scalars(parts: object) -> set[Scalar]:
        """The numbers among numbers and places that are not known."""
        assert isinstance(parts, list | tuple)
        numbers = [part.offset if isinstance(part, Place) else part for part in parts]
        return {number for number in numbers if isinstance(number, Scalar)}

    def number(self, number: Number) -> str:
        return literal(number) if isinstance(number, Literal) else self.names.get(number, number.name)

    def let(self, let: Let) -> str:
        if let.op == "dim":
            argument, axis = (int(o.value) for o in let.operands if isinstance(o, Literal))
            return f"extents[{argument}][{axis}]"
        if let.result in self.halves:
            text, whole = self.halves[let.result]
            return text.format(self.number(whole))
        return expression(let, self.number)

    def place(self, place: Place) -> str:
        roots = {
            "argument": f"addresses[{place.index}]",
            "workspace": "library.workspace",
            "constant": f"library.constants[{place.index}]",
        }
        parts = [roots[place.root]]
        parts += [str(place.start)] if place.start else []
        parts += [self.number(place.offset)] if place.offset is not None else []
        return " + ".join(parts)

    def dispatch(self, dispatch: Dispatch) -> list[str]:
        grid = ", ".join(self.number(each) for each in dispatch.workgroups)
        if any(number.type != "i32" for number in dispatch.constants):
            raise LoweringError("host code gives a kernel constants that are no words of 32 bits")
        constants = ", ".join(self.number(each) for each in dispatch.constants)
        bindings = [f"{self.place(place)}, {self.number(length)}" for place, length in dispatch.bindings]
        if len(constants) + sum(map(len, bindings)) < 90:
            return [f"library.dispatch({dispatch.export}, {grid}, [{constants}], [{', '.join(bindings)}]);"]
        return [
            f"library.dispatch({dispatch.export}, {grid}, [{constants}], [",
            *(f"  {binding}," for binding in bindings),
            "]);",
        ]
