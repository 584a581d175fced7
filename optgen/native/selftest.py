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
from optgen.probes.values import encode

#: Numbers of all results and calls together that generated code carries, unless there are more results than that.
_MOST = 512
_FEWEST = 4


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
    """What is kept of one result, the same for each call.

    Attributes:
        result: its position among the probe's results.
        sampled: whether its elements are sampled; else they are those at multiples of ``stride``.
        stride: every so many-th of the probe's elements is kept.
        count: elements that are kept.
        projections: sums that are kept.
    """

    result: int
    sampled: bool
    stride: int
    count: int
    projections: int


@dataclass(frozen=True)
class Table:
    """The kept numbers of a probe, in order: by call, result, elements, projections.

    Attributes:
        kept: for each result.
        exponents, multiples: as :mod:`optgen.probes.values` has them.
        width: bytes of a multiple.
        data: both as bytes.
    """

    kept: tuple[Kept, ...]
    exponents: np.ndarray
    multiples: np.ndarray
    width: int
    data: bytes


def table_of(probe: Probe) -> Table:
    """What generated code keeps of a probe's numbers."""
    info = probe.info
    most = max(_FEWEST, _MOST // max(1, len(info.calls) * len(info.results)))
    kept = []
    for index, leaf in enumerate(info.results):
        size = math.prod(leaf.shape)
        there = min(size, info.samples)
        stride = max(1, -(-there // most)) if size > info.samples else max(1, there // most)
        kept.append(Kept(index, size > info.samples, stride, -(-there // stride), info.projections))
    expected, tolerance = [], []
    for call in probe.results:
        for each, result in zip(kept, call, strict=True):
            expected += [result.expected[:: each.stride], result.projections]
            tolerance += [result.tolerance[:: each.stride], result.projection_tolerance]
    data, width = encode(np.concatenate(expected), np.concatenate(tolerance))
    count = len(data) // (2 + width)
    exponents = np.frombuffer(data, "<i2", count)
    multiples = np.frombuffer(data, f"<i{width}", count, 2 * count)
    return Table(tuple(kept), exponents, multiples, width, data)


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
