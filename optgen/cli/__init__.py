"""The command line."""


def main() -> None:
    """Entry point of ``optgen``."""
    from optgen.cli.app import app

    app()
