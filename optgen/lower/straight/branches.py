"""Branches: all of them are computed, and their results chosen from."""

from __future__ import annotations

from typing import Any

from optgen.lower.repair.rewriter import Rewriter, shape_of
from optgen.lower.straight.copying import copied
from optgen.lower.straight.numbers import constant, known

BRANCHES = ("stablehlo.case", "stablehlo.if")


def choose(rewriter: Rewriter, op: Any) -> None:
    """Puts a branch's alternatives, and a selection among their results, in its place.

    They have no effects but their results, and what is not chosen, infinite or not, is not looked at. Where it is known
    which is taken, the others are left out.
    """
    ir = rewriter.ir
    blocks = [region.blocks[0] for region in op.regions]
    index = op.operands[0]
    whether = op.name == "stablehlo.if"
    if (taken := known(index)) is not None:
        last = len(blocks) - 1
        at = (0 if taken else 1) if whether else taken if 0 <= taken <= last else last
        results, _ = copied(ir, blocks[at], [], op)
    else:
        every = [copied(ir, block, [], op)[0] for block in blocks]
        results = every[-1]  # of an index that is out of range, too
        for i, each in enumerate(every[:-1]):
            chosen = index if whether else _equal(rewriter, index, i, op)
            results = [_select(rewriter, chosen, a, b, op) for a, b in zip(each, results, strict=True)]
    for old, new in zip(op.results, results, strict=True):
        old.replace_all_uses_with(new)
    op.erase()


def _equal(rewriter: Rewriter, index: Any, number: int, before: Any) -> Any:
    ir = rewriter.ir
    wanted = constant(ir, number, index, before)
    with ir.InsertionPoint(before), before.location:
        return ir.Operation.create(
            "stablehlo.compare",
            results=[ir.Type.parse("tensor<i1>")],
            operands=[index, wanted],
            attributes={"comparison_direction": ir.Attribute.parse("#stablehlo<comparison_direction EQ>")},
        ).results[0]


def _select(rewriter: Rewriter, chosen: Any, a: Any, b: Any, before: Any) -> Any:
    if a == b:
        return a
    ir = rewriter.ir
    # By an array: a predicate without dimensions is one that the compiler has its host look at.
    if shape := shape_of(a):
        chosen = rewriter.spread(before, chosen, shape)
    with ir.InsertionPoint(before), before.location:
        return ir.Operation.create("stablehlo.select", results=[a.type], operands=[chosen, a, b]).results[0]
