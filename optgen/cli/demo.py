"""``optgen demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optgen.errors import OptgenError


class MissingExtraError(OptgenError, ImportError):
    """A package that a command needs is not installed."""


def demo_command(
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write figures and bundles.")] = Path("out"),
) -> None:
    """Train a small network with compiled updates, and compare."""
    from importlib import import_module

    try:
        code = import_module("optgen.train.demo").main(out=out)
    except ImportError as error:
        if isinstance(error, OptgenError):
            raise
        missing = error.name or str(error)
        raise MissingExtraError(
            f"the demo needs {missing}, which is not installed: pip install 'optgen[compile,demo]'"
        ) from error
    if code:
        raise typer.Exit(code)
