"""The user's line for what the compiler refuses.

Programs are compiled without locations, so that artifacts hold no paths and are the same on every machine. One that is
refused is compiled once more, with a number at each operation; the compiler's complaint has the number, and the line
that it stands for is known from JAX's own notes, in memory alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from optgen.errors import CompileError, HazardError, LoweringError, OptgenError

_T = TypeVar("_T")

#: What tells where traced functions come from: what their names begin with in the program, and their StableHLO with
#: JAX's notes.
Sources = Sequence[tuple[str, Callable[[], str]]]

#: The name of the file that the numbers are lines of.
_FILE = "optgen-source"
_NUMBER = re.compile(rf'{_FILE}"?:(\d+)')
_FRAME = re.compile(r'"([^"]*)":(\d+):\d+')
_PACKAGE = Path(__file__).resolve().parents[1]


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


def line_of(located: str, wanted: Callable[[Any], bool]) -> str:
    """The user's line of the first operation that is ``wanted``: ``loss.py:12 (var)``; empty where none is known.

    Args:
        located: StableHLO with JAX's notes.
        wanted: tells of an operation whether it is meant.
    """
    from iree.compiler import ir, passmanager

    with ir.Context() as context, ir.Location.unknown():
        module = ir.Module.parse(located, context)
        # Functions of jax.numpy are called: only their callers' lines are the user's.
        passmanager.PassManager.parse("builtin.module(inline)").run(module.operation)
        found = (_line(str(op.location)) for op in _operations(module.operation) if wanted(op))
        return next((line for line in found if line), "")


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
            for op in _operations(f):
                op.location = ir.Location.unknown()
        for prefix, located in sources:
            for function in ir.Module.parse(located(), context).body.operations:
                into = own.get(prefix + _name(function.operation))
                if into is None:
                    continue
                pairs = list(_operations(into)), list(_operations(function.operation))
                if [op.name for op in pairs[0]] != [op.name for op in pairs[1]]:
                    continue  # written by other means than JAX's, as kernels in place are
                for op, noted in zip(*pairs, strict=True):
                    if line := _line(str(noted.location)):
                        lines.append(line)
                        op.location = ir.Location.file(_FILE, len(lines), 1)
        return str(module.operation.get_asm(enable_debug_info=True)), lines


def _operations(op: Any) -> Iterator[Any]:
    for region in op.regions:
        for block in region.blocks:
            for each in block.operations:
                yield each.operation
                yield from _operations(each.operation)


def _name(op: Any) -> str:
    return str(op.attributes["sym_name"]).strip('"') if "sym_name" in op.attributes else ""


def _line(location: str) -> str:
    """``loss.py:12 (digitize)``: the innermost frame that is neither JAX's nor optgen's nor another package's."""
    frames = [(file, line) for file, line in _FRAME.findall(location) if not _is_optgen(file)]
    mine = [f for f in frames if "site-packages" not in f[0] and "dist-packages" not in f[0]]
    for file, line in mine or frames:
        path = re.search(r'"(jit\([^"]*)"', location)
        names = re.findall(r"[\w.]+", path[1].rpartition("/")[2]) if path else []
        return f"{Path(file).name}:{line}" + (f" ({names[-1]})" if names else "")
    return ""


def _is_optgen(file: str) -> bool:
    return Path(file).resolve().is_relative_to(_PACKAGE)
