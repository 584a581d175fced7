"""Whole numbers that are known before a program runs: counts of loops, and where slices begin."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from optgen.lower.repair.rewriter import element_of, shape_of

#: How far back it is worth looking: a count is a constant anew in each round that is written out.
_DEPTH = 32
_KEPT = ("broadcast_in_dim", "reshape", "convert", "optimization_barrier")


def _quotient(a: int, b: int) -> int:
    """Rounded to zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b, "subtract": lambda a, b: a - b, "multiply": lambda a, b: a * b, "minimum": min,
    "maximum": max, "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b,
    "divide": _quotient, "remainder": lambda a, b: a - b * _quotient(a, b),
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b, "LE": lambda a, b: a <= b, "GT": lambda a, b: a > b, "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b, "NE": lambda a, b: a != b,
}  # fmt: skip


def known(value: Any, depth: int = _DEPTH) -> int | None:
    """The number that a tensor of one integer or truth value holds; None where it is not known."""
    element = element_of(value)
    if element[:1] not in ("i", "u") or any(n != 1 for n in shape_of(value)) or depth == 0:
        return None
    op = getattr(value.owner, "operation", value.owner)
    if not hasattr(op, "operands"):  # an argument
        return None
    name = op.name.removeprefix("stablehlo.")
    if name == "constant":
        return _wrapped(_constant(str(op.attributes["value"])), element)
    if name == "optimization_barrier":
        return known(op.operands[list(op.results).index(value)], depth - 1)
    operands = [known(v, depth - 1) for v in op.operands]
    if name == "select" and operands[0] is not None:
        return operands[1 if operands[0] else 2]
    if not operands or any(v is None for v in operands):
        return None
    numbers = [v for v in operands if v is not None]
    return _wrapped(_computed(op, name, numbers, element), element)


def _computed(op: Any, name: str, v: list[int], element: str) -> int | None:
    if name == "convert" and element == "i1":
        return int(v[0] != 0)
    if name in _KEPT:
        return v[0]
    if name in ("divide", "remainder") and v[1] == 0:
        return None
    if name in _OPERATIONS:
        return _OPERATIONS[name](v[0], v[1])
    if name == "compare":
        found = re.search(r"\b(LT|LE|GT|GE|EQ|NE)\b", str(op.attributes["comparison_direction"]))
        return int(_COMPARISONS[found[1]](v[0], v[1])) if found else None
    if name == "negate":
        return -v[0]
    if name == "not":
        return ~v[0]
    if name == "clamp":
        return min(max(v[1], v[0]), v[2])
    return None


def _constant(text: str) -> int | None:
    found = re.match(r"dense<\[*(-?\d+|true|false)\]*>", text)
    return {"true": 1, "false": 0}.get(found[1]) if found and found[1][0] in "tf" else int(found[1]) if found else None


def _wrapped(value: int | None, element: str) -> int | None:
    """In the range of a type, as its arithmetic has it."""
    if value is None:
        return None
    bits = int(re.sub(r"\D", "", element))
    low = value & ((1 << bits) - 1)
    return low - (1 << bits) if element[0] == "i" and bits > 1 and low >> (bits - 1) else low


def constant(ir: Any, value: int, like: Any, before: Any) -> Any:
    """A number of the type of ``like``, made before an operation."""
    text = str(like.type)
    written = ("true" if value else "false") if element_of(like) == "i1" else value
    with ir.InsertionPoint(before), before.location:
        made = ir.Operation.create(
            "stablehlo.constant",
            results=[like.type],
            attributes={"value": ir.Attribute.parse(f"dense<{written}> : {text}")},
        )
    return made.results[0]
