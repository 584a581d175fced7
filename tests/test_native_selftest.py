"""Self-tests of generated C, packages and plain modules: their generator, that they pass, and that they find faults."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import machines
import numpy as np
import pytest
from native_machine import MACHINES
from wasm_node import Node, find_node

import optgen as og
from optgen.compiler.plain import PlainModule, build_plain
from optgen.compiler.plain_check import check_flags
from optgen.dsl.variant import Variant
from optgen.dtypes import from_float64
from optgen.errors import UnprovenWarning, WrongResultError
from optgen.lower import lower
from optgen.native import CBundle, Package, compile_c, get_native_target, prove, update_package
from optgen.probes.generate import Fill, filled, words
from optgen.rules import get_rule
from optgen.targets import get_target

HOST = "cpu:x86-64"
#: A number that is nowhere else in a step's code.
SCALE = 0.7310586


@cache
def rule(target: str = HOST, name: str = "adamw", dtype: str = "f32") -> CBundle:
    return compile_c(name, target, name=f"{name}_k", dtype=dtype)


def loss(params: Any, batch: Any, rng: Any) -> Any:
    import jax
    import jax.numpy as jnp

    hidden = jax.nn.relu(batch["x"] @ params["w1"]) * jax.random.bernoulli(rng, 0.9, (8, 24)) * SCALE
    logits = hidden @ params["w2"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], axis=1))


def example() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    params = {"w1": rng.standard_normal((20, 24)) / 4, "w2": rng.standard_normal((24, 5)) / 5}
    batch = {"x": rng.standard_normal((8, 20)).astype(np.float32), "y": rng.integers(0, 5, 8).astype(np.int32)}
    return {name: array.astype(np.float32) for name, array in params.items()}, batch


@cache
def step(target: str, **settings: Any) -> CBundle:
    return og.train.compile_step_c(loss, *example(), "nadam", target, name="step_k", rng=True, **settings)


@cache
def step_package(**settings: Any) -> Package:
    return og.train.compile_step_wasm(loss, *example(), "adamw", name="step", rng=True, **settings)


@cache
def package(name: str = "adamw") -> Package:
    variant = Variant.of(get_rule(name))
    return update_package(variant, variant.dtypes("f32"), get_native_target("wasm"))


# The generator.

_KINDS = [
    ("F64", "f64", Fill("float", -(2**23), -23)), ("F32", "f32", Fill("float", 2**49 + 1, -40)),
    ("F16", "f16", Fill("float", 3, -24)), ("F16", "f16", Fill("float", -(2**23), -38)),
    ("F16", "f16", Fill("float", -(2**23), -7)), ("BF16", "bf16", Fill("float", -5, -20)),
    ("BF16", "bf16", Fill("float", 1, -150)), ("I64", "i64", Fill("integer", -(2**40), count=2**32 - 1)),
    ("I32", "i32", Fill("integer", -3, count=10)), ("U8", "ui8", Fill("integer", 0, count=256)),
    ("BOOL", "i1", Fill("integer", 0, count=2)), ("U32", "ui32", Fill("key")),
]  # fmt: skip
_NUMBER = 500
_CODES = {"float": "FLOATS", "integer": "WHOLE", "key": "WORDS"}

_GENERATOR = """
#include "adamw_k_selftest.c"
#include "io.h"
static uint32_t made[3 * %(n)d];
static unsigned char bytes[8 * %(n)d];
static const piece kinds[] = {%(kinds)s};
int main(void)
{
    char file[2] = {'a', 0};
    uint32_t i, k;
    for (i = 0; i < %(n)d; ++i) {
        made[i] = word(7, 3, i);
        made[%(n)d + i] = word(UINT32_MAX, UINT32_C(0x80000000) + 5, i);
        made[2 * %(n)d + i] = word(1, UINT32_C(0x40000000) + 17, i + 100000);
    }
    store("words", made, sizeof made);
    for (k = 0; k < sizeof kinds / sizeof kinds[0]; ++k, ++file[0]) {
        for (i = 0; i < %(n)d; ++i)
            make(bytes + (size_t)i * sizes[kinds[k].type], &kinds[k], 0, i);
        store(file, bytes, (size_t)%(n)d * sizes[kinds[k].type]);
    }
    return 0;
}
"""


@pytest.mark.parametrize("target", [HOST, "cpu:cortex-m4"])
def test_the_generator_in_c_is_pythons(target: str, tmp_path: Path) -> None:
    """Word for word, and every dtype bit for bit: subnormal halves, rounding to even, overflow, whole numbers."""
    machine = MACHINES[target]
    machine.need()
    rows = [
        f'{{"", {code}, {_CODES[fill.kind]}, 1, 0, 0, {_NUMBER}, {i}, 0, INT64_C({fill.offset}), '
        f"INT64_C({fill.count}), {fill.exponent}}}"
        for i, (code, _, fill) in enumerate(_KINDS)
    ]
    main = _GENERATOR % {"n": _NUMBER, "kinds": ", ".join(rows)}
    machine.build(tmp_path, [rule(target)], main)
    machine.run(tmp_path)
    expected = np.concatenate(
        [words(7, 3, _NUMBER), words(2**32 - 1, 2**31 + 5, _NUMBER), words(1, 2**30 + 17, _NUMBER + 100_000)[100_000:]]
    )
    assert np.array_equal(np.fromfile(tmp_path / "words", np.uint32), expected)
    for i, (_, dtype, fill) in enumerate(_KINDS):
        wanted = filled(fill, (_NUMBER,), dtype, 20261127, i)
        assert (tmp_path / chr(ord("a") + i)).read_bytes() == wanted.tobytes(), (dtype, fill)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    program = find_node()
    if program is None:
        pytest.skip("no Node.js of 18 or newer is here")
    process = Node(program)
    yield process
    process.close()


def test_the_generator_in_javascript_is_pythons(node: Node, tmp_path: Path) -> None:
    folder = package().write(tmp_path / "adamw")
    rng = np.random.default_rng(1)
    numbers = [0.0, -0.0, 1e-8, 65519.9, 65520.0, -1e6, 6e-8, 3e-8, 2.0**-25, 1.0009765625, 1.00048828125, 3.4e38]
    numbers += (rng.standard_normal(300) * 2.0 ** rng.integers(-30, 16, 300)).tolist()
    body = f"""
    const {{ word, narrow }} = await import({json.dumps((folder / "lib/selftest.js").as_uri())});
    const of = (seed, stream) => Array.from({{ length: 300 }}, (_, i) => word(seed, stream, i));
    const numbers = {json.dumps(numbers)};
    return [of(7, 3), of(2 ** 32 - 1, 2 ** 31 + 5), ["f16", "bf16"].map((d) => numbers.map((x) => narrow(x, d)))];
    """
    first, second, halves = node.js(folder, body)["value"]
    assert first == words(7, 3, 300).tolist()
    assert second == words(2**32 - 1, 2**31 + 5, 300).tolist()
    with np.errstate(over="ignore"):
        for dtype, found in zip(("f16", "bf16"), halves, strict=True):
            wanted = from_float64(np.array(numbers), dtype).view(np.uint16).tolist()
            assert found == wanted, dtype


# They pass.

_RUN = """
#include "{name}_selftest.c"
#include "io.h"
static unsigned char memory[{upper}_SELFTEST_BYTES] __attribute__((aligned(64)));
int main(void)
{{
    {name}_selftest_report report;
    const int found = {name}_selftest(memory, sizeof memory, NULL, &report);
    if (found)
        say(report.result);
    if ({name}_selftest(memory, sizeof memory - 1, NULL, NULL) != {upper}_SELFTEST_MEMORY)
        return 98;
    if ({name}_selftest(memory + 4, sizeof memory, NULL, NULL) != {upper}_SELFTEST_MEMORY)
        return 97;
    return found;
}}
"""


def _run(target: str, bundle: CBundle, folder: Path) -> None:
    machine = MACHINES[target]
    machine.build(folder, [bundle], _RUN.format(name=bundle.name, upper=bundle.name.upper()))
    machine.run(folder)


@pytest.mark.parametrize("target", ["cpu:aarch64", "cpu:armv7", "cpu:cortex-m4", "cpu:cortex-m55"])
def test_of_a_rule_in_c(target: str, tmp_path: Path) -> None:
    """On emulated processors, of which none is proven here: the same source file, in exact and in f32 arithmetic."""
    MACHINES[target].need()
    assert rule(target).proven == ""
    _run(target, rule(target), tmp_path)


@pytest.mark.parametrize("target", ["cpu:aarch64", "cpu:cortex-m4"])
def test_of_a_step_in_c(target: str, tmp_path: Path) -> None:
    MACHINES[target].need()
    _run(target, step(target), tmp_path)


@pytest.mark.parametrize(("name", "dtype"), [("nadam", "bf16"), ("lamb", "f32"), ("lion", "f16")])
def test_compiling_proves_what_runs_here(name: str, dtype: str) -> None:
    """Scalar state, a workspace, and both 16-bit dtypes. The files do not depend on what was proven."""
    MACHINES[HOST].need()
    bundle = rule(HOST, name, dtype)
    assert bundle.proven == "x86_64, by cc"
    same = compile_c(name, HOST, name=bundle.name, dtype=dtype, check=False)
    assert (same.proven, same.files) == ("", bundle.files)


def test_without_a_compiler_or_node_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    MACHINES[HOST].need()
    made: list[tuple[Any, str]] = [(rule(), "C compiler 'cc'"), (package(), r"Node\.js of 18")]
    monkeypatch.setattr(prove.shutil, "which", lambda name: None)
    for bundle, tool in made:
        with pytest.warns(UnprovenWarning, match=f"not proven: there is no {tool}"):
            assert bundle.prove().proven == ""


# They find what is wrong.


def _spoiled(bundle: CBundle, **files: bytes) -> CBundle:
    named = {name.replace("__", "."): data for name, data in files.items()}
    return dataclasses.replace(bundle, files={**bundle.files, **named})


def test_another_rules_kernel_is_found_in_c() -> None:
    """The same operands and numbers, so that nothing but the results tells."""
    MACHINES[HOST].need()
    other = compile_c("adam", HOST, name="adamw_k", check=False)
    with pytest.raises(WrongResultError, match=r"element of 'w' is .* at call 0") as caught:
        _spoiled(rule(), adamw_k_kernels__o=other.object).prove()
    assert (caught.value.target, caught.value.device, caught.value.result) == (HOST, "x86_64", "w")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("w[n] = 0.0f;", "memory beside 'w' is written"),
        ("v[-1] = 0.0f;", "memory beside 'm' is written"),
        ("((float *)(uintptr_t)g)[n - 1] = 2.0f;", "'g', which is only to be read, is written"),
        (
            "{ static int calls; if (++calls == 4) m[69] *= 1.0000002f; }",
            "'m' has other bits when call 1 is made again",
        ),
        ("w[69] *= 1.000001f;", "an element of 'w' is"),
        ("if (step == 1000) return ADAMW_K_ERROR_KERNEL;", "call 1 returns: a kernel has failed"),
    ],
)
def test_faults_of_a_rule_are_found_in_c(fault: str, message: str) -> None:
    MACHINES[HOST].need()
    source = rule().files["adamw_k.c"].decode()
    head, found, tail = source.rpartition("    return run(")
    assert found
    with pytest.raises(WrongResultError, match=message):
        _spoiled(rule(), adamw_k__c=f"{head}    {fault}\n{found}{tail}".encode()).prove()


def _patched(data: bytes, wanted: bytes, new: bytes) -> bytes:
    assert wanted in data
    return data.replace(wanted, new)


_SCALES = struct.pack("<f", SCALE), struct.pack("<f", SCALE * 1.001)


def test_a_constant_in_a_steps_object_is_found_in_c() -> None:
    MACHINES[HOST].need()
    bundle = step(HOST)
    assert bundle.proven
    with pytest.raises(WrongResultError, match=r"an element of '.*' is"):
        _spoiled(bundle, step_k_kernels__o=_patched(bundle.object, *_SCALES)).prove()


def _replaced(found: Package, name: str, data: bytes) -> Package:
    return dataclasses.replace(found, files={**found.files, name: data})


def test_other_code_in_a_package_is_found(node: Node) -> None:
    """Of a rule a multiplication of two doubles becomes an addition, of a step a constant is off by a thousandth."""
    for found, wanted, new in ((package(), b"\xfd\xf2\x01", b"\xfd\xf0\x01"), (step_package(), *_SCALES)):
        assert found.proven.startswith("Node.js v")
        with pytest.raises(WrongResultError, match=r"an element of '.*' at .* is"):
            _replaced(found, f"{found.name}.wasm", _patched(found.wasm, wanted, new)).prove()


def test_faults_of_a_package_are_found(node: Node) -> None:
    text = package().files["index.js"].decode()
    assert "  return [addresses[0]" in text
    for fault, message in (
        ("library.bytes[addresses[1]] ^= 1;", "only to be read has been written: 'g'"),
        ("library.bytes[addresses[0] + 4 * extents[0][0]] ^= 1;", "written beside 'w'"),
        ("if ((globalThis.calls = (globalThis.calls ?? 0) + 1) > 2) library.bytes[addresses[2]] ^= 1;", "other bits"),
    ):
        spoiled = text.replace("  return [addresses[0]", f"  {fault}\n  return [addresses[0]")
        with pytest.raises(WrongResultError, match=message):
            _replaced(package(), "index.js", spoiled.encode()).prove()


def test_index_loads_the_self_test_on_demand(node: Node, tmp_path: Path) -> None:
    """By ``selftest()`` of the package itself, on a source of one's own, too; the error is one of the package's."""
    folder = step_package().write(tmp_path / "step")
    assert "selftest.js" not in json.dumps(node.js(folder, "return Object.keys(package_.Step.prototype ?? {})"))
    assert node.js(folder, "return package_.selftest()")["value"]["calls"] == 2
    data = json.dumps(list(_patched(step_package().wasm, *_SCALES)))
    answer = node.js(folder, f"return package_.selftest(new Uint8Array({data}))")
    assert answer["error"] == "SelftestError", answer
    assert answer["known"]
    declared = json.loads(step_package().files["package.json"])
    assert declared["exports"]["./selftest"]["default"] == "./selftest.js"
    assert {"selftest.js", "selftest.d.ts", "lib"} <= set(declared["files"])


# Plain modules.


@cache
def plain(name: str, target: str, **dtypes: Any) -> PlainModule:
    variant = Variant.of(get_rule(name))
    return build_plain(variant, variant.dtypes("f32", **dtypes), get_target(target))


def _checked(machine: Any, module: PlainModule, checks: tuple[str, ...], folder: Path) -> list[int]:
    (folder / "module.vmfb").write_bytes(module.data)
    codes = []
    for text in checks:
        (folder / "check.txt").write_text(text)
        command = [*machine.prefix(), "--module=module.vmfb", "--flagfile=check.txt"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert ("[SUCCESS]" in done.stdout) == (done.returncode == 0), done
        codes.append(done.returncode)
    return codes


def test_of_a_plain_module(tmp_path: Path) -> None:
    """``iree-run-module`` alone tells a right module from another rule's."""
    module, other = plain("adamw", "cpu"), plain("adam", "cpu")
    assert _checked(machines.NATIVE, module, module.checks, tmp_path) == [0, 0]
    assert 0 not in _checked(machines.NATIVE, other, module.checks, tmp_path)


def test_of_a_plain_module_for_another_processor(tmp_path: Path) -> None:
    """In f32 arithmetic; the same flags as in f64 but for the tolerance."""
    machines.CORTEX.prefix()
    module = plain("adamw", "cpu:aarch64", compute="f32")
    assert _checked(machines.CORTEX, module, module.checks, tmp_path) == [0, 0]


def test_plain_modules_that_iree_run_module_cannot_compare() -> None:
    """Numbers that are returned, and f16, which modules take as its bits."""
    for name, dtype in (("nadam", "f32"), ("lion", "f16")):
        variant = Variant.of(get_rule(name))
        assert check_flags(lower(variant.kernel(variant.dtypes(dtype)))[0]) == ()
