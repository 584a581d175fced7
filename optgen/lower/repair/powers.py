"""Powers of negative numbers, of zero and of one: IREE 3.13 takes every power for an exponential of a logarithm."""

from __future__ import annotations

import re
from typing import Any

from optgen.dtypes import FLOATS
from optgen.lower.repair.rewriter import Repair, Rewriter, element_of, is_own


def _power(rewriter: Rewriter, op: Any) -> None:
    element = element_of(op.results[0])
    if element not in FLOATS or "complex" in str(op.results[0].type) or is_own(op):
        return
    if not _positive(op.operands[0]):
        rewriter.replace(op, power, op.name)


def power(x: Any, y: Any) -> Any:
    """``x ** y`` as C's ``pow`` has it (C17, F.10.4.4)."""
    import jax.numpy as jnp
    from jax import lax

    size = lax.pow(jnp.abs(x), y)
    size = jnp.where((y == 0) | (x == 1) | ((x == -1) & jnp.isinf(y)), jnp.ones_like(x), size)
    negative = (x < 0) | (1 / x < 0)  # of zeros too
    whole, half = jnp.round(y) == y, y / 2
    odd = whole & (jnp.round(half) != half)
    signed = jnp.where(odd & negative, -size, size)
    return jnp.where((x < 0) & ~whole & (x > -jnp.inf), jnp.full_like(x, jnp.nan), signed)


def _positive(value: Any) -> bool:
    """Whether a value is a number above zero other than one that is known now, as the decay of an average is."""
    owner = value.owner
    while getattr(owner, "name", "") == "stablehlo.broadcast_in_dim":
        owner = owner.operands[0].owner
    if getattr(owner, "name", "") != "stablehlo.constant":
        return False
    found = re.search(r"dense<(\d[\d.]*(?:[eE][+-]?\d+)?)>", str(owner.attributes["value"]))
    return found is not None and float(found[1]) > 0 and float(found[1]) != 1


POWERS: dict[str, Repair] = {"stablehlo.power": _power}
