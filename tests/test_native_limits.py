"""Hyperparameters, counts of steps and scalar state that C and JavaScript refuse as Python does: nothing is written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_machine import MACHINES
from wasm_node import Node, find_node

import optgen as og
from optgen.dsl.variant import Variant
from optgen.hyper import PARTS, Part, part
from optgen.native import get_native_target, update_package
from optgen.rules import get_rule

RATES = (0.0, 1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-7)


def loss(params: Any, batch: Any) -> Any:
    return ((batch["x"] @ params["w"]) ** 2).mean()


def example() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return {"w": np.ones((3, 2), np.float32)}, {"x": np.ones((4, 3), np.float32)}


# A whole step in C: every hyperparameter is a number in memory, decay rates three of them.

_WRONG: list[tuple[str, str, str]] = [
    *(("lr", x, "HYPER") for x in ("NAN", "INFINITY", "-INFINITY", "-1e-3")),
    *(("beta1", x, "HYPER") for x in ("NAN", "1", "-0.1", "2", "0.8")),
    *(("beta1_complement", x, "HYPER") for x in ("NAN", "0", "0.2", "1.5")),
    *(("beta2_log", x, "HYPER") for x in ("NAN", "0", "0.1", "-INFINITY", "-0.5")),
    *(("eps", x, "HYPER") for x in ("-1e-9", "NAN")),
    *(("state_step", x, "STEP") for x in ("-1", "2147483647")),
    *(("state_mu_product", x, "STATE") for x in ("NAN", "INFINITY")),
]


def _main() -> str:
    given = {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.0, "momentum_decay": 0.004, "state_mu_product": 1.0}
    parts: list[Part] = list(PARTS["decay"])
    betas = {(n, p): ("" if p == "value" else f"_{p}") for n in ("beta1", "beta2") for p in parts}
    fields = [*given, *(f"{n}{suffix}" for (n, p), suffix in betas.items() if (n, p) != ("beta1", "log"))]
    values = given | {f"{n}{s}": part(0.9, p) for (n, p), s in betas.items()}
    text = '#include "step_k.h"\n#include "io.h"\n#include <math.h>\n'
    text += "static float w[6], m[6], v[6], x[12], loss;\nstatic int32_t state_step;\n"
    text += "".join(f"static double {name};\n" for name in fields)
    text += "static unsigned char workspace[STEP_K_WORKSPACE_BYTES] __attribute__((aligned(64)));\n"
    text += "static void begin(void)\n{\n    int i;\n    for (i = 0; i < 6; ++i) { w[i] = 1.0f; m[i] = v[i] = 0.0f; }\n"
    text += "    for (i = 0; i < 12; ++i) x[i] = 1.0f;\n    state_step = 0;\n    loss = 7.0f;\n"
    text += "".join(f"    {name} = {values[name]!r};\n" for name in fields) + "}\n"
    text += "static int wrote(void)\n{\n    int i;\n    for (i = 0; i < 6; ++i)\n"
    text += "        if (w[i] != 1.0f || m[i] != 0.0f || v[i] != 0.0f) return 1;\n    return loss != 7.0f;\n}\n"
    text += "int main(void)\n{\n    int failed = 0;\n    step_k_args a;\n"
    text += "    a.params_w = w; a.state_m_w = m; a.state_v_w = v;\n"
    text += "    a.batch_x = x; a.loss = &loss; a.state_step = &state_step;\n"
    text += "".join(f"    a.{name} = &{name};\n" for name in fields)
    call = "step_k(&a, workspace, sizeof workspace, NULL)"
    for name, value, code in _WRONG:
        text += f"    begin(); {name} = {value};\n"
        text += f'    if ({call} != STEP_K_ERROR_{code} || wrote()) {{ say("{name} {value}\\n"); failed = 1; }}\n'
    for name in ("lr", "beta2_log", "state_step"):
        text += (
            f'    begin(); a.{name} = NULL;\n    if ({call} != STEP_K_ERROR_NULL || wrote()) {{ say("NULL {name}\\n"); '
        )
        text += f"failed = 1; }}\n    a.{name} = &{name};\n"
    for rate in RATES:
        text += "    begin();\n"
        text += "".join(f"    {n}{s} = {part(rate, p)!r};\n" for (n, p), s in betas.items() if f"{n}{s}" in fields)
        text += f'    if ({call} || !wrote()) {{ say("{rate!r} is refused\\n"); failed = 1; }}\n'
    return text + "    begin(); lr = 0.0; state_step = 2147483646;\n    return failed || " + call + ";\n}\n"


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:aarch64"])
def test_numbers_of_a_step_in_c(target: str, tmp_path: Path) -> None:
    machine = MACHINES[target]
    machine.need()
    bundle = og.train.compile_step_c(loss, *example(), "nadam", target, name="step_k", bake=[], check=False)
    machine.build(tmp_path, [bundle], _main(), "-Wno-overflow")
    assert machine.run(tmp_path) == ""


def test_scalar_state_of_a_rule_in_c(tmp_path: Path) -> None:
    machine = MACHINES["cpu:x86-64"]
    machine.need()
    bundle = og.compile_c("nadam", "cpu:x86-64", check=False)
    main = """
#include "nadam.h"
#include <math.h>
int main(void)
{
    float w = 1, g = 1, m = 0, v = 0;
    double mu = NAN;
    nadam_hypers h;
    nadam_hypers_init(&h);
    h.lr = 0.1;
    if (nadam_update(&w, &g, &m, &v, 1, 1, &h, &mu, NULL) != NADAM_ERROR_STATE || w != 1 || m != 0)
        return 1;
    mu = 1;
    return nadam_update(&w, &g, &m, &v, 1, 1, &h, &mu, NULL);
}
"""
    machine.build(tmp_path, [bundle], main)
    machine.run(tmp_path)


# JavaScript.


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    program = find_node()
    if program is None:
        pytest.skip("no Node.js of 18 or newer is here")
    process = Node(program)
    yield process
    process.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step in f32 arithmetic, of whose rates one is a run-time number."""
    bake = {"beta1": 0.9, "weight_decay": 0.0}
    package = og.train.compile_step_wasm(
        loss, *example(), "adamw", name="step", bake=bake, compute_dtype="f32", check=False
    )
    return package.write(tmp_path_factory.mktemp("step") / "step")


_START = "const step = await package_.load(); step.arrays.params_w.fill(1); step.arrays.batch_x.fill(1);"
_UNTOUCHED = """
  const same = step.arrays.params_w.every((x) => x === 1) && step.arrays.state_m_w.every((x) => x === 0);
"""


@pytest.mark.parametrize(
    ("before", "given", "error", "message"),
    [
        ("", "{}", "HyperparameterError", "'lr' must be given, a number that is finite: it has no default (got NaN)"),
        ("", "{ lr: undefined }", "ArrayError", "'lr' must be given (it is undefined)"),
        ("", "{ lr: NaN }", "HyperparameterError", "'lr' must be given, a number that is finite"),
        ("", "{ lr: Infinity }", "HyperparameterError", "'lr' must be finite (got Infinity)"),
        ("", "{ lr: 1e300 }", "HyperparameterError", "'lr' must be finite (got Infinity)"),
        ("", "{ lr: -0.1 }", "HyperparameterError", "'lr' must be at least 0 (got -0.1"),
        ("", "{ lr: '0.1' }", "HyperparameterError", "'lr' must be finite (got 0.1)"),
        ("", "{ lr: 0.1, beta2: 1 }", "HyperparameterError", "'beta2' must be in [0, 1) (got 1)"),
        ("", "{ lr: 0.1, beta2: 0.9 }", "HyperparameterError", "'beta2_complement' must be 1 - 0.8999"),
        ("", "{ lr: 0.1, beta2_log: 0 }", "HyperparameterError", "'beta2_log' must be the logarithm of 0.999"),
        ("", "{ lr: 0.1, state_step: 1.5 }", "HyperparameterError", "must be a whole number in [0, 2147483647)"),
        ("", "{ lr: 0.1, state_step: -1 }", "HyperparameterError", "'state_step' must be a whole number"),
        ("step.arrays.lr[0] = -1;", "{}", "HyperparameterError", "'lr' must be at least 0 (got -1)"),
        ("step.arrays.state_step[0] = -5;", "{ lr: 0.1 }", "HyperparameterError", "must be a whole number"),
        ("step.set({ lr: 0.1 });", "{ lrr: 0.1 }", "ArrayError", "there is no argument 'lrr'"),
    ],
)  # fmt: skip
def test_numbers_of_a_step_in_javascript(
    node: Node, folder: Path, before: str, given: str, error: str, message: str
) -> None:
    answer = node.js(folder, f"{_START} {before} try {{ step.run({given}); }} catch (e) {{ {_UNTOUCHED} "
                     "return [e.name, e.message, same, step.arrays.lr[0]]; }")["value"]  # fmt: skip
    assert answer[0] == error
    assert message in answer[1]
    assert answer[2]
    assert answer[3] in ((-1,) if "lr[0]" in before else (None, pytest.approx(0.1)))


def test_good_numbers_of_a_step_in_javascript(node: Node, folder: Path) -> None:
    """The parts of every rate, rounded to f32; and defaults that need not be given."""
    rates = [{f"beta2{'' if p == 'value' else f'_{p}'}": part(r, p) for p in PARTS["decay"]} for r in RATES[:-1]]
    body = f"{_START} for (const r of {json.dumps(rates)}) step.run({{ lr: 0.5, ...r }});"
    body += " return step.arrays.state_step[0];"
    assert node.js(folder, body)["value"] == len(rates)
    answer = node.js(folder, f"{_START} step.set({{ lr: 0.5 }}); step.run(); return [...step.arrays.beta2_log];")
    assert answer["value"] == [pytest.approx(math.log(0.999), rel=1e-6)]


def test_state_that_does_not_begin_with_zeros(node: Node, tmp_path: Path) -> None:
    """What a number says is there at once; what the params say must be given."""
    package = og.train.compile_step_wasm(loss, *example(), "schedule_free_adamw", name="sf", check=False)
    folder = package.write(tmp_path / "sf")
    answer = node.js(folder, "const s = await package_.load(); s.arrays.params_w.fill(1); s.run({ lr: 0.1 });")
    assert answer["message"].startswith("'state_z_w' must be given before the first run")
    ok = "const s = await package_.load(); s.set({ state_z_w: s.arrays.params_w.fill(1).slice() }); s.run({ lr: 0.1 });"
    assert node.js(folder, f"{ok} return 1;")["value"] == 1


def test_counts_and_scalars_of_an_optimizer_in_javascript(node: Node, tmp_path: Path) -> None:
    variant = Variant.of(get_rule("sgd"))
    package = update_package(variant, variant.dtypes("f32"), get_native_target("wasm"), check=False)
    folder = package.write(tmp_path / "sgd")
    start = "const o = module.optimizer({ w: new Float32Array(4).fill(1) }); o.grads.w.fill(1);"
    kept = "[e.name, e.message, o.params.w.every((x) => x === 1)]"
    for code, message in (
        (
            "o.stepCount = NaN; o.step(o.grads, { lr: 1 });",
            "'stepCount' must be a whole number of at least 0",
        ),
        ("o.stepCount = 0.5; o.step(o.grads, { lr: 1 });", "(got 0.5)"),
        ("o.step(o.grads);", "'lr' must be given"),
        ("o.step(o.grads, null);", "hyperparameters must be an object (got null)"),
        ("o.step(o.grads, { lr: NaN });", "'lr' must be a finite number (got NaN)"),
        ("o.step(o.grads, { lr: -1 });", "'lr' must be at least 0 (got -1)"),
        ("const s = o.snapshot(); s.stepCount = undefined; s.arrays.w.w.fill(2); o.restore(s);", "(got undefined)"),
    ):
        answer = node.js(folder, f"{start} try {{ {code} }} catch (e) {{ return {kept}; }}")["value"]
        assert answer[0] == "HyperparameterError", (code, answer)
        assert message in answer[1], answer
        assert answer[2], code


# Names.


@pytest.mark.parametrize("name", ["<lambda>", "with space", "1st", "é"])
def test_a_loss_of_any_name(name: str) -> None:
    """What a function is called is no concern of MLIR's, C's or JavaScript's."""
    strange = lambda params, batch: loss(params, batch)  # noqa: E731
    strange.__name__ = name
    target = "cpu:x86-64"
    assert og.train.compile_step_c(strange, *example(), "sgd", target, name="m", check=False).object
