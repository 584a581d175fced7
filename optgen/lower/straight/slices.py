"""Slices that begin at a computed index, read and written by kernels that look at the index themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.dsl.trace import import_jax
from optgen.lower.repair.rewriter import Repair, Rewriter, numbers, shape_of
from optgen.lower.straight.numbers import constant, known


def _limits(op: Any, sizes: Sequence[int]) -> list[int]:
    return [extent - size for extent, size in zip(shape_of(op.operands[0]), sizes, strict=True)]


def _settled(rewriter: Rewriter, op: Any, first: int, limits: Sequence[int]) -> bool:
    """Whether all starts are known; they are constants then, within the limits."""
    starts = [known(v) for v in list(op.operands)[first:]]
    for i, (start, limit) in enumerate(zip(starts, limits, strict=True)):
        at = 0 if limit == 0 else start
        if at is not None:
            op.operands[first + i] = constant(rewriter.ir, min(max(at, 0), limit), op.operands[first + i], op)
    return all(start is not None or limit == 0 for start, limit in zip(starts, limits, strict=True))


def _read(rewriter: Rewriter, op: Any) -> None:
    """A gather of one slice."""
    sizes = numbers(op.attributes["slice_sizes"])
    limits = _limits(op, sizes)
    if _settled(rewriter, op, 1, limits):
        return
    moving = [d for d, limit in enumerate(limits) if limit]

    def gathered(x: Any, *starts: Any) -> Any:
        jax = import_jax()
        index = jax.numpy.stack(_inside(starts, [limits[d] for d in moving]))
        how = jax.lax.GatherDimensionNumbers(tuple(range(x.ndim)), (), tuple(moving))
        return jax.lax.gather(x, index, how, tuple(sizes), mode="promise_in_bounds")

    _replace(rewriter, op, gathered, [op.operands[0], *(op.operands[1 + d] for d in moving)], (*sizes,))


def _write(rewriter: Rewriter, op: Any) -> None:
    """A selection between what was there and the update, moved to where it belongs."""
    sizes = shape_of(op.operands[1])
    limits = _limits(op, sizes)
    if _settled(rewriter, op, 2, limits):
        return
    moving = [d for d, limit in enumerate(limits) if limit]

    def written(x: Any, update: Any, *starts: Any) -> Any:
        jax = import_jax()
        jnp, inside = jax.numpy, np.True_
        for d, start in zip(moving, _inside(starts, [limits[d] for d in moving]), strict=True):
            place = jnp.arange(x.shape[d], dtype=start.dtype) - start
            within = (place >= 0) & (place < sizes[d])
            inside = inside & jax.lax.broadcast_in_dim(within, x.shape, (d,))
            if sizes[d] > 1:
                update = jnp.take(update, place, axis=d, mode="clip")
        return jnp.where(inside, jnp.broadcast_to(update, x.shape), x)

    _replace(rewriter, op, written, [*list(op.operands)[:2], *(op.operands[2 + d] for d in moving)], (*sizes,))


def _inside(starts: Sequence[Any], limits: Sequence[int]) -> list[Any]:
    """Starts so that the slice lies inside, in a type of sufficient width."""
    jnp, found = import_jax().numpy, []
    for start, limit in zip(starts, limits, strict=True):
        high = np.asarray(min(limit, int(jnp.iinfo(start.dtype).max)), start.dtype)
        clipped = jnp.minimum(jnp.maximum(start, np.zeros((), start.dtype)), high)
        found.append(clipped.astype("int32" if max(limits) < 2**31 - 1 else "int64"))
    return found


def _replace(rewriter: Rewriter, op: Any, function: Any, operands: Sequence[Any], key: tuple[int, ...]) -> None:
    (new,) = rewriter.call(op, function, operands, (op.name, shape_of(op.operands[0]), key))
    op.results[0].replace_all_uses_with(new)
    op.erase()


SLICES: dict[str, Repair] = {"stablehlo.dynamic_slice": _read, "stablehlo.dynamic_update_slice": _write}
