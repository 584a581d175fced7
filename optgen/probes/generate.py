"""Inputs of probes, made from a seed: the same numbers in Python, C and JavaScript, so they need not be carried.

All arithmetic is modulo 2^32, or exact in f64, so that no processor or compiler can make other numbers of it::

    word(seed, stream, i):  x = (i + 1) * 0x9E3779B9 + stream * 0x85EBCA6B + seed * 0xC2B2AE35
                            x ^= x >> 16; x *= 0x7FEB352D; x ^= x >> 15; x *= 0x846CA68B; x ^= x >> 16

The stream of an array is the position of its argument in the manifest. Needs numpy alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from optgen.dtypes import from_float64, storage_dtype
from optgen.errors import BundleError

#: Streams beside those of arguments: of sampled positions (one for each result), and of the projections' signs.
POSITIONS = 2**31
SIGNS = 2**30

#: Streams of signs that a result may have.
MOST_PROJECTIONS = 16


@dataclass(frozen=True)
class Fill:
    """What an argument holds at a probe's first call.

    Attributes:
        kind: ``float``: ``(offset + (word >> 8)) * 2^exponent``, rounded once to the argument's dtype.
            ``integer``: ``offset + word % count``. ``key``: the words themselves. ``initial``: state as the optimizer
            begins it. ``number``: a hyperparameter, which the call names.
        offset: an integer.
        exponent: of two.
        count: how many whole numbers there are to choose from.
    """

    kind: str
    offset: int = 0
    exponent: int = 0
    count: int = 0

    def __str__(self) -> str:
        """The form that manifests have: ``float OFFSET EXPONENT``, ``integer OFFSET COUNT``, or the kind alone."""
        if self.kind in ("float", "integer"):
            return f"{self.kind} {self.offset} {self.exponent if self.kind == 'float' else self.count}"
        return self.kind

    @classmethod
    def parse(cls, text: str) -> Fill:
        """The opposite of ``str``.

        Raises:
            BundleError: if it is not of that form.
        """
        kind, *numbers = text.split()
        try:
            if kind == "float":
                return cls(kind, int(numbers[0]), exponent=int(numbers[1]))
            if kind == "integer" and int(numbers[1]) > 0:
                return cls(kind, int(numbers[0]), count=int(numbers[1]))
        except (IndexError, ValueError) as error:
            raise BundleError(f"the bundle is damaged: no argument of a probe can hold {text!r}") from error
        if kind not in ("key", "initial", "number"):
            raise BundleError(f"the bundle is damaged: no argument of a probe can hold {text!r}")
        return cls(kind)


@lru_cache(256)
def _small(seed: int, stream: int, count: int) -> np.ndarray:
    made = _words(seed, stream, count)
    made.flags.writeable = False
    return made


def words(seed: int, stream: int, count: int) -> np.ndarray:
    """The first ``count`` words of a stream, as uint32; not to be written."""
    return _small(seed, stream, count) if count <= 65_536 else _words(seed, stream, count)


def _words(seed: int, stream: int, count: int) -> np.ndarray:
    x = np.arange(1, count + 1, dtype=np.uint32)
    x *= np.uint32(0x9E3779B9)
    x += np.uint32((stream * 0x85EBCA6B + seed * 0xC2B2AE35) & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def filled(fill: Fill, shape: tuple[int, ...], dtype: str, seed: int, stream: int) -> np.ndarray:
    """The array of an argument: bf16 as uint16, as everywhere in the runtime.

    Args:
        fill: of kind ``float``, ``integer`` or ``key``.
        shape, dtype: of the argument.
        seed: of the call.
        stream: the argument's position.
    """
    size = math.prod(shape)
    made = words(seed, stream, size)
    if fill.kind == "float":
        numbers = np.ldexp(np.float64(fill.offset) + (made >> np.uint32(8)), fill.exponent)
        with np.errstate(over="ignore"):
            return np.asarray(from_float64(numbers, dtype)).reshape(shape)
    if fill.kind == "integer":
        whole = made.astype(np.int64) % fill.count + fill.offset
        return whole.astype(storage_dtype(dtype)).reshape(shape)
    if fill.kind == "key":
        return made.reshape(shape)
    raise ValueError(f"an argument that holds '{fill.kind}' is not made from a seed")


def positions(seed: int, result: int, size: int, samples: int) -> np.ndarray:
    """The elements of a result that a probe looks at: all where there are no more than ``samples``.

    Args:
        seed: of the call.
        result: its position among the results.
        size: how many elements it has.
        samples: how many of them are kept.
    """
    if size <= samples:
        return np.arange(size)
    return (words(seed, POSITIONS + result, samples) % np.uint32(min(size, 2**32 - 1))).astype(np.int64)


def projection(values: np.ndarray, seed: int, result: int, index: int) -> float:
    """The sum of ``values`` (float64, flat), each with the sign that its word's bit 0 says: - where that is set."""
    odd = words(seed, SIGNS + MOST_PROJECTIONS * result + index, values.size) & np.uint32(1)
    with np.errstate(all="ignore"):
        return float(np.where(odd == 1, -values, values).sum())
