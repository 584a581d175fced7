"""StableHLO as IREE understands it: what the specification promises and IREE 3.13 does not do is written out.

One stage for everything that JAX traces: steps, functions, optax transformations, rules. It takes and gives StableHLO
text. Most programs hold nothing of the kind and are returned as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from optgen.errors import LoweringError
from optgen.lower.lines import line_in, line_of
from optgen.lower.repair.casts import CASTS
from optgen.lower.repair.functions import FUNCTIONS
from optgen.lower.repair.indices import INDEXED
from optgen.lower.repair.owned import CHANGING, keep_arguments
from optgen.lower.repair.pools import POOLS
from optgen.lower.repair.powers import POWERS
from optgen.lower.repair.products import PRODUCTS
from optgen.lower.repair.rewriter import PLATFORM, Repair, rewrite
from optgen.lower.repair.scalars import SCALARS
from optgen.lower.repair.scatter import SCATTERS
from optgen.lower.repair.sorts import SORTS
from optgen.lower.repair.windows import WINDOWS

#: For each operation, what looks at it and changes it where it must be changed.
REPAIRS: dict[str, Repair] = {
    **INDEXED, **SCATTERS, **POOLS, **FUNCTIONS, **PRODUCTS, **SCALARS, **SORTS, **WINDOWS, **CASTS,
    **POWERS,
}  # fmt: skip

#: JAX's decompositions of matrices are calls of libraries, or of primitives that it lowers for its own devices alone.
_LIBRARY = re.compile(r"custom_call @(\w*(?:lapack|Qr|Householder|[Ss]vd|[Ee]igh|LuDecomposition)\w*)")
#: Some are lowered to others.
_DECOMPOSITIONS = frozenset({"svd", "eigh", "eig", "qr", "geqrf", "lu", "schur", "hessenberg"})
_NO_RULE = re.compile(r"rule for primitive '(\w+)' not found")


def stablehlo_of(traced: Any) -> str:
    """The StableHLO of what ``jax.jit(f).trace(...)`` gives, as IREE is to compile it.

    Args:
        traced: by JAX.

    Raises:
        LoweringError: if it needs what JAX calls a library for, as for the decompositions of matrices.
    """
    return located_stablehlo_of(traced)[0]


def located_stablehlo_of(traced: Any) -> tuple[str, Callable[[], str]]:
    """As :func:`stablehlo_of`, and what gives the same with JAX's notes on where each operation comes from."""
    try:
        lowered = traced.lower(lowering_platforms=(PLATFORM,))
        text = lowered.as_text()
    except NotImplementedError as error:
        primitive = _NO_RULE.search(str(error))
        if not primitive:
            raise
        raise LoweringError(
            _no_library(primitive[1], line_in(traced.jaxpr, {primitive[1], *_DECOMPOSITIONS}))
        ) from error
    if call := _LIBRARY.search(text):
        line = line_of(lowered.as_text(debug_info=True), lambda op: f"@{call[1]}(" in str(op))
        raise LoweringError(_no_library(call[1], line))
    return repair(text), lambda: repair(lowered.as_text(debug_info=True))


def _no_library(name: str, line: str) -> str:
    what = f"{line}{': ' if line else ''}'{name}'"
    return (
        f"{what} is computed by a library for linear algebra, which no target has (svd, eigh, qr, pinv, matrix norms). "
        "Compute it outside, and pass it in"
    )


def repair(text: str) -> str:
    """``text`` with operations that IREE computes right in the place of those that it computes wrong or not at all.

    Args:
        text: a StableHLO module.

    Raises:
        LoweringError: if it is no module that this compiler reads.
    """
    from optgen.lower.straight import without_branches

    return rewrite(without_branches(text), REPAIRS, also=CHANGING, last=keep_arguments)
