"""Loops written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optgen.errors import LoweringError
from optgen.lower.straight.copying import copied, erase
from optgen.lower.straight.numbers import constant, known

#: Rounds of one loop that are written out, and operations of all of a program's.
ROUNDS, OPERATIONS = 64, 10_000


@dataclass
class Unrolled:
    """How much of a program has been written out."""

    operations: int = 0


def unroll(ir: Any, op: Any, budget: Unrolled) -> None:
    """Puts a loop's rounds, one after the other, in its place.

    Raises:
        LoweringError: if it is not known before the program runs whether there is another round, or there are too many.
    """
    condition, body = (region.blocks[0] for region in op.regions)
    values = list(op.operands)
    for done in range(ROUNDS + 1):
        (again,), tried = copied(ir, condition, values, op)
        more = known(again)
        erase(tried)
        if more is None:
            raise LoweringError(
                "a loop whose rounds are not known before it runs (lax.while_loop), which code without control flow "
                "does not have"
            )
        if not more:
            break
        if done == ROUNDS or budget.operations > OPERATIONS:
            raise LoweringError(
                f"a loop of more than {ROUNDS} rounds, or of more than {OPERATIONS} operations when written out "
                "(lax.scan, lax.fori_loop, lax.map), which code without control flow does not have"
            )
        values, made = copied(ir, body, values, op)
        budget.operations += len(made)
        # Counts are constants in each round: what depends on them is then known.
        values = [v if (n := known(v)) is None else constant(ir, n, v, op) for v in values]
    for old, new in zip(op.results, values, strict=True):
        old.replace_all_uses_with(new)
    op.erase()
