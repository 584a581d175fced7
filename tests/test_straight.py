"""Control flow in C and WebAssembly, whose callers have none: what is not known beforehand is refused, by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_targets import flat, run

from optgen.errors import LoweringError, UnsupportedTargetError

X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
CHOICES = np.array([1, -1, 9], np.int32)


def loops(x: Any) -> list[Any]:
    """Of a known number of rounds, with gradients of one."""
    import jax
    import jax.numpy as jnp

    def cell(carry: Any, row: Any) -> Any:
        carry = jnp.tanh(carry + row)
        return carry, carry * row

    def total(x: Any) -> Any:
        last, rows = jax.lax.scan(cell, jnp.zeros(3), x[:3], reverse=True)
        return last.sum() + (rows**2).sum()

    bins = jnp.array([-0.55, 0.05, 0.83])
    counted = jax.lax.while_loop(lambda c: c[0] < 7, lambda c: (c[0] + 3, c[1] * 1.5 + x[c[0]]), (1, x))
    return [x * jnp.digitize(x, bins), jnp.searchsorted(bins, x), jax.grad(total)(x), counted]


def branches(x: Any, i: Any) -> list[Any]:
    """By numbers and by indices, some out of range; infinities and NaN of what is not chosen do not count."""
    import jax
    import jax.numpy as jnp

    def either(x: Any) -> Any:
        return jax.lax.cond(x.sum() > 100.0, lambda x: jnp.sqrt(x - 1e6), lambda x: x * x[0], x)

    made = [jax.lax.switch(k, [jnp.exp, lambda x: -x, lambda x: x + 1], x) for k in i]
    nested = jax.lax.cond(i[0] == 1, lambda: jax.lax.fori_loop(0, 2, lambda k, y: y + k * x, x), lambda: x * 0)
    return [*made, nested, jax.grad(lambda x: either(x).sum())(x)]


@pytest.mark.parametrize("target", ["c", "wasm"])
def test_control_flow(target: str, tmp_path: Path, request: Any) -> None:
    import jax.numpy as jnp

    def function(x: Any, i: Any, unused: Any) -> Any:
        return flat([loops(x), branches(x, i)])

    found = run(target, function, {"x": X, "i": CHOICES, "unused": CHOICES}, tmp_path, request)
    np.testing.assert_allclose(found, function(jnp.asarray(X), jnp.asarray(CHOICES), None), rtol=2e-6, atol=2e-6)


def test_loops_that_are_not_written_out(tmp_path: Path, request: Any) -> None:
    import jax

    def unknown(x: Any) -> Any:
        return flat(jax.lax.while_loop(lambda x: x.sum() < 100.0, lambda x: x + 1, x))

    def long(x: Any) -> Any:
        return flat(jax.lax.fori_loop(0, 1000, lambda k, x: x * 0.9 + k, x))

    for function, message in ((unknown, "rounds are not known before it runs"), (long, "more than 64 rounds")):
        with pytest.raises(LoweringError, match=message):
            run("wasm", function, {"x": X}, tmp_path, request)


def test_refusals_name_the_line() -> None:
    """Of the user's own file, with the operation, also where it stands in one of JAX's functions."""
    import jax
    import jax.numpy as jnp

    from optgen.train import compile_function, compile_step_c

    def loss(params: Any, batch: Any) -> Any:
        grown = jax.lax.while_loop(lambda x: x.sum() < 100.0, lambda x: x + 1, batch["x"])
        return (grown * params["w"]).sum()

    line = loss.__code__.co_firstlineno + 1
    with pytest.raises(LoweringError, match=rf"^test_straight\.py:{line} \(while\): a loop whose rounds") as caught:
        compile_step_c(loss, {"w": X}, {"x": X}, "sgd", "cpu:x86-64", name="s", check=False)
    assert "\n" not in str(caught.value)

    def spread(x: Any) -> Any:
        return jnp.var(x)

    line = spread.__code__.co_firstlineno + 1
    with pytest.raises(UnsupportedTargetError, match=rf"^test_straight\.py:{line} \(.*\): a function for target 'vulk"):
        compile_function(spread, np.ones(70_000, np.float32), name="spread", targets="vulkan")
