"""Stochastic arithmetic: what rounding may do to a computation in a narrower type, tried out in float64."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from optgen.dtypes import from_float64, to_float64

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
        seed: of the run. Odd ones flush numbers below the smallest normal one to zero, as some devices do, and keep
            what they have, as where a product and a sum are one operation. Even ones keep the numbers of each type.

    Attributes:
        keeps: whether the run keeps to the numbers of each type.
        overflowed: whether a number became too large for its type. What then comes out, an infinity or NaN, depends on
            the order of operations.
    """

    def __init__(self, seed: int) -> None:
        self._table = _table(seed)
        self._at = 0
        self.keeps = seed % 2 == 0
        self.overflowed = False

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

    def rounded(
        self, values: np.ndarray, dtype: str, scale: float = 1.0, operands: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        """What an operation of type ``dtype`` may give where float64 gives ``values``.

        Args:
            values: the results.
            dtype: the type that the operation is in.
            scale: how many roundings it may be off by.
            operands: of an operation that every device rounds once. Where they and the result are numbers of the type,
                nothing is rounded: else no run would show what rounding to an integer makes of an index.
        """
        made = self.moved(values, dtype, scale)
        if operands and (exact := representable(values, dtype)).any():
            for each in operands:
                exact = exact & representable(each, dtype)
            np.copyto(made, values, where=exact)
        if self.keeps:
            made = on_grid(made, dtype)
        magnitude = np.abs(made)
        if (over := magnitude > _LARGEST[dtype]).any():
            self.overflowed |= bool(np.isfinite(values).all())
            made[over] = np.copysign(np.inf, made[over])
        if not self.keeps:
            made[magnitude < _TINY[dtype]] = 0.0
        return made


def on_grid(values: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of a type, as float64; what is too large stays as it is."""
    if dtype == "f64":
        return values
    narrow = to_float64(from_float64(values, dtype), dtype)
    return np.where(np.isfinite(narrow), narrow, values)


def representable(values: np.ndarray, dtype: str) -> np.ndarray:
    """Where float64 numbers are numbers of a narrower type; of f64 where they are of f32, so that products and sums of
    such are exact."""
    with np.errstate(over="ignore"):
        if dtype == "f16":
            return np.asarray(np.asarray(values).astype(np.float16) == values)
        narrow = np.asarray(values).astype(np.float32)
    same = np.asarray(narrow == values)
    return same & (narrow.view(np.uint32) & 0xFFFF == 0) if dtype == "bf16" else same


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
