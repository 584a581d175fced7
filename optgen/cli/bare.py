"""The command line where typer and rich are not installed: ``optgen run``, which a device needs, and no more."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from optgen._version import __version__
from optgen.cli.settings import settings_of


def bare_main(arguments: Sequence[str] | None, missing: str) -> None:
    """``optgen run`` with the options that it always has.

    Args:
        arguments: those of the process by default.
        missing: the package that the other commands need.
    """
    parser = argparse.ArgumentParser(
        prog="optgen",
        description="Optimizer updates as compiled, versioned, multi-target artifacts.",
        epilog=f"{missing} is not installed, so there is only run; for the other commands: pip install typer rich",
    )
    parser.add_argument("--version", action="version", version=f"optgen {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="run")
    run = commands.add_parser("run", help="update params in files", description="Update params in files.")
    run.add_argument("bundle", help="a bundle, or the name of a prebuilt one")
    run.add_argument("--params", type=Path, required=True, help="the params, .npz or .safetensors")
    run.add_argument("--grads", type=Path, required=True, help="the grads, by the names of the params")
    run.add_argument("--out-params", type=Path, required=True, help="where to write the new params")
    run.add_argument("--state", type=Path, help="the state: step, m/NAME... (default: zeros)")
    run.add_argument("--out-state", type=Path, help="where to write the new state")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter, as lr=1e-3")
    run.add_argument("--steps", type=int, default=1, help="updates to make, all with these grads")
    run.add_argument("-d", "--device", help="what to run on")
    given = parser.parse_args(arguments)
    try:
        hypers = settings_of(given.set)
    except ValueError as error:
        run.error(f"--set {error}")
    if "step" in hypers:
        run.error("--set: step is counted in the state")
    if given.steps < 1:
        run.error("--steps must be at least 1")
    from optgen.cli.update import update_files

    print(
        update_files(
            given.bundle, given.params, given.grads, given.out_params, given.state, given.out_state, hypers,
            steps=given.steps, device=given.device,
        )
    )  # fmt: skip
