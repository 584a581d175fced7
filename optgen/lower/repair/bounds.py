"""What is known of an integer before the program runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from optgen.lower.repair.rewriter import element_of, shape_of

#: How far back it is worth looking.
_DEPTH = 16
_KEPT = ("broadcast_in_dim", "reshape", "slice", "transpose", "reverse", "optimization_barrier")

Bounds = tuple[int, int]


def bounds(value: Any, depth: int = _DEPTH, given: Sequence[Bounds] = ()) -> Bounds:
    """The least and the greatest number that a tensor of integers can hold, as far as is known; else its type's.

    It looks through what JAX writes around indices: counts, constants, the turning of negative ones, clips.

    Args:
        value: the tensor.
        depth: how far back to look.
        given: what is known of the arguments of the function that ``value`` is in.
    """
    widest = _range(element_of(value))
    op = getattr(value.owner, "operation", value.owner)
    if depth == 0:
        return widest
    if not hasattr(op, "operands"):  # an argument of a function, or of a loop, whose turns differ
        return given[_number(value)] if given and op.owner.operation.name == "func.func" else widest
    found = _computed(value, op, depth, given)
    return found if found is not None and widest[0] <= found[0] and found[1] <= widest[1] else widest


def _number(argument: Any) -> int:
    from iree.compiler import ir

    return int(ir.BlockArgument(argument).arg_number)


def _computed(value: Any, op: Any, depth: int, given: Sequence[Bounds]) -> Bounds | None:
    name = op.name.removeprefix("stablehlo.")

    def of(position: int) -> Bounds:
        return bounds(op.operands[position], depth - 1, given)

    if name == "constant":
        return _constant(str(op.attributes["value"]))
    if name == "iota":
        return 0, shape_of(value)[int(str(op.attributes["iota_dimension"]).partition(":")[0])] - 1
    if name in _KEPT or name == "convert":
        return of(list(op.results).index(value)) if element_of(op.operands[0])[:1] in ("i", "u") else None
    if name == "concatenate":
        return _union([of(i) for i in range(len(op.operands))])
    if name == "select":
        chosen = _decided(op.operands[0], depth - 1, given)
        return _union([of(1), of(2)]) if chosen is None else of(1 if chosen else 2)
    if name == "clamp":
        return _combine(min, _combine(max, of(0), of(1)), of(2))
    if name in ("add", "minimum", "maximum"):
        return _combine({"add": lambda x, y: x + y, "minimum": min, "maximum": max}[name], of(0), of(1))
    if name == "func.call":
        known = [_if_whole(operand, depth - 1, given) for operand in op.operands]
        return _called(op, list(op.results).index(value), depth, known)
    return None


def _combine(function: Any, a: Bounds, b: Bounds) -> Bounds:
    return function(a[0], b[0]), function(a[1], b[1])


def _if_whole(value: Any, depth: int, given: Sequence[Bounds]) -> Bounds:
    """Bounds of integers; of others nothing is ever asked."""
    return bounds(value, depth, given) if element_of(value)[:1] in ("i", "u") else (0, 0)


def _called(op: Any, position: int, depth: int, given: Sequence[Bounds]) -> Bounds | None:
    """Of a result of a function of the same module, whose arguments are ``given``."""
    module = op
    while module.name != "builtin.module":
        module = module.parent.operation
    wanted = str(op.attributes["callee"]).strip('@"')
    for function in module.regions[0].blocks[0].operations:
        if str(function.operation.attributes["sym_name"]).strip('"') == wanted:
            last = list(function.operation.regions[0].blocks[0].operations)[-1]
            return bounds(last.operation.operands[position], depth - 1, given)
    return None


def _decided(value: Any, depth: int, given: Sequence[Bounds]) -> bool | None:
    """What a comparison gives, where it is the same for all elements and known."""
    op = getattr(value.owner, "operation", value.owner)
    if depth <= 0 or getattr(op, "name", "") != "stablehlo.compare":
        return None
    if "LT" not in str(op.attributes["comparison_direction"]) or element_of(op.operands[0])[:1] not in ("i", "u"):
        return None
    a, b = (bounds(op.operands[i], depth, given) for i in (0, 1))
    return True if a[1] < b[0] else False if a[0] >= b[1] else None


def _union(parts: Sequence[Bounds]) -> Bounds:
    return min(p[0] for p in parts), max(p[1] for p in parts)


def _constant(text: str) -> Bounds | None:
    inner = text.partition("<")[2].rpartition("> :")[0]
    if '"' in inner or not re.fullmatch(r"[\[\]\s,\d-]+", inner):  # packed, or no integers
        return None
    found = [int(n) for n in re.findall(r"-?\d+", inner)]
    return (min(found), max(found)) if found else None


def _range(element: str) -> Bounds:
    bits = int(re.sub(r"\D", "", element) or 64)
    return (0, 2**bits - 1) if element.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
