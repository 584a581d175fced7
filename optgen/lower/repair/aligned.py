"""Reads and writes that begin in the middle of four numbers, for Vulkan.

IREE 3.13 makes vectors of four of what a kernel reads and writes there, if an array's last dimension allows it, and
divides the place where a part of an array begins by four: ``x[7:39] * 2`` begins at the 4th number, and what is
concatenated behind 1,023 numbers is written over the last three. What begins elsewhere than at a multiple of four is
read element by element, by its index; what would be written there is written in front of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from optgen.dsl.trace import import_jax
from optgen.lower.repair.rewriter import Repair, Rewriter, numbers, pairs_of, rewrite, shape_of

_FOUR = 4


def aligned(text: str) -> str:
    """``text`` without slices and padding that would be taken for vectors.

    Args:
        text: a StableHLO module.
    """
    return rewrite(text, ALIGNED)


def astray(shape: Sequence[int], begins: Sequence[int | None], extents: Sequence[int]) -> int | None:
    """The dimension in which a part of an array begins in the middle of four numbers; None if it does not.

    Args:
        shape: of the array.
        begins: where the part begins; None where that is not known.
        extents: of the part.
    """
    inner = 1
    for d in reversed(range(len(shape))):
        if extents[d] == shape[d]:
            inner *= shape[d]  # all of it: one dimension with what lies around it
            continue
        begin = begins[d]
        if (shape[d] * inner) % _FOUR:
            return None  # no row of the array is made of vectors
        return d if begin is None or (begin * inner) % _FOUR else None
    return None


def _slice(rewriter: Rewriter, op: Any) -> None:
    begins, ends, steps = (numbers(op.attributes[n]) for n in ("start_indices", "limit_indices", "strides"))
    shape, out = shape_of(op.operands[0]), shape_of(op.results[0])
    along = astray(shape, begins, out)
    if along is None:
        along = _view(shape, begins, out)
    if along is None or any(step != 1 for step in steps):
        along = next((d for d in reversed(range(len(out))) if steps[d] != 1), None)
    if along is None:
        return
    each = list(zip(begins, ends, steps, strict=True))
    each[along] = (0, shape[along], 1)

    def taken(x: Any) -> Any:
        jax = import_jax()
        rest = jax.lax.slice(x, *(list(bound) for bound in zip(*each, strict=True)))
        return _take(rest, jax.numpy.arange(begins[along], ends[along], steps[along], dtype="int32"), along)

    rewriter.replace(op, taken, ("slice", *begins, *ends, *steps))


def _view(shape: Sequence[int], begins: Sequence[int], out: Sequence[int]) -> int | None:
    """The dimension in which a part begins that lies in one piece: what is done with it reads the array's memory from
    there on, in vectors if the part is made of them, whatever the array is made of."""
    along = next((d for d in reversed(range(len(shape))) if out[d] != shape[d]), None)
    if along is None or math.prod(out[:along]) != 1 or math.prod(out) % _FOUR:
        return None
    begin = sum(b * math.prod(shape[d + 1 :]) for d, b in enumerate(begins))
    return along if begin % _FOUR else None


def _dynamic_slice(rewriter: Rewriter, op: Any) -> None:
    shape, out = shape_of(op.operands[0]), shape_of(op.results[0])
    along = astray(shape, [None] * len(shape), out)
    if along is None:
        return

    def taken(x: Any, *begins: Any) -> Any:
        jax = import_jax()
        jnp = jax.numpy
        sizes = [n if d == along else out[d] for d, n in enumerate(shape)]
        rest = jax.lax.dynamic_slice(x, [begins[d] * 0 if d == along else b for d, b in enumerate(begins)], sizes)
        begin = jnp.clip(begins[along], 0, shape[along] - out[along]).astype("int32")
        return _take(rest, begin + jnp.arange(out[along], dtype="int32"), along)

    rewriter.replace(op, taken, ("dynamic_slice", *out))


def _take(x: Any, indices: Any, axis: int) -> Any:
    return x.at[(*(slice(None),) * axis, indices)].get(mode="promise_in_bounds")


def _pad(rewriter: Rewriter, op: Any) -> None:
    low, high, between = (
        numbers(op.attributes[name]) for name in ("edge_padding_low", "edge_padding_high", "interior_padding")
    )
    if min(*low, *high, 0) < 0:
        _cut_and_pad(rewriter, op, low, high, between)
        return
    shape, out = shape_of(op.operands[0]), shape_of(op.results[0])
    wide = [n + (n - 1) * gap for n, gap in zip(shape, between, strict=True)]
    along = astray(out, low, [min(n, m) for n, m in zip(wide, out, strict=True)])
    if along is None:
        return

    def padded(x: Any, value: Any) -> Any:
        jax = import_jax()
        jnp, last = jax.numpy, wide[along] - 1
        if between[along]:
            x = jax.lax.pad(x, value, [(0, 0, between[d] if d == along else 0) for d in range(len(shape))])
        places = jnp.arange(out[along], dtype="int32") - low[along]
        inside = ((places >= 0) & (places <= last)).reshape([-1 if d == along else 1 for d in range(len(shape))])
        made = jnp.where(inside, _take(x, jnp.clip(places, 0, last), along), value)
        rest = [(0, 0, 0) if d == along else (low[d], high[d], between[d]) for d in range(len(shape))]
        return jax.lax.pad(made, value, rest) if any(map(any, rest)) else made

    rewriter.replace(op, padded, ("pad", *low, *high, *between))


def _cut_and_pad(rewriter: Rewriter, op: Any, low: Sequence[int], high: Sequence[int], between: Sequence[int]) -> None:
    """Padding by less than nothing is a slice, which may begin anywhere."""

    def padded(x: Any, value: Any) -> Any:
        lax = import_jax().lax
        if any(between):
            x = lax.pad(x, value, [(0, 0, gap) for gap in between])
        begins = [max(-n, 0) for n in low]
        ends = [n - max(-m, 0) for n, m in zip(x.shape, high, strict=True)]
        # An array that all is cut off has an end before its beginning.
        x = lax.slice(x, [min(b, max(e, 0)) for b, e in zip(begins, ends, strict=True)], [max(e, 0) for e in ends])
        return lax.pad(x, value, [(max(n, 0), max(m, 0), 0) for n, m in zip(low, high, strict=True)])

    rewriter.replace(op, padded, ("cut", *low, *high, *between))


def _concatenate(rewriter: Rewriter, op: Any) -> None:
    shapes, out = [shape_of(v) for v in op.operands], shape_of(op.results[0])
    axis = int(rewriter.ir.IntegerAttr(op.attributes["dimension"]).value)
    sizes = [math.prod(shape) for shape in shapes]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    if math.prod(out[:axis]) != 1 or all(end % _FOUR == 0 for end in ends[:-1]):
        return  # rows that are not whole are copied number by number

    def joined(*parts: Any) -> Any:
        jnp = import_jax().numpy
        fills = [-size % _FOUR for size in sizes]
        whole = jnp.concatenate([jnp.pad(p.ravel(), (0, fill)) for p, fill in zip(parts, fills, strict=True)])
        places = jnp.arange(ends[-1], dtype="int32")
        for end, fill in zip(ends[:-1], fills, strict=False):
            if fill:
                places += jnp.int32(fill) * (jnp.arange(ends[-1], dtype="int32") >= end)
        return _take(whole, places, 0).reshape(out)

    rewriter.replace(op, joined, ("concatenate", axis))


def _convolution(rewriter: Rewriter, op: Any) -> None:
    sides = re.search(r"<\[([^\]]*)\]x", str(op.attributes["dimension_numbers"]))
    assert sides is not None
    names = [part.strip() for part in sides[1].split(",")]
    spatial = [names.index(str(i)) for i in range(len(names) - 2)]
    spread = numbers(op.attributes["lhs_dilation"]) if "lhs_dilation" in op.attributes else [1] * len(spatial)
    _pad_first(rewriter, op, spatial, [n - 1 for n in spread], None)


def _reduce_window(rewriter: Rewriter, op: Any) -> None:
    rank = len(shape_of(op.operands[0]))
    spread = numbers(op.attributes["base_dilations"]) if "base_dilations" in op.attributes else [1] * rank
    if len(op.results) == 1:
        _pad_first(rewriter, op, list(range(rank)), [n - 1 for n in spread], op.operands[1])


def _pad_first(rewriter: Rewriter, op: Any, places: Sequence[int], between: Sequence[int], value: Any) -> None:
    """Pads before an operation instead of in it, where that would begin in the middle of four numbers."""
    if "padding" not in op.attributes:
        return
    padding, shape = pairs_of(op.attributes["padding"], len(places)), shape_of(op.operands[0])
    edges = [(0, 0)] * len(shape)
    for place, pair in zip(places, padding, strict=True):
        edges[place] = pair
    if any(between) or min(map(min, edges)) < 0:
        return
    out = [n + sum(pair) for n, pair in zip(shape, edges, strict=True)]
    if astray(out, [low for low, _ in edges], shape) is None:
        return

    def padded(x: Any, *fill: Any) -> Any:
        jax = import_jax()
        return jax.lax.pad(x, fill[0] if fill else x.dtype.type(0), [(*pair, 0) for pair in edges])

    key = ("padded", *(n for pair in edges for n in pair))
    op.operands[0] = rewriter.call(op, padded, [op.operands[0], *([value] if value is not None else [])], key)[0]
    rank = len(places)
    op.attributes["padding"] = rewriter.ir.Attribute.parse(f"dense<0> : tensor<{rank}x2xi64>")


ALIGNED: dict[str, Repair] = {
    "stablehlo.slice": _slice, "stablehlo.dynamic_slice": _dynamic_slice, "stablehlo.pad": _pad,
    "stablehlo.convolution": _convolution, "stablehlo.reduce_window": _reduce_window,
    "stablehlo.concatenate": _concatenate,
}  # fmt: skip
