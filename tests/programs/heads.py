"""Where losses begin and end: inputs of every kind, and what makes one number of a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from programs.build import Apply, Builder, indices, size
from programs.pieces import Shape, pick

Source = Callable[[np.random.Generator, Builder], tuple[str, Apply]]


def _floats(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _rows(rng: np.random.Generator, b: Builder) -> tuple[str, Apply]:
    shape = (size(rng), size(rng, 100))
    if np.prod(shape) > 20_000:
        shape = (shape[0], 10)
    x = b.input(_floats(rng, shape))
    return f"x{shape}", lambda _, v: v.batch[x]


def _image(rng: np.random.Generator, b: Builder) -> tuple[str, Apply]:
    shape = (size(rng, 10), int(rng.integers(3, 13)), int(rng.integers(3, 13)), int(pick(rng, (1, 2, 3, 4, 6))))
    x = b.input(_floats(rng, shape))
    return f"image{shape}", lambda _, v: v.batch[x]


def _sequence(rng: np.random.Generator, b: Builder) -> tuple[str, Apply]:
    shape = (size(rng, 10), size(rng, 33), size(rng, 17))
    x = b.input(_floats(rng, shape))
    return f"sequence{shape}", lambda _, v: v.batch[x]


def _tokens(rng: np.random.Generator, b: Builder) -> tuple[str, Apply]:
    words, width = size(rng, 256), size(rng, 32)
    shape = (size(rng, 10), size(rng, 17)) if rng.random() < 0.7 else (size(rng, 200),)
    i = b.input(indices(rng, shape, words))
    table = b.param(rng, (words, width), 0.7)
    return f"embedding({words}, {width}) of {shape}", lambda _, v: v.params[table][v.batch[i]]


def _vector(rng: np.random.Generator, b: Builder) -> tuple[str, Apply]:
    shape = (size(rng),) if rng.random() < 0.8 else ()
    leaf = b.param(rng, shape, 1.0)
    return f"p{shape}", lambda _, v: v.params[leaf]


def _integers(rng: np.random.Generator, b: Builder) -> tuple[str, Apply]:
    shape, dtype = (size(rng, 100), size(rng, 33)), pick(rng, ("uint8", "int8", "int32", "int64", "bool", "float16"))
    x = b.input(rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype))
    scale = 1.0 if dtype == "bool" else 0.02
    return f"{dtype}{shape}", lambda _, v: v.batch[x].astype("float32") * scale


SOURCES: dict[str, tuple[float, Source]] = {
    "rows": (4, _rows), "image": (2.5, _image), "sequence": (2, _sequence), "tokens": (1.5, _tokens),
    "vector": (1, _vector), "integers": (1, _integers),
}  # fmt: skip


def anchor(rng: np.random.Generator, shape: Shape, b: Builder) -> tuple[str, Apply]:
    """A param in front of all pieces, so that their gradients matter."""
    leaf = b.param(rng, shape[-1:], 0.2, 1.0)
    return "* p", lambda h, v: h * v.params[leaf]


def head(rng: np.random.Generator, shape: Shape, b: Builder) -> tuple[str, Apply]:
    """One number of a value."""
    import jax
    import jax.numpy as jnp

    regression = ("mse", "huber", "squares", "cauchy", "weighted", "sum_sin", "logcosh", "pinball", "mean_abs")
    classes = ("nll", "one_hot", "smoothing", "brier", "hinge", "focal", "kl", "optax", "cosine")
    kind = pick(rng, regression + classes * 2) if len(shape) >= 1 and shape[-1] > 1 else pick(rng, regression)
    if kind in ("squares", "sum_sin", "logcosh", "mean_abs"):
        functions: dict[str, Callable[[Any], Any]] = {
            "squares": lambda h: jnp.mean(h * h),
            "sum_sin": lambda h: jnp.sum(jnp.sin(h)) / max(np.prod(shape), 1) ** 0.5,
            "logcosh": lambda h: jnp.mean(jnp.logaddexp(h, -h)), "mean_abs": lambda h: jnp.mean(jnp.abs(h)),
        }  # fmt: skip
        return kind, lambda h, v: functions[kind](h)
    if kind in regression:
        y = b.input(_floats(rng, shape))
        pairs: dict[str, Callable[[Any, Any], Any]] = {
            "mse": lambda h, y: jnp.mean((h - y) ** 2),
            "huber": lambda h, y: jnp.mean(jnp.where(jnp.abs(h - y) < 1, 0.5 * (h - y) ** 2, jnp.abs(h - y) - 0.5)),
            "cauchy": lambda h, y: jnp.mean(jnp.log1p((h - y) ** 2)),
            "weighted": lambda h, y: jnp.sum(jnp.abs(y) * (h - y) ** 2) / jnp.sum(jnp.abs(y)),
            "pinball": lambda h, y: jnp.mean(jnp.maximum(0.3 * (y - h), -0.7 * (y - h))),
        }
        return kind, lambda h, v: pairs[kind](h, v.batch[y])
    count = shape[-1]
    labels = rng.integers(0, count, shape[:-1])
    y = b.input(labels.astype(np.int64 if rng.random() < 0.3 else np.int32))

    def classify(h: Any, v: Any) -> Any:
        i = v.batch[y]
        if kind == "brier":
            return jnp.mean(jnp.sum((jax.nn.softmax(h) - jax.nn.one_hot(i, count)) ** 2, -1))
        if kind == "hinge":
            right = jnp.take_along_axis(h, i[..., None], -1)
            return jnp.mean(jnp.maximum(0.0, 1 + h - right))
        if kind == "cosine":
            unit = h / jnp.sqrt(jnp.sum(h * h, -1, keepdims=True) + 1e-3)
            return 1 - jnp.mean(jnp.take_along_axis(unit, i[..., None], -1))
        if kind == "optax":
            import optax

            return optax.softmax_cross_entropy_with_integer_labels(h, i).mean()
        logs = jax.nn.log_softmax(h)
        if kind == "nll":
            return -jnp.mean(jnp.take_along_axis(logs, i[..., None], -1))
        if kind == "focal":
            right = jnp.take_along_axis(logs, i[..., None], -1)
            return -jnp.mean((1 - jnp.exp(right)) ** 2 * right)
        wanted = jax.nn.one_hot(i, count)
        if kind == "smoothing":
            wanted = 0.9 * wanted + 0.1 / count
        if kind == "kl":
            wanted = jax.nn.softmax(3 * wanted)
            return jnp.mean(jnp.sum(wanted * (jnp.log(wanted) - logs), -1))
        return -jnp.mean(jnp.sum(wanted * logs, -1))

    return f"{kind}({count} classes)", classify
