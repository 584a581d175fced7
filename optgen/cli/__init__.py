"""The command line."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``optgen``.

    What optgen and the operating system refuse is told in one line, with exit code 1; wrong usage gives 2.

    Args:
        arguments: those of the process by default.
    """
    import sys

    from optgen.cli.app import app
    from optgen.errors import OptgenError

    try:
        app(args=None if arguments is None else list(arguments), prog_name="optgen")
    except (OptgenError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
