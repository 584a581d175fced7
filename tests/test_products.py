"""Sums, over several dimensions, of products with an array of fewer: CPUs had refused them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_targets import TARGETS, flat, run


def everything(w: Any, x: Any, i: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def loss(w: Any) -> Any:
        return jnp.mean(x[0] * w) ** 2

    return flat([
        loss(w), jax.grad(loss)(w), jnp.sum(x * w, (1, 2)), jnp.sum(x * w, (0, 2)), jnp.sum(x[0, :, :1] * x[0]),
        jnp.sum(i * jnp.arange(5)), jnp.sum(x * w[:4, None]),
    ])  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_sums_of_products(target: str, tmp_path: Path, request: Any) -> None:
    rng = np.random.default_rng(17)
    w, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((5,), (3, 4, 5)))
    arguments = {"w": w, "x": x, "i": rng.integers(-9, 9, (4, 5)).astype(np.int32)}
    found = run(target, everything, arguments, tmp_path, request)
    np.testing.assert_allclose(found, everything(**arguments), rtol=1e-5, atol=1e-5)
