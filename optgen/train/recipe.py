"""What the demo trains: model, data split, rules. Needs numpy alone, so that both of its processes can share it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

#: Pixels, hidden units, classes.
LAYERS = (64, 128, 10)
BATCH = 64
TRAIN, TEST = 1437, 360
EPOCHS = 12
TARGETS = ("cpu", "vulkan")
MIN_ACCURACY = 0.96
#: The most that the losses of two devices may differ by, at any step.
MAX_DIFFERENCE = 1e-4

Params = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Recipe:
    """One rule to train with: its structure, which is compiled in, and its hyperparameters."""

    rule: str
    structure: dict[str, bool]
    hypers: dict[str, float]


RECIPES = (
    Recipe("sgd", {"momentum": True, "nesterov": True}, {"lr": 0.05, "momentum": 0.9}),
    Recipe("adam", {}, {"lr": 3e-3}),
    Recipe("adamw", {}, {"lr": 1e-2, "weight_decay": 0.1}),
)


def init_params(seed: int = 0) -> Params:
    """He initialisation; the same seed always gives the same numbers."""
    rng = np.random.default_rng(seed)
    params: Params = {}
    for index, (fan_in, fan_out) in enumerate(pairwise(LAYERS)):
        weights = rng.standard_normal((fan_in, fan_out)) * np.sqrt(2 / fan_in)
        params[f"layer{index}"] = {"w": weights.astype(np.float32), "b": np.zeros(fan_out, np.float32)}
    return params


def save_params(path: str, params: Params) -> None:
    """Writes params as an npz file."""
    np.savez(path, allow_pickle=False, **{f"{n}/{k}": a for n, layer in params.items() for k, a in layer.items()})


def load_params(path: str) -> Params:
    """Reads what :func:`save_params` wrote."""
    params: Params = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            layer, _, leaf = name.partition("/")
            params.setdefault(layer, {})[leaf] = archive[name]
    return params
