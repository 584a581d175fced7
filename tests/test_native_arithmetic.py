"""The arithmetic of host programs: each operation as C computes it, against Python's integers and numpy's floats."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_machine import MACHINES

from optgen.errors import LoweringError
from optgen.lower.style import _environment
from optgen.native.c_ops import TYPES, expression, literal
from optgen.native.program import Let, Literal, Scalar

_INTEGERS = {"i8": 8, "i16": 16, "i32": 32, "i64": 64, "index": 64}


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_WHOLE: dict[str, Callable[[int, int, int, int], int]] = {  # of a and b, and both without a sign
    "addi": lambda a, b, x, y: a + b,
    "subi": lambda a, b, x, y: a - b,
    "muli": lambda a, b, x, y: a * b,
    "andi": lambda a, b, x, y: a & b,
    "ori": lambda a, b, x, y: a | b,
    "xori": lambda a, b, x, y: a ^ b,
    "maxsi": lambda a, b, x, y: max(a, b),
    "minsi": lambda a, b, x, y: min(a, b),
    "maxui": lambda a, b, x, y: max(x, y),
    "minui": lambda a, b, x, y: min(x, y),
    "cmpi.eq": lambda a, b, x, y: a == b,
    "cmpi.ne": lambda a, b, x, y: a != b,
    "cmpi.slt": lambda a, b, x, y: a < b,
    "cmpi.sge": lambda a, b, x, y: a >= b,
    "cmpi.ult": lambda a, b, x, y: x < y,
    "cmpi.uge": lambda a, b, x, y: x >= y,
}
_BY_KNOWN: dict[str, Callable[[int, int, int], int]] = {  # of a, the known b, and a without a sign
    "divsi": lambda a, b, x: _truncated(a, b),
    "remsi": lambda a, b, x: a - b * _truncated(a, b),
    "divui": lambda a, b, x: x // b,
    "remui": lambda a, b, x: x % b,
    "ceildivsi": lambda a, b, x: -(-a // b),
    "ceildivui": lambda a, b, x: -(-x // b),
    "floordivsi": lambda a, b, x: a // b,
    "shli": lambda a, b, x: a << b,
    "shrsi": lambda a, b, x: a >> b,
    "shrui": lambda a, b, x: x >> b,
}
_REAL = {
    "addf": np.add, "subf": np.subtract, "mulf": np.multiply, "divf": np.divide, "maximumf": np.maximum,
    "minimumf": np.minimum, "maxnumf": np.fmax, "minnumf": np.fmin,
}  # fmt: skip
_FLOAT_ORDER: dict[str, Callable[[float, float], bool]] = {
    "oeq": lambda a, b: a == b, "ogt": lambda a, b: a > b, "oge": lambda a, b: a >= b, "olt": lambda a, b: a < b,
    "ole": lambda a, b: a <= b, "one": lambda a, b: a < b or a > b, "ord": lambda a, b: a == a and b == b,
    "ueq": lambda a, b: not (a < b or a > b), "ugt": lambda a, b: not a <= b, "uge": lambda a, b: not a < b,
    "ult": lambda a, b: not a >= b, "ule": lambda a, b: not a > b, "une": lambda a, b: a != b,
    "uno": lambda a, b: a != a or b != b, "true": lambda a, b: True, "false": lambda a, b: False,
}  # fmt: skip
_ONE_REAL = {
    "sqrt": np.sqrt, "absf": np.abs, "negf": np.negative, "floor": np.floor, "ceil": np.ceil,
}  # fmt: skip


class _Program:
    """A program that prints what expressions are, and what they should be."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.wanted: list[float | int] = []

    def add(self, op: str, kind: str, operands: list[tuple[Any, str]], value: float | int) -> None:
        """``op`` of ``operands``. They come from volatile variables, so that the machine computes it."""
        numbers = [Literal(v, t) for v, t in operands]
        names = [literal(n) if op in _BY_KNOWN and i == 1 else f"x{i}" for i, n in enumerate(numbers)]
        text = "    { "
        for name, number in zip(names, numbers, strict=True):
            if name[0] == "x":
                text += f"volatile {TYPES[number.type]} {name} = {literal(number)}; (void){name}; "
        let = Let(Scalar("v0", kind), op, tuple(numbers))
        put = "put_d" if kind in ("f32", "f64") else "put_i"
        self.lines.append(f"{text}{TYPES[kind]} r = {expression(let, names)}; {put}(r); }}")
        self.wanted.append(value)

    def check(self, folder: Path) -> None:
        environment = _environment()
        template = (environment.loader.get_source(environment, "c/source.c.j2"))[0]
        helpers = template[template.index("{% for source, target_type in") : template.index("{% if copies %}")]
        text = "#include <inttypes.h>\n#include <math.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        text += environment.from_string(helpers).render(
            bitcasts=[("f64", "i64"), ("i32", "f32")], types=TYPES,
            extrema=[(op, kind) for op in ("maximum", "minimum") for kind in ("f32", "f64")],
        )  # fmt: skip
        text += 'static void put_i(int64_t x) { printf("%" PRId64 "\\n", x); }\n'
        text += 'static void put_d(double x) { printf("%a\\n", x); }\n'
        text += "int main(void)\n{\n" + "\n".join(self.lines) + "\n    return 0;\n}\n"
        machine = MACHINES["cpu:x86-64"]
        machine.build(folder, [], text, "-O0")
        found = machine.run(folder).split()
        for line, got, value in zip(self.lines, found, self.wanted, strict=True):
            if isinstance(value, float):
                real = float.fromhex(got.replace("-nan", "nan"))
                same = math.isnan(value) if math.isnan(real) else repr(real) == repr(value)
            else:
                same = int(got) == value
            assert same, (line, got, value)


def test_arithmetic(tmp_path: Path) -> None:
    """Every operation, at the ends of every type."""
    program = _Program()
    add = program.add
    for kind, bits in _INTEGERS.items():
        mask, top = (1 << bits) - 1, 1 << (bits - 1)
        values = [0, 1, -1, 7, -7, top - 1, -top, 100]
        for a, b in itertools.product(values, values):
            for op, whole in _WHOLE.items():
                result = "i1" if op.startswith("cmpi") else kind
                value = int(whole(a, b, a & mask, b & mask))
                add(op, result, [(a, kind), (b, kind)], value if result == "i1" else _signed(value, bits))
        for a, b in itertools.product(values, (1, 3, 5)):
            for op, by in _BY_KNOWN.items():
                add(op, kind, [(a, kind), (b, kind)], _signed(by(a, b, a & mask), bits))
    for (a_kind, a_bits), (b_kind, b_bits) in itertools.product(_INTEGERS.items(), _INTEGERS.items()):
        for a in (0, 1, -1, -(1 << (a_bits - 1)), (1 << (a_bits - 1)) - 1, 77):
            add("index_cast", b_kind, [(a, a_kind)], _signed(a, b_bits))
            add("index_castui", b_kind, [(a, a_kind)], _signed(a & ((1 << a_bits) - 1), b_bits))
    for kind, of in (("f32", np.float32), ("f64", np.float64)):
        reals = [0.0, -0.0, 1.5, -2.25, 0.1, math.inf, -math.inf, math.nan, 3e38]
        with np.errstate(all="ignore"):
            for a, b in itertools.product(reals, reals):
                a, b = of(a), of(b)
                for op, real in _REAL.items():
                    if op in ("maxnumf", "minnumf", "maximumf", "minimumf") and a == b == 0:
                        continue  # numpy takes either zero
                    add(op, kind, [(float(a), kind), (float(b), kind)], float(real(a, b)))
                for predicate, order in _FLOAT_ORDER.items():
                    add(f"cmpf.{predicate}", "i1", [(float(a), kind), (float(b), kind)], int(order(a, b)))
            for a in reals:
                for op, single in _ONE_REAL.items():
                    add(op, kind, [(float(of(a)), kind)], float(single(of(a))))
        add("maximumf", kind, [(-0.0, kind), (0.0, kind)], 0.0)
        add("minimumf", kind, [(0.0, kind), (-0.0, kind)], -0.0)
        add("fptosi", "i32", [(-2.75, kind)], -2)
        add("sitofp", kind, [(-7, "i32")], -7.0)
        add("uitofp", kind, [(-1, "i8")], 255.0)
        add("select", kind, [(1, "i1"), (2.5, kind), (3.5, kind)], 2.5)
        add("select", kind, [(0, "i1"), (2.5, kind), (3.5, kind)], 3.5)
    add("extsi", "i32", [(1, "i1")], -1)
    add("extui", "i32", [(1, "i1")], 1)
    add("trunci", "i1", [(2, "i32")], 0)
    add("trunci", "i1", [(3, "i32")], 1)
    add("truncf", "f32", [(0.1, "f64")], float(np.float32(0.1)))
    add("bitcast", "i64", [(-1.5, "f64")], int(np.float64(-1.5).view(np.int64)))
    add("bitcast", "f32", [(0x3FC00000, "i32")], 1.5)
    program.check(tmp_path)


@pytest.mark.parametrize(
    ("op", "kind", "operands"),
    [
        ("divsi", "i32", (Scalar("v1", "i32"), Scalar("v2", "i32"))),
        ("divsi", "i32", (Scalar("v1", "i32"), Literal(0, "i32"))),
        ("remui", "i64", (Scalar("v1", "i64"), Literal(-1, "i64"))),
        ("shli", "i32", (Scalar("v1", "i32"), Literal(32, "i32"))),
        ("addi", "i1", (Scalar("v1", "i1"), Scalar("v2", "i1"))),
        ("bitcast", "i64", (Scalar("v1", "f32"),)),
        ("frobnicate", "i32", (Scalar("v1", "i32"),)),
    ],
)
def test_arithmetic_that_c_does_not_define(op: str, kind: str, operands: Any) -> None:
    with pytest.raises(LoweringError, match=re.escape(op)):
        expression(Let(Scalar("v0", kind), op, operands), ["v1", "v2"][: len(operands)])
