"""Windows that reach one place alone. Where a pool or a convolution gives one number in a dimension whose operand has
more elements than that window reads, IREE 3.13 takes the loop over the window for one over the operand, and refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from optgen.dsl.trace import import_jax
from optgen.lower.repair.rewriter import Repair, Rewriter, numbers, pairs_of, shape_of


def _reduce_window(rewriter: Rewriter, op: Any) -> None:
    if len(op.results) == 1:
        rank = len(shape_of(op.operands[0]))
        _cut(rewriter, op, list(range(rank)), list(range(rank)), numbers(op.attributes["window_dimensions"]),
             ("base_dilations", "window_dilations"))  # fmt: skip


def _convolution(rewriter: Rewriter, op: Any) -> None:
    sides = re.search(r"<\[([^\]]*)\]x\[([^\]]*)\]->\[([^\]]*)\]>", str(op.attributes["dimension_numbers"]))
    if sides is None:
        return
    lhs, rhs, out = ([part.strip() for part in side.split(",")] for side in sides.groups())
    spatial = [str(i) for i in range(len(lhs) - 2)]
    window = [shape_of(op.operands[1])[rhs.index(name)] for name in spatial]
    places = [[side.index(name) for name in spatial] for side in (lhs, out)]
    _cut(rewriter, op, places[0], places[1], window, ("lhs_dilation", "rhs_dilation"))


WINDOWS: dict[str, Repair] = {"stablehlo.reduce_window": _reduce_window, "stablehlo.convolution": _convolution}


def _cut(
    rewriter: Rewriter,
    op: Any,
    read: Sequence[int],
    given: Sequence[int],
    window: Sequence[int],
    dilations: tuple[str, str],
) -> None:
    """Cuts what no window reads off the operand.

    Args:
        rewriter, op: the module and the operation.
        read, given: for each dimension of the window, that of the operand and that of the result.
        window: its extents.
        dilations: the names of the attributes that say how far apart elements of the operand, and of the window, are.
    """
    rank, ir = len(window), rewriter.ir
    of_operand, of_window = (
        numbers(op.attributes[name]) if name in op.attributes else [1] * rank for name in dilations
    )
    padding = pairs_of(op.attributes["padding"], rank) if "padding" in op.attributes else [(0, 0)] * rank
    extents, results = list(shape_of(op.operands[0])), shape_of(op.results[0])
    kept, edges = list(extents), list(padding)
    for i, (low, _) in enumerate(padding):
        needed = (window[i] - 1) * of_window[i] + 1 - low
        if results[given[i]] == 1 and needed > 0:
            kept[read[i]] = min(extents[read[i]], (needed - 1) // of_operand[i] + 1)
            edges[i] = (low, needed - (kept[read[i]] - 1) * of_operand[i] - 1)
    if (kept, edges) == (extents, padding):
        return
    jax = import_jax()
    if kept != extents:
        cut = rewriter.call(op, lambda x: jax.lax.slice(x, [0] * len(kept), kept), [op.operands[0]], ("cut", *kept))
        op.operands[0] = cut[0]
    lines = ", ".join(f"[{low}, {high}]" for low, high in edges)
    rewriter.changed = True
    op.attributes["padding"] = ir.Attribute.parse(f"dense<[{lines}]> : tensor<{rank}x2xi64>")
