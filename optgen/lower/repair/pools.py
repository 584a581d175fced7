"""Gradients of pools over the greatest or least. IREE 3.13 takes ``select_and_scatter`` only where windows neither
overlap nor reach beyond the edge, and where several elements are the greatest it chooses another one than XLA.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from optgen.dsl.trace import import_jax
from optgen.lower.repair.rewriter import Repair, Rewriter, numbers, pairs_of, shape_of


def _select_and_scatter(rewriter: Rewriter, op: Any) -> None:
    rank = len(shape_of(op.operands[0]))
    direction = _compared(op.regions[0].blocks[0])
    added = [each.operation.name for each in op.regions[1].blocks[0].operations]
    if direction is None or added != ["stablehlo.add", "stablehlo.return"]:
        return  # JAX writes no others

    def attribute(name: str) -> list[int]:
        return numbers(op.attributes[name]) if name in op.attributes else [1] * rank

    window, strides = attribute("window_dimensions"), attribute("window_strides")
    padding = pairs_of(op.attributes["padding"], rank) if "padding" in op.attributes else [(0, 0)] * rank

    def scattered(operand: Any, source: Any, start: Any) -> Any:
        jax = import_jax()
        chosen = _chosen(operand, source.shape, window, strides, padding, direction)
        chosen = jax.lax.optimization_barrier(chosen)  # else each window is searched for each of its elements
        return start + _sent_back(chosen, source, operand.shape, window, strides, padding)

    rewriter.replace(op, scattered, ("pool", direction, *window, *strides, *padding))


POOLS: dict[str, Repair] = {"stablehlo.select_and_scatter": _select_and_scatter}


def _compared(block: Any) -> str | None:
    body = [each.operation for each in block.operations]
    if len(body) != 2 or body[0].name != "stablehlo.compare" or list(body[0].operands) != list(block.arguments):
        return None
    found = re.search(r"\b(GE|LE)\b", str(body[0].attributes["comparison_direction"]))
    return found[1] if found else None


def _reach(window: Sequence[int], strides: Sequence[int]) -> list[int]:
    """How many windows, in each dimension, an element is in at most."""
    return [-(-w // s) for w, s in zip(window, strides, strict=True)]


def _number(offset: Sequence[Any], window: Sequence[int], strides: Sequence[int]) -> Any:
    """One number for a place in the window."""
    total: Any = 0
    for place, reach, stride in zip(offset, _reach(window, strides), strides, strict=True):
        total = total * (reach * stride) + place
    return total


def _chosen(
    operand: Any,
    windows: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    direction: str,
) -> Any:
    """For each window the place in it that is chosen, as XLA does: one after the other, the first of equal ones. What
    is beyond the edge takes part as the least number (or the greatest), as JAX writes it for CPUs and GPUs."""
    jax = import_jax()
    jnp, lax = jax.numpy, jax.lax
    better = lax.ge if direction == "GE" else lax.le
    edges = []
    for extent, count, size, stride, (low, _) in zip(operand.shape, windows, window, strides, padding, strict=True):
        edges.append((low, (count - 1) * stride + size - low - extent, 0))
    padded = lax.pad(operand, _last(operand.dtype, direction), edges)
    value = where = None
    for offset in itertools.product(*(range(size) for size in window)):
        stop = [o + (n - 1) * s + 1 for o, n, s in zip(offset, windows, strides, strict=True)]
        new, place = lax.slice(padded, offset, stop, strides), jnp.int32(_number(offset, window, strides))
        if value is None:
            value, where = new, jnp.full(tuple(windows), place)
        else:
            kept = better(value, new)
            value, where = jnp.where(kept, value, new), jnp.where(kept, where, place)
    return where


def _last(dtype: Any, direction: str) -> Any:
    """What every other number is chosen before."""
    jnp = import_jax().numpy
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(-jnp.inf if direction == "GE" else jnp.inf, dtype)
    info = jnp.iinfo(dtype)
    return jnp.asarray(info.min if direction == "GE" else info.max, dtype)


def _sent_back(
    chosen: Any,
    source: Any,
    extents: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Any:
    """The sum, for each element, of the sources of those windows that chose it.

    With a stride of s, the element s * q + r is in the windows q, q - 1, ..., at the places r, r + s, ...: so for each
    of these one slice of sources is compared and added, and nothing is written twice.
    """
    jax = import_jax()
    jnp, lax = jax.numpy, jax.lax
    rank, reach = len(extents), _reach(window, strides)
    counts = [max(n + j - 1, -(-(low + e) // s)) for n, j, e, s, (low, _) in zip(
        source.shape, reach, extents, strides, padding, strict=True)]  # fmt: skip
    edges = [(j - 1, c - n, 0) for j, c, n in zip(reach, counts, source.shape, strict=True)]
    chosen = lax.pad(chosen, jnp.int32(-1), edges)
    source = lax.pad(source, jnp.zeros((), source.dtype), edges)
    split = [extent for pair in zip(counts, strides, strict=True) for extent in pair]  # q and r of each dimension
    total: Any = None
    for back in _steps(reach):
        start = [j - 1 - b for j, b in zip(reach, back, strict=True)]
        stop = [a + c for a, c in zip(start, counts, strict=True)]
        places = [
            lax.broadcasted_iota("int32", tuple(split), 2 * d + 1) + b * s
            for d, (b, s) in enumerate(zip(back, strides, strict=True))
        ]
        wide = [lax.broadcast_in_dim(lax.slice(x, start, stop), split, range(0, 2 * rank, 2)) for x in (chosen, source)]
        part = jnp.where(wide[0] == _number(places, window, strides), wide[1], jnp.zeros((), source.dtype))
        total = part if total is None else total + part
    total = total.reshape([c * s for c, s in zip(counts, strides, strict=True)])
    lows = [low for low, _ in padding]
    return lax.slice(total, lows, [low + e for low, e in zip(lows, extents, strict=True)])


def _steps(reach: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """From the first of the windows that an element is in to the last, as XLA adds them."""
    return itertools.product(*(range(j - 1, -1, -1) for j in reach))
