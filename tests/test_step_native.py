"""Whole steps without a runtime: C on processors and boards, WebAssembly in Node.js, against the Python runtime's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_machine import MACHINES
from wasm_node import Node, encode, find_node

import optgen as og
from optgen.errors import HazardError
from optgen.native import compile_c_function
from optgen.train import elementary

STEPS, BATCH = 12, 16
SHAPES = {"w1": (20, 16), "b1": (16,), "w2": (16, 5), "b2": (5,)}


def loss(params: Any, batch: Any, rng: Any) -> Any:
    import jax
    import jax.numpy as jnp

    hidden = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"])
    hidden *= jax.random.bernoulli(rng, 0.9, hidden.shape) / 0.9
    logits = hidden @ params["w2"] + params["b2"]
    nll = -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(batch["y"], 5), axis=-1))
    return nll, {"correct": jnp.sum(jnp.argmax(logits, -1) == batch["y"])}


def optimizer() -> Any:
    return og.chain(og.clip_by_global_norm(0.5), "adamw")


def data() -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """Params, and a batch for each step."""
    rng = np.random.default_rng(20261125)
    params = {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}
    teacher = rng.standard_normal((20, 5)).astype(np.float32)
    batches = []
    for _ in range(STEPS):
        x = rng.standard_normal((BATCH, 20)).astype(np.float32)
        batches.append({"x": x, "y": (x @ teacher).argmax(1).astype(np.int32)})
    return params, batches


@cache
def expected(compute: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses and the last params by the module for this machine and the runtime."""
    params, batches = data()
    bundle = og.train.compile_step(loss, params, batches[0], optimizer(), rng=True, compute_dtype=compute)
    step = og.train.TrainStep(bundle)
    state = step.init(params)
    losses = [step.step(params, state, b, lr=1e-2, rng=i)[0] for i, b in enumerate(batches)]
    return np.array(losses, np.float32), params


def padded(array: np.ndarray) -> bytes:
    """Its bytes, filled up to a multiple of 8."""
    data = array.tobytes()
    return data + bytes(-len(data) % 8)


def program(names: list[str], sizes: list[int], kinds: list[str], given: int) -> str:
    """A program that reads all arguments, and the last ``given`` of them anew for each step."""
    text = '#include "mlp.h"\n#include "io.h"\n#include <stddef.h>\n'
    # Where a step has f64 in it, everything is aligned to that.
    fields = "".join(f"    ALIGNED {k} {name}[{size}];\n" for name, size, k in zip(names, sizes, kinds, strict=True))
    text += (
        "#define ALIGNED __attribute__((aligned(8)))\nstatic struct {\n"
        + fields
        + "} m;\n"
        + f"static float losses[{STEPS}];\nstatic int32_t correct;\n"
    )
    text += "static unsigned char workspace[MLP_WORKSPACE_BYTES] __attribute__((aligned(64)));\n"
    text += "int main(void)\n{\n    int i;\n    char file[3] = {0, 0, 0};\n    mlp_args args;\n"
    text += '    load("all", &m, sizeof m);\n' + "".join(f"    args.{name} = m.{name};\n" for name in names)
    text += "    args.metrics_correct = &correct;\n"
    text += f"    for (i = 0; i < {STEPS}; ++i) {{\n        int status;\n"
    text += "        file[0] = 's'; file[1] = (char)('a' + i);\n"
    text += f"        load(file, m.{names[-given]}, sizeof m - offsetof(__typeof__(m), {names[-given]}));\n"
    text += "        args.loss = &losses[i];\n        status = mlp(&args, workspace, sizeof workspace, NULL);\n"
    text += "        if (status) { say(mlp_error(status)); return status; }\n    }\n"
    return text + '    store("losses", losses, sizeof losses);\n    store("trained", &m, sizeof m);\n    return 0;\n}\n'


@pytest.mark.parametrize(
    ("target", "compute"),
    [
        ("cpu:x86-64", "f64"), ("cpu:x86-64-v3", "f64"), ("cpu:aarch64", "f64"), ("cpu:armv7", "f64"),
        ("cpu:riscv64", "f64"), ("cpu:cortex-m4", "f32"), ("cpu:cortex-m4", "f64"), ("cpu:cortex-m55", "f32"),
    ],
)  # fmt: skip
def test_steps_in_c(target: str, compute: str, tmp_path: Path) -> None:
    """Dropout, a clipped global norm and AdamW: the same losses and params, on every kind of processor."""
    machine = MACHINES[target]
    machine.need()
    params, batches = data()
    lowered = og.train.lower_step(loss, params, batches[0], optimizer(), rng=True, compute_dtype=compute)
    bundle = og.train.compile_step_c(
        loss, params, batches[0], optimizer(), target, name="mlp", rng=True, compute_dtype=compute
    )
    kept = [a for a in lowered.arguments if a.role not in ("hyper", "rng", "batch")]
    names = [a.name.replace("/", "_") for a in kept] + ["batch_x", "batch_y", "rng", "lr"]
    shapes = [a.shape for a in kept] + [(BATCH, 20), (BATCH,), (2,), ()]
    wide = "double" if compute == "f64" else "float"
    kinds = ["int32_t" if a.dtype == "i32" else "float" for a in kept] + ["float", "int32_t", "uint32_t", wide]
    first: list[np.ndarray] = []
    for argument in kept:
        value = params[argument.name[7:]] if argument.role == "param" else np.zeros(argument.shape, np.float32)
        first.append(np.asarray(value, np.int32 if argument.dtype == "i32" else np.float32))
    rate = np.array(1e-2, np.float64 if compute == "f64" else np.float32)
    for i, batch in enumerate(batches):
        given = [batch["x"], batch["y"], np.array([0, i], np.uint32), rate]
        blob = b"".join(padded(each) for each in given)
        (tmp_path / f"s{chr(ord('a') + i)}").write_bytes(blob)
        if i == 0:
            before = b"".join(padded(each) for each in first)
            (tmp_path / "all").write_bytes(before + blob)
    sizes = [int(np.prod(shape)) for shape in shapes]
    machine.build(tmp_path, [bundle], program(names, sizes, kinds, 4))
    machine.run(tmp_path)
    losses, trained = expected(compute)
    np.testing.assert_allclose(np.fromfile(tmp_path / "losses", np.float32), losses, rtol=0, atol=2e-6)
    flat, at = np.fromfile(tmp_path / "trained", np.float32), 0
    for argument, size in zip(kept, sizes, strict=False):
        if argument.role == "param":
            found = flat[at : at + size].reshape(argument.shape)
            np.testing.assert_allclose(found, trained[argument.name[7:]], rtol=0, atol=2e-5)
        at += size + size % 2


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    program = find_node()
    if program is None:
        pytest.skip("Node.js 18 or newer is not installed")
    started = Node(program)
    yield started
    started.close()


def test_steps_in_webassembly(node: Node, tmp_path: Path) -> None:
    params, batches = data()
    package = og.train.compile_step_wasm(loss, params, batches[0], optimizer(), name="mlp", rng=True)
    folder = package.write(tmp_path / "mlp")
    calls = [
        {"batch_x": encode(b["x"]), "batch_y": encode(b["y"]), "lr": 1e-2, "seed": i} for i, b in enumerate(batches)
    ]
    given = {f"params_{name}": encode(value) for name, value in params.items()}
    body = f"""
    const step = module, out = [];
    const floats = (e) => new Float32Array(Uint8Array.from(Buffer.from(e.data, "base64")).buffer);
    const ints = (e) => new Int32Array(Uint8Array.from(Buffer.from(e.data, "base64")).buffer);
    const start = {{}};
    for (const [name, e] of Object.entries({json.dumps(given)})) start[name] = floats(e);
    step.set(start);
    for (const c of {json.dumps(calls)}) {{
      const rng = new Uint32Array([0, c.seed]);
      out.push(step.run({{ batch_x: floats(c.batch_x), batch_y: ints(c.batch_y), rng, lr: c.lr }}).loss);
    }}
    return out;
    """
    answer = node.js(folder, body)
    assert "value" in answer, answer
    np.testing.assert_allclose(answer["value"], expected("f64")[0], rtol=0, atol=2e-6)


def test_moments_that_are_not_what_the_change_is_made_of_are_not_copied() -> None:
    """One kernel reads lion's old moments and writes the new ones and the params."""
    params, batches = data()
    bundle = og.train.compile_step_c(loss, params, batches[0], "lion", "cpu:x86-64", name="mlp", rng=True)
    copied = set(re.findall(rb"copy_bytes\(\(unsigned char \*\)args->(\w+)", bundle.files["mlp.c"]))
    assert copied <= {b"loss", b"metrics_correct", b"state_step"}  # numbers, which kernels do not write in place


def test_functions_that_overwrite_what_is_read_are_refused() -> None:
    """JAX's own donation, with no barrier in front of the update."""
    import jax
    import jax.numpy as jnp

    params, batches = data()

    def plain(p: Any, x: Any, y: Any) -> Any:
        logits = jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(y, 5), axis=-1))

    def step(p: Any, x: Any, y: Any) -> Any:
        return jax.tree.map(lambda p, g: p - 0.1 * g, p, jax.grad(plain)(p, x, y))

    text = jax.jit(step, donate_argnums=0).lower(params, *batches[0].values()).as_text()
    names = sorted(params)
    with pytest.raises(HazardError, match=r"w2 would be overwritten while still in use .*optimization_barrier"):
        compile_c_function(text, "cpu:x86-64", name="f", arguments=[*names, "x", "y"], results=names)


def test_what_the_host_would_do() -> None:
    """Loops, branches and slices at an index, by their self-tests; what is refused is in test_straight.py."""
    import jax
    import jax.numpy as jnp

    MACHINES["cpu:x86-64"].need()

    def recurrent(params: Any, batch: Any) -> Any:
        def cell(h: Any, x: Any) -> Any:
            return jnp.tanh(x @ params["w"] + h), None

        return jnp.mean(jax.lax.scan(cell, jnp.zeros(4), batch["x"])[0] ** 2)

    def branches(params: Any, batch: Any) -> Any:
        return jax.lax.cond(batch["i"] > 0, jnp.sum, jnp.mean, params["w"] ** 2)

    def slices(params: Any, batch: Any) -> Any:
        return jnp.sum(jax.lax.dynamic_slice(params["w"], (batch["i"], 0), (1, 4)) ** 2)

    batch = {"x": np.ones((9, 3), np.float32), "i": np.array(1, np.int32)}
    for loss in (recurrent, branches, slices):
        bundle = og.train.compile_step_c(loss, {"w": np.ones((3, 4), np.float32)}, batch, "sgd", "cpu:x86-64", name="f")
        assert bundle.proven


def test_exponentials_without_a_c_library() -> None:
    import jax

    x = np.concatenate([-np.logspace(-18, 2.84, 2001), np.logspace(-18, 2.84, 2001)])
    with jax.enable_x64(True):
        pairs = [(elementary.expm1, np.expm1), (elementary.exp, np.exp)]
        for ours, theirs in pairs:
            want = theirs(x.astype(np.longdouble))
            np.testing.assert_allclose(np.asarray(jax.jit(ours)(x)), want, rtol=5e-16)
            edges = np.array([0, np.inf, -np.inf, np.nan, 800, -800])
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(np.asarray(jax.jit(ours)(edges)), theirs(edges).round(300))
