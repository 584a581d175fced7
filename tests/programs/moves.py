"""Pieces that move elements or choose among them: views, scans, loops, gathers, scatters, sorts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from programs.build import Builder, axis_of, indices, size
from programs.pieces import Shape, pick, piece


@piece(2)
def rearrange(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if not shape:
        return None
    axis = axis_of(rng, shape)
    kind = pick(rng, (
        "transpose", "flatten", "flip", "roll", "slice", "pad", "pad_edge", "pad_reflect", "tile", "repeat",
        "split", "expand", "swap_split", "diagonal", "outer", "negative_pad", "window",
    ))  # fmt: skip
    if kind == "transpose":
        order = tuple(int(i) for i in rng.permutation(len(shape)))
        return f"transpose{order}", lambda h, v: jnp.transpose(h, order)
    if kind == "flatten":
        return "flatten", lambda h, v: h.reshape(h.shape[0], -1)
    if kind == "flip":
        return f"flip(axis {axis})", lambda h, v: jnp.flip(h, axis)
    if kind == "roll":
        by = int(rng.integers(-5, 6))
        return f"roll({by}, axis {axis})", lambda h, v: jnp.roll(h, by, axis) + 0.5 * h
    if kind == "slice":
        start, step = int(rng.integers(0, max(shape[axis] // 2, 1))), int(rng.integers(1, 4))
        cut = (slice(None),) * axis + (slice(start, None, step),)
        return f"[{start}::{step}] of axis {axis}", lambda h, v: h[cut]
    if kind.startswith("pad"):
        low, high = (int(n) for n in rng.integers(0, min(3, shape[axis]), 2))
        widths = [(low, high) if a == axis else (0, 0) for a in range(len(shape))]
        mode = {"pad": "constant", "pad_edge": "edge", "pad_reflect": "reflect"}[kind]
        return f"{kind}({low}, {high}, axis {axis})", lambda h, v: jnp.pad(h, widths, mode=mode)
    if kind == "negative_pad":
        config = [(-1 if a == axis and shape[a] > 2 else 1, 1, int(a == axis)) for a in range(len(shape))]
        return f"lax.pad{config}", lambda h, v: jax.lax.pad(h, jnp.float32(0.5), config)
    if kind in ("tile", "repeat"):
        by = int(rng.integers(2, 4))
        if kind == "tile":
            return f"tile({by})", lambda h, v: jnp.tile(h, by)
        return f"repeat({by}, axis {axis})", lambda h, v: jnp.repeat(h, by, axis)
    if kind in ("split", "swap_split"):
        at = shape[axis] // 2
        swap = kind == "swap_split"

        def halves(h: Any, v: Any) -> Any:
            first, second = jnp.split(h, [at], axis)
            if swap:
                return jnp.concatenate([jnp.sin(second), first * 2], axis)
            return jnp.concatenate([jnp.tanh(first), second * 2, first], axis)

        return f"{kind}(axis {axis})", halves
    if kind == "expand":
        return f"expand_dims({axis})", lambda h, v: jnp.expand_dims(h, axis)
    if kind == "diagonal" and len(shape) > 1:
        return "diagonal", lambda h, v: jnp.diagonal(h, axis1=-2, axis2=-1)
    if kind == "window" and shape[axis] > 2:

        def windows(h: Any, v: Any) -> Any:
            return jnp.stack([jax.lax.slice_in_dim(h, i, i + shape[axis] - 2, axis=axis) for i in range(3)], -1)

        return f"windows(axis {axis})", windows  # fmt: skip
    if kind == "outer" and len(shape) == 1:
        return "outer", lambda h, v: jnp.outer(h, jnp.tanh(h))
    return None


@piece(2)
def cumulative(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if not shape:
        return None
    axis, kind = (
        axis_of(rng, shape),
        pick(rng, ("cumsum", "cumprod", "cummax", "cumlogsumexp", "reverse", "associative")),
    )
    scale = shape[axis] ** -0.5
    functions: dict[str, Callable[[Any], Any]] = {
        "cumsum": lambda h: jnp.cumsum(h, axis) * scale,
        "cumprod": lambda h: jnp.cumprod(1 + 0.1 * jnp.tanh(h) * scale, axis),
        "cummax": lambda h: jax.lax.cummax(h, axis),
        "cumlogsumexp": lambda h: jax.lax.cumlogsumexp(h, axis),
        "reverse": lambda h: jax.lax.cumsum(h, axis, reverse=True) * scale,
        "associative": lambda h: jax.lax.associative_scan(lambda a, c: a * 0.5 + c, h, axis=axis),
    }
    return f"{kind}(axis {axis})", lambda h, v: functions[kind](h)


@piece(1.5)
def loop(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if len(shape) < 2 or shape[1] > 20 or shape[-1] > 64:
        return None
    kind = pick(rng, ("rnn", "fori", "map", "cond"))
    if kind == "rnn":
        u = b.param(rng, (shape[-1], shape[-1]), 0.5 * shape[-1] ** -0.5)

        def rnn(h: Any, v: Any) -> Any:
            def cell(carry: Any, row: Any) -> Any:
                carry = jnp.tanh(row + carry @ v.params[u])
                return carry, carry

            rows = jnp.moveaxis(h, 1, 0) if h.ndim > 2 else h
            return jax.lax.scan(cell, jnp.zeros_like(rows[0]), rows)[1]

        return "scan(rnn)", rnn
    if kind == "fori":
        times = int(rng.integers(2, 6))
        return f"fori_loop({times})", lambda h, v: jax.lax.fori_loop(0, times, lambda i, x: jnp.sin(x) + 0.1 * i, h)
    if kind == "map":
        return "lax.map", lambda h, v: jax.lax.map(lambda row: row * jnp.tanh(row).sum(), h[:12])
    return "cond", lambda h, v: jax.lax.cond(h.mean() > 0.1, lambda x: x * 2, lambda x: jnp.sin(x), h)


@piece(2.5)
def gather(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if not shape:
        return None
    axis, kind = axis_of(rng, shape), pick(rng, ("take", "take", "index", "along", "dynamic_slice", "get", "2d"))
    mode = pick(rng, (None, "clip", "fill", "wrap"))
    count = size(rng, 33)
    if kind == "take":
        i = b.input(indices(rng, (count,), shape[axis]))
        mode_ = mode or "fill"
        return f"take({count}, axis {axis}, {mode_})", lambda h, v: jnp.nan_to_num(
            jnp.take(h, v.batch[i], axis, mode=mode_)
        )
    if kind in ("index", "get"):
        i = b.input(indices(rng, (count,), shape[0]))
        if kind == "index":
            return f"h[{count} indices]", lambda h, v: h[v.batch[i]]
        get = None if mode == "wrap" else mode
        return f"h.at[{count}].get({get})", lambda h, v: jnp.nan_to_num(h.at[v.batch[i]].get(mode=get, fill_value=0.5))
    if kind == "2d" and len(shape) > 1:
        i, j = b.input(indices(rng, (count,), shape[0])), b.input(indices(rng, (count,), shape[1]))
        return f"h[i, j] of {count}", lambda h, v: h[v.batch[i], v.batch[j]]
    if kind == "along":
        inner = tuple(min(count, 5) if a == axis else n for a, n in enumerate(shape))
        i = b.input(indices(rng, inner, shape[axis]))
        along = mode if mode != "wrap" else "clip"
        text = f"take_along_axis({inner}, axis {axis}, {along})"
        return text, lambda h, v: jnp.nan_to_num(jnp.take_along_axis(h, v.batch[i], axis, mode=along))
    if kind == "dynamic_slice":
        length = max(shape[axis] // 2, 1)
        i = b.input(indices(rng, (), shape[axis]).astype(np.int32))
        text = f"dynamic_slice_in_dim({length}, axis {axis})"
        return text, lambda h, v: jax.lax.dynamic_slice_in_dim(h, v.batch[i], length, axis)
    return None


@piece(2)
def scatter(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if not shape:
        return None
    kind = pick(rng, ("add", "add", "set", "multiply", "max", "min", "segment_sum", "segment_max", "dynamic_update"))
    mode = pick(rng, (None, "drop", "clip"))
    count = min(size(rng, 33), 64)
    if kind.startswith("segment"):
        i = b.input(indices(rng, (shape[0],), 5))
        function = jax.ops.segment_sum if kind == "segment_sum" else jax.ops.segment_max
        return f"{kind}(5)", lambda h, v: jnp.where(jnp.isfinite(s := function(h, v.batch[i], 5)), s, 0.0)
    if kind == "dynamic_update":
        i = b.input(indices(rng, (), shape[0]).astype(np.int32))
        return kind, lambda h, v: jax.lax.dynamic_update_slice_in_dim(
            h, jnp.sin(h[: (shape[0] + 1) // 2]), v.batch[i], 0
        )
    places = indices(rng, (count,), shape[0])
    if kind in ("set", "multiply"):  # which of several that write to one place wins is not defined; nor are derivatives
        places = np.unique(np.where(places < 0, np.maximum(places + shape[0], -1), np.minimum(places, shape[0])))
        places = places[places >= 0].astype(np.int32)
        mode = "drop"
        if not places.size:
            return None
    i, count = b.input(places), len(places)
    leaf = b.param(rng, (count, *shape[1:]), 0.3, 1.0 if kind == "multiply" else 0.0)
    unique = {"unique_indices": True} if kind == "multiply" else {}
    return f"h.at[{count}].{kind}({mode})", lambda h, v: getattr(h.at[v.batch[i]], kind)(
        v.params[leaf], mode=mode, **unique
    )


@piece(1)
def order(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if not shape or shape[-1] > 64:
        return None
    kind = pick(rng, ("sort", "top_k", "argmax", "argsort", "one_hot", "digitize", "searchsorted"))
    if kind == "sort":
        axis = axis_of(rng, shape)
        return (
            f"sort(axis {axis})",
            lambda h, v: jnp.sort(h, axis) * jnp.arange(1.0, 2.0, 1 / h.shape[-1])[: h.shape[-1]],
        )
    if kind == "top_k":
        count = min(3, shape[-1])
        return f"top_k({count})", lambda h, v: jax.lax.top_k(h, count)[0]
    if kind == "argmax":
        return "h * (argmax == i)", lambda h, v: h * (1 + (jnp.arange(shape[-1]) == jnp.argmax(h, -1, keepdims=True)))
    if kind == "argsort":
        return "take by argsort", lambda h, v: jnp.take_along_axis(h, jnp.argsort(-h, -1), -1)[..., :5]
    if kind == "one_hot":
        return (
            "one_hot of cast",
            lambda h, v: h[..., None] * jax.nn.one_hot(jnp.clip(2 * h, -2, 6).astype(jnp.int32), 5),
        )
    if kind == "digitize":
        return "digitize", lambda h, v: h * jnp.digitize(h, jnp.array([-0.55, 0.05, 0.83])).astype(jnp.float32)
    return "searchsorted", lambda h, v: h * jnp.searchsorted(jnp.array([-0.55, 0.05, 0.83]), h).astype(jnp.float32)


@piece(1.5)
def combine(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax.numpy as jnp

    kind = pick(rng, ("concatenate", "where_mask", "stack", "int_factor", "residual", "checkpoint"))
    if kind == "concatenate" and shape:
        axis = axis_of(rng, shape)
        inner = tuple(int(rng.integers(1, 5)) if a == axis else n for a, n in enumerate(shape))
        leaf = b.param(rng, inner, 0.5)
        return f"concatenate(p{inner}, axis {axis})", lambda h, v: jnp.concatenate([h, v.params[leaf], h * 2], axis)
    if kind == "where_mask":
        mask = b.input(rng.random(shape[-1:]) < 0.7)
        return "where(bool input)", lambda h, v: jnp.where(v.batch[mask], h, -h * h)
    if kind == "int_factor":
        dtype = pick(rng, ("int32", "int64", "int8", "uint8", "int16"))
        factor = b.input(rng.integers(1, 5, shape[-1:]).astype(dtype))
        return f"h * input of {dtype}", lambda h, v: h * v.batch[factor] / 3
    if kind == "stack":
        return "stack", lambda h, v: jnp.stack([h, jnp.sin(h)], -1)
    if kind == "checkpoint":
        import jax

        return "checkpoint", lambda h, v: jax.checkpoint(lambda x: jnp.sin(jnp.exp(-x * x)))(h)
    return "h + tanh(h)", lambda h, v: h + jnp.tanh(h)
