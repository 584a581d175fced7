"""Scalars that choose between arrays.

IREE 3.13 loads a predicate without dimensions in host code: a GPU then waits for the host, and C and JavaScript have
no host code that looks at numbers. ``jnp.var`` and ``jnp.std`` have such a predicate in their divisions, and so has a
gradient that is clipped by its norm. Spread over the arrays' shape, it is read by the kernel.
"""

from __future__ import annotations

from typing import Any

from optgen.lower.repair.rewriter import Repair, Rewriter, shape_of


def _select(rewriter: Rewriter, op: Any) -> None:
    shape = shape_of(op.results[0])
    if shape and not shape_of(op.operands[0]):
        op.operands[0] = rewriter.spread(op, op.operands[0], shape)


SCALARS: dict[str, Repair] = {"stablehlo.select": _select}
