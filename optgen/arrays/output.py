"""Results that go into arrays of the caller's, given as ``out``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.arrays.leaf import Work, where
from optgen.errors import LeafError
from optgen.runtime import memory
from optgen.runtime.memory import Leaf

#: For each leaf of an update, by the name of the result, the array that it goes to.
Targets = list[dict[str, Leaf]]


def target_of(value: Any, work: Work, name: str, label: str) -> Leaf:
    """The array ``value`` as the place for a result.

    Raises:
        LeafError: if it is no array that can be written, or has the wrong dtype or shape.
    """
    leaf = memory.as_leaf(value, work.path, label)
    at, dtype, shape = where(label, work.path), work.result_dtype(name), work.result_shape(name)
    if leaf.dtype != dtype:
        raise LeafError(f"{at} must have dtype {dtype}, that of the result (got {leaf.dtype})")
    if leaf.array.shape != shape:
        raise LeafError(f"{at} must have shape {shape}, to which the inputs broadcast (got {leaf.array.shape})")
    if leaf.kind == "jax":
        raise LeafError(f"{at} must be writable (JAX arrays never are)")
    if not leaf.array.flags.writeable:
        raise LeafError(f"{at} must be writable (it is read-only)")
    memory.check_own_memory(leaf.array, at)
    return leaf


def in_place(works: Sequence[Work], targets: Targets, shared: frozenset[str]) -> list[dict[str, np.ndarray]]:
    """The memory of targets in which the kernels can work.

    That is what a kernel can use, what has the update's full shape, and what no leaf still has to be read from: the
    very tensor that the result replaces may lie there, any other overlap goes through fresh memory.

    Args:
        works: the leaves.
        targets: where their results go.
        shared: results that all leaves have in common: leaves that come later still read what they replace.

    Raises:
        OverlapError: if two targets share memory.
    """
    memory.check_overlap([(leaf, "out", True) for found in targets for leaf in found.values()])
    reads = []
    for work, found in zip(works, targets, strict=True):
        operation = work.operation
        replaced = {operation.like[i]: name for i, name in enumerate(operation.results) if name != "delta"}
        for position, leaf in enumerate(work.leaves):
            own = found.get(replaced.get(position, ""))
            if own is None or (own.array is not leaf.array and not _same(leaf.array, own.array)):
                reads.append(leaf.array)
    spans = _merged([_bounds(array) for array in reads if array.size])
    return [
        {
            name: leaf.array
            for name, leaf in found.items()
            if (name not in shared or len(works) == 1)
            and leaf.array.shape == work.shape
            and leaf.array.size
            and memory.usable(leaf.array)
            and not _hit(spans, leaf.array)
        }
        for work, found in zip(works, targets, strict=True)
    ]


def written(leaf: Leaf, array: np.ndarray) -> Any:
    """What the caller gave as out, once it holds the result ``array``."""
    if array is not leaf.array:
        leaf.array[...] = array
    if leaf.kind == "torch":
        import torch

        torch.autograd.graph.increment_version(leaf.owner)  # as torch's own operations in place do
    return leaf.owner


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.strides == b.strides and a.ctypes.data == b.ctypes.data


def _bounds(array: np.ndarray) -> tuple[int, int]:
    if array.flags.c_contiguous:
        start = array.ctypes.data
        return start, start + array.nbytes
    low, high = np.lib.array_utils.byte_bounds(array)
    return int(low), int(high)


def _merged(spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Where disjoint spans that cover the same start, in order, and where they end."""
    starts: list[int] = []
    ends: list[int] = []
    for low, high in sorted(spans):
        if ends and low <= ends[-1]:
            ends[-1] = max(ends[-1], high)
        else:
            starts.append(low)
            ends.append(high)
    return starts, ends


def _hit(spans: tuple[list[int], list[int]], array: np.ndarray) -> bool:
    starts, ends = spans
    low, high = _bounds(array)
    first = bisect_right(ends, low)  # the first that ends after low
    return first < len(ends) and starts[first] < high
