"""The user's line for what the compiler refuses.

Programs are compiled without locations, so that artifacts hold no paths and are the same on every machine. One that is
refused is compiled once more, with a number at each operation; the compiler's complaint has the number, and the line
that it stands for is known from JAX's own notes, in memory alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optgen.errors import CompileError, HazardError, LoweringError, OptgenError
from optgen.lower.lines import line_at, operations

_T = TypeVar("_T")

#: What tells where traced functions come from: what their names begin with in the program, and their StableHLO with
#: JAX's notes.
Sources = Sequence[tuple[str, Callable[[], str]]]

#: The name of the file that the numbers are lines of.
_FILE = "optgen-source"
_NUMBER = re.compile(rf'{_FILE}"?:(\d+)')


def blamed(attempt: Callable[[str], _T], mlir: str, sources: Sources) -> _T:
    """What ``attempt`` makes of a program.

    Args:
        attempt: compiles a program.
        mlir: the program.
        sources: of its functions; without any, refusals name no line.

    Raises:
        CompileError, LoweringError: of ``attempt``, with the user's file, line and operation in front, where they are
            known.
    """
    try:
        return attempt(mlir)
    except HazardError:
        raise  # of arguments, which it names
    except (CompileError, LoweringError) as error:
        if not (place := _place(attempt, mlir, sources)):
            raise
        raise type(error)(f"{place}: {error}") from error


def _place(attempt: Callable[[str], Any], mlir: str, sources: Sources) -> str:
    if not sources:
        return ""
    try:
        marked, lines = _mark(mlir, sources)
        attempt(marked)
    except OptgenError as again:
        found = _NUMBER.search(again.where)
        return lines[int(found[1]) - 1] if found else ""
    except Exception:  # whatever fails here, the refusal is what must be said
        return ""
    return ""


def _mark(mlir: str, sources: Sources) -> tuple[str, list[str]]:
    """The program with a number at each operation of the sources whose line is known, and the lines."""
    from iree.compiler import ir

    lines: list[str] = []
    with ir.Context() as context, ir.Location.unknown():
        module = ir.Module.parse(mlir, context)
        own = {_name(f.operation): f.operation for f in module.body.operations}
        for f in own.values():
            for op in operations(f):
                op.location = ir.Location.unknown()
        for prefix, located in sources:
            for function in ir.Module.parse(located(), context).body.operations:
                into = own.get(prefix + _name(function.operation))
                if into is None:
                    continue
                pairs = list(operations(into)), list(operations(function.operation))
                if [op.name for op in pairs[0]] != [op.name for op in pairs[1]]:
                    continue  # written by other means than JAX's, as kernels in place are
                for op, noted in zip(*pairs, strict=True):
                    if line := line_at(str(noted.location)):
                        lines.append(line)
                        op.location = ir.Location.file(_FILE, len(lines), 1)
        return str(module.operation.get_asm(enable_debug_info=True)), lines


def _name(op: Any) -> str:
    return str(op.attributes["sym_name"]).strip('"') if "sym_name" in op.attributes else ""
