"""Sums of products over several dimensions.

IREE 3.13 takes the sum of ``w[j] * x[i, j]`` over both i and j for a contraction to a scalar, which its CPU code then
refuses ("'vector.contract' op invalid accumulator/result vector shape"), whatever the extents. Summed over one
dimension and then over the others it is taken.
"""

from __future__ import annotations

from typing import Any

from optgen.dsl.trace import import_jax
from optgen.lower.repair.rewriter import Repair, Rewriter, numbers, shape_of


def _reduce(rewriter: Rewriter, op: Any) -> None:
    dims = numbers(op.attributes["dimensions"])
    if len(op.results) != 1 or len(dims) < 2:
        return
    added = [each.operation.name for each in op.regions[0].blocks[0].operations]
    product = _owner(op.operands[0])
    if added != ["stablehlo.add", "stablehlo.return"] or getattr(product, "name", "") != "stablehlo.multiply":
        return
    if not any(_spread(operand) for operand in product.operands):
        return
    first, *others = dims

    def summed(x: Any, start: Any) -> Any:
        lax = import_jax().lax
        once = lax.reduce(x, x.dtype.type(0), lax.add, (first,))
        return lax.reduce(once, start, lax.add, [d - (d > first) for d in others])

    rewriter.replace(op, summed, ("products", *dims))


def _owner(value: Any) -> Any:
    return getattr(value.owner, "operation", value.owner)


def _spread(value: Any) -> bool:
    """Whether an array is the same along some dimension, and differs along another."""
    op = _owner(value)
    while getattr(op, "name", "") == "stablehlo.convert":
        op = _owner(op.operands[0])
    return getattr(op, "name", "") == "stablehlo.broadcast_in_dim" and bool(shape_of(op.operands[0]))


PRODUCTS: dict[str, Repair] = {"stablehlo.reduce": _reduce}
