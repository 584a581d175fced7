"""Numbers of steps, as states hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optgen.errors import TreeError

#: Steps that are counted exactly in every arithmetic's widest float.
_MOST = 2**53


def count_of(value: Any, what: str = "state 'step'") -> int:
    """A number of steps as Python's integer.

    Args:
        value: an integer of any kind, a float that is one, or an array of no dimensions that holds either.
        what: what to call it in errors.

    Raises:
        TreeError: if it is something else, negative, or not finite.
    """
    if type(value) is int and 0 <= value < _MOST:
        return value
    if not isinstance(value, bool | np.bool_ | str | bytes):
        try:
            array = np.asarray(value)
            if array.shape == () and array.dtype.kind in "iuf" and 0 <= array < _MOST and array == np.floor(array):
                return int(array)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TreeError(f"{what} must be a whole number of steps, at least 0 (got {value!r})")


def number_of(state: Mapping[str, Any], name: str) -> float:
    """A number of scalar state.

    Raises:
        TreeError: if the state lacks it, or it is no finite number.
    """
    if name not in state:
        raise TreeError(f"'state' must have '{name}' (it has {', '.join(map(repr, state))})")
    value = state[name]
    if type(value) is float and -_LARGEST <= value <= _LARGEST:
        return value
    if not isinstance(value, bool | np.bool_ | str | bytes):
        try:
            array = np.asarray(value)
            if array.size == 1 and array.dtype.kind in "iuf" and np.isfinite(array).all():
                return float(array.reshape(()))
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TreeError(f"state '{name}' must be a finite number (got {value!r})")


_LARGEST = float(np.finfo(np.float64).max)
