"""Functions in f64 that IREE's kernels lack: cosine and sine everywhere, which schedules have, and where there is no C
library (WebAssembly) exponentials, which bias corrections have."""

from __future__ import annotations

import math
from typing import Any

from optgen.dsl.trace import import_jax

#: pi / 2 as the sum of two numbers of f64, so that multiples of it lose nothing.
_HIGH, _LOW = math.pi / 2, 6.123233995736766e-17
_TERMS = 10
#: ln 2 as such a sum; the first has 32 bits of zeros at its end.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_EXP_TERMS = 16


def cos(x: Any) -> Any:
    """The cosine of f64 ``x`` by its Taylor series in [-pi/4, pi/4]: within 3e-16 for arguments up to 1e5."""
    jnp = import_jax().numpy
    quarter = _nearest(x / _HIGH)
    rest = (x - quarter * _HIGH) - quarter * _LOW
    square = rest * rest
    even = _series(square, [(-1) ** n / math.factorial(2 * n) for n in range(_TERMS)])
    odd = rest * _series(square, [(-1) ** n / math.factorial(2 * n + 1) for n in range(_TERMS)])
    turn = quarter - 4 * jnp.floor(quarter / 4)
    return jnp.where(turn == 0, even, jnp.where(turn == 1, -odd, jnp.where(turn == 2, -even, odd)))


def sin(x: Any) -> Any:
    """The sine of f64 ``x``, likewise."""
    return cos(x - _HIGH)


def expm1(x: Any) -> Any:
    """``exp(x) - 1`` of f64 ``x``: within 4e-16 of it, relative, for results that f64 has."""
    jnp = import_jax().numpy
    power, small = _powers(x)
    value = jnp.where(power == 1, small, power * small + (power - 1))
    return jnp.where(x < -700, -1.0, _unbounded(x, value))


def exp(x: Any) -> Any:
    """The exponential of f64 ``x``, likewise; 0 where that would be below 1e-304."""
    jnp = import_jax().numpy
    power, small = _powers(x)
    return jnp.where(x < -700, 0.0, _unbounded(x, power * small + power))


def _powers(x: Any) -> tuple[Any, Any]:
    """A power of two, and what times it is to be added to it to give the exponential of ``x``."""
    jax = import_jax()
    jnp = jax.numpy
    count = jnp.clip(_nearest(x / _LN2_HIGH), -1021, 1023)
    rest = (x - count * _LN2_HIGH) - count * _LN2_LOW
    small = rest * _series(rest, [1 / math.factorial(n + 1) for n in range(_EXP_TERMS)])
    return jax.lax.bitcast_convert_type((count.astype("int64") + 1023) << 52, "float64"), small


def _unbounded(x: Any, value: Any) -> Any:
    jnp = import_jax().numpy
    return jnp.where(x > 709.78, jnp.inf, jnp.where(x == x, value, x))


def _nearest(x: Any) -> Any:
    """The nearest whole number. Rounding to even would be a call of the C library's where the processor has none."""
    return import_jax().numpy.floor(x + 0.5)


def _series(x: Any, coefficients: list[float]) -> Any:
    total = 0.0 * x
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total
