"""The command line."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``optgen``.

    What optgen and the operating system refuse is told in one line, with exit code 1; wrong usage gives 2. Where typer
    or rich is missing there is ``optgen run`` alone, which needs neither.

    Args:
        arguments: those of the process by default.
    """
    import sys

    from optgen.errors import OptgenError

    given = None if arguments is None else list(arguments)
    try:
        try:
            from optgen.cli.app import app
        except ModuleNotFoundError as error:
            if error.name not in ("typer", "rich"):
                raise
            from optgen.cli.bare import bare_main

            bare_main(given, error.name)
            sys.exit(0)
        app(args=given, prog_name="optgen")
    except (OptgenError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
