"""Names of the element types, in MLIR's spelling, and their numpy counterparts.

optgen names dtypes as MLIR does (``f32``); numpy, torch and JAX names are accepted wherever a user gives one.
bfloat16 is not a numpy type: arrays of it come from ml_dtypes or JAX, are recognised by name, and never make
this module import either package.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

FLOATS = ("f16", "bf16", "f32", "f64")


@dataclass(frozen=True)
class Code:
    """A number in 8 bits, for moments: a float with subnormals, and without infinities and NaN.

    The bits are those of an IEEE float, sign (if there is one), exponent, mantissa, except that the largest exponent is
    one like the others. What is larger than the largest number becomes that, infinities and NaN too; without a sign, a
    number is stored as its magnitude.

    Attributes:
        signed: whether the first bit is a sign.
        mantissa: bits of the mantissa.
        lowest: the smallest normal number is 2 to this power; below it numbers are as far apart as just above.
    """

    signed: bool
    mantissa: int
    lowest: int

    @property
    def top(self) -> int:
        """The largest code of a magnitude."""
        return 127 if self.signed else 255


#: The element types of 8 bits, and of state alone; numpy has them as uint8.
CODES = {"f8m": Code(True, 2, -24), "f8v": Code(False, 2, -48)}

SIZES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, **dict.fromkeys(CODES, 1)}

#: Element types that compiled functions may take and give besides; optimizer rules have floats alone.
INTEGERS = {
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "ui8": np.uint8, "ui16": np.uint16, "ui32": np.uint32, "ui64": np.uint64,
}  # fmt: skip

#: What Vulkan's devices take and give for integers: many store words of 32 bits alone. Of 64 bits the lower half is
#: what JAX goes on with.
WORDS = {
    "i1": "ui32", "i8": "i32", "i16": "i32", "i64": "i32", "ui8": "ui32", "ui16": "ui32", "ui64": "ui32",
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


def state_dtype_name(dtype: Any) -> str:
    """As :func:`dtype_name`, for what state may have besides: ``f8m`` and ``f8v``.

    Raises:
        ValueError: if it is none of those.
    """
    if isinstance(dtype, str) and dtype in CODES:
        return dtype
    try:
        return dtype_name(dtype)
    except ValueError:
        raise ValueError(f"'state_dtype' must be one of {', '.join((*FLOATS, *CODES))} (got {dtype!r})") from None


def stored_as(name: str) -> str:
    """The name of what arrays of elements of type ``name`` hold: ``ui8`` for 8-bit codes, else ``name`` itself."""
    return "ui8" if name in CODES else name


def storage_dtype(name: str) -> np.dtype[Any]:
    """A builtin numpy dtype of the same size: what bits of ``name`` are moved and stored as (bf16 as uint16)."""
    return np.dtype(np.uint16) if name == "bf16" else numpy_dtype(stored_as(name))


@cache
def code_values(name: str) -> np.ndarray:
    """The numbers, float64, that the 256 codes of an 8-bit type stand for."""
    code = CODES[name]
    magnitude = np.arange(256) & code.top
    exponent, mantissa = magnitude >> code.mantissa, magnitude & ((1 << code.mantissa) - 1)
    whole = np.where(exponent == 0, mantissa, mantissa + (1 << code.mantissa))
    values: np.ndarray = np.ldexp(whole.astype(np.float64), code.lowest - code.mantissa + np.maximum(exponent - 1, 0))
    values = np.where(np.arange(256) > code.top, -values, values)
    values.flags.writeable = False
    return values


def _nearest_code(values: np.ndarray, name: str) -> np.ndarray:
    code = CODES[name]
    steps = code_values(name)[: code.top + 1]
    magnitude = np.nan_to_num(np.abs(values), nan=np.inf)
    above = np.minimum(np.searchsorted(steps, magnitude), code.top)
    below = np.maximum(above - 1, 0)
    with np.errstate(invalid="ignore"):
        up, down = steps[above] - magnitude, magnitude - steps[below]
    nearest = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    nearest = np.where(magnitude >= steps[code.top], code.top, nearest)
    signed: np.ndarray = np.where(code.signed & np.signbit(values), nearest + 128, nearest)
    return signed.astype(np.uint8)


def to_float64(array: np.ndarray, name: str) -> np.ndarray:
    """``array``, holding elements of type ``name`` (bf16 possibly as uint16 bits), as float64 values."""
    if name == "bf16":
        bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64)
    if name in CODES:
        decoded: np.ndarray = code_values(name)[np.asarray(array)]
        return decoded
    return np.asarray(array).astype(np.float64)


def from_float64(array: np.ndarray, name: str) -> np.ndarray:
    """``array`` rounded to nearest-even to type ``name``; bf16 comes as uint16 bits."""
    if name in CODES:
        return _nearest_code(np.asarray(array, np.float64), name)
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


_MANTISSA = {"f16": 10, "bf16": 7, "f32": 23, "f64": 52, **{name: code.mantissa for name, code in CODES.items()}}
_MIN_EXPONENT = {
    "f16": -14, "bf16": -126, "f32": -126, "f64": -1022, **{name: code.lowest for name, code in CODES.items()},
}  # fmt: skip


def ulp(values: np.ndarray, name: str) -> np.ndarray:
    """The spacing of type ``name`` at the magnitude of each of ``values`` (float64)."""
    magnitude = np.abs(np.asarray(values, np.float64))
    _, exponent = np.frexp(np.where(np.isfinite(magnitude), magnitude, 1.0))
    exponent = np.where(magnitude == 0, _MIN_EXPONENT[name], np.maximum(exponent - 1, _MIN_EXPONENT[name]))
    spacing: np.ndarray = np.ldexp(1.0, exponent - _MANTISSA[name])
    return spacing
