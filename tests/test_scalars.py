"""One truth value that chooses between arrays, on every target: C and JavaScript had refused it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_targets import TARGETS, flat, run


def everything(x: Any) -> Any:
    """A variance's gradient, whose divisor JAX chooses, and a clip by the norm, either way."""
    import jax
    import jax.numpy as jnp

    norm = jnp.sqrt(jnp.sum(x * x))
    clipped = [jnp.where(norm > most, x * (most / norm), x) for most in (2.0, 100.0)]
    return flat([jax.grad(lambda x: jnp.var(x, 1).sum())(x), *clipped])


@pytest.mark.parametrize("target", TARGETS)
def test_scalars_that_choose(target: str, tmp_path: Path, request: Any) -> None:
    x = np.random.default_rng(11).standard_normal((5, 7)).astype(np.float32)
    found = run(target, everything, {"x": x}, tmp_path, request)
    np.testing.assert_allclose(found, everything(x), rtol=1e-5, atol=1e-6)
