"""On a workstation: compiles the classifier for the device, and writes what its sensor would deliver.

    python examples/edge/prepare.py --out out/edge

gives a folder that has all that the device needs besides ``device.py``: two bundles, the params to start with, and a
spool of labelled images in batches. Needs optgen[compile,demo].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import optgen
from optgen.runtime import write_arrays
from optgen.train import compile_function, recipe
from optgen.train.digits import load_data
from optgen.train.mlp import loss_and_grad

#: The processors that the function is compiled for; the optimizer is one module for all.
TARGETS = ("cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:aarch64")


def compile_all(folder: Path) -> None:
    """Writes ``loss_and_grad.optgen``, ``adamw.optgen`` and ``params.safetensors``."""
    params = recipe.init_params()
    x = np.zeros((recipe.BATCH, recipe.LAYERS[0]), np.float32)
    y = np.zeros(recipe.BATCH, np.int32)
    compile_function(loss_and_grad, params, x, y, targets=TARGETS).save(folder / "loss_and_grad.optgen")
    rule = optgen.compile("adamw", target="cpu:any", lr=3e-3, weight_decay=0.05)
    rule.save(folder / "adamw.optgen")
    flat = {f"{layer}/{leaf}": array for layer, leaves in params.items() for leaf, array in leaves.items()}
    write_arrays(folder / "params.safetensors", flat)


def write_spool(folder: Path, batches: int) -> None:
    """Writes ``000000.safetensors``... with 64 images and their classes each, in an order that is always the same."""
    x, y, _, _ = load_data()
    rng, order = np.random.default_rng(1), np.empty(0, np.int64)
    for number in range(batches):
        if len(order) < recipe.BATCH:
            order = rng.permutation(len(x))
        chosen, order = order[: recipe.BATCH], order[recipe.BATCH :]
        write_arrays(folder / f"{number:06}.safetensors", {"x": x[chosen], "y": y[chosen]})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile for the device, and fill its spool.")
    parser.add_argument("--out", type=Path, default=Path("out/edge"), help="folder to write (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=264, help="batches of 64 images (default: %(default)s)")
    given = parser.parse_args()
    compile_all(given.out)
    write_spool(given.out / "spool", given.batches)
    for path in sorted(given.out.glob("*.*")):
        print(f"{path}  {path.stat().st_size / 1024:.1f} KB")
    print(f"{given.out / 'spool'}  {given.batches} batches")


if __name__ == "__main__":
    main()
