"""What the generator of C refuses: damaged objects, host code that it does not understand, wrong host programs."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from optgen.dsl.variant import Variant
from optgen.errors import LoweringError
from optgen.lower import lower
from optgen.lower.leaf import emit_leaf
from optgen.native import Library, Program, compile_c, compile_c_function, compile_library, get_native_target
from optgen.native.abi import check_object
from optgen.native.c import write_body
from optgen.native.c_program import write_program
from optgen.native.c_rule import write_rule
from optgen.native.elf import read_library
from optgen.native.parse import parse_program
from optgen.native.program import (
    Check,
    Copy,
    Dispatch,
    Export,
    Fill,
    Let,
    Literal,
    Place,
    Scalar,
    Statement,
    TensorArgument,
    TensorResult,
)
from optgen.rules import get_rule

X86 = get_native_target("cpu:x86-64")


@cache
def compiled() -> tuple[Any, Library]:
    """AdamW, and what it was compiled from."""
    variant = Variant.of(get_rule("adamw"))
    kernel = lower(variant.kernel(variant.dtypes("f32")))[0]
    assert kernel.graph is not None
    assert kernel.plan is not None
    mlir = emit_leaf(kernel.spec, kernel.graph, kernel.plan, name="adamw")
    return kernel.spec, compile_library(mlir, X86.flags, alignment=4)


def changed(**changes: Any) -> Library:
    """AdamW's library with another host program."""
    library = compiled()[1]
    return dataclasses.replace(library, program=dataclasses.replace(library.program, **changes))


def refused(library: Library, words: str) -> None:
    with pytest.raises(LoweringError, match=words):
        write_rule(compiled()[0], library, X86, "adamw")


# The object file.


def patched(find: Callable[[bytes], int], new: bytes) -> Library:
    library = compiled()[1]
    at = find(library.object)
    data = library.object[:at] + new + library.object[at + len(new) :]
    return dataclasses.replace(library, object=data)


def _attributes(data: bytes) -> int:
    """Where the first kernel's counts are: 16 constants of 32 bits and 4 bindings, after 2 bytes of memory pages."""
    pattern = struct.pack("<QHBB", 0, 0, 16, 4)
    assert data.count(pattern) == 1
    return data.index(pattern) + 8


def test_the_object_as_it_is() -> None:
    library = compiled()[1]
    found = check_object(library)
    assert (found.version, found.imports, found.constants, found.undefined) == (6, 0, 0, ())
    assert [(e.name, e.constants, e.bindings) for e in found.exports] == [
        (e.name, e.constants, e.bindings) for e in library.program.exports
    ]


def test_another_version_of_the_table() -> None:
    def header(data: bytes) -> int:
        at = data.index(struct.pack("<IIQII", 6, 0, 0, 0, 0))
        assert data.count(struct.pack("<IIQII", 6, 0, 0, 0, 0)) == 1
        return at

    refused(patched(header, struct.pack("<I", 5)), r"version 5 \(it must have 6\)")


def test_other_counts_in_the_object() -> None:
    refused(patched(lambda d: _attributes(d) + 2, b"\x11"), r"takes 17 constants and 4 bindings .* gives 16 and 4")
    refused(patched(lambda d: _attributes(d) + 3, b"\x05"), r"takes 16 constants and 5 bindings")
    refused(patched(_attributes, b"\x02"), "needs 2 pages of memory")


def test_other_counts_in_the_host_program() -> None:
    export = compiled()[1].program.exports[0]
    refused(changed(exports=(Export(export.name, 16, 3),)), "takes 16 constants and 4 bindings")
    refused(changed(exports=(Export("adamw_other", 16, 4),)), "no kernel 'adamw_other'")


def test_no_table() -> None:
    library = compiled()[1]
    refused(changed(query="adamw_query"), "no library table 'adamw_query_v0'")
    for data in (b"", b"\x7fELF", b"MZ" + library.object[2:], library.object[:200], library.object[:-300]):
        with pytest.raises(LoweringError, match="object file"):
            read_library(data, library.program.query)


def test_symbols_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """GNU's names for f64 in software, which LLVM calls with operands in other registers than GCC expects."""
    import optgen.native.target as targets

    m4 = get_native_target("cpu:cortex-m4")
    short = dataclasses.replace(m4, triple="thumbv7em-none-eabihf")
    monkeypatch.setitem(targets.NATIVE_TARGETS, "cpu:cortex-m4", short)
    with pytest.raises(LoweringError, match=r"needs '__adddf3', which is not in C's mathematical library"):
        compile_c("adamw", "cpu:cortex-m4", compute_dtype="f64")


# The compiler's host code.

_HOST = """
module {{
  util.func public @f(%a: !hal.buffer_view, %x: f32) -> f32 {{
{body}
    util.return %r : f32
  }}
}}
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("cf.br ^next\n^next:\n %r = arith.addf %x, %x : f32", "control flow"),
        ("%c = arith.constant true %r = scf.if %c -> f32 { scf.yield %x : f32 } else { scf.yield %x : f32 }", "scf.if"),
        ("%r = arith.remf %x, %x : f32", "not known: 'arith.remf'"),
        ("%r = math.atan %x : f32", "not known: 'math.atan'"),
        ("%v = vector.broadcast %x : f32 to vector<4xf32>\n%r = vector.extract %v[0] : f32 from vector<4xf32>", "vect"),
        ("%r = util.call @g(%x) : (f32) -> f32", "util.call"),
    ],
)  # fmt: skip
def test_host_code_that_is_not_understood(body: str, words: str) -> None:
    text = _HOST.format(body=body)
    if "util.call" in body:
        text = text.replace("module {", "module {\n util.func private @g(%x: f32) -> f32 { util.return %x : f32 }")
    with pytest.raises(LoweringError, match=words):
        parse_program(text, "f_library_query", alignment=4)


def test_state_that_is_set_up_beforehand() -> None:
    text = "module { util.global private @g : i32\n util.func public @f(%x: f32) -> f32 { util.return %x : f32 } }"
    with pytest.raises(LoweringError, match="keeps a global"):
        parse_program(text, "f_library_query", alignment=4)


def test_a_loop_on_the_host() -> None:
    """JAX's while loop: the compiler makes control flow of it."""
    import jax

    def f(x: Any, n: Any) -> Any:
        return jax.lax.fori_loop(0, n, lambda i, x: x @ x, x)

    text = jax.jit(f).lower(np.ones((4, 4), np.float32), np.int32(3)).as_text()
    with pytest.raises(LoweringError, match="control flow"):
        compile_c_function(text, "cpu:x86-64", name="loop")


# Host programs.


def body_of(*statements: Statement, shape: tuple[int | None, ...] = (4,), written: bool = False) -> list[str]:
    tensor = TensorArgument("a", "f32", shape, written)
    made = Program("f", "q", (tensor,), statements, (), (Export("k", 1, 1),), (b"1234",))
    return write_body(made, ["k"], {0: "a"}, {}).lines


_N = Literal(16, "index")
_ONE = Literal(1, "index")
_GRID = (_ONE, _ONE, _ONE)
_V = Scalar("v0", "i32")


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        ([Fill(Literal(0, "i8"), Place("argument", 0), _N)], "only to be read"),
        ([Copy(Place("argument", 0), Place("constant", 0), _N)], "only to be read"),
        ([Copy(Place("stack", 0), Place("workspace", 0), _N)], "unknown kind: stack"),
        ([Dispatch(0, _GRID, (), ((Place("argument", 0), _N),))], "takes 1 constants and 1 bindings .*given 0 and 1"),
        ([Dispatch(0, _GRID, (_N,), ((Place("argument", 0), _N),))], "constants of 32 bits"),
        ([Dispatch(0, _GRID, (_V,), ((Place("argument", 0), _N),))], "'v0' before it is computed"),
        ([Check(0, (Literal(5, "index"),))], "shape that is known"),
        ([Check(0, (_V,))], "shape that is known"),
        (["goto"], "a statement that C is not written for"),
        ([Let(_V, "addi", (_V, _V)), Fill(_V, Place("workspace", 0), _N)], "before it is computed"),
    ],
)
def test_statements(statements: list[Any], words: str) -> None:
    with pytest.raises(LoweringError, match=words):
        body_of(*statements)


def test_results_that_are_not_in_place() -> None:
    program = compiled()[1].program
    first, *others = program.results
    assert isinstance(first, TensorResult)
    for place in (Place("workspace", 0), Place("argument", 1), Place("argument", 0, 4)):
        refused(changed(results=(dataclasses.replace(first, place=place), *others)), "must return w, m, v in place")
    refused(changed(results=program.results[:2]), "must return")
    refused(changed(arguments=program.arguments[:-1]), "must take 4 leaves and 10 numbers")
    with pytest.raises(LoweringError, match="shape that is known"):
        write_program(compiled()[1], "cpu:x86-64", name="adamw")


def test_two_results_in_one_argument() -> None:
    tensor = TensorArgument("a", "f32", (4,), True)
    result = TensorResult(Place("argument", 0), _N, "f32", (Literal(4, "index"),))
    library = changed(arguments=(tensor,), statements=(), results=(result, result))
    with pytest.raises(LoweringError, match="both"):
        write_program(library, "cpu:x86-64", name="adamw")
