"""A program under construction: its params, its batch, and the pieces that its loss is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Extents of axes, from the ordinary to those that vector code is likely to get wrong.
SIZES = (1, 2, 3, 4, 5, 7, 8, 10, 16, 17, 31, 32, 33, 64, 100, 127, 200, 256, 1000)
_WEIGHTS = np.array([3, 4, 5, 4, 4, 3, 5, 5, 4, 2, 2, 3, 2, 2, 2, 1, 1, 1, 1], float)

#: Elements of the largest value between two pieces.
MOST = 40_000

Apply = Callable[[Any, "Values"], Any]


@dataclass(frozen=True)
class Values:
    """What a loss is called with."""

    params: Any
    batch: Any
    key: Any


@dataclass
class Builder:
    """Collects what pieces ask for.

    Attributes:
        params, batch: leaves, with the values that they begin with.
        random: whether the loss takes a key.
    """

    params: dict[str, np.ndarray] = field(default_factory=dict)
    batch: dict[str, np.ndarray] = field(default_factory=dict)
    random: bool = False

    def param(self, rng: np.random.Generator, shape: tuple[int, ...], scale: float, around: float = 0.0) -> str:
        """A new leaf of params; its name."""
        name = f"p{len(self.params)}"
        self.params[name] = np.asarray(around + scale * rng.standard_normal(shape), np.float32)
        return name

    def input(self, values: np.ndarray) -> str:
        """A new leaf of the batch; its name."""
        name = f"b{len(self.batch)}"
        self.batch[name] = np.asarray(values)
        return name


def size(rng: np.random.Generator, most: int = 1000) -> int:
    """An extent."""
    weights = _WEIGHTS * (np.array(SIZES) <= most)
    return int(rng.choice(SIZES, p=weights / weights.sum()))


def axis_of(rng: np.random.Generator, shape: tuple[int, ...]) -> int:
    """One of the axes of a value."""
    return int(rng.integers(len(shape)))


def axes_of(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Some of them, at least one."""
    count = int(rng.integers(1, len(shape) + 1))
    return tuple(sorted(int(a) for a in rng.choice(len(shape), count, replace=False)))


def indices(rng: np.random.Generator, shape: tuple[int, ...], extent: int) -> np.ndarray:
    """Whole numbers for an axis of ``extent``, half the time some that are out of range, of either width."""
    found = rng.integers(0, max(extent, 1), shape)
    if rng.random() < 0.5 and found.size:
        wrong = rng.random(shape) < 0.2
        found = np.where(
            wrong, rng.choice([-1, -extent, -extent - 1, extent, extent + 3, 10 * extent + 7], shape), found
        )
    return np.asarray(found, np.int64 if rng.random() < 0.25 else np.int32)
