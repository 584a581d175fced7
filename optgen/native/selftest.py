"""What generated code needs to prove itself: inputs that it makes from a seed, and what must come of them.

The numbers are those of :mod:`optgen.probes`. Code without a runtime carries fewer of them, so that a small
processor has room.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from optgen.dtypes import from_float64, storage_dtype
from optgen.probes.generate import Fill
from optgen.probes.info import Probe
from optgen.probes.values import split

#: Elements of all results and calls together that generated code carries, unless there are many results.
_MOST = 512
_FEWEST = 8


@dataclass(frozen=True)
class Source:
    """What an argument holds.

    Attributes:
        fill: how it is made from the call's seed; None where it is not.
        stream: of the generator.
        again: whether it is made anew for each call; else later calls find what the one before has left.
        numbers: without a fill, the number that all its elements are: one for each call if ``again``.
        array: what it holds at the first call, where that is neither.
    """

    fill: Fill | None = None
    stream: int = 0
    again: bool = False
    numbers: tuple[float, ...] = ()
    array: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class SelfTest:
    """Consecutive calls of a function.

    Attributes:
        probe: the calls, and what must come of them.
        sources: what each argument holds, by name.
        results: the probe's results, as the function calls them.
    """

    probe: Probe
    sources: Mapping[str, Source]
    results: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of each call."""
        return tuple(call.seed for call in self.probe.info.calls)


@dataclass(frozen=True)
class Kept:
    """What generated code has of one result, the same for each call.

    Attributes:
        sampled: whether its elements are sampled; else they are all.
        count: elements.
        projections: sums of all elements with random signs.
    """

    sampled: bool
    count: int
    projections: int


@dataclass(frozen=True)
class Table:
    """The numbers of a probe in order: by call, result, elements, projections.

    Attributes:
        kept: for each result.
        exponents, multiples: as :mod:`optgen.probes.values` has them.
        width: bytes of a multiple.
    """

    kept: tuple[Kept, ...]
    exponents: np.ndarray
    multiples: np.ndarray
    width: int

    @property
    def data(self) -> bytes:
        """Exponents, int16, and multiples, little-endian."""
        return self.exponents.astype("<i2").tobytes() + self.multiples.astype(f"<i{self.width}").tobytes()


def samples_of(calls: int, results: int) -> int:
    """How many elements of each result a probe for generated code should have."""
    return max(_FEWEST, _MOST // (calls * results))


def table_of(probe: Probe) -> Table:
    """The numbers of a probe for generated code."""
    kept = tuple(
        Kept(math.prod(r.leaf.shape) > probe.info.samples, len(r.expected), len(r.projections))
        for r in probe.results[0]
    )
    results = [result for call in probe.results for result in call]
    expected = [part for r in results for part in (r.expected, r.projections)]
    tolerance = [part for r in results for part in (r.tolerance, r.projection_tolerance)]
    exponents, multiples = split(np.concatenate(expected), np.concatenate(tolerance))
    width = 4 if np.abs(multiples).max(initial=0) < 2**31 else 8
    return Table(kept, exponents, multiples, width)


def source_of(array: np.ndarray, dtype: str) -> Source:
    """The source of an array that is not made from a seed: one number where it holds one.

    Args:
        array: float64 or whole numbers.
        dtype: of the argument.
    """
    flat = np.asarray(array).ravel()
    if flat.size and (flat == flat[0]).all():
        return Source(numbers=(float(flat[0]),))
    stored = from_float64(flat, dtype) if flat.dtype == np.float64 else flat.astype(storage_dtype(dtype))
    return Source(array=stored)
