"""Convolutions with one window in some dimension, and elements that it does not reach: had been refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_targets import run

#: Strides, padding, and dilations of the window and of the input, for an input of 7 x 8 and a window of 2 x 3.
CASES = (
    ((1, 9), "SAME", (1, 1), (1, 1)),
    ((9, 9), [(1, 2), (0, 3)], (2, 1), (1, 1)),
    ((20, 20), [(0, 0), (0, 0)], (1, 2), (2, 3)),
)


def everything(x: Any, k: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def total(x: Any, k: Any) -> Any:
        each = (
            jax.lax.conv_general_dilated(x, k, strides, padding, lhs_dilation=spread, rhs_dilation=dilation)
            for strides, padding, dilation, spread in CASES
        )
        return sum((out**2 * jnp.arange(out.size).reshape(out.shape)).sum() / out.size for out in each)

    value, grads = jax.value_and_grad(total, (0, 1))(x, k)
    return jnp.concatenate([value[None], *(g.ravel() for g in grads)])


@pytest.mark.parametrize("target", ["cpu", "vulkan"])
def test_one_window(target: str, tmp_path: Path, request: Any) -> None:
    rng = np.random.default_rng(3)
    arguments = {
        n: rng.standard_normal(s).astype(np.float32) for n, s in {"x": (2, 3, 7, 8), "k": (4, 3, 2, 3)}.items()
    }
    found = run(target, everything, arguments, tmp_path, request)
    np.testing.assert_allclose(found, everything(**arguments), rtol=1e-5, atol=1e-5)
