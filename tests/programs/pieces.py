"""What losses are made of: each piece takes a value of f32 and gives another, of whatever shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from programs.build import Apply, Builder, axes_of, axis_of, indices, size

Shape = tuple[int, ...]
#: ``(rng, shape of its argument, builder)`` to a description and the piece, or None if the shape does not suit it.
Piece = Callable[[np.random.Generator, Shape, Builder], tuple[str, Apply] | None]

PIECES: dict[str, tuple[float, Piece]] = {}


def piece(weight: float = 1.0) -> Callable[[Piece], Piece]:
    """Registers a piece, chosen by ``weight``."""

    def register(function: Piece) -> Piece:
        PIECES[function.__name__] = weight, function
        return function

    return register


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """One of a sequence."""
    return choices[int(rng.integers(len(choices)))]


# Elementwise.


@piece(4)
def unary(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    functions: dict[str, Callable[[Any], Any]] = {
        "relu": jax.nn.relu, "gelu": jax.nn.gelu, "gelu_exact": lambda h: jax.nn.gelu(h, approximate=False),
        "silu": jax.nn.silu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus,
        "elu": jax.nn.elu, "leaky_relu": jax.nn.leaky_relu, "exp": lambda h: jnp.exp(jnp.clip(h, -5, 2)),
        "log1p": lambda h: jnp.log1p(jnp.abs(h)), "log": lambda h: jnp.log(jnp.abs(h) + 0.1),
        "sqrt": lambda h: jnp.sqrt(jnp.abs(h) + 0.01), "square": lambda h: 0.3 * h * h, "abs": jnp.abs,
        "sin": jnp.sin, "cos": jnp.cos, "tan": lambda h: jnp.tan(0.5 * jnp.tanh(h)), "cube": lambda h: (0.5 * h) ** 3,
        "erf": jax.lax.erf, "cbrt": lambda h: jnp.cbrt(h + 3), "reciprocal": lambda h: 1 / (1.5 + jnp.abs(h)),
        "rsqrt": lambda h: jax.lax.rsqrt(jnp.abs(h) + 0.5), "expm1": lambda h: jnp.expm1(jnp.clip(h, -3, 1)),
        "sinh": lambda h: jnp.sinh(jnp.clip(h, -2, 2)), "cosh": lambda h: jnp.cosh(jnp.clip(h, -2, 2)),
        "arctan": jnp.arctan, "arcsinh": jnp.arcsinh, "arcsin": lambda h: jnp.arcsin(0.9 * jnp.tanh(h)),
        "arccosh": lambda h: jnp.arccosh(1.5 + jnp.abs(h)), "arctanh": lambda h: jnp.arctanh(0.8 * jnp.tanh(h)),
        "arccos": lambda h: jnp.arccos(0.9 * jnp.tanh(h)), "exp2": lambda h: jnp.exp2(jnp.clip(h, -4, 2)),
        "log2": lambda h: jnp.log2(jnp.abs(h) + 0.1), "log10": lambda h: jnp.log10(jnp.abs(h) + 0.1),
        "logit": lambda h: jax.scipy.special.logit(0.1 + 0.8 * jax.nn.sigmoid(h)), "erfc": jax.lax.erfc,
        "erf_inv": lambda h: jax.lax.erf_inv(0.9 * jnp.tanh(h)), "lgamma": lambda h: jax.lax.lgamma(1.5 + jnp.abs(h)),
        "digamma": lambda h: jax.lax.digamma(1.5 + jnp.abs(h)), "mish": jax.nn.mish, "selu": jax.nn.selu,
        "hard_swish": jax.nn.hard_swish, "sinc": jnp.sinc, "deg2rad": lambda h: jnp.deg2rad(h * 50),
        "nan_to_num": lambda h: jnp.nan_to_num(h), "heaviside": lambda h: h * jnp.heaviside(h, 0.5),
    }  # fmt: skip
    name = pick(rng, sorted(functions))
    return name, lambda h, v: functions[name](h)


@piece(1)
def rounding(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    functions: dict[str, Callable[[Any], Any]] = {
        "round": jnp.round, "floor": jnp.floor, "ceil": jnp.ceil, "trunc": jnp.trunc, "rint": jnp.rint,
        "sign": jnp.sign, "away": lambda h: jax.lax.round(h, jax.lax.RoundingMethod.AWAY_FROM_ZERO),
        "fix_decimals": lambda h: jnp.round(h, 1),
    }  # fmt: skip
    name, through = pick(rng, sorted(functions)), bool(rng.random() < 0.5)
    if through:
        return f"straight_through({name})", lambda h, v: h + jax.lax.stop_gradient(functions[name](3 * h) / 3 - h)
    return f"h * {name}(h)", lambda h, v: h * functions[name](h)


@piece(1)
def remainder(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax.numpy as jnp

    name = pick(rng, ("mod", "fmod", "floor_divide", "divmod"))
    if name == "mod":
        return name, lambda h, v: jnp.mod(h, 0.7)
    if name == "fmod":
        return name, lambda h, v: jnp.fmod(h, 0.7)
    if name == "floor_divide":
        return name, lambda h, v: h * jnp.floor_divide(h, 0.7)
    return name, lambda h, v: sum(jnp.divmod(h, 1.3))


@piece(1.5)
def cast(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax.numpy as jnp

    name = pick(rng, ("bfloat16", "float16", "int32", "int8", "uint8", "bool", "int16", "uint32"))
    if "float" in name:
        return f"as {name}", lambda h, v: (h.astype(name) * 2).astype(jnp.float32) / 2
    if name == "bool":
        return "h * (h > 0) as bool", lambda h, v: h * (h > 0).astype(bool).astype(jnp.float32)
    if name.startswith("u"):
        return f"h * |10 h| as {name}", lambda h, v: 0.1 * h * jnp.clip(jnp.abs(10 * h), 0, 100).astype(name).astype(h.dtype)
    return f"h * (10 h) as {name}", lambda h, v: 0.1 * h * jnp.clip(10 * h, -100, 100).astype(name).astype(jnp.float32)


@piece(2)
def with_param(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax.numpy as jnp

    functions: dict[str, tuple[float, Callable[[Any, Any], Any]]] = {
        "add": (0.0, jnp.add), "multiply": (1.0, jnp.multiply), "divide": (2.0, lambda h, p: h / (jnp.abs(p) + 0.5)),
        "maximum": (0.0, jnp.maximum), "minimum": (0.0, jnp.minimum), "where": (0.0, lambda h, p: jnp.where(h > p, h, p)),
        "power": (1.0, lambda h, p: jnp.power(jnp.abs(h) + 0.2, p)), "logaddexp": (0.0, jnp.logaddexp),
        "hypot": (1.0, lambda h, p: jnp.hypot(h, p + 1)), "arctan2": (1.0, lambda h, p: jnp.arctan2(h, p + 2)),
        "clip": (0.5, lambda h, p: jnp.clip(h, -jnp.abs(p), jnp.abs(p))), "prelu": (0.2, lambda h, p: jnp.where(h > 0, h, p * h)),
        "copysign": (0.5, lambda h, p: h * jnp.copysign(1.0, p)), "float_power": (1.0, lambda h, p: (jnp.abs(h) + 0.2) ** p),
        "nextafter": (0.0, lambda h, p: h * 1.0 + p),
    }  # fmt: skip
    name = pick(rng, sorted(functions))
    kept = [extent if rng.random() < 0.6 else 1 for extent in shape[int(rng.integers(len(shape) + 1)) :]]
    around, function = functions[name]
    leaf = b.param(rng, tuple(kept), 0.3, around)
    return f"{name}(h, p{tuple(kept)})", lambda h, v: function(h, v.params[leaf])


# Layers.


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
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C") if last else (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    kernel = (*window, channels // groups, features) if last else (features, channels // groups, *window)
    w = b.param(rng, kernel, (np.prod(window) * channels / groups) ** -0.5)
    text = f"conv({layout[0]}, {window}, features {features}, strides {strides}, padding {padding}, dilation {dilation}, lhs {spread}, groups {groups})"
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


# Moving elements.


@piece(2)
def rearrange(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if not shape:
        return None
    axis = axis_of(rng, shape)
    kind = pick(rng, ("transpose", "flatten", "flip", "roll", "slice", "pad", "pad_edge", "pad_reflect", "tile", "repeat",
                      "split", "expand", "swap_split", "diagonal", "outer", "negative_pad", "window"))  # fmt: skip
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
    axis, kind = axis_of(rng, shape), pick(rng, ("cumsum", "cumprod", "cummax", "cumlogsumexp", "reverse", "associative"))
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
        return f"take({count}, axis {axis}, {mode_})", lambda h, v: jnp.nan_to_num(jnp.take(h, v.batch[i], axis, mode=mode_))
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
        return kind, lambda h, v: jax.lax.dynamic_update_slice_in_dim(h, jnp.sin(h[: (shape[0] + 1) // 2]), v.batch[i], 0)
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
    return f"h.at[{count}].{kind}({mode})", lambda h, v: getattr(h.at[v.batch[i]], kind)(v.params[leaf], mode=mode, **unique)


@piece(1)
def order(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax
    import jax.numpy as jnp

    if not shape or shape[-1] > 64:
        return None
    kind = pick(rng, ("sort", "top_k", "argmax", "argsort", "one_hot", "digitize", "searchsorted"))
    if kind == "sort":
        axis = axis_of(rng, shape)
        return f"sort(axis {axis})", lambda h, v: jnp.sort(h, axis) * jnp.arange(1.0, 2.0, 1 / h.shape[-1])[: h.shape[-1]]
    if kind == "top_k":
        count = min(3, shape[-1])
        return f"top_k({count})", lambda h, v: jax.lax.top_k(h, count)[0]
    if kind == "argmax":
        return "h * (argmax == i)", lambda h, v: h * (1 + (jnp.arange(shape[-1]) == jnp.argmax(h, -1, keepdims=True)))
    if kind == "argsort":
        return "take by argsort", lambda h, v: jnp.take_along_axis(h, jnp.argsort(-h, -1), -1)[..., :5]
    if kind == "one_hot":
        return "one_hot of cast", lambda h, v: h[..., None] * jax.nn.one_hot(jnp.clip(2 * h, -2, 6).astype(jnp.int32), 5)
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
