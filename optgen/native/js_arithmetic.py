"""Arithmetic of host programs in JavaScript.

Numbers of f32, f64, index and up to 32 bits are JavaScript numbers, rounded or wrapped after each operation as their
type says; i64 is a BigInt and i1 a boolean. An index is a whole number below 2**53: memory has 32 bits of addresses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from optgen.errors import LoweringError
from optgen.native.program import Let, Literal, Number, Scalar

_WIDTHS = {"i8": 8, "i16": 16, "i32": 32}
# powf of 1 is 1 whatever the exponent, as in C.
_FUNCTIONS = {
    "sqrt": "Math.sqrt({0})", "rsqrt": "1 / Math.sqrt({0})", "expm1": "Math.expm1({0})", "exp": "Math.exp({0})",
    "exp2": "2 ** {0}", "log": "Math.log({0})", "log1p": "Math.log1p({0})", "log2": "Math.log2({0})",
    "powf": "({0} === 1 || ({0} === -1 && Math.abs({1}) === Infinity) ? 1 : {0} ** {1})",
    "sin": "Math.sin({0})", "cos": "Math.cos({0})", "tanh": "Math.tanh({0})",
    "absf": "Math.abs({0})", "floor": "Math.floor({0})", "ceil": "Math.ceil({0})",
    "addf": "{0} + {1}", "subf": "{0} - {1}", "mulf": "{0} * {1}", "divf": "{0} / {1}", "negf": "-{0}",
    "maximumf": "Math.max({0}, {1})", "minimumf": "Math.min({0}, {1})",
    "maxnumf": "({0} > {1} || {1} !== {1} ? {0} : {1})", "minnumf": "({0} < {1} || {1} !== {1} ? {0} : {1})",
    "truncf": "{0}", "extf": "{0}",
}  # fmt: skip
# On numbers of up to 32 bits; `u` makes an operand unsigned.
_SMALL = {
    "addi": "{0} + {1}", "subi": "{0} - {1}", "muli": "Math.imul({0}, {1})", "andi": "{0} & {1}", "ori": "{0} | {1}",
    "xori": "{0} ^ {1}", "shli": "{0} << {1}", "shrsi": "{0} >> {1}", "shrui": "{u0} >>> {1}",
    "divsi": "Math.trunc({0} / {1})", "remsi": "{0} % {1}", "divui": "Math.trunc({u0} / {u1})", "remui": "{u0} % {u1}",
    "maxsi": "Math.max({0}, {1})", "minsi": "Math.min({0}, {1})", "maxui": "Math.max({u0}, {u1})",
    "minui": "Math.min({u0}, {u1})", "ceildivsi": "Math.ceil({0} / {1})", "ceildivui": "Math.ceil({u0} / {u1})",
    "floordivsi": "Math.floor({0} / {1})",
}  # fmt: skip
# On indices, exact without wrapping.
_INDEX = {
    **_SMALL, "muli": "{0} * {1}", "shli": "{0} * 2 ** {1}", "shrsi": "Math.floor({0} / 2 ** {1})",
    "shrui": "Math.floor({0} / 2 ** {1})", "andi": "Number(BigInt({0}) & BigInt({1}))",
    "ori": "Number(BigInt({0}) | BigInt({1}))", "xori": "Number(BigInt({0}) ^ BigInt({1}))",
}  # fmt: skip
_WIDE = {
    "addi": "{0} + {1}", "subi": "{0} - {1}", "muli": "{0} * {1}", "andi": "{0} & {1}", "ori": "{0} | {1}",
    "xori": "{0} ^ {1}", "shli": "{0} << {1}", "shrsi": "{0} >> {1}", "shrui": "{u0} >> {1}", "divsi": "{0} / {1}",
    "remsi": "{0} % {1}", "divui": "{u0} / {u1}", "remui": "{u0} % {u1}", "maxsi": "({0} > {1} ? {0} : {1})",
    "minsi": "({0} < {1} ? {0} : {1})", "maxui": "({u0} > {u1} ? {0} : {1})", "minui": "({u0} < {u1} ? {0} : {1})",
}  # fmt: skip
_LOGIC = {"andi": "{0} && {1}", "ori": "{0} || {1}", "xori": "{0} !== {1}"}
_COMPARE = {"eq": "===", "ne": "!==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BITS = {
    ("f32", "i32"): "bitsOf32({0})", ("f64", "i64"): "bitsOf64({0})", ("i32", "f32"): "floatOf32({0})",
    ("i64", "f64"): "floatOf64({0})",
}  # fmt: skip


def literal(number: Literal) -> str:
    """A number that is known, in JavaScript."""
    if number.type in ("f32", "f64"):
        value = float(number.value)
        if math.isnan(value):
            return "NaN"
        text = "Infinity" if math.isinf(value) else repr(abs(value)).removesuffix(".0")
        return f"(-{text})" if math.copysign(1, value) < 0 else text
    value = int(number.value)
    if number.type == "i1":
        return "true" if value else "false"
    text = f"{abs(value)}n" if number.type == "i64" else str(abs(value))
    return f"(-{text})" if value < 0 else text


def expression(let: Let, name: Callable[[Number], str]) -> str:
    """What a :class:`Let` computes, in JavaScript.

    Args:
        let: any but those of an argument's extent.
        name: gives an operand's text.

    Raises:
        LoweringError: for an operation that there is none for in JavaScript.
    """
    types, result = [o.type for o in let.operands], let.result.type
    operands = [name(o) for o in let.operands]
    unsigned = [_unsigned(text, kind) for text, kind in zip(operands, types, strict=True)]
    kind, _, predicate = let.op.partition(".")
    if kind in ("cmpi", "cmpf"):
        return _comparison(kind, predicate, operands, unsigned, types[0])
    if kind == "select":
        return "{} ? {} : {}".format(*operands)
    if kind == "bitcast" and (types[0], result) in _BITS:
        return _BITS[types[0], result].format(*operands)
    if kind in _FUNCTIONS:
        text = _FUNCTIONS[kind].format(*operands)
        return f"Math.fround({text})" if result == "f32" and kind != "negf" else text
    if (converted := _conversion(kind, types[0], result, operands[0], unsigned[0])) is not None:
        return converted
    table = {"index": _INDEX, "i64": _WIDE, "i1": _LOGIC, **dict.fromkeys(_WIDTHS, _SMALL)}.get(result, {})
    if kind not in table or any(each != result for each in types):
        raise LoweringError(f"host code computes '{kind}' of {', '.join(types)}, which JavaScript is not written for")
    text = table[kind].format(*operands, **{f"u{i}": each for i, each in enumerate(unsigned)})
    return wrap(text, result)


def wrap(text: str, kind: str) -> str:
    """An integer as one of its type: of 64 bits by BigInt, of fewer by shifts."""
    if kind == "i64":
        return f"BigInt.asIntN(64, {text})"
    if kind == "i32":
        return f"({text}) | 0"
    if kind in _WIDTHS:
        shift = 32 - _WIDTHS[kind]
        return f"(({text}) << {shift}) >> {shift}"
    return text


def _unsigned(text: str, kind: str) -> str:
    if kind == "i64":
        return f"BigInt.asUintN(64, {text})"
    if kind == "i32":
        return f"({text} >>> 0)"
    if kind in _WIDTHS:
        return f"({text} & {2 ** _WIDTHS[kind] - 1})"
    return text


def _comparison(kind: str, predicate: str, operands: Sequence[str], unsigned: Sequence[str], of: str) -> str:
    if kind == "cmpi":
        signed = predicate in ("eq", "ne") or predicate.startswith("s")
        a, b = operands if signed or of == "i1" else unsigned
        return f"{a} {_COMPARE[predicate if predicate in _COMPARE else predicate[1:]]} {b}"
    a, b = operands
    if predicate in ("true", "false"):
        return predicate
    ordered, unordered = f"({a} === {a} && {b} === {b})", f"({a} !== {a} || {b} !== {b})"
    if predicate in ("ord", "uno"):
        return ordered if predicate == "ord" else unordered
    text = f"{a} {_COMPARE[predicate[1:]]} {b}"
    if predicate[0] == "u":
        return text if predicate == "une" else f"{unordered} || {text}"
    return f"{ordered} && {text}" if predicate == "one" else text


def _conversion(kind: str, source: str, target: str, text: str, unsigned: str) -> str | None:
    """``text`` of one type as another; None where ``kind`` is no conversion."""
    if kind in ("sitofp", "uitofp"):
        number = unsigned if kind == "uitofp" else text
        number = {"i64": f"Number({number})", "i1": f"({text} ? {'1' if kind == 'uitofp' else '-1'} : 0)"}.get(
            source, number
        )
        return f"Math.fround({number})" if target == "f32" else number
    if kind in ("fptosi", "fptoui"):
        whole = f"Math.trunc({text})"
        return f"BigInt({whole})" if target == "i64" else wrap(whole, target)
    if kind not in ("index_cast", "index_castui", "trunci", "extsi", "extui"):
        return None
    zero = kind in ("index_castui", "extui")
    if target == "i1":
        return f"({text} & 1{'n' if source == 'i64' else ''}) !== 0{'n' if source == 'i64' else ''}"
    if source == "i1":
        one = "1" if zero else "-1"
        return f"({text} ? {one}n : 0n)" if target == "i64" else f"({text} ? {one} : 0)"
    if source == "i64":
        if target == "index":
            return f"Number({text})"
        return f"Number(BigInt.asIntN({_WIDTHS[target]}, {text}))"
    number = unsigned if zero else text
    if target == "i64":
        return f"BigInt({number})"
    return number if target == "index" else wrap(number, target)


def half(let: Let, made: Mapping[Scalar, Let]) -> tuple[str, Scalar] | None:
    """JavaScript for a half of a double or of an index, which needs no BigInt.

    Kernels take words of 32 bits, so that host code is full of ``trunci(bitcast(x))`` and
    ``trunci(shrui(bitcast(x), 32))``.

    Returns:
        A text with ``{}`` where the number goes, and that number; None if ``let`` is something else.
    """
    if let.op != "trunci" or let.result.type != "i32":
        return None
    inner, which = let.operands[0], "low"
    source = made.get(inner) if isinstance(inner, Scalar) else None
    if source is not None and source.op == "shrui" and source.operands[1] == Literal(32, "i64"):
        inner, which = source.operands[0], "high"
        source = made.get(inner) if isinstance(inner, Scalar) else None
    if source is None or not isinstance(whole := source.operands[0], Scalar) or source.result.type != "i64":
        return None
    if source.op == "bitcast" and whole.type == "f64":
        return which + "({})", whole
    if source.op in ("index_cast", "index_castui") and whole.type == "index":
        return ("{} | 0" if which == "low" else "Math.floor({} / 2 ** 32) | 0"), whole
    return None
