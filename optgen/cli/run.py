"""``optgen run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optgen.cli.arguments import parse_settings
from optgen.cli.output import console


def run_command(
    bundle: Annotated[str, typer.Argument(help="A bundle, or the name of a prebuilt one.")],
    params: Annotated[Path, typer.Option(help="The params, .npz or .safetensors.")],
    grads: Annotated[Path, typer.Option(help="The grads, by the names of the params. Params without one stay.")],
    out_params: Annotated[Path, typer.Option(help="Where to write the new params.")],
    state: Annotated[Path | None, typer.Option(help="The state: step, m/NAME...", show_default="zeros")] = None,
    out_state: Annotated[Path | None, typer.Option(help="Where to write the new state.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter, as lr=1e-3.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates to make, all with these grads.")] = 1,
    device: Annotated[str | None, typer.Option("-d", "--device", help="What to run on; see optgen devices.")] = None,
) -> None:
    """Update params in files. Each file is written whole or not at all."""
    from optgen.cli.update import update_files

    hypers = parse_settings(setting or ())
    if "step" in hypers:
        raise typer.BadParameter("step is counted in the state", param_hint="--set")
    console().print(
        update_files(bundle, params, grads, out_params, state, out_state, hypers, steps=steps, device=device)
    )
