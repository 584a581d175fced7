"""Functions of numbers in arithmetic that every target has, for f32 and f64 alike.

``tests/test_elementwise.py`` measures their errors in ulp, at ordinary and huge arguments, infinities, NaN and zeros
with their sign, and holds the bounds; what is made of ``exp`` and ``log`` is as exact as the device's are.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from optgen.dsl.trace import import_jax

_LN2 = math.log(2)


def sin(x: Any) -> Any:
    """The sine."""
    jnp = import_jax().numpy
    rest, turn = _quarters(x)
    value = jnp.where((turn & 1) == 1, _cos_near(rest), _sin_near(rest))
    value = jnp.where((turn & 2) == 2, -value, value)
    return jnp.where(x == 0, x, value)


def cos(x: Any) -> Any:
    """The cosine."""
    jnp = import_jax().numpy
    rest, turn = _quarters(x)
    value = jnp.where((turn & 1) == 1, _sin_near(rest), _cos_near(rest))
    return jnp.where(((turn + 1) & 2) == 2, -value, value)


def tan(x: Any) -> Any:
    """The tangent."""
    jnp = import_jax().numpy
    rest, turn = _quarters(x)
    sine, cosine = _sin_near(rest), _cos_near(rest)
    odd = (turn & 1) == 1
    value = jnp.where(odd, -cosine, sine) / jnp.where(odd, sine, cosine)
    return jnp.where(x == 0, x, value)


def _quarters(x: Any) -> tuple[Any, Any]:
    """What is left of ``x`` after whole quarter turns, between -pi/4 and pi/4, and their number, of which the last two
    bits are right. By Payne and Hanek: of the product with 2/pi only those bits are computed that matter, in integers,
    so that no argument is too large."""
    jax = import_jax()
    jnp, lax = jax.numpy, jax.lax
    bits, mantissa, bias = (32, 23, 127) if x.dtype == np.float32 else (64, 52, 1023)
    unsigned, signed = (jnp.uint32, jnp.int32) if bits == 32 else (jnp.uint64, jnp.int64)

    def whole(value: int) -> Any:
        return jnp.asarray(value, unsigned)

    raw = lax.bitcast_convert_type(x, unsigned)
    exponent = (raw >> whole(mantissa)) & whole(2 * bias + 1)
    factor = (raw << whole(bits - 1 - mantissa)) | whole(1 << (bits - 1))
    # x is factor * 2^(power - bits), where power is positive: smaller ones are their own rest.
    power = jnp.where(exponent >= whole(bias - 1), exponent - whole(bias - 1), whole(0))
    index, shift = power >> whole(bits.bit_length() - 1), power & whole(bits - 1)
    table = [0, *_two_over_pi(bits, (bias + 1) // bits + 3)]

    def word(offset: int) -> Any:
        found = whole(table[offset])
        for i in range(1, (bias + 1) // bits + 1):
            found = jnp.where(index == whole(i), whole(table[i + offset]), found)
        return found

    words = [word(i) for i in range(4)]
    back = (whole(bits) - shift) & whole(bits - 1)
    high, middle, low = (
        (words[i] << shift) | jnp.where(shift == whole(0), whole(0), words[i + 1] >> back) for i in range(3)
    )
    carried = _high_product(factor, low, bits)
    bottom = factor * middle + carried
    top = _high_product(factor, middle, bits) + jnp.where(bottom < carried, whole(1), whole(0)) + factor * high
    turn = (top >> whole(bits - 2)).astype(jnp.int32)
    top = top & whole((1 << (bits - 2)) - 1)
    beyond = top >= whole(1 << (bits - 3))  # more than half a quarter: count one more, and back
    turn = turn + beyond.astype(jnp.int32)
    away = jnp.where(bottom == whole(0), whole(0), whole(1))
    up = jnp.where(beyond, whole(1 << (bits - 2)) - top - away, top)
    down = jnp.where(beyond, whole(0) - bottom, bottom)
    scale = math.pi / 2 * 2.0 ** (2 - bits)
    size = up.astype(signed).astype(x.dtype) + _float(down, bits, x.dtype) * x.dtype.type(2.0**-bits)
    rest = size * x.dtype.type(scale)
    negative = raw >= whole(1 << (bits - 1))
    rest = jnp.where(beyond != negative, -rest, rest)
    turn = jnp.where(negative, -turn, turn)
    small = abs(x) < math.pi / 4
    rest = jnp.where(small, x, jnp.where(exponent == whole(2 * bias + 1), x.dtype.type(np.nan), rest))
    return rest, jnp.where(small, 0, turn)


def _float(word: Any, bits: int, dtype: Any) -> Any:
    """An unsigned word as a float, by signed conversions, which every target has."""
    jnp = import_jax().numpy
    half = bits // 2
    signed = jnp.int32 if bits == 32 else jnp.int64
    unsigned = word.dtype.type
    low = (word & unsigned((1 << half) - 1)).astype(signed).astype(dtype)
    return (word >> unsigned(half)).astype(signed).astype(dtype) * dtype.type(2.0**half) + low


def _high_product(a: Any, b: Any, bits: int) -> Any:
    """The upper half of a product of words."""
    half = a.dtype.type(bits // 2)
    low = a.dtype.type((1 << (bits // 2)) - 1)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    first = a1 * b0 + (a0 * b0 >> half)
    second = a0 * b1 + (first & low)
    return a1 * b1 + (first >> half) + (second >> half)


@cache
def _two_over_pi(bits: int, count: int) -> list[int]:
    """2/pi, with two bits before its point, in words."""
    places = bits * count + 64
    one = 1 << (places + 64)

    def inverse(n: int) -> int:  # arctan(1 / n)
        total, term, k = 0, one // n, 1
        while term:
            total += (-1 if k & 2 else 1) * (term // k)
            term, k = term // (n * n), k + 2
        return total

    pi = 4 * (4 * inverse(5) - inverse(239))
    value = (2 * one << (bits * count - 2)) // pi
    return [value >> (bits * (count - 1 - i)) & ((1 << bits) - 1) for i in range(count)]


def _sin_near(x: Any) -> Any:
    z = x * x
    if x.dtype == np.float32:
        return x + x * z * _series(z, [-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4])
    return x + x * z * _series(z, [(-1) ** n / math.factorial(2 * n + 1) for n in range(1, 10)])


def _cos_near(x: Any) -> Any:
    z = x * x
    if x.dtype == np.float32:
        rest = z * z * _series(z, [4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5])
    else:
        rest = z * z * _series(z, [(-1) ** n / math.factorial(2 * n) for n in range(2, 11)])
    half = z * x.dtype.type(0.5)
    whole = x.dtype.type(1) - half
    return whole + (((x.dtype.type(1) - whole) - half) + rest)


def _series(x: Any, coefficients: list[float]) -> Any:
    total = x.dtype.type(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + x.dtype.type(coefficient)
    return total


def atan(x: Any) -> Any:
    """The arc tangent."""
    jnp = import_jax().numpy
    size = abs(x)
    value = _atan_of(size, jnp.ones_like(size))
    return jnp.where(x == x, jnp.copysign(value, x), x)


def atan2(y: Any, x: Any) -> Any:
    """The angle of the point ``(x, y)``."""
    value = _atan_of(abs(y), abs(x))
    return _turned(y, x, value, _sign_bit(y), _sign_bit(x))


def atan2_by_comparison(y: Any, x: Any) -> Any:
    """The same without a look at bits: zeros are taken for positive ones."""
    return _turned(y, x, _atan_of(abs(y), abs(x)), y < 0, x < 0)


def _turned(y: Any, x: Any, value: Any, below: Any, left: Any) -> Any:
    jnp = import_jax().numpy
    pi, low = _parts_of_pi(x.dtype)
    value = jnp.where(left, (pi - value) + low, value)
    value = jnp.where((x == x) & (y == y), value, x + y)
    return jnp.where(below, -value, value)


def _atan_of(tall: Any, wide: Any) -> Any:
    """The angle of ``tall / wide``, both without sign: between 0 and pi / 2."""
    jnp = import_jax().numpy
    dtype = tall.dtype.type
    steep = tall > wide
    small, large = jnp.where(steep, wide, tall), jnp.where(steep, tall, wide)
    ratio = jnp.where(small == large, dtype(1), small / large)
    ratio = jnp.where(small == 0, dtype(0), ratio)
    # Of angles beyond pi / 8 what they are more than pi / 4.
    far = ratio > dtype(math.tan(math.pi / 8))
    top = jnp.where(small == large, dtype(0), (small - large) / (small + large))
    infinite = ~(large < dtype(np.inf))
    top = jnp.where(infinite & (small != large), dtype(-1), top)
    # small + large is infinite where it is above the greatest number: both are halved then.
    huge = large > dtype(float(jnp.finfo(tall.dtype).max) / 4)
    half = dtype(0.25)
    top = jnp.where(huge & ~infinite, (small * half - large * half) / (small * half + large * half), top)
    near = jnp.where(far, top, ratio)
    z = near * near
    if tall.dtype == np.float32:
        part = near * z * _series(z, [-3.33329491539e-1, 1.99777106478e-1, -1.38776856032e-1, 8.05374449538e-2])
    else:
        upper = _series(z, [-6.485021904942025371773e1, -1.228866684490136173410e2, -7.500855792314704667340e1,
                            -1.615753718733365076637e1, -8.750608600031904122785e-1])  # fmt: skip
        lower = _series(z, [1.945506571482613964425e2, 4.853903996359136964868e2, 4.328810604912902668951e2,
                            1.650270098316988542046e2, 2.485846490142306297962e1, 1.0])  # fmt: skip
        part = near * z * (upper / lower)
    pi, low = _parts_of_pi(tall.dtype)
    angle = jnp.where(far, pi * dtype(0.25) + (near + (part + low * dtype(0.25))), near + part)
    return jnp.where(steep, pi * dtype(0.5) - (angle - low * dtype(0.5)), angle)


def _parts_of_pi(dtype: Any) -> tuple[Any, Any]:
    """pi, and what it is more than that."""
    if dtype == np.float32:
        high = np.float32(math.pi)
        return high, np.float32(math.pi - float(high))
    return np.float64(math.pi), np.float64(1.2246467991473532e-16)


def _sign_bit(x: Any) -> Any:
    jax = import_jax()
    signed = jax.numpy.int32 if x.dtype == np.float32 else jax.numpy.int64
    return jax.lax.bitcast_convert_type(x, signed) < 0


def asin(x: Any) -> Any:
    """The arc sine."""
    jnp = import_jax().numpy
    return jnp.where(x == 0, x, atan2(x, jnp.sqrt((1 - x) * (1 + x))))


def acos(x: Any) -> Any:
    """The arc cosine."""
    jnp = import_jax().numpy
    return atan2(jnp.sqrt((1 - x) * (1 + x)), x)


def cbrt(x: Any) -> Any:
    """The cube root: an estimate by its exponent, and Newton's steps."""
    jax = import_jax()
    jnp, lax = jax.numpy, jax.lax
    dtype, info = x.dtype.type, jnp.finfo(x.dtype)
    signed, third, steps = (jnp.int32, 709921077, 3) if x.dtype == np.float32 else (jnp.int64, 0x2A9F7893782DA1CE, 4)
    size = abs(x)
    low = size < dtype(float(info.tiny) * 2.0**30)
    size = jnp.where(low, size * dtype(2.0**30), size)
    bits = lax.bitcast_convert_type(size, signed)
    root = lax.bitcast_convert_type(bits // jnp.asarray(3, signed) + jnp.asarray(third, signed), x.dtype)
    for _ in range(steps):
        root = root + (size / (root * root) - root) * dtype(1 / 3)
    root = jnp.where(low, root * dtype(2.0**-10), root)
    value = jnp.where(x < 0, -root, root)
    return jnp.where((size == 0) | ~(abs(x) < dtype(np.inf)), x, value)


def cbrt_by_power(x: Any) -> Any:
    """The same without a look at bits: the estimate is an exponential."""
    jnp = import_jax().numpy
    dtype, size = x.dtype.type, abs(x)
    root = jnp.exp(jnp.log(size) * dtype(1 / 3))
    for _ in range(2):
        root = root + (size / (root * root) - root) * dtype(1 / 3)
    value = jnp.where(x < 0, -root, root)
    return jnp.where((size == 0) | ~(size < dtype(np.inf)), x, value)


def expm1(x: Any) -> Any:
    """``exp(x) - 1``: by Kahan, the error of the exponential is found from its logarithm."""
    jnp = import_jax().numpy
    one = x.dtype.type(1)
    power = jnp.where(x == x, jnp.exp(x), x)  # else the compiler makes an expm1 of it again, its own
    value = (power - one) * (x / jnp.log(power))
    value = jnp.where(power == one, x, value)
    return jnp.where(x > 40, power, jnp.where(x < -40, -one, value))


def log1p(x: Any) -> Any:
    """``log(1 + x)``: by Kahan, the error of the sum is found from it."""
    jnp = import_jax().numpy
    one = x.dtype.type(1)
    total = jnp.where(x == x, one + x, x)  # else the compiler makes a log1p of it again, its own
    value = jnp.log(total) * (x / (total - one))
    value = jnp.where(total == one, x, value)
    return jnp.where((total == x) | (total == 0), jnp.log(total), value)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    jnp = import_jax().numpy
    part = expm1(-2 * abs(x))
    value = -part / (part + x.dtype.type(2))
    return jnp.where(x < 0, -value, jnp.where(x == 0, x, value))


def sinh(x: Any) -> Any:
    """The hyperbolic sine."""
    jnp = import_jax().numpy
    size, half = abs(x), x.dtype.type(0.5)
    part, root = expm1(size), jnp.exp(size * half)
    value = jnp.where(size > 700, half * root * root, half * (part + part / (part + x.dtype.type(1))))
    return jnp.where(x < 0, -value, jnp.where(x == 0, x, value))


def asinh(x: Any) -> Any:
    """The inverse of :func:`sinh`."""
    jnp = import_jax().numpy
    size, one = abs(x), x.dtype.type(1)
    large = size > 1e8
    given = jnp.where(large, one, size)
    value = log1p(given + given * given / (one + jnp.sqrt(given * given + one)))
    value = jnp.where(large, jnp.log(size) + _LN2, value)
    return jnp.where(x < 0, -value, jnp.where(x == 0, x, value))


def acosh(x: Any) -> Any:
    """The inverse of the hyperbolic cosine."""
    jnp = import_jax().numpy
    large = x > 1e8
    more = jnp.where(large, x.dtype.type(1), x) - 1
    value = jnp.where(large, jnp.log(x) + _LN2, log1p(more + jnp.sqrt(more * more + 2 * more)))
    return jnp.where(x < 1, x.dtype.type(np.nan), value)


def atanh(x: Any) -> Any:
    """The inverse of :func:`tanh`."""
    jnp = import_jax().numpy
    size = abs(x)
    value = x.dtype.type(0.5) * log1p(2 * size / (1 - size))
    return jnp.where(x < 0, -value, jnp.where(x == 0, x, value))
