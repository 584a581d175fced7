"""What losses are made of: pieces, which take a value of f32 and give another of whatever shape. Here elementwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from programs.build import Apply, Builder

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
        return (
            f"h * |10 h| as {name}",
            lambda h, v: 0.1 * h * jnp.clip(jnp.abs(10 * h), 0, 100).astype(name).astype(h.dtype),
        )
    return f"h * (10 h) as {name}", lambda h, v: 0.1 * h * jnp.clip(10 * h, -100, 100).astype(name).astype(jnp.float32)


@piece(2)
def with_param(rng: np.random.Generator, shape: Shape, b: Builder) -> Any:
    import jax.numpy as jnp

    functions: dict[str, tuple[float, Callable[[Any, Any], Any]]] = {
        "add": (0.0, jnp.add),
        "multiply": (1.0, jnp.multiply),
        "divide": (2.0, lambda h, p: h / (jnp.abs(p) + 0.5)),
        "maximum": (0.0, jnp.maximum),
        "minimum": (0.0, jnp.minimum),
        "where": (0.0, lambda h, p: jnp.where(h > p, h, p)),
        "power": (1.0, lambda h, p: jnp.power(jnp.abs(h) + 0.2, p)),
        "logaddexp": (0.0, jnp.logaddexp),
        "hypot": (1.0, lambda h, p: jnp.hypot(h, p + 1)),
        "arctan2": (1.0, lambda h, p: jnp.arctan2(h, p + 2)),
        "clip": (0.5, lambda h, p: jnp.clip(h, -jnp.abs(p), jnp.abs(p))),
        "prelu": (0.2, lambda h, p: jnp.where(h > 0, h, p * h)),
        "copysign": (0.5, lambda h, p: h * jnp.copysign(1.0, p)),
        "float_power": (1.0, lambda h, p: (jnp.abs(h) + 0.2) ** p),
        "nextafter": (0.0, lambda h, p: jnp.nextafter(h, jnp.inf) + p),
    }
    name = pick(rng, sorted(functions))
    kept = [extent if rng.random() < 0.6 else 1 for extent in shape[int(rng.integers(len(shape) + 1)) :]]
    around, function = functions[name]
    leaf = b.param(rng, tuple(kept), 0.3, around)
    return f"{name}(h, p{tuple(kept)})", lambda h, v: function(h, v.params[leaf])
