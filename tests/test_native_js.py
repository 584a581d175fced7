"""Host arithmetic in JavaScript, each operation in Node.js against Python's integers and numpy's floats."""

from __future__ import annotations

import itertools
import json
import math
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wasm_node import find_node

from optgen.errors import LoweringError
from optgen.native.js import write_program
from optgen.native.js_arithmetic import expression, literal
from optgen.native.program import Dispatch, Export, Let, Literal, Place, Program, Scalar, ScalarArgument

BITS = {"i8": 8, "i16": 16, "i32": 32, "i64": 64}
LIBRARY = Path(__file__).resolve().parent.parent / "templates" / "js" / "lib" / "library.js"


def signed(value: int, kind: str) -> int:
    bits = BITS[kind]
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def unsigned(value: int, kind: str) -> int:
    return value % (1 << BITS[kind])


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


Operation = Callable[[int, int, str], int]
INTEGERS: dict[str, Operation] = {
    "addi": lambda a, b, k: a + b,
    "subi": lambda a, b, k: a - b,
    "muli": lambda a, b, k: a * b,
    "andi": lambda a, b, k: a & b,
    "ori": lambda a, b, k: a | b,
    "xori": lambda a, b, k: a ^ b,
    "shli": lambda a, b, k: a << (b % 8),
    "shrsi": lambda a, b, k: a >> (b % 8),
    "shrui": lambda a, b, k: unsigned(a, k) >> (b % 8),
    "divsi": lambda a, b, k: truncated(a, b),
    "remsi": lambda a, b, k: a - b * truncated(a, b),
    "divui": lambda a, b, k: unsigned(a, k) // unsigned(b, k),
    "remui": lambda a, b, k: unsigned(a, k) % unsigned(b, k),
    "maxsi": lambda a, b, k: max(a, b),
    "minsi": lambda a, b, k: min(a, b),
    "maxui": lambda a, b, k: max(a, b, key=lambda x: unsigned(x, k)),
    "minui": lambda a, b, k: min(a, b, key=lambda x: unsigned(x, k)),
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip
FLOATS: dict[str, Callable[..., Any]] = {
    "addf": np.add, "subf": np.subtract, "mulf": np.multiply, "divf": np.divide, "negf": np.negative,
    "sqrt": np.sqrt, "absf": np.abs, "floor": np.floor, "ceil": np.ceil, "maximumf": np.maximum,
    "minimumf": np.minimum, "maxnumf": np.fmax, "minnumf": np.fmin,
}  # fmt: skip
ROUNDED: dict[str, Callable[..., Any]] = {
    "expm1": np.expm1, "exp": np.exp, "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "log2": np.log2,
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "powf": np.power, "rsqrt": lambda x: 1 / np.sqrt(x),
}  # fmt: skip
ONE_OPERAND = {"negf", "sqrt", "absf", "floor", "ceil", *ROUNDED} - {"powf"}


def edges(kind: str) -> list[int]:
    top = 1 << BITS[kind] - 1
    return [0, 1, -1, 2, -3, 7, top - 1, -top, top // 3, -(top // 5)]


def code(op: str, result: str, operands: list[tuple[Any, str]]) -> str:
    return expression(Let(Scalar("r", result), op, tuple(Literal(v, k) for v, k in operands)), lambda n: literal(n))


def evaluate(expressions: list[str], tmp_path: Path) -> list[Any]:
    """The values in Node.js, as text that holds every digit."""
    node = find_node()
    if node is None:
        pytest.skip("no Node.js of 18 or newer is here")
    script = tmp_path / "arithmetic.mjs"
    names = "low, high, bitsOf32, bitsOf64, floatOf32, floatOf64"
    lines = ",\n".join(f"() => ({each})" for each in expressions)
    script.write_text(
        f"import {{ {names} }} from {json.dumps(LIBRARY.as_uri())};\n"
        f"const all = [{lines}];\n"
        "const text = (x) => (Object.is(x, -0) ? '-0' : String(x));\n"
        "console.log(JSON.stringify(all.map((f) => text(f()))));\n"
    )
    result = subprocess.run([node, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found: list[str] = json.loads(result.stdout)
    assert len(found) == len(expressions)
    return found


@pytest.mark.parametrize("kind", BITS)
def test_integers(kind: str, tmp_path: Path) -> None:
    cases, expected = [], []
    for op, (a, b) in itertools.product(INTEGERS, itertools.product(edges(kind), repeat=2)):
        if op[:3] in ("div", "rem") and (b == 0 or (op.endswith("si") and b == -1)):
            continue  # undefined
        b = b % 8 if op.startswith("sh") else b
        cases.append(code(op, kind, [(a, kind), (b, kind)]))
        expected.append(str(signed(INTEGERS[op](a, b, kind), kind)))
    for name, (a, b) in itertools.product(COMPARISONS, itertools.product(edges(kind), repeat=2)):
        for sign in ("",) if name in ("eq", "ne") else ("s", "u"):
            values = (unsigned(a, kind), unsigned(b, kind)) if sign == "u" else (a, b)
            cases.append(code(f"cmpi.{sign}{name}", "i1", [(a, kind), (b, kind)]))
            expected.append(str(COMPARISONS[name](*values)).lower())
    assert evaluate(cases, tmp_path) == expected


def test_indices(tmp_path: Path) -> None:
    """Whole numbers beyond 32 bits, without wrapping."""
    values = [0, 1, 5, 4096, 2**31, 2**32 + 3, 2**40 - 1]
    cases, expected = [], []
    for op, (a, b) in itertools.product(INTEGERS, itertools.product(values, repeat=2)):
        b = b % 8 if op.startswith("sh") else b
        exact = 0 if op[:3] in ("div", "rem") and b == 0 else INTEGERS[op](a, b, "i64")
        if exact >= 2**53 or (op[:3] in ("div", "rem") and b == 0):
            continue
        cases.append(code(op, "index", [(a, "index"), (b, "index")]))
        expected.append(str(exact))
    for op, (a, b) in itertools.product(
        ("ceildivsi", "ceildivui", "floordivsi"), itertools.product(values, values[1:])
    ):
        cases.append(code(op, "index", [(a, "index"), (b, "index")]))
        expected.append(str(a // b if op == "floordivsi" else -(-a // b)))
    assert [x.replace("-0", "0") if x == "-0" else x for x in evaluate(cases, tmp_path)] == expected


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_floats(kind: str, tmp_path: Path) -> None:
    """Arithmetic and roots to the last bit, other functions within one unit of f64, or of f32."""
    dtype: Any = np.float32 if kind == "f32" else np.float64
    values = [float(dtype(x)) for x in (0.0, -0.0, 1.0, -2.5, 0.1, 3e-5, 1e30, -7e-30, math.inf, -math.inf, math.nan)]
    cases: list[str] = []
    expected: list[Any] = []
    with np.errstate(all="ignore"):
        for op, function in {**FLOATS, **ROUNDED}.items():
            for operands in itertools.product(values, repeat=1 if op in ONE_OPERAND else 2):
                cases.append(code(op, kind, [(v, kind) for v in operands]))
                wide = [np.float64(v) if op in ROUNDED else dtype(v) for v in operands]
                expected.append((op, operands, dtype(function(*wide))))
    for text, (op, operands, value) in zip(evaluate(cases, tmp_path), expected, strict=True):
        found = dtype(text.replace("Infinity", "inf"))
        assert str(float(text.replace("Infinity", "inf"))) == str(float(found)), "not rounded to its type"
        if op in ROUNDED and np.isfinite(value):
            assert abs(float(found) - float(value)) <= 2 * float(np.spacing(np.abs(value))), (op, operands)
        elif op in ("maximumf", "minimumf", "maxnumf", "minnumf") and value == 0:
            assert found == 0
        else:
            assert np.array_equal(found, value, equal_nan=True), (op, operands, found, value)
            assert value == 0 or np.signbit(found) == np.signbit(value) or np.isnan(value)


def test_comparisons_of_floats(tmp_path: Path) -> None:
    values = [0.0, 1.0, -1.0, math.inf, math.nan]
    cases, expected = [], []
    for a, b in itertools.product(values, repeat=2):
        unordered = math.isnan(a) or math.isnan(b)
        for name, function in COMPARISONS.items():
            short = {"eq": "eq", "ne": "ne"}.get(name, name)
            for sign in "ou":
                cases.append(code(f"cmpf.{sign}{short}", "i1", [(a, "f64"), (b, "f64")]))
                expected.append(str(sign == "u" if unordered else function(a, b)).lower())  # type: ignore[arg-type]
        for name, value in (("ord", not unordered), ("uno", unordered), ("true", True), ("false", False)):
            cases.append(code(f"cmpf.{name}", "i1", [(a, "f64"), (b, "f64")]))
            expected.append(str(value).lower())
    predicates = {"cmpf.oeq", "cmpf.one", "cmpf.ueq", "cmpf.une"}
    assert predicates <= {f"cmpf.{s}{n}" for s in "ou" for n in COMPARISONS}
    assert evaluate(cases, tmp_path) == expected


def test_conversions(tmp_path: Path) -> None:
    cases: list[tuple[str, str, Any, str, Any]] = []
    for narrow, wide in itertools.combinations(BITS, 2):
        for value in edges(narrow):
            cases.append(("extsi", wide, value, narrow, value))
            cases.append(("extui", wide, value, narrow, unsigned(value, narrow)))
        for value in edges(wide):
            cases.append(("trunci", narrow, value, wide, signed(value, narrow)))
    for kind in BITS:
        for value in edges(kind):
            double = float(value)
            cases.append(("sitofp", "f64", value, kind, double))
            cases.append(("uitofp", "f64", value, kind, float(unsigned(value, kind))))
            if abs(value) < 2**53:
                cases.append(("sitofp", "f32", value, kind, float(np.float32(value))))
        for number in (0.0, 1.9, -1.9, 100.5, -100.5):
            cases.append(("fptosi", kind, number, "f64", int(number)))
    for value in (0, 7, 2**31 - 1, 2**32 + 5):
        cases.append(("index_cast", "i64", value, "index", value))
        cases.append(("index_castui", "i32", value, "index", signed(value, "i32")))
        cases.append(("index_cast", "index", value, "i64", value))
    cases.append(("index_castui", "index", -1, "i32", 2**32 - 1))
    cases += [("extui", "i32", 1, "i1", 1), ("extsi", "i64", 1, "i1", -1), ("uitofp", "f32", 1, "i1", 1.0)]
    cases += [("trunci", "i1", 3, "i32", True), ("trunci", "i1", 2, "i64", False)]
    for number in (0.1, -2.0, 1e-300):
        bits = struct.unpack("<q", struct.pack("<d", number))[0]
        cases += [("bitcast", "i64", number, "f64", bits), ("bitcast", "f64", bits, "i64", number)]
        single = float(np.float32(number))
        bits = struct.unpack("<i", struct.pack("<f", single))[0]
        cases += [("bitcast", "i32", single, "f32", bits), ("bitcast", "f32", bits, "i32", single)]
    found = evaluate([code(op, to, [(value, of)]) for op, to, value, of, _ in cases], tmp_path)
    for text, case in zip(found, cases, strict=True):
        expected = case[4]
        if isinstance(expected, bool):
            assert text == str(expected).lower(), case
        else:
            assert float(text) == expected if isinstance(expected, float) else text.replace("-0", "0") == str(expected)


def test_halves_of_doubles_need_no_bigint(tmp_path: Path) -> None:
    """What only a half's computation uses is left out, and the halves are right."""
    x = Scalar("x", "f64")
    whole, shifted = Scalar("v0", "i64"), Scalar("v1", "i64")
    low, high = Scalar("v2", "i32"), Scalar("v3", "i32")
    statements = (
        Let(whole, "bitcast", (x,)),
        Let(shifted, "shrui", (whole, Literal(32, "i64"))),
        Let(low, "trunci", (whole,)),
        Let(high, "trunci", (shifted,)),
        Let(Scalar("v4", "f64"), "addf", (x, x)),
        Dispatch(0, (Literal(1, "index"),) * 3, (low, high), ((Place("workspace", 0, 64), Literal(4, "index")),)),
    )
    program = Program("f", "q", (ScalarArgument("x", "f64"),), statements, (), (Export("k", 2, 1),), (), 128)
    lines = write_program(program)
    assert [line.split(" = ")[0] for line in lines[:-2]] == ["const s0", "const v2", "const v3"]
    text = "\n".join(lines)
    assert "BigInt" not in text
    library = "{ workspace: 1000, dispatch: (...given) => (seen = given) }"
    given = f"(() => {{ let seen; ((numbers, library) => {{ {text} }})([-0.1], {library}); return seen.flat(); }})()"
    bits = struct.unpack("<q", struct.pack("<d", -0.1))[0]
    words = [signed(bits, "i32"), bits >> 32]
    assert evaluate([given], tmp_path) == [",".join(map(str, [0, 1, 1, 1, *words, 1064, 4]))]


@pytest.mark.parametrize(("op", "kind"), [("fma", "f64"), ("ceildivsi", "i64"), ("addi", "f64")])
def test_what_javascript_lacks_is_refused(op: str, kind: str) -> None:
    operands = tuple(Literal(1, kind) for _ in range(3 if op == "fma" else 2))
    with pytest.raises(LoweringError, match=f"'{op}' of {kind}"):
        expression(Let(Scalar("r", kind), op, operands), lambda n: "x")
