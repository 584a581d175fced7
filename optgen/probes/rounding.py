"""What an array of some element type holds of given numbers."""

from __future__ import annotations

import numpy as np

from optgen.dtypes import FLOATS, from_float64, numpy_dtype, to_float64


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as an array of ``dtype`` holds them; floats as float64."""
    if dtype in FLOATS:
        return to_float64(from_float64(array.astype(np.float64), dtype), dtype)
    whole: np.ndarray = array.astype(numpy_dtype(dtype))
    return whole
