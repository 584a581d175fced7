"""Sorts that keep the order of equal elements, as JAX's do.

IREE 3.13 ignores ``is_stable``: equal integers change places, so ``jnp.argsort`` gives other indices than JAX. With
the elements' positions as the last thing to compare, no two elements are equal, and every way to sort gives one order.

It also sorts in its operands' memory. If an operand comes from a kernel without operands, such as an ``iota``, its copy
is that kernel run again, and a later pass makes one of the two: whoever reads the ``iota`` afterwards, as the gradient
of an indexed row does, reads it sorted. So only what is compared is sorted, with positions that begin at a number that
no other ``iota`` begins at, and the rest is taken in their order.
"""

from __future__ import annotations

import zlib
from typing import Any

from optgen.dsl.trace import import_jax
from optgen.lower.repair.rewriter import Repair, Rewriter, element_of, shape_of


def _sort(rewriter: Rewriter, op: Any) -> None:
    ir, operands = rewriter.ir, list(op.operands)
    if len(operands) == 1 and element_of(operands[0])[0] in "iu":
        return  # equal integers without anything beside them are the same in any order
    shape, axis = shape_of(operands[0]), int(ir.IntegerAttr(op.attributes["dimension"]).value)
    start = _START + zlib.crc32(str(op.parent).encode()) % _START
    kept = [i for i in range(len(operands)) if _compares(op, i)]
    integer = ir.IntegerType.get_signless(32)
    kind = ir.RankedTensorType.get(list(shape), integer)
    with ir.InsertionPoint(op), op.location:
        along = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), axis)
        iota = ir.Operation.create("stablehlo.iota", results=[kind], attributes={"iota_dimension": along}).result
        offset = _constant(ir, kind, start)
        added = ir.Operation.create("stablehlo.add", results=[kind], operands=[iota, offset]).result
        sorted_ = ir.Operation.create(
            "stablehlo.sort",
            results=[*(operands[i].type for i in kept), kind],
            operands=[*(operands[i] for i in kept), added],
            attributes={name: op.attributes[name] for name in ("dimension", "is_stable")},
            regions=1,
        )
        order = ir.Operation.create("stablehlo.subtract", results=[kind], operands=[sorted_.results[-1], offset]).result
    _comparator(ir, op, sorted_, kept)

    def taken(beside: Any, positions: Any) -> Any:
        return import_jax().numpy.take_along_axis(beside, positions, axis, mode="promise_in_bounds")

    for index, old in enumerate(op.results):
        if index in kept:
            new = sorted_.results[kept.index(index)]
        elif _is_position(ir, operands[index], axis):
            new = order
        else:
            new = rewriter.call(op, taken, [operands[index], order], ("sorted", axis))[0]
        old.replace_all_uses_with(new)
    op.erase()
    rewriter.changed = True


#: Where positions begin at the least: beyond the length of any array that is sorted, and with as much above it.
_START = 1 << 29


def _is_position(ir: Any, value: Any, axis: int) -> bool:
    """Whether a value is the positions along the sorted axis, as ``argsort`` sorts beside its keys."""
    owner = value.owner
    if not isinstance(owner, ir.Operation) and not hasattr(owner, "operation"):
        return False  # a function's argument
    made = owner.operation if hasattr(owner, "operation") else owner
    if made.name != "stablehlo.iota" or element_of(value) != "i32":
        return False
    return int(ir.IntegerAttr(made.attributes["iota_dimension"]).value) == axis


def _compares(op: Any, index: int) -> bool:
    """Whether a comparator looks at an operand."""
    given = op.regions[0].blocks[0].arguments
    return any(True for place in (2 * index, 2 * index + 1) for _ in given[place].uses)


def _constant(ir: Any, kind: Any, number: int) -> Any:
    value = ir.DenseElementsAttr.get_splat(kind, ir.IntegerAttr.get(kind.element_type, number))
    return ir.Operation.create("stablehlo.constant", results=[kind], attributes={"value": value}).result


def _comparator(ir: Any, op: Any, new: Any, kept: list[int]) -> None:
    """Writes the comparator: less, or neither less nor more, and before."""
    before = op.regions[0].blocks[0]
    scalar = ir.RankedTensorType.get([], ir.IntegerType.get_signless(32))
    old = list(before.arguments)
    places = [place for i in kept for place in (2 * i, 2 * i + 1)]
    types = [old[p].type for p in places]
    block = new.regions[0].blocks.append(*types, scalar, scalar, arg_locs=[op.location] * (len(types) + 2))
    given = list(block.arguments)
    first, second = given[-2:]
    with ir.InsertionPoint(block), op.location:
        less = _compared(ir, before, {old[p]: given[i] for i, p in enumerate(places)})
        more = _compared(ir, before, {old[p]: given[i ^ 1] for i, p in enumerate(places)})

        def made(name: str, *values: Any, **attributes: Any) -> Any:
            return ir.Operation.create(name, results=[less.type], operands=list(values), attributes=attributes).result

        earlier = made(
            "stablehlo.compare", first, second,
            comparison_direction=ir.Attribute.parse("#stablehlo<comparison_direction LT>"),
            compare_type=ir.Attribute.parse("#stablehlo<comparison_type SIGNED>"),
        )  # fmt: skip
        tied = made("stablehlo.and", made("stablehlo.not", more), earlier)
        ir.Operation.create("stablehlo.return", operands=[made("stablehlo.or", less, tied)])


def _compared(ir: Any, block: Any, values: dict[Any, Any]) -> Any:
    """What a comparator says of two elements, written at the current place."""
    for each in block.operations:
        operation = each.operation
        if operation.name == "stablehlo.return":
            return values[operation.operands[0]]
        copy = operation.clone(ir.InsertionPoint.current)
        for index, operand in enumerate(operation.operands):
            copy.operation.operands[index] = values.get(operand, operand)
        values.update(zip(operation.results, copy.operation.results, strict=True))
    raise AssertionError("a comparator without an end")


SORTS: dict[str, Repair] = {"stablehlo.sort": _sort}
