"""Pieces that relate elements to one another: layers, norms, reductions, attention, random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from programs.build import Builder, axes_of, axis_of, size
from programs.pieces import Shape, pick, piece


@piece(4)
def dense(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    if not shape:
        return None
    width, bias = size(rng, 64), bool(rng.random() < 0.6)
    w = b.param(rng, (shape[-1], width), shape[-1] ** -0.5)
    if not bias:
        return f"dense({width})", lambda h, v: h @ v.params[w]
    c = b.param(rng, (width,), 0.1)
    return f"dense({width}, bias)", lambda h, v: h @ v.params[w] + v.params[c]


@piece(1)
def contract(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax.numpy as jnp

    if not shape:
        return None
    axis, width = axis_of(rng, shape), size(rng, 32)
    w = b.param(rng, (shape[axis], width), shape[axis] ** -0.5)
    return f"tensordot(axis {axis}, {width})", lambda h, v: jnp.tensordot(h, v.params[w], axes=((axis,), (0,)))


@piece(1)
def gram(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax.numpy as jnp

    if len(shape) < 2 or shape[-2] > 64:
        return None
    return "h @ h.T", lambda h, v: h @ jnp.swapaxes(h, -1, -2) / shape[-1]


@piece(3)
def convolution(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax

    if len(shape) not in (3, 4):
        return None
    spatial = len(shape) - 2
    last = bool(rng.random() < 0.6)
    channels = shape[-1] if last else shape[1]
    groups = int(pick(rng, [g for g in (1, 1, 2, 3, channels) if channels % g == 0]))
    features = groups * int(pick(rng, (1, 2, 3, 4)))
    if channels > 64 or features > 64:
        return None
    window = tuple(int(rng.integers(1, 5)) for _ in range(spatial))
    strides = tuple(int(rng.integers(1, 4)) for _ in range(spatial))
    dilation = tuple(int(pick(rng, (1, 1, 2))) for _ in range(spatial))
    spread = tuple(int(pick(rng, (1, 1, 1, 2))) for _ in range(spatial))
    padding = pick(rng, ("SAME", "VALID", [(int(rng.integers(0, 3)), int(rng.integers(0, 3))) for _ in range(spatial)]))
    if spread != (1,) * spatial and isinstance(padding, str):
        spread = (1,) * spatial
    letters = "HW"[:spatial]
    layout = (
        (f"N{letters}C", f"{letters}IO", f"N{letters}C") if last else (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    )
    kernel = (*window, channels // groups, features) if last else (features, channels // groups, *window)
    w = b.param(rng, kernel, (np.prod(window) * channels / groups) ** -0.5)
    text = f"conv({layout[0]}, {window}, features {features}, strides {strides}, padding {padding}"
    text += f", dilation {dilation}, lhs {spread}, groups {groups})"
    return text, lambda h, v: jax.lax.conv_general_dilated(
        h, v.params[w], strides, padding, lhs_dilation=spread, rhs_dilation=dilation, dimension_numbers=layout,
        feature_group_count=groups,
    )  # fmt: skip


@piece(3)
def pool(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if len(shape) < 2:
        return None
    kind = pick(rng, ("max", "max", "sum", "mean", "min"))
    axes = set(axes_of(rng, shape))
    window = tuple(int(rng.integers(1, 4)) if a in axes else 1 for a in range(len(shape)))
    strides = tuple(int(rng.integers(1, 4)) if a in axes else 1 for a in range(len(shape)))
    padding = pick(rng, ("SAME", "VALID", [(int(rng.integers(0, w)), int(rng.integers(0, w))) for w in window]))
    text = f"{kind}_pool({window}, strides {strides}, padding {padding})"

    def apply(h: Any, v: Any) -> Any:
        if kind == "max":
            return jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, window, strides, padding)
        if kind == "min":
            return jax.lax.reduce_window(h, jnp.inf, jax.lax.min, window, strides, padding)
        total = jax.lax.reduce_window(h, 0.0, jax.lax.add, window, strides, padding)
        return total / np.prod(window) if kind == "mean" else total

    return text, apply


@piece(2)
def normalise(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax.numpy as jnp

    if not shape:
        return None
    axes = axes_of(rng, shape)
    kind = pick(rng, ("standard", "rms", "l2", "l1", "max", "std"))

    def apply(h: Any, v: Any) -> Any:
        if kind == "standard":
            return (h - h.mean(axes, keepdims=True)) / jnp.sqrt(h.var(axes, keepdims=True) + 1e-2)
        if kind == "rms":
            return h / jnp.sqrt((h * h).mean(axes, keepdims=True) + 1e-2)
        if kind == "l2":
            return h / jnp.sqrt((h * h).sum(axes, keepdims=True) + 0.1)
        if kind == "l1":
            return h / (jnp.abs(h).sum(axes, keepdims=True) + 0.1)
        if kind == "std":
            return h / (h.std(axes, keepdims=True) + 0.3)
        return h / (jnp.abs(h).max(axes, keepdims=True) + 0.1)

    return f"{kind}_norm(axes {axes})", apply


@piece(2.5)
def reduction(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if not shape:
        return None
    axes, keep = axes_of(rng, shape), bool(rng.random() < 0.5)
    functions: dict[str, Callable[..., Any]] = {
        "mean": jnp.mean, "max": jnp.max, "min": jnp.min, "logsumexp": jax.nn.logsumexp, "var": jnp.var,
        "sum": lambda h, axis, keepdims: jnp.sum(h, axis, keepdims=keepdims) / np.prod([shape[a] for a in axes]) ** 0.5,
        "prod": lambda h, axis, keepdims: jnp.prod(1 + 0.1 * jnp.tanh(h), axis, keepdims=keepdims),
        "norm": lambda h, axis, keepdims: jnp.sqrt(jnp.sum(h * h, axis, keepdims=keepdims) + 0.01),
        "median": lambda h, axis, keepdims: jnp.median(h, axis, keepdims=keepdims),
        "ptp": lambda h, axis, keepdims: jnp.ptp(h, axis, keepdims=keepdims),
    }  # fmt: skip
    name = pick(rng, sorted(functions))
    if keep:
        return f"h - {name}(axes {axes})", lambda h, v: h - functions[name](h, axis=axes, keepdims=True)
    return f"{name}(axes {axes})", lambda h, v: functions[name](h, axis=axes, keepdims=False)


@piece(2.5)
def softmax(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if not shape:
        return None
    axis = len(shape) - 1 if rng.random() < 0.6 else axis_of(rng, shape)
    log, kind = bool(rng.random() < 0.5), pick(rng, ("plain", "temperature", "learned", "masked", "gumbel"))
    function = jax.nn.log_softmax if log else jax.nn.softmax
    text = f"{'log_' if log else ''}softmax({kind}, axis {axis})"
    if kind == "temperature":
        return text, lambda h, v: function(h / 0.7, axis=axis)
    if kind == "learned":
        leaf = b.param(rng, (), 0.1, 1.0)
        return text, lambda h, v: function(h / v.params[leaf], axis=axis)
    if kind == "masked":
        mask = b.input(rng.random(shape[axis:]) < 0.8)
        return text, lambda h, v: function(jnp.where(v.batch[mask], h, -10.0), axis=axis)
    if kind == "gumbel":
        b.random = True
        return text, lambda h, v: function(h + 0.3 * jax.random.gumbel(v.key, h.shape), axis=axis)
    return text, lambda h, v: function(h, axis=axis)


@piece(2)
def attention(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if len(shape) != 3 or shape[1] > 64:
        return None
    heads, width = int(pick(rng, (1, 2, 3))), int(pick(rng, (2, 4, 5, 8)))
    causal = bool(rng.random() < 0.5)
    leaves = [b.param(rng, (shape[2], heads * width), shape[2] ** -0.5) for _ in range(3)]
    out = b.param(rng, (heads * width, shape[2]), (heads * width) ** -0.5)

    def apply(h: Any, v: Any) -> Any:
        q, k, u = ((h @ v.params[leaf]).reshape(*shape[:2], heads, width) for leaf in leaves)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / width**0.5
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), u)
        return h + mixed.reshape(*shape[:2], heads * width) @ v.params[out]

    return f"attention(heads {heads} of {width}{', causal' if causal else ''})", apply


@piece(1)
def dropout(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    b.random, kind = True, pick(rng, ("bernoulli", "uniform", "normal", "randint", "permutation"))
    if kind == "bernoulli":
        return "dropout", lambda h, v: jnp.where(jax.random.bernoulli(v.key, 0.8, h.shape), h / 0.8, 0.0)
    if kind == "uniform":
        return "h * uniform", lambda h, v: h * jax.random.uniform(v.key, h.shape, minval=0.5, maxval=1.5)
    if kind == "normal":
        return "h + normal", lambda h, v: h + 0.1 * jax.random.normal(jax.random.fold_in(v.key, 3), h.shape)
    if kind == "permutation" and shape:
        return "permutation(rows)", lambda h, v: jax.random.permutation(jax.random.split(v.key)[1], h, axis=0)
    return "h * randint", lambda h, v: h * jax.random.randint(v.key, h.shape, 1, 4).astype(jnp.float32)
