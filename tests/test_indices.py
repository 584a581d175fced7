"""Indices out of range do what JAX does, by mode, on every target: forward and in gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_targets import flat, run

import optgen as og
from optgen.lower.repair import repair

INDICES = np.array([0, 7, -1, -9, 2, 5], np.int32)
TABLE = np.arange(24, dtype=np.float32).reshape(6, 4) + 1
UPDATE = np.arange(24, dtype=np.float32).reshape(6, 4) * np.float32(0.1)


def reads(x: Any, i: Any) -> list[Any]:
    """Modes of JAX, and what else becomes a gather or a slice."""
    import jax
    import jax.numpy as jnp

    taken = [x.at[i].get(mode=mode) for mode in ("clip", "fill", "promise_in_bounds")]
    taken += [x[i], x[i, i[::-1]], jnp.take_along_axis(x, i[:, None], axis=1)]
    return [*taken, jax.vmap(lambda k: jax.lax.dynamic_slice(x, (k, k), (2, 2)))(i)]


def narrow_reads(x: Any, i: Any) -> list[Any]:
    """By indices of 8 bits."""
    return [x[i.astype("uint8")], x[i.astype("int8")]]


def writes(x: Any, i: Any, u: Any) -> list[Any]:
    """What becomes a scatter or an update of a slice; of what can be combined, one kind for each mode."""
    import jax
    import jax.numpy as jnp

    made = [x.at[i].add(u, mode=mode) for mode in ("clip", "drop")]
    made += [x.at[i, i[::-1]].multiply(u[:, 0]), x.at[i].min(u), x.at[i].max(u), x.at[i].apply(jnp.cos, mode="drop")]
    # Of several that write to one place, JAX does not say which stays: these indices differ when they are clipped, too.
    once = jnp.array([3, 9, 1, -8], "int32") + i[0]
    made += [x.at[once].set(u[:4], mode="clip"), x.at[:, once].set(u[:, :4])]
    made.append(jax.vmap(lambda k: jax.lax.dynamic_update_slice(x, u[:2, :2], (k, k)))(i))
    whole = jax.lax.ScatterDimensionNumbers((1, 2), (), (0,))  # windows of two rows, some of them half outside
    windows = jnp.stack([u[:2]] * 6)
    made.append(jax.lax.scatter_add(x, i[:, None], windows, whole, mode="drop"))
    # By an index of two parts, with a dimension between them; and straight into an argument, which must stay as it is.
    apart = x.reshape(2, 3, 4).at[i % 2, :, i % 4].add(u[:, :3])
    return [*made, apart, jax.vmap(lambda row, k: row.at[k].set(1.0))(x, i), jnp.sort(x, axis=0)]


def slices(x: Any, i: Any, u: Any) -> list[Any]:
    """Slices that begin at a number of the argument."""
    import jax

    made = [jax.lax.dynamic_slice(x, i[1:3], (2, 3)), jax.lax.dynamic_update_slice(x, u[:2, :3], i[1:3])]
    return [*made, x[i[2]], x.at[i[3], i[4]].set(7.0), x.at[i[1]].add(u[0])]


def everything(x: Any, i: Any, u: Any) -> Any:
    return flat([reads(x, i), writes(x, i, u), slices(x, i, u)])


def gradients(x: Any, i: Any, u: Any) -> Any:
    """Of reads, which become scatters, and of writes, which become gathers."""
    import jax
    import jax.numpy as jnp

    def total(x: Any, u: Any) -> Any:
        parts = [x.at[i].get(mode=mode) for mode in ("clip", "fill")] + [x[i, i[::-1]]]
        parts.append(jax.vmap(lambda k: jax.lax.dynamic_slice(x, (k, k), (2, 2)))(i))
        parts += [x.at[i].add(u, mode="drop"), jax.lax.dynamic_update_slice(x, u[:2, :3], i[1:3])]
        return sum(jnp.nansum(jnp.square(part) * (n + 1)) for n, part in enumerate(parts))

    return flat(jax.grad(total, (0, 1))(x, u))


def check(target: str, function: Any, folder: Path, request: Any) -> None:
    import jax.numpy as jnp

    arguments = {"x": TABLE, "i": INDICES, "u": UPDATE}
    found = run(target, function, arguments, folder, request)
    wanted = function(*(jnp.asarray(value) for value in arguments.values()))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("target", ["cpu", "vulkan", "wasm"])  # C's loops are those of CPUs and WebAssembly
def test_indices_out_of_range(target: str, tmp_path: Path, request: Any) -> None:
    check(target, everything, tmp_path, request)


def test_gradients_with_indices_out_of_range(tmp_path: Path, request: Any) -> None:
    """They are gathers and scatters, which the test above has on the other targets."""
    check("cpu", gradients, tmp_path, request)


def test_indices_of_8_bits(tmp_path: Path, request: Any) -> None:
    check("cpu", lambda x, i, u: flat([narrow_reads(x, i), x]), tmp_path, request)


def test_known_indices_cost_nothing() -> None:
    """Counts, constants and clips are seen to be in range; an argument is not."""
    import jax
    import jax.numpy as jnp

    def text(function: Any) -> str:
        return str(jax.jit(function).lower(TABLE, INDICES).as_text())

    for function in (
        lambda x, i: x[jnp.arange(4)],
        lambda x, i: (x * 2).at[jnp.clip(i, 0, 5)].set(1.0, mode="promise_in_bounds"),
        lambda x, i: jax.lax.dynamic_slice(x, (1, 2), (2, 2)),
        lambda x, i: x * 2,
    ):
        assert repair(text(function)) == text(function)
    unknown = text(lambda x, i: x[i])
    assert repair(unknown) != unknown
    assert repair(repair(unknown)) == repair(unknown)


def test_labels_of_64_bits_change_nothing() -> None:
    """Random bits and dtypes are those of JAX's 32-bit numbers; the labels' lower bits count."""
    import jax
    import jax.numpy as jnp

    def function(x: Any, y: Any) -> Any:
        keep = jax.random.bernoulli(jax.random.key(y[0]), 0.5, x.shape)
        return {"kept": x * keep, "labels": y + 1, "mean": jnp.mean(y)}

    x = np.ones(16, np.float32)
    labels = np.array([3, 2**32 + 5, -(2**31)], np.int64)
    compiled = og.train.CompiledFunction(og.train.compile_function(function, x, labels, name="f"))
    found, wanted = compiled(x, labels), function(jnp.asarray(x), jnp.asarray(labels.astype(np.int32)))
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
