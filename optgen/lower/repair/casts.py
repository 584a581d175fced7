"""Casts from floats to integers of numbers that the integers do not reach.

JAX gives the nearest integer of the type, and 0 for NaN. IREE 3.13 gives what the processor's instruction does, which
is another number on each, and for unsigned integers wraps around.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optgen.dtypes import FLOATS
from optgen.lower.repair.rewriter import Repair, Rewriter, dtype_of, element_of, is_own


def _convert(rewriter: Rewriter, op: Any) -> None:
    source, target = element_of(op.operands[0]), element_of(op.results[0])
    if source not in FLOATS or target in FLOATS or target == "i1" or "complex" in str(op.results[0].type):
        return
    if not is_own(op):  # which know what they cast
        dtype = dtype_of(op.results[0])
        rewriter.replace(op, lambda x: cast(x, dtype), ("cast", target))


def cast(x: Any, dtype: Any) -> Any:
    """``x`` as integers: the nearest of the type where there is none, 0 for NaN."""
    import jax.numpy as jnp

    info = np.iinfo(dtype)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # 2^bits is a number of f32; the largest integer, one less, is none.
    over, under = wide >= float(info.max) + 1, wide <= float(info.min)
    inside = ~(over | under) & (wide == wide)
    found = jnp.where(inside, wide, 0).astype(dtype)
    return jnp.where(over, np.array(info.max, dtype), jnp.where(under, np.array(info.min, dtype), found))


CASTS: dict[str, Repair] = {"stablehlo.convert": _convert}
