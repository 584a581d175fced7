"""What arguments hold in probes: numbers of the range that the user's example has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from optgen.artifact.manifest import LeafInfo
from optgen.dtypes import INTEGERS
from optgen.probes.generate import Fill

#: Random numbers of 24 bits.
_BITS = 24
#: Beyond it ``offset`` and a random number would not be exact in f64.
_LARGEST = 2.0**50


def fill_of(example: Any, leaf: LeafInfo, *, scaled: bool = False) -> Fill:
    """What a leaf holds.

    Args:
        example: what the user gave: an array, or only its shape and dtype.
        leaf: its shape and dtype.
        scaled: whether the leaf is a param, which is smaller the more numbers are summed: for examples of zeros or
            without values, which else have [-1, 1).
    """
    values = _values(example)
    if leaf.dtype in INTEGERS:
        if leaf.dtype == "i1" or values is None or not values.any():
            return Fill("integer", 0, count=2)
        least = int(values.min())
        return Fill("integer", least, count=min(int(values.max()) - least + 1, 2**32 - 1))
    values = None if values is None else values[np.isfinite(values)]
    if values is None or not values.size or not values.any():
        shrink = round(math.log2(math.prod(leaf.shape[:-1])) / 2) if scaled and len(leaf.shape) > 1 else 0
        return Fill("float", -(2 ** (_BITS - 1)), 1 - _BITS - shrink)
    low, high = float(values.min()), float(values.max())
    middle = low + (high - low) / 2
    span = high - low if high > low else abs(middle) / 2
    span = max(span, abs(middle) * 2.0**_BITS / _LARGEST, 2.0**-100)
    exponent = math.frexp(span)[1] - 1 - _BITS  # the largest power of two that is within the range
    return Fill("float", round(math.ldexp(middle, -exponent)) - 2 ** (_BITS - 1), exponent)


def _values(example: Any) -> np.ndarray | None:
    """The numbers of an example: exact integers, or float64; None where it has none."""
    if not (hasattr(example, "__array__") or isinstance(example, bool | int | float)):
        return None
    try:
        array = np.asarray(example)
        if array.dtype.kind in "iub":
            return array
        return array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):
        return None
