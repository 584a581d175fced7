"""A program: what the host must do for one call of a compiled function, as plain values that any language can be
written from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scalar:
    """A number that the program computes, or is given. ``type`` is i1, i8, i16, i32, i64, index, f32 or f64."""

    name: str
    type: str


@dataclass(frozen=True)
class Literal:
    """A number that is known."""

    value: float | int
    type: str


Number = Scalar | Literal


@dataclass(frozen=True)
class Place:
    """A place in memory.

    Attributes:
        root: whose memory: ``argument``, ``workspace`` or ``constant``.
        index: which argument or constant; 0 for the workspace.
        start: bytes from the root's beginning that are known.
        offset: bytes beyond those that are not.
    """

    root: str
    index: int
    start: int = 0
    offset: Number | None = None


@dataclass(frozen=True)
class TensorArgument:
    """An argument in memory: ``shape`` has None where the extent is known only when the program runs."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    written: bool = False


@dataclass(frozen=True)
class ScalarArgument:
    """An argument that is a number."""

    name: str
    type: str


@dataclass(frozen=True)
class Let:
    """``result = op(operands)``. ``op`` is a name of the arith or math dialect without the dialect (``addi``,
    ``expm1``), with a predicate for comparisons (``cmpi.slt``); ``dim`` has the argument's index and an axis."""

    result: Scalar
    op: str
    operands: tuple[Number, ...]


@dataclass(frozen=True)
class Check:
    """An argument must have these extents."""

    argument: int
    shape: tuple[Number, ...]


@dataclass(frozen=True)
class Dispatch:
    """A call of a kernel, for every workgroup of a grid.

    Attributes:
        export: its index in :attr:`Program.exports`.
        workgroups: the grid's extents.
        constants: 32-bit numbers that it is given.
        bindings: memory that it is given, with the bytes of each.
    """

    export: int
    workgroups: tuple[Number, Number, Number]
    constants: tuple[Number, ...]
    bindings: tuple[tuple[Place, Number], ...]


@dataclass(frozen=True)
class Copy:
    """Bytes moved from one place to another."""

    source: Place
    target: Place
    length: Number


@dataclass(frozen=True)
class Fill:
    """A place filled with a number of 8, 16 or 32 bits over and over."""

    pattern: Number
    target: Place
    length: Number


Statement = Let | Check | Dispatch | Copy | Fill


@dataclass(frozen=True)
class TensorResult:
    """A result in memory: where it lies when the program has run."""

    place: Place
    length: Number
    dtype: str
    shape: tuple[Number, ...]

    @property
    def argument(self) -> int | None:
        """Whose memory it is, where it was written in place; None where it lies in the workspace."""
        return self.place.index if self.place.root == "argument" else None


@dataclass(frozen=True)
class Export:
    """A kernel of the library: its name, the 32-bit constants that it takes and the bindings."""

    name: str
    constants: int
    bindings: int


@dataclass(frozen=True)
class Program:
    """One function's host side.

    Attributes:
        name: the function's.
        query: the symbol that the library is asked for by.
        arguments: in order.
        statements: in order; there is no control flow.
        results: in order.
        exports: the kernels that are called.
        constants: read-only memory that kernels are given.
        workspace: bytes of memory that they need besides, aligned to 64.
        alignment: what the addresses of arguments must be divisible by, in bytes.
    """

    name: str
    query: str
    arguments: tuple[TensorArgument | ScalarArgument, ...]
    statements: tuple[Statement, ...]
    results: tuple[TensorResult | Number, ...]
    exports: tuple[Export, ...]
    constants: tuple[bytes, ...] = ()
    workspace: int = 0
    alignment: int = 64

    def __str__(self) -> str:
        lines = [f"program {self.name}: {len(self.exports)} kernels, workspace {self.workspace} bytes"]
        for i, a in enumerate(self.arguments):
            where = "x".join("?" if d is None else str(d) for d in a.shape) if isinstance(a, TensorArgument) else ""
            kind = f"{where}:{a.dtype}{' (written)' if a.written else ''}" if isinstance(a, TensorArgument) else a.type
            lines.append(f"  argument {i} {a.name}: {kind}")
        lines += [f"  {s}" for s in self.statements]
        lines += [f"  result {r}" for r in self.results]
        return "\n".join(lines)
