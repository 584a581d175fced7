"""The user's line of an operation, from JAX's notes: ``loss.py:12 (var)``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

_FRAME = re.compile(r'"([^"]*)":(\d+):\d+')
_PACKAGE = Path(__file__).resolve().parents[1]


def line_at(location: str) -> str:
    """The line that an operation's location in StableHLO stands for; empty where none is known."""
    path = re.search(r'"(jit\([^"]*)"', location)
    names = re.findall(r"[\w.]+", path[1].rpartition("/")[2]) if path else []
    return _innermost(_FRAME.findall(location), names[-1] if names else "")


def line_of(located: str, wanted: Callable[[Any], bool]) -> str:
    """The line of the first operation that is ``wanted``; empty where none is known.

    Args:
        located: StableHLO with JAX's notes.
        wanted: tells of an operation whether it is meant.
    """
    from iree.compiler import ir, passmanager

    with ir.Context() as context, ir.Location.unknown():
        module = ir.Module.parse(located, context)
        # Functions of jax.numpy are called: only their callers' lines are the user's.
        passmanager.PassManager.parse("builtin.module(inline)").run(module.operation)
        found = (line_at(str(op.location)) for op in operations(module.operation) if wanted(op))
        return next((line for line in found if line), "")


def line_in(jaxpr: Any, primitives: Collection[str]) -> str:
    """The line of the first equation of some primitives, in a jaxpr and those that it calls; empty where none is
    known."""
    found = (_innermost(frames, name) for name, frames in _equations(jaxpr, []) if name in primitives)
    return next((line for line in found if line), "")


def operations(op: Any) -> Iterator[Any]:
    """The operations inside one, in order."""
    for region in op.regions:
        for block in region.blocks:
            for each in block.operations:
                yield each.operation
                yield from operations(each.operation)


def _equations(jaxpr: Any, callers: list[tuple[str, str]]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The primitives of a jaxpr's equations, each with its frames, those of the calls that it is in last."""
    for equation in jaxpr.eqns:
        trace = equation.source_info.traceback
        frames = [(f.file_name, str(f.line_num)) for f in (trace.frames if trace is not None else ())] + callers
        yield equation.primitive.name, frames
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner, frames)


def _innermost(frames: Iterable[tuple[str, str]], operation: str) -> str:
    """The innermost frame that is neither JAX's nor optgen's nor another package's, where there is one."""
    frames = [(file, line) for file, line in frames if not Path(file).resolve().is_relative_to(_PACKAGE)]
    mine = [f for f in frames if "site-packages" not in f[0] and "dist-packages" not in f[0]]
    for file, line in mine or frames:
        return f"{Path(file).name}:{line}" + (f" ({operation})" if operation else "")
    return ""
