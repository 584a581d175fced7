"""How arrays and Containers print: as ivy prints its own, ``ivy.array([1., 2.])``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optgen.dtypes import dtype_name, to_float64

_significant_figures = 10
_decimal_values = 8


def set_array_significant_figures(figures: int) -> None:
    """Sets to how many significant figures values are rounded before they are printed; 10 at first.

    Args:
        figures: a whole number of at least 1.

    Raises:
        ValueError: if it is no such number.
    """
    global _significant_figures
    _significant_figures = _whole(figures, "figures", 1)


def set_array_decimal_values(decimals: int) -> None:
    """Sets how many digits after the point are printed at most; 8 at first.

    Args:
        decimals: a whole number of at least 0.

    Raises:
        ValueError: if it is no such number.
    """
    global _decimal_values
    _decimal_values = _whole(decimals, "decimals", 0)


def _whole(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"'{name}' must be a whole number of at least {least} (got {value!r})")
    return int(value)


def format_array(data: np.ndarray, prefix: str = "") -> str:
    """``data`` as ``ivy.array(...)``.

    Args:
        data: of any dtype.
        prefix: what stands before it on its line, so that further rows are aligned.
    """
    opening = "ivy.array("
    shown, threshold = _shown(data)
    text = np.array2string(
        _rounded(shown),
        precision=_decimal_values,
        separator=", ",
        prefix=prefix + opening,
        threshold=threshold,
    )
    return f"{opening}{text})"


def format_tree(tree: Mapping[Any, Any], indent: str = "") -> str:
    """A tree in braces, a line for each leaf, four columns deeper at each level."""
    if not tree:
        return "{}"
    inner = indent + "    "
    lines = []
    for key, value in tree.items():
        start = f"{inner}{key}: "
        if isinstance(value, Mapping):
            lines.append(start + format_tree(value, inner))
        elif getattr(value, "__optgen_array__", False):
            lines.append(start + format_array(value.data, start))
        else:
            lines.append(start + repr(value).replace("\n", "\n" + " " * len(start)))
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _rounded(data: np.ndarray) -> np.ndarray:
    """Floats rounded to the significant figures. As f64, whatever they were: so do ivy's digits come about."""
    try:
        name = dtype_name(data.dtype)
    except ValueError:
        return data  # integers and booleans
    wide = to_float64(data, name)
    digits = [float(f"{value:.{_significant_figures - 1}e}") for value in wide.reshape(-1).tolist()]
    return np.array(digits, np.float64).reshape(wide.shape)


def _shown(data: np.ndarray) -> tuple[np.ndarray, int]:
    """What numpy prints of ``data``, and the threshold with which it prints that as if it were all.

    Of a long array these are the items at the ends of each axis, with one that stands for those between.
    """
    options = np.get_printoptions()
    edge, threshold = options["edgeitems"], options["threshold"]
    if data.size <= threshold:
        return data, threshold
    kept = [[*range(edge + 1), *range(n - edge, n)] if n > 2 * edge + 1 else [*range(n)] for n in data.shape]
    return data[np.ix_(*kept)], 0
