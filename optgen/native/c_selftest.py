"""The self-test of generated C: a source file of its own, for programs that want it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen._version import __version__
from optgen.errors import LoweringError
from optgen.lower.style import render
from optgen.native.c import ELEMENTS, SIZES
from optgen.native.selftest import SelfTest, Source, table_of

_ALIGNMENT = 64


@dataclass(frozen=True)
class Piece:
    """Memory that the function works on.

    Attributes:
        name: as C has it.
        dtype: of its elements.
        size: how many.
        source: what it holds before a call; None for what is only written.
        result: which of the self-test's results it holds after one; -1 for none.
    """

    name: str
    dtype: str
    size: int
    source: Source | None
    result: int = -1


@dataclass(frozen=True)
class Proof:
    """How generated C tests itself.

    Attributes:
        test: the calls.
        pieces: the memory of a call.
        call: a C expression, the status of a call; ``{NAME}`` is the address of a piece, and ``workspace`` and
            ``threads`` are there.
        function: the function's name.
        prepare: statements before it, likewise; ``number(i)`` is that of the call.
        numbers: for each call.
    """

    test: SelfTest
    pieces: Sequence[Piece]
    call: str
    function: str
    prepare: Sequence[str] = ()
    numbers: Sequence[Sequence[float]] = ()


def write_selftest(name: str, proof: Proof, workspace: int, **context: Any) -> dict[str, bytes]:
    """The files of a self-test.

    Args:
        name: what every symbol begins with.
        proof: what is called.
        workspace: bytes that a call needs besides its memory.
        context: what the templates want besides.
    """
    test, pieces = proof.test, proof.pieces
    table = table_of(test.probe)
    rows, places, at = [], {}, 0
    numbers: list[Sequence[float]] = []
    arrays: list[dict[str, Any]] = []
    for piece in pieces:
        places[piece.name] = f"({_pointer(piece)})(void *)(memory + {at})"
        rows.append(_row(piece, at, len(test.seeds), numbers, arrays))
        at += -(-piece.size * SIZES[_stored(piece.dtype)] // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT
    results, first = [], 0
    for at_result, each in enumerate(table.kept):
        [holder] = [i for i, piece in enumerate(pieces) if piece.result == at_result]
        results.append([holder, int(each.sampled), each.count, each.projections, first])
        first += each.count + each.projections
    prints = at
    at += -(-4 * len(test.seeds) * len(results) // _ALIGNMENT) * _ALIGNMENT
    own = len(numbers)

    def placed(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda m: places.get(m[1], m[0]), text)

    def number(match: re.Match[str]) -> str:
        return f"numbers[{own + int(match[1])}][call]"

    prepare = [re.sub(r"\bnumber\((\d+)\)", number, placed(line)) for line in proof.prepare]
    values = {
        "name": name, "upper": name.upper(), "version": __version__, "seeds": test.seeds, "pieces": rows,
        "results": results, "per_call": first, "prints": prints, "workspace_at": at, "bytes": at + workspace,
        "exponents": _lines([str(x) for x in table.exponents.tolist()]),
        "multiples": _lines([_literal(x, table.width) for x in table.multiples.tolist()]),
        "width": table.width, "numbers": [[repr(float(x)) for x in row] for row in (*numbers, *proof.numbers)],
        "own": own, "arrays": arrays, "prepare": prepare, "call": placed(proof.call),
        "function": proof.function, "consecutive": _order(pieces),
        **context,
    }  # fmt: skip
    files = {f"{name}_selftest.h": "c/selftest.h.j2", f"{name}_selftest.c": "c/selftest.c.j2"}
    return {file: render(template, **values).encode() for file, template in files.items()}


def _order(pieces: Sequence[Piece]) -> str:
    sources = [piece.source for piece in pieces if piece.source is not None]
    return "" if all(s.again for s in sources) else ", each on what the one before has left"


def _lines(items: Sequence[str]) -> list[str]:
    return textwrap.wrap(", ".join(items), 112, break_long_words=False, break_on_hyphens=False)


def _stored(dtype: str) -> str:
    return {"i1": "bool", **{f"ui{n}": f"u{n}" for n in (8, 16, 32, 64)}}.get(dtype, dtype)


def _pointer(piece: Piece) -> str:
    return f"{ELEMENTS[_stored(piece.dtype)]} *"


def _literal(value: int, width: int) -> str:
    if width == 4:
        return str(value) if value > -(2**31) else "INT32_MIN"
    return "INT64_MIN" if value == -(2**63) else f"INT64_C({value})"


def _row(
    piece: Piece, at: int, calls: int, numbers: list[Sequence[float]], arrays: list[dict[str, Any]]
) -> dict[str, Any]:
    kind, low, high, exponent, which = "NOTHING", 0, 0, 0, 0
    source = piece.source
    if source is not None and source.fill is not None:
        fill = source.fill
        kind = {"float": "FLOATS", "integer": "WHOLE", "key": "WORDS"}[fill.kind]
        low, high, exponent = fill.offset, fill.count, fill.exponent
    elif source is not None and source.array is not None:
        kind, which = "STORED", len(arrays)
        stored = np.ascontiguousarray(source.array)
        name = _stored(piece.dtype)
        if stored.itemsize != SIZES[name]:
            raise LoweringError(f"'{piece.name}' begins with elements of {stored.itemsize} bytes (it is {name})")
        bits = stored.view(f"u{stored.itemsize}").tolist()
        arrays.append({"type": f"uint{8 * stored.itemsize}_t", "size": len(bits),
                       "lines": _lines([f"UINT64_C({x})" if x >= 2**31 else str(x) for x in bits])})  # fmt: skip
    elif source is not None:
        kind, which = "NUMBER", len(numbers)
        numbers.append([source.numbers[min(i, len(source.numbers) - 1)] for i in range(calls)])
    again = source is None or source.again
    return {
        "name": piece.name, "type": _stored(piece.dtype).upper(), "kind": kind, "again": int(again),
        "written": int(piece.result >= 0), "at": at, "size": piece.size, "low": low, "count": high,
        "exponent": exponent, "which": which, "stream": source.stream if source else 0,
    }  # fmt: skip
