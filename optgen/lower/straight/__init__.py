"""Programs without control flow, for callers that have none: C and JavaScript drive kernels and look at no number.

Branches are computed all and chosen from, loops whose rounds are known beforehand are written out, and slices that
begin at a computed index become gathers and selections, whose kernels read the index themselves.
"""

from __future__ import annotations

import re
from typing import Any

from optgen.errors import LoweringError
from optgen.lower.repair.rewriter import Rewriter, operations_of, parsed
from optgen.lower.straight.branches import BRANCHES, choose
from optgen.lower.straight.loops import Unrolled, unroll
from optgen.lower.straight.slices import SLICES

_LOOP = "stablehlo.while"
_CONTROL = re.compile(rf"\b(?:{_LOOP}|{'|'.join(BRANCHES)})\b")
_ANY = re.compile(rf"{_CONTROL.pattern}|\b(?:{'|'.join(SLICES)})\b")


def straighten(text: str) -> str:
    """A module of StableHLO without branches, loops and slices that begin at a computed index.

    Args:
        text: the module. One that holds nothing of the kind is returned as it is.

    Raises:
        LoweringError: for a loop whose rounds are not known before it runs, or are too many to write out.
    """
    if not _ANY.search(text):
        return text
    from iree.compiler import ir, passmanager

    with ir.Context() as context, ir.Location.unknown():
        module = parsed(ir, text, context)
        # What a loop or a slice depends on may stand on the other side of a call.
        passmanager.PassManager.parse("builtin.module(inline,symbol-dce)").run(module.operation)
        rewriter = Rewriter(ir, module)
        budget = Unrolled()
        for function in [f.operation for f in module.body.operations]:
            while op := _first(ir, function, lambda name: name == _LOOP or name in BRANCHES):
                if op.name == _LOOP:
                    place = str(op.location)
                    try:
                        unroll(ir, op, budget)
                    except LoweringError as error:
                        error.where = place
                        raise
                else:
                    choose(rewriter, op)
            for op in operations_of(ir, function, SLICES):
                SLICES[op.name](rewriter, op)
        passmanager.PassManager.parse("builtin.module(inline,symbol-dce)").run(module.operation)
        return str(module.operation.get_asm(enable_debug_info="loc(" in text))


def without_branches(text: str) -> str:
    """A module of StableHLO whose branches are all computed and chosen from.

    IREE's host code for branches has no waits for what the other side of a branch has begun: with worker threads
    (``local-task``) its results are wrong at times.

    Args:
        text: the module. One without branches is returned as it is.
    """
    if not any(name in text for name in BRANCHES):
        return text
    from iree.compiler import ir

    with ir.Context() as context, ir.Location.unknown():
        module = parsed(ir, text, context)
        rewriter = Rewriter(ir, module)
        for function in [f.operation for f in module.body.operations]:
            while op := _first(ir, function, lambda name: name in BRANCHES):
                choose(rewriter, op)
        return str(module.operation.get_asm(enable_debug_info="loc(" in text))


def _first(ir: Any, function: Any, wanted: Any) -> Any:
    """The first operation, an outer one before those in it; None where there is none."""
    for region in function.regions:
        for block in region.blocks:
            for each in block.operations:
                if wanted(each.operation.name):
                    return each.operation
                if found := _first(ir, each.operation, wanted):
                    return found
    return None
