"""Scatters. An update whose window is not all inside is skipped, as XLA does and JAX's modes (drop, fill) rely on; IREE
3.13 writes foreign memory. And windows that an index places are written element by element, since it takes none.
Dimensions that indices of several parts place come first, since it takes windows that come before them for batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.dsl.trace import import_jax
from optgen.lower.repair.indices import along, clamped, inside_range, valid
from optgen.lower.repair.rewriter import Repair, Rewriter, dtype_of, number, numbers, shape_of


@dataclass(frozen=True)
class _Shape:
    """How a scatter's indices and updates lie.

    Attributes:
        extents: of an operand.
        update: the extents of an update; ``window_dims`` are those of its dimensions that are the window's.
        axis: the dimension of the indices that holds the parts of one index.
        scattered: for each part of an index, the operand's dimension.
        inserted, batching, index_batching: as StableHLO calls them.
    """

    extents: tuple[int, ...]
    update: tuple[int, ...]
    window_dims: tuple[int, ...]
    axis: int
    scattered: tuple[int, ...]
    inserted: tuple[int, ...]
    batching: tuple[int, ...]
    index_batching: tuple[int, ...]

    @classmethod
    def of(cls, op: Any, count: int) -> _Shape:
        dimensions = op.attributes["scatter_dimension_numbers"]

        def part(name: str) -> tuple[int, ...]:
            return tuple(numbers(dimensions, name))

        return cls(
            shape_of(op.operands[0]), shape_of(op.operands[count + 1]), part("update_window_dims"),
            number(dimensions, "index_vector_dim"), part("scatter_dims_to_operand_dims"), part("inserted_window_dims"),
            part("input_batching_dims"), part("scatter_indices_batching_dims"),
        )  # fmt: skip

    @property
    def windowed(self) -> list[int]:
        """The operand's dimensions that the window has."""
        return [d for d in range(len(self.extents)) if d not in self.inserted and d not in self.batching]

    @property
    def window(self) -> list[int]:
        """The window's extents, in the operand's dimensions."""
        sizes = dict(zip(self.windowed, (self.update[d] for d in self.window_dims), strict=True))
        return [sizes.get(d, 1) for d in range(len(self.extents))]

    @property
    def limits(self) -> list[int]:
        """The greatest value of each part of an index."""
        return [self.extents[d] - self.window[d] for d in self.scattered]

    @property
    def places(self) -> list[int]:
        """The dimensions of an update that are the indices'."""
        return [d for d in range(len(self.update)) if d not in self.window_dims]

    @property
    def spread(self) -> list[int]:
        """The dimensions of the window that an index places: IREE refuses those."""
        return [d for d in self.windowed if d in self.scattered]

    @property
    def indexed(self) -> list[int]:
        """The operand's dimensions that indices place, when :meth:`spread_out` has been applied."""
        return sorted((*self.inserted, *self.batching, *self.spread))

    @property
    def order(self) -> list[int]:
        """The operand's dimensions in the order that IREE takes."""
        first = self.indexed
        if len(first) < 2:
            return list(range(len(self.extents)))
        return [*first, *(d for d in range(len(self.extents)) if d not in first)]

    @property
    def in_order(self) -> bool:
        """Whether they are in that order."""
        return self.order == list(range(len(self.extents)))

    def remade_numbers(self) -> str:
        """StableHLO's description of operands in :attr:`order` and of what :meth:`spread_out` gives."""
        lead = len(self.places) + len(self.spread)
        rest = len(self.windowed) - len(self.spread)

        def moved(dimensions: Iterable[int]) -> list[int]:
            return [self.order.index(d) for d in dimensions]

        return (
            f"#stablehlo.scatter<update_window_dims = {list(range(lead, lead + rest))}, "
            f"inserted_window_dims = {sorted(moved((*self.inserted, *self.spread)))}, "
            f"input_batching_dims = {moved(self.batching)}, "
            f"scatter_indices_batching_dims = {[d - (d > self.axis) for d in self.index_batching]}, "
            f"scatter_dims_to_operand_dims = {moved(self.scattered)}, index_vector_dim = {lead}>"
        )

    def spread_out(self, indices: Any, updates: list[Any]) -> tuple[Any, list[Any]]:
        """Indices and updates with one index for each element of the dimensions that an index placed."""
        jnp = import_jax().numpy
        lead, parts = len(self.places), len(self.scattered)
        indices = indices[..., None] if self.axis == indices.ndim else jnp.moveaxis(indices, self.axis, -1)
        indices = indices.reshape(*indices.shape[:-1], *[1] * len(self.spread), parts)
        for position, d in enumerate(self.spread):
            steps = jnp.arange(self.window[d], dtype=indices.dtype)
            steps = steps.reshape(*[1] * lead, *[-1 if i == position else 1 for i in range(len(self.spread))], 1)
            indices = indices + steps * np.asarray([each == d for each in self.scattered], indices.dtype)
        own = dict(zip(self.windowed, self.window_dims, strict=True))
        order = [*self.places, *(own[d] for d in self.spread)]
        order += [own[d] for d in self.windowed if d not in self.spread]
        return indices, [jnp.transpose(update, order) for update in updates]


def _scatter(rewriter: Rewriter, op: Any) -> None:
    """Makes nothing of updates whose window is not inside.

    Where there is a number that changes nothing (0 for sums), such updates become that number, anywhere. Else they go
    to a margin that is cut off again: what they would have to write elsewhere is not known, since an update inside may
    write there, too.
    """
    count = (len(op.operands) - 1) // 2
    shape = _Shape.of(op, count)
    if not shape.scattered:
        return
    safe = inside_range(op.operands[count], shape.limits)
    remade = bool(shape.spread) or not shape.in_order
    if safe and not remade:
        return
    neutral = None if safe or count > 1 else _neutral(op, op.operands[2])
    margin = 0 if safe or neutral is not None else shape.window[shape.scattered[0]]

    def repaired(*operands: Any) -> tuple[Any, ...]:
        inputs, indices, updates = list(operands[:count]), operands[count], list(operands[count + 1 :])
        indices, inputs, updates = _kept_inside(shape, indices, inputs, updates, neutral, margin, safe)
        if remade:
            indices, updates = shape.spread_out(indices, updates)
            inputs = [import_jax().numpy.transpose(x, shape.order) for x in inputs]
        return (*inputs, indices, *updates)

    ir = rewriter.ir
    operands = rewriter.call(op, repaired, list(op.operands), ("scatter", shape, str(neutral), margin, safe))
    attributes = {a: op.attributes[a] for a in op.attributes}
    attributes["indices_are_sorted"] = ir.BoolAttr.get(False)
    if neutral is not None:  # several may have been clamped to one place now
        attributes["unique_indices"] = ir.BoolAttr.get(False)
    if remade:
        attributes["scatter_dimension_numbers"] = ir.Attribute.parse(shape.remade_numbers())
    types = [v.type for v in operands[:count]]
    with ir.InsertionPoint(op), op.location:
        made = ir.Operation.create(op.name, results=types, operands=operands, attributes=attributes, regions=1)
        op.regions[0].blocks[0].append_to(made.regions[0])
    for old, new in zip(list(op.results), list(made.results), strict=True):
        if margin or not shape.in_order:

            def cut(value: Any) -> Any:
                value = import_jax().numpy.transpose(value, [shape.order.index(d) for d in range(len(shape.extents))])
                return import_jax().lax.slice(value, [0] * len(shape.extents), shape.extents)

            new = rewriter.call(op, cut, [new], ("cut", shape.extents, tuple(shape.order)))[0]
        old.replace_all_uses_with(new)
    op.erase()


SCATTERS: dict[str, Repair] = {"stablehlo.scatter": _scatter}


def _kept_inside(
    shape: _Shape, indices: Any, inputs: list[Any], updates: list[Any], neutral: Any, margin: int, safe: bool
) -> tuple[Any, list[Any], list[Any]]:
    """Indices, operands and updates that write nothing outside."""
    jax = import_jax()
    jnp = jax.numpy
    if safe:
        return indices, inputs, updates
    limits, axis = shape.limits, shape.axis
    inside, start = valid(indices, limits, axis), clamped(indices, limits, axis)
    if not margin:
        wide = jax.lax.broadcast_in_dim(inside, shape.update, shape.places)
        return start, inputs, [jnp.where(wide, updates[0], neutral)]
    first = shape.scattered[0]
    if axis < indices.ndim:
        inside = jnp.expand_dims(inside, axis)
    nowhere = along([shape.extents[first], *[0] * (len(limits) - 1)], start, axis)
    edges = [(0, margin if d == first else 0, 0) for d in range(len(shape.extents))]
    inputs = [jax.lax.pad(x, np.zeros((), x.dtype), edges) for x in inputs]
    return jnp.where(inside, start, nowhere), inputs, updates


def _neutral(op: Any, update: Any) -> Any:
    """The number that changes nothing where a scatter combines with it; None where there is none."""
    block = op.regions[0].blocks[0]
    body = [each.operation for each in block.operations]
    if len(body) != 2 or set(body[0].operands) != set(block.arguments):
        return None
    dtype = dtype_of(update)
    ones: Any
    if import_jax().numpy.issubdtype(dtype, np.floating):
        zero, low, high, ones = -0.0, -np.inf, np.inf, None
    elif dtype == np.bool_:
        zero, low, high, ones = False, False, True, True
    else:
        info = np.iinfo(dtype)
        zero, low, high, ones = 0, info.min, info.max, -1 if info.min else info.max
    found = {"add": zero, "or": zero, "xor": zero, "multiply": 1, "maximum": low, "minimum": high, "and": ones}
    value = found.get(body[0].name.removeprefix("stablehlo."))
    return None if value is None else np.asarray(value, dtype)
