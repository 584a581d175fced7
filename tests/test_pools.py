"""Pools with overlapping and padded windows, and their gradients, on every target; ties as XLA breaks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_targets import flat, run

_POOLS: list[tuple[str, tuple[int, ...], tuple[int, ...], Any]] = [
    ("max", (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    ("min", (1, 3, 2, 1), (1, 1, 3, 1), ((0, 0), (2, 1), (1, 0), (0, 0))),
    ("add", (1, 3, 2, 1), (1, 2, 2, 1), ((0, 0), (2, 1), (1, 0), (0, 0))),
    ("add", (1, 4, 1, 1), (1, 4, 2, 1), "VALID"),  # one window, and more below it than it reads
]


def pools(x: Any) -> list[Any]:
    import jax.numpy as jnp
    from jax import lax

    start = {"max": -jnp.inf, "min": jnp.inf, "add": 0.0}
    return [lax.reduce_window(x, start[kind], getattr(lax, kind), *shape) for kind, *shape in _POOLS]


def everything(x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def total(x: Any) -> Any:
        return sum(jnp.sum(jnp.square(p) * (jnp.arange(p.size) % 7 + 1.0).reshape(p.shape)) for p in pools(x))

    def convolved(x: Any) -> Any:  # likewise
        kernel = jnp.cos(jnp.arange(5.0 * 2 * 2 * 3)).reshape(5, 2, 2, 3)
        return jax.lax.conv_general_dilated(x, kernel, (5, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return flat([pools(x), jax.grad(total)(x), *jax.vjp(convolved, x)[1](convolved(x))])


@pytest.mark.parametrize("target", ["cpu", "vulkan", "wasm"])  # C's loops are those of CPUs and WebAssembly
def test_pools(target: str, tmp_path: Path, request: Any) -> None:
    rng = np.random.default_rng(7)
    x = (rng.integers(-4, 5, (2, 7, 9, 2)) / 4).astype(np.float32)  # many are equal
    found = run(target, everything, {"x": x}, tmp_path, request)
    np.testing.assert_allclose(found, everything(x), rtol=1e-5, atol=1e-5)


def test_chosen_elements_are_those_of_xla() -> None:
    """Any window, stride and padding, with NaN and infinities: the same elements get the same gradients."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from optgen.lower.repair.pools import _chosen, _sent_back

    rng = np.random.default_rng(3)
    for case in range(4):
        window, strides = [rng.integers(1, 4, 2).tolist() for _ in range(2)]
        padding = [(int(rng.integers(0, w)), int(rng.integers(0, w))) for w in window]
        x = rng.integers(-2, 3, (6, 7)).astype(np.float32)
        x[rng.random(x.shape) < 0.2] = (np.nan, -np.inf)[case % 2]

        def pooled(x: Any, window: Any = window, strides: Any = strides, padding: Any = padding) -> Any:
            return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)

        result, pull = jax.vjp(pooled, jnp.asarray(x))
        grad = rng.integers(1, 100, result.shape).astype(np.float32)
        chosen = _chosen(jnp.asarray(x), grad.shape, window, strides, padding, "GE")
        found = _sent_back(chosen, jnp.asarray(grad), x.shape, window, strides, padding)
        np.testing.assert_array_equal(found, pull(jnp.asarray(grad))[0])
