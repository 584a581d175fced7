"""The numbers of a probe as bytes, the same on every machine that computes them.

Tolerances are powers of two. What is expected is a whole multiple of ``2^-GRID`` of its tolerance: far coarser than the
last bits of f64, in which processors differ, and far finer than the tolerance. For each number the file holds an
exponent, int16, and the multiple, of ``width`` bytes, twice its magnitude and 1 more where it is negative. First come
all lowest bytes of the exponents, then all highest, then the multiples likewise, lowest bytes first: so what is stored
deflated takes half as much. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optgen.errors import BundleError

#: The file.
PROBES = "probes.bin"

#: Bits of an expected number below its tolerance.
GRID = 4

#: Keeps the edges between two multiples away from what numbers like to be: wholes, halves, sixteenths.
_ASIDE = 0.0137

#: Exponents that stand for no number: NaN; an infinity, whose sign the multiple has; anything at all.
_NAN, _INFINITE, _ANY = 32767, 32766, 32765


def split(expected: np.ndarray, tolerance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exponents, int16, and multiples, int64.

    Args:
        expected: float64.
        tolerance: float64, powers of two above 0; infinite where nothing can be said.
    """
    exponents = np.full(expected.shape, _ANY, np.int16)
    multiples = np.zeros(expected.shape, np.int64)
    told = np.isfinite(tolerance)
    exponents[told & np.isnan(expected)] = _NAN
    infinite = told & np.isinf(expected)
    exponents[infinite] = _INFINITE
    multiples[infinite] = np.sign(expected[infinite]).astype(np.int64)
    usual = told & np.isfinite(expected)
    _, power = np.frexp(tolerance[usual])
    grid = power - 1 - GRID
    exponents[usual] = grid
    multiples[usual] = np.floor(np.ldexp(expected[usual], -grid) + (0.5 + _ASIDE)).astype(np.int64)
    return exponents, multiples


def encode(expected: np.ndarray, tolerance: np.ndarray) -> tuple[bytes, int]:
    """The file, and the width of its multiples; the arguments are those of :func:`split`."""
    exponents, multiples = split(expected, tolerance)
    folded = (np.abs(multiples) << 1) | (multiples < 0)
    width = 4 if folded.max(initial=0) < 2**32 else 8
    return _planes(exponents.astype("<i2")) + _planes(folded.astype(f"<u{width}")), width


def _planes(numbers: np.ndarray) -> bytes:
    return numbers.view(np.uint8).reshape(numbers.size, numbers.itemsize).T.tobytes()


def _numbers(data: bytes, dtype: str, count: int) -> np.ndarray:
    planes = np.frombuffer(data, np.uint8).reshape(np.dtype(dtype).itemsize, count)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(count)


def decode(data: bytes, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What was encoded: expected numbers and tolerances.

    Raises:
        BundleError: if ``data`` is not of the size that ``count`` numbers have.
    """
    if width not in (4, 8) or len(data) != count * (2 + width):
        raise BundleError(f"the bundle is damaged: '{PROBES}' must have {count} numbers (it has {len(data)} bytes)")
    exponents = _numbers(data[: 2 * count], "<i2", count).astype(np.int64)
    folded = _numbers(data[2 * count :], f"<u{width}", count).astype(np.int64)
    multiples = np.where(folded & 1, -1.0, 1.0) * (folded >> 1)
    usual = exponents < _ANY
    with np.errstate(over="ignore"):
        expected = np.ldexp(multiples, np.where(usual, exponents, 0).astype(np.int32))
        tolerance = np.ldexp(1.0, np.where(usual, exponents + GRID, 0).astype(np.int32))
    expected[exponents == _NAN] = np.nan
    expected[exponents == _INFINITE] = np.inf * multiples[exponents == _INFINITE]
    expected[exponents == _ANY] = 0.0
    tolerance = np.where(exponents == _ANY, np.inf, np.where(usual, tolerance, 0.0))
    return expected, tolerance


def power_of_two(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Each value rounded up to a power of two."""
    fraction, exponent = np.frexp(np.asarray(values, np.float64))
    with np.errstate(over="ignore"):
        found: np.ndarray = np.ldexp(1.0, np.where(fraction == 0.5, exponent - 1, exponent))
    return np.where(np.isfinite(values), found, np.inf)
