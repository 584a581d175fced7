"""What the commands print with: results go to stdout, progress to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

#: Columns where there is no terminal to ask: enough that no table of ours is folded.
_WIDE = 200


def console(*, stderr: bool = False) -> Console:
    """A console that takes text literally, and does not fold tables in files and pipes."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(*headers: str, right: Iterable[str] = ()) -> Any:
    """An empty table with these columns.

    Args:
        headers: of the columns.
        right: those of them that are aligned to the right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    result = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        result.add_column(header, justify="right" if header in right else "left", overflow="fold")
    return result


def size(count: int) -> str:
    """A number of bytes for people: ``812 B``, ``24.1 KB``."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1024:.1f} KB" if count < 1000 * 1024 else f"{count / 1024**2:.1f} MB"


def yes(value: bool) -> str:
    """``yes`` or ``no``."""
    return "yes" if value else "no"
