"""Stochastic arithmetic: what rounding may do to a computation in a narrower type, tried out in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

#: The largest relative error of one rounding, the smallest normal number, and the largest number of each float type.
_ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24, "f64": 2.0**-53}
_TINY = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022}
_LARGEST = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "f32": 3.4028234663852886e38, "f64": np.inf}

#: How much larger than one rounding what is tried out is, so that a few runs show what many would. Of 16 bits that
#: would be so much that little could be told from the results.
AMPLITUDE = {"f16": 2.0, "bf16": 2.0, "f32": 4.0, "f64": 4.0}

#: A prime, so that noise does not repeat along the axes of arrays.
_LENGTH = 131_071
_STRIDE = 48_271


class Noise:
    """Relative errors for the operations of one run.

    Args:
        seed: of the run. Odd ones flush numbers below the smallest normal one to zero, as some devices do.
    """

    def __init__(self, seed: int) -> None:
        self._table = _table(seed)
        self._at = 0
        self._flush = seed % 2 == 1

    def moved(self, values: np.ndarray, dtype: str, scale: float = 1.0) -> np.ndarray:
        """A copy of ``values``, each relatively off by up to ``scale`` roundings of type ``dtype``."""
        made = np.array(values, np.float64, order="C")
        size = _ROUNDING[dtype] * AMPLITUDE[dtype] * scale
        flat = made.reshape(-1)
        for first in range(0, flat.size, _LENGTH):
            piece = flat[first : first + _LENGTH]
            self._at = (self._at + _STRIDE) % _LENGTH
            factor = self._table[self._at : self._at + piece.size] * size
            factor += 1.0
            piece *= factor
        return made

    def rounded(self, values: np.ndarray, dtype: str, scale: float = 1.0) -> np.ndarray:
        """What an operation of type ``dtype`` may give where float64 gives ``values``."""
        made = self.moved(values, dtype, scale)
        magnitude = np.abs(made)
        if (over := magnitude > _LARGEST[dtype]).any():
            made[over] = np.copysign(np.inf, made[over])
        if self._flush:
            made[magnitude < _TINY[dtype]] = 0.0
        return made


@cache
def _table(seed: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(seed))
    once = generator.random(_LENGTH) * 2 - 1
    return np.concatenate([once, once])


@cache
def floats(dtype: Any) -> str:
    """The name of a float type of JAX or numpy; empty for others."""
    names = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
    return names.get(str(dtype), "")
