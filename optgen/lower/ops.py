"""The operations that a kernel may hold: for each, its MLIR and its numpy equivalent.

One table serves the kernel emitter and the reference evaluator, so that neither can know an operation that the other
does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.lower import rounded

#: Writes MLIR: ``(result, operands, type of the operands, type of the result) -> lines``.
Writer = Callable[[str, list[str], str, str], list[str]]


@dataclass(frozen=True)
class Op:
    """One elementwise operation.

    Attributes:
        write: its MLIR.
        evaluate: its numpy equivalent, for the float64 reference; the same bits on every processor.
    """

    write: Writer
    evaluate: Callable[..., Any]


def _simple(template: str) -> Writer:
    """A writer for one MLIR operation on operands and a result of one type."""

    def write(result: str, operands: list[str], dtype: str, _: str) -> list[str]:
        return [f"{result} = {template} {', '.join(operands)} : {dtype}"]

    return write


def _arith(floats: str, booleans: str | None = None, integers: str | None = None) -> Writer:
    """A writer that chooses by the operands' type."""

    def write(result: str, operands: list[str], dtype: str, _: str) -> list[str]:
        name = booleans if dtype == "i1" else integers if dtype.startswith("i") else floats
        if name is None:
            raise ValueError(f"no such operation on {dtype}")
        return [f"{result} = {name} {', '.join(operands)} : {dtype}"]

    return write


_BITS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}


def constant(result: str, value: float, dtype: str) -> str:
    """The MLIR of a constant, floats as their exact bits."""
    if dtype == "i1":
        return f"{result} = arith.constant {'true' if value else 'false'}"
    if dtype.startswith("i"):
        return f"{result} = arith.constant {int(value)} : {dtype}"
    if dtype == "bf16":
        bits = int(np.float32(value).view(np.uint32)) >> 16
    else:
        number = np.array(value, {"f16": np.float16, "f32": np.float32, "f64": np.float64}[dtype])
        bits = int(number.view(f"uint{_BITS[dtype]}"))
    return f"{result} = arith.constant 0x{bits:0{_BITS[dtype] // 4}X} : {dtype}"


_PREDICATES = {"EQ": "eq", "NE": "ne", "GT": "gt", "GE": "ge", "LT": "lt", "LE": "le"}


def compare(result: str, operands: list[str], dtype: str, direction: str) -> str:
    """The MLIR of a comparison."""
    predicate = _PREDICATES[direction]
    if dtype.startswith("i"):
        if predicate not in ("eq", "ne"):
            predicate = ("u" if dtype == "i1" else "s") + predicate
        return f"{result} = arith.cmpi {predicate}, {', '.join(operands)} : {dtype}"
    return f"{result} = arith.cmpf {'une' if predicate == 'ne' else 'o' + predicate}, {', '.join(operands)} : {dtype}"


def _convert(result: str, operands: list[str], source: str, target: str) -> list[str]:
    (x,) = operands
    if source in _BITS and target in _BITS:
        if _BITS[source] == _BITS[target]:  # bf16 <-> f16, by way of f32
            return [
                f"{result}_w = arith.extf {x} : {source} to f32",
                f"{result} = arith.truncf {result}_w : f32 to {target}",
            ]
        name = "extf" if _BITS[source] < _BITS[target] else "truncf"
        return [f"{result} = arith.{name} {x} : {source} to {target}"]
    if source == "i1" and target in _BITS:
        return [f"{result} = arith.uitofp {x} : {source} to {target}"]
    if source.startswith("i") and target in _BITS:
        return [f"{result} = arith.sitofp {x} : {source} to {target}"]
    if source in _BITS and target == "i1":
        return [
            constant(f"{result}_z", 0.0, source),
            f"{result} = arith.cmpf une, {x}, {result}_z : {source}",
        ]
    raise ValueError(f"no conversion from {source} to {target}")


def _sign(result: str, operands: list[str], dtype: str, _: str) -> list[str]:
    # NaN and zero are their own sign: copysign only where |x| > 0 holds.
    (x,) = operands
    return [
        constant(f"{result}_z", 0.0, dtype),
        constant(f"{result}_o", 1.0, dtype),
        f"{result}_s = math.copysign {result}_o, {x} : {dtype}",
        f"{result}_n = arith.cmpf one, {x}, {result}_z : {dtype}",
        f"{result} = arith.select {result}_n, {result}_s, {x} : {dtype}",
    ]


def _is_finite(result: str, operands: list[str], dtype: str, _: str) -> list[str]:
    if dtype == "f32":  # by its bits: compilers of Vulkan's drivers may take floats for finite
        return [
            f"{result}_b = arith.bitcast {operands[0]} : f32 to i32",
            constant(f"{result}_i", 0x7F800000, "i32"),
            f"{result}_e = arith.andi {result}_b, {result}_i : i32",
            f"{result} = arith.cmpi ne, {result}_e, {result}_i : i32",
        ]
    return [
        f"{result}_a = math.absf {operands[0]} : {dtype}",
        constant(f"{result}_i", float("inf"), dtype),
        f"{result} = arith.cmpf olt, {result}_a, {result}_i : {dtype}",
    ]


def _select(result: str, operands: list[str], _: str, target: str) -> list[str]:
    return [f"{result} = arith.select {', '.join(operands)} : {target}"]


def _clamp(result: str, operands: list[str], dtype: str, _: str) -> list[str]:
    low, x, high = operands
    return [
        f"{result}_l = arith.maximumf {low}, {x} : {dtype}",
        f"{result} = arith.minimumf {result}_l, {high} : {dtype}",
    ]


def _not(result: str, operands: list[str], dtype: str, _: str) -> list[str]:
    if dtype != "i1":
        raise ValueError(f"no such operation on {dtype}")
    return [f"{result}_t = arith.constant true", f"{result} = arith.xori {operands[0]}, {result}_t : i1"]


def _logistic(result: str, operands: list[str], dtype: str, _: str) -> list[str]:
    return [
        constant(f"{result}_o", 1.0, dtype),
        f"{result}_n = arith.negf {operands[0]} : {dtype}",
        f"{result}_e = math.exp {result}_n : {dtype}",
        f"{result}_d = arith.addf {result}_o, {result}_e : {dtype}",
        f"{result} = arith.divf {result}_o, {result}_d : {dtype}",
    ]


def _compare(result: str, operands: list[str], dtype: str, direction: str) -> list[str]:
    return [compare(result, operands, dtype, direction)]


_COMPARISONS = {
    "EQ": np.equal, "NE": np.not_equal, "GT": np.greater, "GE": np.greater_equal, "LT": np.less, "LE": np.less_equal,
}  # fmt: skip


def evaluate_compare(direction: str, a: Any, b: Any) -> Any:
    """The numpy equivalent of a comparison."""
    return _COMPARISONS[direction](a, b)


OPS: dict[str, Op] = {
    "add": Op(_arith("arith.addf", "arith.ori", "arith.addi"), np.add),
    "subtract": Op(_arith("arith.subf", None, "arith.subi"), np.subtract),
    "multiply": Op(_arith("arith.mulf", "arith.andi", "arith.muli"), np.multiply),
    "divide": Op(_arith("arith.divf"), np.divide),
    "remainder": Op(_arith("arith.remf"), np.fmod),
    "maximum": Op(_arith("arith.maximumf", "arith.ori", "arith.maxsi"), np.maximum),
    "minimum": Op(_arith("arith.minimumf", "arith.andi", "arith.minsi"), np.minimum),
    "power": Op(_simple("math.powf"), rounded.power),
    "atan2": Op(_simple("math.atan2"), rounded.arctan2),
    "sqrt": Op(_simple("math.sqrt"), np.sqrt),
    "rsqrt": Op(_simple("math.rsqrt"), lambda x: 1 / np.sqrt(x)),
    "cbrt": Op(_simple("math.cbrt"), rounded.cbrt),
    "negate": Op(_arith("arith.negf"), np.negative),
    "abs": Op(_simple("math.absf"), np.abs),
    "exponential": Op(_simple("math.exp"), rounded.exp),
    "exponential_minus_one": Op(_simple("math.expm1"), rounded.expm1),
    "log": Op(_simple("math.log"), rounded.log),
    "log_plus_one": Op(_simple("math.log1p"), rounded.log1p),
    "tanh": Op(_simple("math.tanh"), rounded.tanh),
    "sine": Op(_simple("math.sin"), rounded.sin),
    "cosine": Op(_simple("math.cos"), rounded.cos),
    "floor": Op(_simple("math.floor"), np.floor),
    "ceil": Op(_simple("math.ceil"), np.ceil),
    "round_nearest_even": Op(_simple("math.roundeven"), np.rint),
    "logistic": Op(_logistic, rounded.logistic),
    "sign": Op(_sign, np.sign),
    "is_finite": Op(_is_finite, np.isfinite),
    "compare": Op(_compare, evaluate_compare),
    "select": Op(_select, lambda c, a, b: np.where(c, a, b)),
    "clamp": Op(_clamp, lambda low, x, high: np.minimum(np.maximum(low, x), high)),
    "and": Op(_arith("", "arith.andi", "arith.andi"), np.logical_and),
    "or": Op(_arith("", "arith.ori", "arith.ori"), np.logical_or),
    "xor": Op(_arith("", "arith.xori", "arith.xori"), np.logical_xor),
    "not": Op(_not, np.logical_not),
    "convert": Op(_convert, lambda x: x),
}


@dataclass(frozen=True)
class Reduction:
    """A reduction over a whole leaf.

    Attributes:
        neutral: where it starts.
        combine: the MLIR operation of two partial results.
        exact: whether rounding makes no difference, so that no wider accumulator is needed.
        evaluate: its numpy equivalent.
    """

    neutral: float
    combine: str
    exact: bool
    evaluate: Callable[..., Any]


REDUCTIONS: dict[str, Reduction] = {
    "reduce_add": Reduction(0.0, "arith.addf", False, np.sum),
    "reduce_multiply": Reduction(1.0, "arith.mulf", False, np.prod),
    "reduce_maximum": Reduction(float("-inf"), "arith.maximumf", True, np.max),
    "reduce_minimum": Reduction(float("inf"), "arith.minimumf", True, np.min),
}


def widen(source: str, have: str, result: str, want: str) -> list[str]:
    """MLIR that gives a number of type ``have`` the name ``result`` and the type ``want``."""
    if have == want:
        return [constant(f"{result}_z", -0.0, have), f"{result} = arith.addf {source}, {result}_z : {have}"]
    return OPS["convert"].write(result, [source], have, want)
