"""Slices and padding that begin in the middle of four numbers, on Vulkan, whose kernels read four at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_targets import flat, run

import optgen as og
from optgen.errors import UnsupportedTargetError
from optgen.lower.repair.aligned import ALIGNED


def everything(x: Any, y: Any, v: Any, i: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def window(a: Any, shape: tuple[int, ...], padding: Any) -> Any:
        return jax.lax.reduce_window(a * 2, 0.0, jax.lax.add, shape, (1,) * len(shape), padding)

    x, y, v = map(jnp.asarray, (x, y, v))
    image = x[:2].reshape(2, 4, 4, 16)
    return flat([
        x[..., 7:39] * 2, v[7:519] * 2, x[..., 1:33] + x[..., 2:34], jnp.maximum(x[..., 1:33], y), x[1:3, 1:3, 5:] * 2,
        jax.lax.dynamic_slice_in_dim(x, i[0], 32, 2) * 2, jax.lax.dynamic_slice(v, (i[1],), (512,)) * 2,
        jnp.pad(v * 2, (1, 3)), jnp.pad(y * 2, ((0, 0), (1, 0), (2, 2))), jnp.roll(x, 3, -1) * 2, jnp.diff(v),
        jnp.concatenate([x[..., :7], y * 2], -1), v[:540].reshape(90, 6)[3:83] * 2, x[..., 1::2] * 2,
        (x * 1.5).at[..., 7:39].set(y * 2), window(y, (1, 1, 5), ((0, 0), (0, 0), (2, 2))), window(v, (5,), ((1, 3),)),
        jax.lax.conv_general_dilated(image, image[:, :, :3, :5], (1, 1), ((1, 1), (2, 2))),
        jax.grad(lambda x: (x[..., 7:39] ** 2 * y).sum())(x), jnp.split(x, [7, 39], -1)[1] * 2,
        jax.lax.pad(v * 2, 0.5, [(-1, 0, 0)]), jax.lax.pad(v * 2, 0.5, [(-2, -3, 1)]), y[0, :, 3] * 2,
        jax.lax.optimization_barrier(v[:30] * 2)[6:] * 3, jax.lax.optimization_barrier(y[:3, :3, :7] * 2)[1, 1:] * 3,
        jax.lax.pad(y * 2, 0.5, [(1, -1, 0), (-1, 1, 1), (-3, 2, 0)]),
    ])  # fmt: skip


def _arguments() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    shapes = {"x": (4, 4, 64), "y": (4, 4, 32), "v": (1024,)}
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"i": np.array([7, 2000], np.int32)}


def test_parts_of_arrays(tmp_path: Path, request: Any) -> None:
    found = run("vulkan", everything, arguments := _arguments(), tmp_path, request)
    np.testing.assert_allclose(found, everything(**arguments), rtol=1e-5, atol=1e-5)


def test_what_is_left_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax.numpy as jnp

    x, v = np.ones((4, 4, 64), np.float32), np.ones(1023, np.float32)
    for name, function, array, place in (
        ("stablehlo.slice", lambda x: x[..., 7:39] * 2, x, "at 0, 7 of 16x64"),
        ("stablehlo.concatenate", lambda v: jnp.concatenate([v * 2, v[:512] * 3]), v, "at byte 4092 of its memory"),
    ):
        monkeypatch.delitem(ALIGNED, name)
        with pytest.raises(UnsupportedTargetError, match=rf"middle of four numbers \({place}\)"):
            og.train.compile_function(function, array, name="f", targets="vulkan", check=False)
