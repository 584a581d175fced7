"""One training step: the loss and its gradient by one compiled module, the update in place by another.

To train something else, or by one module that does the whole step, replace this class: ``device.py`` asks for nothing
but ``step``, ``arrays`` and ``restore``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optgen.runtime import load, read_arrays
from optgen.train import load_function


class Step:
    """The digits classifier and AdamW.

    Args:
        folder: with ``loss_and_grad.optgen``, ``adamw.optgen`` and ``params.safetensors``.
    """

    def __init__(self, folder: Path) -> None:
        # One thread: small work, little memory, and the same bits everywhere.
        self._loss_and_grad = load_function(folder / "loss_and_grad.optgen", "local-sync")
        self._adamw = load(folder / "adamw.optgen", "local-sync")
        self._params = _nested(read_arrays(folder / "params.safetensors"))
        self._state: dict[str, Any] = self._adamw.init(self._params)

    def step(self, batch: Mapping[str, np.ndarray]) -> float:
        """Trains with a batch, and returns its loss before the update."""
        loss, grads = self._loss_and_grad(self._params, batch["x"], batch["y"])
        self._params, self._state = self._adamw.step(self._params, grads, self._state)
        return float(loss)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that the next step depends on, by name."""
        trees = {"params": self._params, "m": self._state["m"], "v": self._state["v"]}
        flat = {f"{n}/{layer}/{leaf}": a for n, t in trees.items() for layer, ls in t.items() for leaf, a in ls.items()}
        return {"step": np.array(self._state["step"], np.int64), **flat}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from what :meth:`arrays` returned."""
        trees = _nested({name: array for name, array in arrays.items() if "/" in name})
        self._params = trees["params"]
        self._state = {"step": int(arrays["step"]), "m": trees["m"], "v": trees["v"]}


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, array in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = array
    return tree
