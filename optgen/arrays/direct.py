"""The short way for the common call: small arrays of one shape, dtype and kind, and numbers everywhere else.

Anything that is not exactly that takes the long way, which does the same and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optgen.arrays.engine import SMALL, run_small
from optgen.arrays.ndarray import Array
from optgen.arrays.operation import Operation

_DTYPES = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}


def direct(operation: Operation, given: tuple[Any, ...], lr: Any, hypers: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The results, as new arrays; None where the call is not of the common kind.

    Raises:
        HyperparameterError: if a number is out of its range.
    """
    kind = type(given[0])
    if kind is np.ndarray:
        arrays = given
    elif kind is Array:
        if any(type(value) is not Array for value in given):
            return None
        arrays = tuple([value.data for value in given])
    else:
        return None
    first = arrays[0]
    dtype = _DTYPES.get(first.dtype)
    if dtype is None or not 0 < first.size <= SMALL:
        return None
    for array in arrays:
        if type(array) is not np.ndarray or array.shape != first.shape or array.dtype != first.dtype:
            return None
    known = operation.hypers
    values = dict(hypers)
    if operation.per_element:
        values["lr"] = lr
    for name, value in list(values.items()):
        if type(value) is not float and type(value) is not int:
            return None
        values[name] = known[name].check(value)
    operands = arrays if operation.results[0] == "w" else (None, *arrays)  # the old delta is not read
    results = run_small(operation.bundle, dtype, operands, values)
    return tuple([Array(result) for result in results]) if kind is Array else tuple(results)
