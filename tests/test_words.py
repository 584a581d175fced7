"""Truth values and integers of 8, 16 and 64 bits on Vulkan, whose programs have words of 32 bits for them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from optgen.errors import LoweringError, UnsupportedTargetError
from optgen.lower.repair import stablehlo_of
from optgen.lower.repair.words import in_words
from optgen.train import CompiledFunction, TrainStep, compile_function, compile_step


def arguments() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    a = rng.integers(-128, 128, 13).astype(np.int8)
    a[:3] = -128, 127, 0
    return {
        "a": a,
        "b": rng.integers(-128, 128, 13).astype(np.int8),
        "m": rng.random(13) > 0.5,
        "u": rng.integers(0, 256, 13).astype(np.uint8),
        "h": rng.integers(-(2**15), 2**15, 13).astype(np.int16),
        "l": np.append(rng.integers(-9, 9, 12), 2**40 + 3),  # JAX goes on with its lower half
    }


def integers(a: Any, b: Any, m: Any, u: Any, h: Any, l: Any) -> Any:  # noqa: E741
    """Every kind of operation, those that wrap around above all; place by place as one number, then others."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    two, seven = jnp.int8(2), jnp.int8(-7)
    places = [
        a + b, a - b, a * b, -a, abs(a), a // seven, a % seven, a // jnp.int8(0), a << 2, a >> 1, ~a, a ^ b, a & b,
        lax.shift_right_logical(a, two), lax.clz(a), lax.population_count(a), jnp.maximum(a, b), jnp.sign(a),
        u + u, u - jnp.uint8(200), -u, ~u, u >> 3, u // jnp.uint8(7), lax.clz(u), h * h, h - jnp.int16(30000),
        a.astype(jnp.uint8), u.astype(jnp.int8), h.astype(jnp.int8), l.astype(jnp.int8), a.astype(jnp.uint32),
        (a * 3.7).astype(jnp.int8), (a * 3.7).astype(jnp.uint8), jnp.where(m, a * jnp.nan, a).astype(jnp.int8),
        m & (a < b), m | ~(u > 7), m ^ (a == b), jnp.where(m, a, b), m.astype(jnp.int8) * a, a.astype(bool) & m,
        lax.bitcast_convert_type(a, jnp.uint8), l * 1_000_003, a ** 3, jnp.clip(a, -9, 9),
        jnp.array([True, False] * 6 + [True]) & m, jnp.array(range(-6, 7), jnp.int8) + a,
    ]  # fmt: skip
    mixed = functools.reduce(lambda total, each: total * 31 + each.astype(jnp.int32), places, jnp.int32(0))
    counted, stopped = lax.while_loop(
        lambda c: (c[0] > 0) & ~c[1], lambda c: (c[0] + jnp.int8(50), m[2] & c[1]), (jnp.int8(1), False)
    )
    return {
        "mixed": mixed, "a": a + b, "m": m & (a > 0), "h": h + h, "u": u * u, "sum": jnp.sum(a, dtype=jnp.int8),
        "any": m.any(), "count": m.sum(), "cumsum": lax.cumsum(a), "sort": jnp.sort(a), "argmax": a.argmax(),
        "scatter": jnp.zeros(3, jnp.int8).at[u % 3].add(a), "one_hot": jax.nn.one_hot(l, 9, dtype=jnp.int8),
        "matmul": lax.dot(a, b), "counted": counted, "stopped": stopped,
    }  # fmt: skip


def test_integers_mean_what_jax_means(vulkan: str) -> None:
    import jax

    given = tuple(arguments().values())
    found = CompiledFunction(compile_function(integers, *given, targets=vulkan, check=False))(*given)
    expected = jax.jit(integers)(*given)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_step_takes_them_as_they_are(vulkan: str) -> None:
    """Bytes, marks, numpy's own labels, a frozen table of int8; metrics of their dtypes; proven by the probes."""
    import jax
    import jax.numpy as jnp

    def loss(params: Any, batch: Any) -> Any:
        h = batch["bytes"].astype(jnp.float32) / 255 @ params["w"] + params["rows"][batch["labels"]]
        h = jax.nn.relu(h) * params["table"]
        right = (h > 0.5) & batch["mask"][:, None]
        return jnp.where(right, h, 0.1 * h).mean(), {"right": right[:, 0], "code": params["table"] * params["table"]}

    rng = np.random.default_rng(5)
    params = {
        "w": rng.standard_normal((6, 3)).astype(np.float32),
        "rows": rng.standard_normal((4, 3)).astype(np.float32),
        "table": np.array([1, -2, 100], np.int8),
    }
    batch = {
        "bytes": rng.integers(0, 256, (5, 6)).astype(np.uint8),
        "labels": rng.integers(0, 4, 5),
        "mask": rng.random(5) > 0.3,
    }
    bundle = compile_step(loss, params, batch, "sgd", targets=vulkan, trainable=["w", "rows"], lr=1.0)
    assert {a.name: a.dtype for a in bundle.manifest.arguments if a.role == "batch"} == {
        "batch/bytes": "ui8", "batch/labels": "i64", "batch/mask": "i1",
    }  # fmt: skip
    step, mine = TrainStep(bundle, vulkan), {name: leaf.copy() for name, leaf in params.items()}
    trained = {name: params[name] for name in ("w", "rows")}
    (wanted, metrics), grads = jax.value_and_grad(lambda p: loss({**params, **p}, batch), has_aux=True)(trained)
    found, measured = step.step(mine, step.init(mine), batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for name, value in metrics.items():
        assert measured[name].dtype == value.dtype
        np.testing.assert_array_equal(measured[name], value)
    for name, grad in grads.items():
        np.testing.assert_allclose(mine[name], params[name] - grad, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(mine["table"], params["table"])


def test_what_has_no_form_in_words_is_refused() -> None:
    import jax
    import jax.numpy as jnp

    def parts(x: Any) -> Any:
        return jax.lax.bitcast_convert_type(x, jnp.uint8)

    x = np.ones(3, np.float32)
    text = stablehlo_of(jax.jit(parts).trace(x))
    with pytest.raises(LoweringError, match="'bitcast_convert' has no form for f32 as ui8"):
        in_words(text)
    with pytest.raises(UnsupportedTargetError, match="target 'vulkan' cannot run this program: 'bitcast_convert'"):
        compile_function(parts, x, targets="vulkan")
    with jax.enable_x64(True), pytest.raises(UnsupportedTargetError, match="'x' is i64: make it i32"):
        compile_function(lambda x: x + 1, np.arange(3), targets="vulkan")
    plain = stablehlo_of(jax.jit(lambda x: x + 1).trace(x))
    assert in_words(plain) == plain
