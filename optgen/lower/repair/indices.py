"""Indices out of range. By StableHLO's specification ``gather``, ``dynamic_slice`` and ``dynamic_update_slice`` clamp
their start so that the slice lies inside. IREE 3.13 reads and writes foreign memory. For scatters, see
:mod:`optgen.lower.repair.scatter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.dsl.trace import import_jax
from optgen.lower.repair.bounds import bounds
from optgen.lower.repair.rewriter import Repair, Rewriter, element_of, number, numbers, shape_of


def _gather(rewriter: Rewriter, op: Any) -> None:
    """Clamps where slices start."""
    dimensions = op.attributes["dimension_numbers"]
    extents, sizes = shape_of(op.operands[0]), numbers(op.attributes["slice_sizes"])
    limits = [extents[d] - sizes[d] for d in numbers(dimensions, "start_index_map")]
    axis = number(dimensions, "index_vector_dim")
    if not limits or inside_range(op.operands[1], limits):
        return
    (op.operands[1],) = rewriter.call(
        op, lambda indices: clamped(indices, limits, axis), [op.operands[1]], ("gather", tuple(limits), axis)
    )


def _dynamic(rewriter: Rewriter, op: Any) -> None:
    """Clamps where the slice starts that is read or written."""
    update = op.name.endswith("dynamic_update_slice")
    first = 2 if update else 1
    extents = shape_of(op.operands[0])
    sizes = shape_of(op.operands[1]) if update else numbers(op.attributes["slice_sizes"])
    starts = list(op.operands)[first:]
    limits = [extent - size for extent, size in zip(extents, sizes, strict=True)]
    if all(inside_range(start, [limit]) for start, limit in zip(starts, limits, strict=True)):
        return
    for i, (start, limit) in enumerate(zip(starts, limits, strict=True)):  # all must have one type
        (op.operands[first + i],) = rewriter.call(
            op, lambda index, limit=limit: clamped(index, [limit], 0), [start], ("start", limit)
        )


INDEXED: dict[str, Repair] = {
    "stablehlo.gather": _gather,
    "stablehlo.dynamic_slice": _dynamic,
    "stablehlo.dynamic_update_slice": _dynamic,
}


def inside_range(indices: Any, limits: Sequence[int]) -> bool:
    """Whether indices are seen to be in range, each part of them."""
    if element_of(indices) not in ("i32", "i64"):  # IREE takes unsigned ones for signed
        return False
    known = bounds(indices)
    return known[0] >= 0 and known[1] <= min(limits)


def clamped(indices: Any, limits: Sequence[int], axis: int) -> Any:
    """Indices between 0 and their limits, in a type of sufficient width."""
    jnp = import_jax().numpy
    largest = int(jnp.iinfo(indices.dtype).max)
    high = along([min(limit, largest) for limit in limits], indices, axis)
    wide = "int32" if max(limits) < 2**31 - 1 else "int64"
    return jnp.minimum(jnp.maximum(indices, jnp.zeros((), indices.dtype)), high).astype(wide)


def valid(indices: Any, limits: Sequence[int], axis: int) -> Any:
    """Which of the index vectors are inside."""
    jnp = import_jax().numpy
    largest = int(jnp.iinfo(indices.dtype).max)
    high = along([min(limit, largest) for limit in limits], indices, axis)
    inside = (indices >= jnp.zeros((), indices.dtype)) & (indices <= high)
    return inside if axis == indices.ndim else jnp.all(inside, axis=axis)


def along(values: Sequence[int], indices: Any, axis: int) -> Any:
    """Numbers, one for each part of an index, to be used with indices."""
    if len(set(values)) == 1:
        return np.asarray(values[0], indices.dtype)
    return np.asarray(values, indices.dtype).reshape([-1 if d == axis else 1 for d in range(indices.ndim)])
