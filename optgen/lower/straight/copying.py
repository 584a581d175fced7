"""Copying operations of a region to another place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def copied(ir: Any, block: Any, given: Sequence[Any], before: Any) -> tuple[list[Any], list[Any]]:
    """Copies a block's operations before an operation.

    Args:
        ir: the compiler's bindings.
        block: whose last operation returns values.
        given: for its arguments.
        before: where to.

    Returns:
        What the block returns, and the copies in order.
    """
    values = dict(zip(block.arguments, given, strict=True))
    made: list[Any] = []
    operations = [each.operation for each in block.operations]
    for op in operations[:-1]:
        new = op.clone(ir.InsertionPoint(before)).operation
        _refer(new, values)
        values.update(zip(op.results, new.results, strict=True))
        made.append(new)
    return [values.get(v, v) for v in operations[-1].operands], made


def _refer(op: Any, values: dict[Any, Any]) -> None:
    for i, operand in enumerate(op.operands):
        if operand in values:
            op.operands[i] = values[operand]
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                _refer(inner.operation, values)


def erase(operations: Sequence[Any]) -> None:
    """Takes copies away again that nothing uses."""
    for op in reversed(operations):
        op.erase()
