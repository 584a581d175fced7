"""StableHLO as IREE understands it: what the specification promises and IREE 3.13 does not do is written out.

One stage for everything that JAX traces: steps, functions, optax transformations, rules. It takes and gives StableHLO
text. Most programs hold nothing of the kind and are returned as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from optgen.errors import LoweringError
from optgen.lower.repair.functions import FUNCTIONS
from optgen.lower.repair.indices import INDEXED
from optgen.lower.repair.owned import CHANGING, keep_arguments
from optgen.lower.repair.pools import POOLS
from optgen.lower.repair.products import PRODUCTS
from optgen.lower.repair.rewriter import PLATFORM, Repair, Rewriter
from optgen.lower.repair.scalars import SCALARS
from optgen.lower.repair.scatter import SCATTERS

#: For each operation, what looks at it and changes it where it must be changed.
REPAIRS: dict[str, Repair] = {**INDEXED, **SCATTERS, **POOLS, **FUNCTIONS, **PRODUCTS, **SCALARS}

_MENTIONED = re.compile("|".join(sorted(re.escape(name) for name in {*REPAIRS, *CHANGING})))


def stablehlo_of(traced: Any, platform: str = PLATFORM) -> str:
    """The StableHLO of what ``jax.jit(f).trace(...)`` gives, as IREE is to compile it.

    Args:
        traced: by JAX.
        platform: what JAX lowers it for.
    """
    return located_stablehlo_of(traced, platform)[0]


def located_stablehlo_of(traced: Any, platform: str = PLATFORM) -> tuple[str, Callable[[], str]]:
    """As :func:`stablehlo_of`, and what gives the same with JAX's notes on where each operation comes from."""
    lowered = traced.lower(lowering_platforms=(platform,))
    return repair(lowered.as_text()), lambda: repair(lowered.as_text(debug_info=True))


def repair(text: str) -> str:
    """``text`` with operations that IREE computes right in the place of those that it computes wrong or not at all.

    Args:
        text: a StableHLO module.

    Raises:
        LoweringError: if it is no module that this compiler reads.
    """
    if not _MENTIONED.search(text):
        return text
    from iree.compiler import ir

    with ir.Context() as context, ir.Location.unknown():
        try:
            module = ir.Module.parse(text, context)
        except ir.MLIRError as error:
            first = str(error).strip().splitlines()
            raise LoweringError(f"the program is not StableHLO that the compiler reads: {first[-1][:200]}") from error
        rewriter = Rewriter(ir, module)
        seen: set[Any] = set()
        while found := [f.operation for f in module.body.operations if f.operation not in seen]:
            for function in found:  # what was put in may hold such operations itself
                seen.add(function)
                for op in _of_interest(ir, function):
                    REPAIRS[op.name](rewriter, op)
        keep_arguments(rewriter)
        if not rewriter.changed:
            return text
        located = "loc(" in text
        return str(module.operation.get_asm(enable_debug_info=located))


def _of_interest(ir: Any, function: Any) -> list[Any]:
    found: list[Any] = []

    def visit(op: Any) -> Any:
        if op.name in REPAIRS:
            found.append(op)
        return ir.WalkResult.ADVANCE

    function.walk(visit)
    return found
