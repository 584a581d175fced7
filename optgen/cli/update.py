"""What ``optgen run`` does, with numpy and ``iree.runtime`` alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optgen.errors import FileError
from optgen.runtime import Optimizer
from optgen.runtime.files import check_suffix, read_arrays, write_arrays
from optgen.runtime.loading import open_bundle

if TYPE_CHECKING:
    import numpy as np

    from optgen.artifact import Manifest


def update_files(
    bundle: str,
    params: Path,
    grads: Path,
    out_params: Path,
    state: Path | None = None,
    out_state: Path | None = None,
    hypers: Mapping[str, Any] | None = None,
    *,
    steps: int = 1,
    device: str | None = None,
) -> str:
    """Updates params in files, each of which is written whole or not at all.

    Args:
        bundle: its path, or the name of a prebuilt one.
        params, grads: files of arrays; grads by the names of the params.
        out_params, out_state: where to write.
        state: as ``out_state`` is written; by default as it starts.
        hypers: hyperparameters.
        steps: updates to make, all with these grads.
        device: see :class:`Optimizer`.

    Returns:
        A sentence about what was done.

    Raises:
        OptgenError: for files, trees, numbers or devices that do not fit; nothing is then written.
    """
    for path in (out_params, *([] if out_state is None else [out_state])):
        check_suffix(path)  # now, not after the work
    hypers = dict(hypers or {})
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
    return (
        f"{manifest.variant}: {len(values)} leaves, {elements} elements, step {old['step']} "
        f"on {optimizer.device_name}, {seconds * 1000:.1f} ms"
    )


def _nest(arrays: dict[str, np.ndarray], manifest: Manifest, path: Path) -> dict[str, Any]:
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
