"""Sorts by counting: an element's place is the number of those that belong before it.

IREE 3.13 ignores ``is_stable``: equal integers change places, so ``jnp.argsort`` and ``lax.top_k`` give other indices
than JAX. It sorts in its operands' memory: the copy of an ``iota``, which a kernel without operands makes, is that
kernel run again, and a later pass makes one of the two, so whoever reads the ``iota`` afterwards, as the gradient of
an indexed row does, reads it sorted. Its compiler for GPUs dies where an operand is computed in the same kernel. And
its sort takes n² steps of one thread; so many comparisons, side by side, give every element's place at once.
"""

from __future__ import annotations

from typing import Any

from optgen.dsl.trace import import_jax
from optgen.lower.repair.rewriter import Repair, Rewriter, element_of, shape_of


def _sort(rewriter: Rewriter, op: Any) -> None:
    ir, operands = rewriter.ir, list(op.operands)
    shape, axis = shape_of(operands[0]), int(ir.IntegerAttr(op.attributes["dimension"]).value)
    pairs = (*shape[: axis + 1], *shape[axis:])
    first, second = ([d + (d > axis or (d == axis and later)) for d in range(len(shape))] for later in (False, True))
    with ir.InsertionPoint(op), op.location:
        # Element i of a pair lies along the axis, element j along the one behind it.
        own, other = (
            [
                _broadcast(ir, value, pairs, dims) if _compares(op, index) else None
                for index, value in enumerate(operands)
            ]
            for dims in (first, second)
        )
        less = _compared(ir, op, other, own, pairs)  # j before i
        more = _compared(ir, op, own, other, pairs)

    def places(less: Any, more: Any) -> Any:
        jnp = import_jax().numpy
        # Of one dimension each: what has two would be written to memory.
        i, j = (
            jnp.arange(shape[axis], dtype="int32").reshape((-1,) + (1,) * (len(pairs) - 1 - d))
            for d in (axis, axis + 1)
        )
        place = jnp.sum(less | (~more & (j < i)), axis + 1, dtype="int32")
        # Which element has the place i: the only j whose place it is.
        return jnp.sum(jnp.where(jnp.expand_dims(place, axis) == i, j, 0), axis + 1, dtype="int32")

    def taken(value: Any, order: Any) -> Any:
        return import_jax().numpy.take_along_axis(value, order, axis, mode="promise_in_bounds")

    (order,) = rewriter.call(op, places, [less, more], ("places", axis))
    for old, value in zip(op.results, operands, strict=True):
        if _is_position(ir, value, axis):
            new = order
        else:
            (new,) = rewriter.call(op, taken, [value, order], ("taken", axis))
        old.replace_all_uses_with(new)
    op.erase()


def _broadcast(ir: Any, value: Any, shape: tuple[int, ...], dims: list[int]) -> Any:
    kind = ir.RankedTensorType.get(list(shape), ir.RankedTensorType(value.type).element_type)
    return ir.Operation.create(
        "stablehlo.broadcast_in_dim", results=[kind], operands=[value],
        attributes={"broadcast_dimensions": ir.DenseI64ArrayAttr.get(dims)},
    ).result  # fmt: skip


def _compares(op: Any, index: int) -> bool:
    """Whether a comparator looks at an operand."""
    given = op.regions[0].blocks[0].arguments
    return any(True for place in (2 * index, 2 * index + 1) for _ in given[place].uses)


def _compared(ir: Any, op: Any, left: list[Any], right: list[Any], shape: tuple[int, ...]) -> Any:
    """What a comparator says of all pairs: its operations, on arrays instead of on two elements."""
    block = op.regions[0].blocks[0]
    given = [value for pair in zip(left, right, strict=True) for value in pair]
    values = dict(zip(block.arguments, given, strict=True))
    for each in block.operations:
        operation = each.operation
        if operation.name == "stablehlo.return":
            return values[operation.operands[0]]
        if not operation.operands:  # a constant
            copy = operation.clone(ir.InsertionPoint.current).operation
            values[operation.results[0]] = _broadcast(ir, copy.results[0], shape, [])
            continue
        kinds = [
            ir.RankedTensorType.get(list(shape), ir.RankedTensorType(r.type).element_type) for r in operation.results
        ]
        made = ir.Operation.create(
            operation.name, results=kinds, operands=[values[v] for v in operation.operands],
            attributes={name: operation.attributes[name] for name in operation.attributes},
        )  # fmt: skip
        values.update(zip(operation.results, made.results, strict=True))
    raise AssertionError("a comparator without an end")


def _is_position(ir: Any, value: Any, axis: int) -> bool:
    """Whether a value is the positions along the sorted axis, as ``argsort`` sorts beside its keys."""
    made = getattr(value.owner, "operation", None)
    if made is None or made.name != "stablehlo.iota" or element_of(value) != "i32":
        return False
    return int(ir.IntegerAttr(made.attributes["iota_dimension"]).value) == axis


def _top_k(rewriter: Rewriter, op: Any) -> None:
    count = int(rewriter.ir.IntegerAttr(op.attributes["k"]).value)

    def largest(value: Any) -> Any:
        jnp = import_jax().numpy
        order = jnp.argsort(value, axis=-1, descending=True)[..., :count]
        return jnp.take_along_axis(value, order, -1, mode="promise_in_bounds"), order.astype("int32")

    rewriter.replace(op, largest, ("top_k", count))


SORTS: dict[str, Repair] = {"stablehlo.sort": _sort, "chlo.top_k": _top_k}
