"""The application: the commands, each in a module of its own, and ``--version``."""

from __future__ import annotations

from typing import Annotated

import typer

from optgen._version import __version__
from optgen.cli.bench import bench_command
from optgen.cli.compile import compile_command
from optgen.cli.demo import demo_command
from optgen.cli.inspect import inspect_command
from optgen.cli.lower import lower_command
from optgen.cli.machine import devices_command, targets_command
from optgen.cli.rules import rules_command
from optgen.cli.run import run_command
from optgen.cli.verify import verify_command

# Exceptions pass through to `main`, which knows how to tell them.
app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"optgen {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Optimizer updates as compiled, versioned, multi-target artifacts."""


app.command("compile")(compile_command)
app.command("lower")(lower_command)
app.command("inspect")(inspect_command)
app.command("verify")(verify_command)
app.command("run")(run_command)
app.command("rules")(rules_command)
app.command("targets")(targets_command)
app.command("devices")(devices_command)
app.command("demo")(demo_command)
app.command("bench")(bench_command)
