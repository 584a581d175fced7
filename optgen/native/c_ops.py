"""The arithmetic of host programs as C99 expressions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optgen.errors import LoweringError
from optgen.native.program import Let, Literal, Number

#: C's type for each type of numbers.
TYPES = {
    "i1": "int", "i8": "int8_t", "i16": "int16_t", "i32": "int32_t", "i64": "int64_t", "index": "int64_t",
    "f32": "float", "f64": "double",
}  # fmt: skip
_UNSIGNED = {
    "i1": "unsigned", "i8": "uint8_t", "i16": "uint16_t", "i32": "uint32_t", "i64": "uint64_t", "index": "uint64_t",
}  # fmt: skip
_BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "index": 64, "f32": 32, "f64": 64}

_WRAPPING = {"addi": "+", "subi": "-", "muli": "*", "andi": "&", "ori": "|", "xori": "^"}
_DIVIDING = {"divsi": "/", "remsi": "%", "divui": "/", "remui": "%"}
_FLOATING = {"addf": "+", "subf": "-", "mulf": "*", "divf": "/"}
_FUNCTIONS = {
    "sqrt": "sqrt", "expm1": "expm1", "exp": "exp", "exp2": "exp2", "log": "log", "log1p": "log1p", "log2": "log2",
    "powf": "pow", "sin": "sin", "cos": "cos", "tanh": "tanh", "absf": "fabs", "floor": "floor", "ceil": "ceil",
    "fma": "fma", "maxnumf": "fmax", "minnumf": "fmin",
}  # fmt: skip
_SIGNED_ORDER = {"slt": "<", "sle": "<=", "sgt": ">", "sge": ">="}
_ORDER = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_NEGATED = {"lt": ">=", "le": ">", "gt": "<=", "ge": "<"}


def literal(number: Literal) -> str:
    """A number that is known, exactly."""
    if number.type in ("f32", "f64"):
        value, suffix = float(number.value), "f" if number.type == "f32" else ""
        if math.isnan(value):
            return "NAN" if suffix else "(double)NAN"
        if math.isinf(value):
            name = "HUGE_VALF" if suffix else "HUGE_VAL"
            return name if value > 0 else f"(-{name})"
        text = f"{value.hex()}{suffix}"
        return f"({text})" if text.startswith("-") else text
    value = int(number.value)
    if _BITS[number.type] < 64:
        return str(value) if value > -(2**31) else "INT32_MIN"
    if abs(value) < 2**31:
        return f"({value})" if value < 0 else str(value)
    return "INT64_MIN" if value == -(2**63) else f"INT64_C({value})"


def expression(let: Let, operands: Sequence[str]) -> str:
    """The right side of ``let``.

    Args:
        let: an operation, ``dim`` excepted.
        operands: as C has them.

    Raises:
        LoweringError: for an operation that is not known, or not for these types.
    """
    kind, source = let.result.type, let.operands[0].type
    a, *rest = operands
    b = rest[0] if rest else ""
    if let.op in _FLOATING and kind in ("f32", "f64"):
        return f"{a} {_FLOATING[let.op]} {b}"
    if let.op in _FUNCTIONS and kind in ("f32", "f64"):
        return f"{_FUNCTIONS[let.op]}{'f' if kind == 'f32' else ''}({', '.join(operands)})"
    if kind in _UNSIGNED and source in _UNSIGNED and (text := _integer(let, kind, source, operands)):
        return text
    if let.op.startswith("cmpf."):
        return _compare_floats(let.op.removeprefix("cmpf."), a, b)
    whole, signed = TYPES[kind], TYPES[source]
    simple = {
        "negf": f"-{a}",
        "rsqrt": f"{'1.0f / sqrtf' if kind == 'f32' else '1.0 / sqrt'}({a})",
        "maximumf": f"maximum_{kind}({a}, {b})",
        "minimumf": f"minimum_{kind}({a}, {b})",
        "truncf": f"(float){a}",
        "extf": f"(double){a}",
        "sitofp": f"({whole}){'-' if source == 'i1' else ''}{a}",
        "uitofp": f"({whole})({_UNSIGNED.get(source, signed)}){a}",
        "fptosi": f"({whole}){a}",
        "fptoui": f"({whole})({_UNSIGNED.get(kind, whole)}){a}",
        "bitcast": a if kind == source else f"bits_{source}_{kind}({a})",
        "select": f"{a} ? {b} : {rest[-1] if rest else ''}",
    }
    if let.op not in simple or (let.op == "bitcast" and _BITS[kind] != _BITS[source]):
        raise LoweringError(f"host code computes '{let.op}' of {source} to {kind}, which C is not written for")
    return simple[let.op]


def _integer(let: Let, kind: str, source: str, operands: Sequence[str]) -> str:
    """Operations on integers; empty for those that are not."""
    whole, u = TYPES[kind], _UNSIGNED[kind]
    a, *rest = operands
    b = rest[0] if rest else ""
    if let.op in _WRAPPING:
        if kind == "i1" and _WRAPPING[let.op] in "+-*":
            raise LoweringError(f"host code computes '{let.op}' of single bits, which C is not written for")
        return f"({whole})(({u}){a} {_WRAPPING[let.op]} ({u}){b})"
    if let.op in ("shli", "shrui"):
        _check_known(let, lambda value: 0 <= value < _BITS[kind])
        return f"({whole})(({u}){a} {'<<' if let.op == 'shli' else '>>'} {b})"
    if let.op == "shrsi":
        _check_known(let, lambda value: 0 <= value < _BITS[kind])
        return f"{a} >> {b}"
    if let.op in _DIVIDING:
        _check_known(let, lambda value: value > 0)
        sign = _DIVIDING[let.op]
        return f"{a} {sign} {b}" if let.op.endswith("si") else f"({whole})(({u}){a} {sign} ({u}){b})"
    if let.op in ("ceildivsi", "floordivsi", "ceildivui"):
        _check_known(let, lambda value: value > 0)
        if let.op == "ceildivui":
            return f"({whole})(({u}){a} / ({u}){b} + (({u}){a} % ({u}){b} != 0))"
        return f"{a} / {b} + ({a} % {b} > 0)" if let.op == "ceildivsi" else f"{a} / {b} - ({a} % {b} < 0)"
    if let.op in ("maxsi", "minsi"):
        return f"{a} {'>' if let.op == 'maxsi' else '<'} {b} ? {a} : {b}"
    if let.op in ("maxui", "minui"):
        return f"({u}){a} {'>' if let.op == 'maxui' else '<'} ({u}){b} ? {a} : {b}"
    if let.op in ("index_cast", "trunci", "extsi"):
        if kind == "i1":
            return f"{a} & 1"
        return f"({whole})-{a}" if source == "i1" and let.op != "trunci" else f"({whole}){a}"
    if let.op in ("index_castui", "extui"):
        return f"({whole})({_UNSIGNED[source]}){a}"
    if let.op.startswith("cmpi."):
        predicate = let.op.removeprefix("cmpi.")
        if predicate in ("eq", "ne"):
            return f"{a} {'==' if predicate == 'eq' else '!='} {b}"
        if predicate in _SIGNED_ORDER and source != "i1":
            return f"{a} {_SIGNED_ORDER[predicate]} {b}"
        if predicate[0] == "u":
            return f"({_UNSIGNED[source]}){a} {_ORDER[predicate[1:]]} ({_UNSIGNED[source]}){b}"
    return ""


def _check_known(let: Let, allowed: object) -> None:
    """What C leaves undefined, a division by zero say, must be seen not to happen."""
    last: Number = let.operands[1]
    assert callable(allowed)
    if not isinstance(last, Literal) or not allowed(int(last.value)):
        raise LoweringError(f"host code computes '{let.op}' by a number that is not known to be good: {last}")


def _compare_floats(predicate: str, a: str, b: str) -> str:
    if predicate in ("false", "true"):
        return "0" if predicate == "false" else "1"
    if predicate in ("ord", "uno"):
        return f"({a} == {a} && {b} == {b})" if predicate == "ord" else f"({a} != {a} || {b} != {b})"
    if predicate in ("oeq", "une"):
        return f"{a} {'==' if predicate == 'oeq' else '!='} {b}"
    if predicate in ("one", "ueq"):
        return f"{'!' if predicate == 'ueq' else ''}({a} < {b} || {a} > {b})"
    order = predicate[1:]
    return f"{a} {_ORDER[order]} {b}" if predicate[0] == "o" else f"!({a} {_NEGATED[order]} {b})"
