"""``optgen run``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optgen.cli.arguments import open_bundle, parse_settings
from optgen.cli.output import console

if TYPE_CHECKING:
    import numpy as np

    from optgen.artifact import Manifest


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
    from optgen.cli.arrays import FileError, check_suffix, read_arrays, write_arrays
    from optgen.runtime import Optimizer

    for path in (out_params, *([] if out_state is None else [out_state])):
        check_suffix(path)  # now, not after the work
    hypers = parse_settings(setting or ())
    if "step" in hypers:
        raise typer.BadParameter("step is counted in the state", param_hint="--set")
    optimizer = Optimizer(open_bundle(bundle), device, hypers)
    manifest = optimizer.manifest
    if manifest.per_element or len(manifest.inputs) != 1:
        tensors = ", ".join((*manifest.inputs, *manifest.per_element))
        raise FileError(f"{manifest.variant} takes more tensors than grads ({tensors}): apply it from Python")
    values, slopes = read_arrays(params), read_arrays(grads)
    # A path with slashes is the same leaf as in a nested tree, so that flat dicts do.
    old = optimizer.init(values, **hypers) if state is None else _nest(read_arrays(state), manifest, state)
    start = time.perf_counter()
    for _ in range(steps):
        values, old = optimizer.step(values, slopes, old)
    seconds = time.perf_counter() - start
    if out_state is not None:
        write_arrays(out_state, _flatten(old, manifest))
    write_arrays(out_params, values)
    elements = sum(array.size for array in values.values())
    console().print(
        f"{manifest.variant}: {len(values)} leaves, {elements} elements, step {old['step']} "
        f"on {optimizer.device_name}, {seconds * 1000:.1f} ms"
    )


def _nest(arrays: dict[str, np.ndarray], manifest: Manifest, path: Path) -> dict[str, Any]:
    from optgen.cli.arrays import FileError

    state: dict[str, Any] = {"step": 0, **{name: {} for name in manifest.state}}
    if "step" not in arrays or arrays["step"].size != 1:
        raise FileError(f"{path} must have 'step', the number of updates made so far")
    for name, array in arrays.items():
        slot, _, leaf = name.partition("/")
        if name == "step":
            state["step"] = int(array.reshape(-1)[0])
        elif name in manifest.scalars and array.size == 1:
            state[name] = float(array.reshape(-1)[0])
        elif slot in manifest.state and leaf:
            state[slot][leaf] = array
        else:
            known = ", ".join((*(f"{slot}/..." for slot in manifest.state), *manifest.scalars)) or "'step' alone"
            raise FileError(f"{path} has '{name}', which is no state of {manifest.variant} (it has {known})")
    return state


def _flatten(state: dict[str, Any], manifest: Manifest) -> dict[str, np.ndarray]:
    import numpy as np

    leaves = {f"{slot}/{path}": array for slot in manifest.state for path, array in state[slot].items()}
    scalars = {name: np.array(state[name], np.float64) for name in manifest.scalars}
    return {"step": np.array(state["step"], np.int64), **scalars, **leaves}
