"""Names of the element types, in MLIR's spelling, and their numpy counterparts.

optgen names dtypes as MLIR does (``f32``); numpy, torch and JAX names are accepted wherever a user gives one.
bfloat16 is not a numpy type: arrays of it come from ml_dtypes or JAX, are recognised by name, and never make
this module import either package.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SIZES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
FLOATS = tuple(SIZES)

#: Element types that compiled functions may take and give besides; optimizer rules have floats alone.
INTEGERS = {
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "ui8": np.uint8, "ui16": np.uint16, "ui32": np.uint32, "ui64": np.uint64,
}  # fmt: skip

_ALIASES = {
    "half": "f16", "float16": "f16", "float": "f32", "float32": "f32", "double": "f64", "float64": "f64",
    "bfloat16": "bf16",
}  # fmt: skip


def dtype_name(dtype: Any) -> str:
    """The MLIR name of ``dtype``, given as a name, a numpy dtype or a torch dtype.

    Raises:
        ValueError: if it is not one of f16, bf16, f32 and f64.
    """
    try:
        return _known[dtype]
    except (KeyError, TypeError):
        name = _dtype_name(dtype)
    if dtype.__hash__ is not None:
        _known[dtype] = name
    return name


_known: dict[Any, str] = {}  # numpy takes its time to name a dtype


def _dtype_name(dtype: Any) -> str:
    text = str(getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or dtype)
    text = text.removeprefix("torch.")
    if text not in FLOATS:
        text = _ALIASES.get(text, text)
    if text not in FLOATS:
        try:
            text = _ALIASES.get(np.dtype(dtype).name, "")
        except TypeError:
            text = ""
    if text not in FLOATS:
        raise ValueError(f"'dtype' must be one of {', '.join(FLOATS)} (got {dtype!r})")
    return text


def element_name(dtype: Any) -> str:
    """As :func:`dtype_name`, for integers and booleans too: ``i32``, ``ui8``, ``i1``.

    Raises:
        ValueError: if it is none of those.
    """
    try:
        return dtype_name(dtype)
    except ValueError:
        text = str(getattr(dtype, "name", None) or dtype).removeprefix("torch.")
        for name, kind in INTEGERS.items():
            if text in (name, np.dtype(kind).name):
                return name
        raise ValueError(f"'dtype' must be one of {', '.join((*FLOATS, *INTEGERS))} (got {dtype!r})") from None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype that holds elements of the MLIR type ``name``.

    For ``bf16`` that is ``ml_dtypes.bfloat16``.

    Raises:
        ImportError: for ``bf16`` where ml_dtypes is not installed.
    """
    if name in INTEGERS:
        integer: np.dtype[Any] = np.dtype(INTEGERS[name])
        return integer
    if name == "bf16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError("bf16 arrays in numpy need ml_dtypes: pip install ml_dtypes") from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype({"f16": "float16", "f32": "float32", "f64": "float64"}[name])


def storage_dtype(name: str) -> np.dtype[Any]:
    """A builtin numpy dtype of the same size: what bits of ``name`` are moved and stored as (bf16 as uint16)."""
    return np.dtype(np.uint16) if name == "bf16" else numpy_dtype(name)


def to_float64(array: np.ndarray, name: str) -> np.ndarray:
    """``array``, holding elements of type ``name`` (bf16 possibly as uint16 bits), as float64 values."""
    if name == "bf16":
        bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64)
    return np.asarray(array).astype(np.float64)


def from_float64(array: np.ndarray, name: str) -> np.ndarray:
    """``array`` rounded to nearest-even to type ``name``; bf16 comes as uint16 bits."""
    if name != "bf16":
        return np.asarray(array, np.float64).astype(storage_dtype(name))
    # Through f32 would round twice; rounding to odd first makes the second rounding exact.
    wide = np.asarray(array, np.float64)
    single = wide.astype(np.float32)
    bits = single.view(np.uint32).copy()
    inexact = single.astype(np.float64) != wide
    away = inexact & (np.abs(single.astype(np.float64)) > np.abs(wide))
    bits = np.where(away, bits - 1, bits)
    bits = np.where(inexact, bits | 1, bits).astype(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(wide), np.uint32(0x7FC0), rounded).astype(np.uint16)


_MANTISSA = {"f16": 10, "bf16": 7, "f32": 23, "f64": 52}
_MIN_EXPONENT = {"f16": -14, "bf16": -126, "f32": -126, "f64": -1022}


def ulp(values: np.ndarray, name: str) -> np.ndarray:
    """The spacing of type ``name`` at the magnitude of each of ``values`` (float64)."""
    magnitude = np.abs(np.asarray(values, np.float64))
    _, exponent = np.frexp(np.where(np.isfinite(magnitude), magnitude, 1.0))
    exponent = np.where(magnitude == 0, _MIN_EXPONENT[name], np.maximum(exponent - 1, _MIN_EXPONENT[name]))
    spacing: np.ndarray = np.ldexp(1.0, exponent - _MANTISSA[name])
    return spacing
