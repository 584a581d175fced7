"""Elementary functions of float64 arrays: correctly rounded, so the same bits on every processor.

numpy, C libraries and XLA each have several versions of ``exp`` or ``pow``, chosen by what the processor offers, which
differ in the last bit. What is stored in an artifact must not depend on that. Here a function is evaluated to about 100
bits by operations that IEEE 754 defines (:mod:`optgen.lower.double_double`), then rounded once: the result is the
float64 nearest to the real number's (except for about one in 10**12, which are one unit off, everywhere alike).
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import wraps
from typing import Any

import numpy as np

from optgen.lower.double_double import Pair, add, divide, multiply, negate, pair, two_product, two_sum

_LN2 = Decimal("0.693147180559945309417232121458176568075500134360255254120680009493393621969694715605863326996418687")
_PI = Decimal("3.141592653589793238462643383279502884197169399375105820974944592307816406286208998628034825342117068")
#: pi in units of 2**-1300: enough for the remainder of every float64.
_PI_BITS = 1300


def _decimal(value: Decimal) -> Pair:
    high = float(value)
    return Pair(np.float64(high), np.float64(float(value - Decimal(high))))


def _leading(value: Decimal) -> tuple[np.float64, Pair]:
    """The leading 32 bits of a constant, whose product with a small integer is exact, and the rest."""
    high = np.float64(round(float(value) * 2**32) / 2**32)
    return high, _decimal(value - Decimal(float(high)))


_LN2_HIGH, _LN2_REST = _leading(_LN2)
_HALF_PI_HIGH, _HALF_PI_REST = _leading(_PI / 2)
_HALVINGS = 9
_RECIPROCALS = {n: divide(pair(np.float64(1.0)), pair(np.float64(n))) for n in range(1, 40)}


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def evaluate(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*(np.asarray(a, np.float64) for a in arguments))[()]

    return evaluate


def _multiple(count: Any, high: Any, rest: Pair) -> Pair:
    """A whole number of less than 21 bits times the constant ``high + rest``."""
    return add(pair(count * high), multiply(pair(count), rest))


def _expm1(x: Pair) -> tuple[Any, Pair]:
    """``k`` and ``e`` with ``exp(x) = 2**k * (1 + e)`` and ``|e| < 0.42``, for ``|x| < 800``."""
    k = np.rint(x.high / float(_LN2))
    reduced = add(x, negate(_multiple(k, _LN2_HIGH, _LN2_REST))).scaled(2.0**-_HALVINGS)
    total = pair(np.zeros_like(x.high))
    for n in range(11, 0, -1):  # r + r**2/2! + ..., as r * (1 + r/2 * (1 + r/3 * ...))
        total = multiply(multiply(reduced, _RECIPROCALS[n]), add(pair(np.ones_like(x.high)), total))
    for _ in range(_HALVINGS):  # exp(2r) - 1 = 2e + e**2
        total = add(total.scaled(2.0), multiply(total, total))
    return k, total


def _exp_of(x: Pair) -> Any:
    inside = np.clip(x.high, -800.0, 800.0)
    k, e = _expm1(Pair(inside, np.where(inside == x.high, x.low, 0.0)))
    return np.ldexp(add(pair(np.ones_like(e.high)), e).rounded(), k.astype(np.int64))


def _log_of(x: Any) -> Pair:
    """``log(x)`` for positive finite ``x``."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < np.sqrt(0.5)
    mantissa, exponent = np.where(small, mantissa * 2, mantissa), np.where(small, exponent - 1, exponent)
    return add(_multiple(exponent.astype(np.float64), _LN2_HIGH, _LN2_REST), _log1p_near(mantissa - 1))


def _log1p_near(x: Any) -> Pair:
    """``log(1 + x)`` for ``x`` between -1/2 and 1/2: a series, then one step of Newton's method."""
    ratio = x / (2 + x)
    square, series = ratio * ratio, np.zeros_like(x)
    for n in range(41, 0, -2):
        series = series * square + 1 / n
    first = 2 * ratio * series
    k, e = _expm1(pair(-first))
    factor = np.ldexp(1.0, k.astype(np.int64))
    decay = add(e.scaled(factor), pair(factor - 1))  # exp(-first) - 1
    rest = add(add(pair(x), decay), multiply(pair(x), decay))
    correction = add(rest, negate(multiply(rest, rest)).scaled(0.5))
    return add(pair(first), correction)


def _choose(x: Any, condition: Any, inside: Callable[[Any], Any], otherwise: Any, neutral: float = 0.5) -> Any:
    """``inside`` where ``condition`` holds, without its ever seeing other numbers; else ``otherwise``."""
    return np.where(condition, inside(np.where(condition, x, neutral)), otherwise)


@_quiet
def exp(x: Any) -> Any:
    """``e**x``."""
    return _choose(x, np.abs(x) < 800, lambda y: _exp_of(pair(y)), np.where(x < 0, 0.0, x + np.abs(x)))


@_quiet
def expm1(x: Any) -> Any:
    """``e**x - 1``, without cancellation."""

    def inside(y: Any) -> Any:
        k, e = _expm1(pair(y))
        factor = np.ldexp(1.0, np.minimum(k, 120).astype(np.int64))
        value = add(e.scaled(factor), two_sum(factor, -np.ones_like(y))).rounded()
        return np.where(k > 110, np.ldexp(add(pair(np.ones_like(y)), e).rounded(), k.astype(np.int64)), value)

    tiny = np.abs(x) < 1e-20
    large = np.where(x < 0, -1.0, x + np.abs(x))
    return np.where(tiny, x, _choose(x, ~tiny & (np.abs(x) < 800), inside, large))


def _log_edges(x: Any) -> Any:
    return np.where(x == 0, -np.inf, np.where(x < 0, np.nan, x))


@_quiet
def log(x: Any) -> Any:
    """The natural logarithm."""
    return _choose(x, (x > 0) & (x < np.inf), lambda y: _log_of(y).rounded(), _log_edges(x))


@_quiet
def log1p(x: Any) -> Any:
    """``log(1 + x)``, without cancellation."""

    def far(y: Any) -> Any:
        total = two_sum(np.ones_like(y), y)
        ratio = total.low / total.high
        return add(_log_of(total.high), two_sum(ratio, -ratio * ratio / 2)).rounded()

    near, tiny = np.abs(x) < 0.5, np.abs(x) < 1e-20
    value = _choose(x, ~near & (x > -1) & (x < np.inf), far, _log_edges(np.where(near, x, 1 + x)))
    value = _choose(x, near & ~tiny, lambda y: _log1p_near(y).rounded(), value, 0.25)
    return np.where(tiny, x, value)


@_quiet
def power(x: Any, y: Any) -> Any:
    """``x**y``, by C's rules for zeros, infinities and negative ``x``."""
    x, y = np.broadcast_arrays(x, y)
    edge = np.power(x, y)  # signs, and all that is 0, 1, infinite or no number, which is exact everywhere
    ordinary = (np.abs(x) > 0) & (np.abs(x) < np.inf) & (np.abs(y) < np.inf) & (y != 0) & ~np.isnan(edge)
    # Their results may lie halfway between two numbers, where no finite number of bits decides.
    halfway = {1.0: x, 2.0: x * x, -1.0: 1 / x, 0.5: np.sqrt(x)}

    def inside(z: Any) -> Any:
        exponent = np.clip(np.where(ordinary, y, 1.0), -1e20, 1e20)  # beyond it any base but 1 gives 0 or infinity
        return np.copysign(_exp_of(multiply(pair(exponent), _log_of(np.abs(z)))), edge)

    result = _choose(x, ordinary, inside, edge)
    for exponent, exact in halfway.items():
        result = np.where(ordinary & (y == exponent), exact, result)
    return result


@_quiet
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""

    def inside(y: Any) -> Any:
        k, e = _expm1(pair(2 * y))
        factor = np.ldexp(1.0, k.astype(np.int64))
        above = add(e.scaled(factor), pair(factor - 1))
        return divide(above, add(above, pair(np.full_like(y, 2.0)))).rounded()

    tiny = np.abs(x) < 1e-10  # x - x**3/3 rounds to x
    return np.where(tiny, x, _choose(x, ~tiny & (np.abs(x) < 20), inside, np.where(np.isnan(x), x, np.sign(x))))


@_quiet
def logistic(x: Any) -> Any:
    """``1 / (1 + exp(-x))``."""
    return 1 / (1 + exp(-x))


@_quiet
def cbrt(x: Any) -> Any:
    """The cube root."""

    def inside(y: Any) -> Any:
        return np.copysign(_exp_of(multiply(_log_of(np.abs(y)), _RECIPROCALS[3])), y)

    return _choose(x, (np.abs(x) > 0) & (np.abs(x) < np.inf), inside, x)


def _quadrant(x: Any) -> tuple[Any, Pair]:
    """``x`` modulo pi/2, in [-pi/4, pi/4], and in which quadrant it is."""
    quotient = np.rint(x / float(_PI / 2))
    small = np.abs(x) < 1e6
    count = np.where(small, quotient, 0.0)
    rest = add(pair(np.where(small, x, 0.0)), negate(_multiple(count, _HALF_PI_HIGH, _HALF_PI_REST)))
    high, low, number = np.array(rest.high), np.array(rest.low), np.array(count)
    half = _half_pi_bits() if not np.all(small) else 0
    for index in zip(*np.nonzero(~small), strict=True):  # by whole numbers
        numerator, denominator = float(x[index]).as_integer_ratio()
        scaled = (numerator << _PI_BITS) // denominator
        turns = (scaled + half // 2) // half
        value = scaled - turns * half
        high[index] = value / (1 << _PI_BITS)
        top, bottom = float(high[index]).as_integer_ratio()
        low[index] = (value - (top << _PI_BITS) // bottom) / (1 << _PI_BITS)
        number[index] = turns % 4
    return np.mod(number, 4), Pair(high, low)


def _half_pi_bits() -> int:
    """pi/2 in units of 2**-1300, by Machin's formula."""
    bits = _PI_BITS + 32

    def arctan_of_inverse(n: int) -> int:
        term = total = (1 << bits) // n
        k, sign = 3, -1
        while term:
            term //= n * n
            total += sign * (term // k)
            k, sign = k + 2, -sign
        return total

    return (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) * 2 >> 32


def _sine_and_cosine(x: Pair) -> tuple[Pair, Pair]:
    """Of ``|x|`` at most pi/4, by their series."""
    square, one = multiply(x, x), pair(np.ones_like(x.high))
    sine = cosine = one
    for n in range(28, 0, -2):  # 1 - r**2/(n(n+1)) * (...)
        sine = add(one, negate(multiply(multiply(square, _RECIPROCALS[n]), multiply(_RECIPROCALS[n + 1], sine))))
        cosine = add(one, negate(multiply(multiply(square, _RECIPROCALS[n - 1]), multiply(_RECIPROCALS[n], cosine))))
    return multiply(x, sine), cosine


def _circular(x: Any, shift: int) -> Any:
    quadrant, rest = _quadrant(x)
    sine, cosine = (value.rounded() for value in _sine_and_cosine(rest))
    turned = np.mod(quadrant + shift, 4)
    return np.select([turned == 0, turned == 1, turned == 2], [sine, cosine, -sine], -cosine)


@_quiet
def sin(x: Any) -> Any:
    """The sine, of angles of any size."""
    tiny = np.abs(x) < 1e-10  # x - x**3/6 rounds to x
    return np.where(tiny, x, _choose(x, ~tiny & (np.abs(x) < np.inf), lambda y: _circular(y, 0), np.nan))


@_quiet
def cos(x: Any) -> Any:
    """The cosine, of angles of any size."""
    return _choose(x, np.abs(x) < np.inf, lambda y: _circular(y, 1), np.nan)


@_quiet
def arctan2(y: Any, x: Any) -> Any:
    """The angle of the point (x, y)."""
    y, x = np.broadcast_arrays(y, x)
    edge = np.arctan2(y, x)
    ordinary = (x != 0) & (y != 0) & np.isfinite(x) & np.isfinite(y) & (np.abs(edge) > 1e-100)
    scale = -np.frexp(np.maximum(np.abs(x), np.abs(y)))[1]
    across, along = (np.where(ordinary, np.ldexp(v, scale), 1.0) for v in (y, x))
    # A first guess that is the same everywhere, then what is missing: the angle that remains after turning back by it.
    guess = np.rint(np.where(ordinary, edge, 0.0) * 2.0**20) * 2.0**-20
    tiny = np.abs(across) < along * 2.0**-20
    guess = np.where(tiny, across / along, guess)
    for _ in range(3):
        quadrant, rest = _quadrant(guess)
        sine, cosine = _sine_and_cosine(rest)
        parts = [sine, cosine, negate(sine), negate(cosine)]
        sine, cosine = (
            Pair(*(np.choose(quadrant.astype(np.int64), [parts[(k + shift) % 4][i] for k in range(4)]) for i in (0, 1)))
            for shift in (0, 1)
        )
        left = add(multiply(pair(across), cosine), negate(multiply(pair(along), sine)))
        right = add(multiply(pair(along), cosine), multiply(pair(across), sine))
        rest_angle = divide(left, right)
        cube = multiply(multiply(rest_angle, rest_angle), multiply(rest_angle, _RECIPROCALS[3]))
        total = add(pair(guess), add(rest_angle, negate(cube)))
        guess = total.rounded()
    return np.where(ordinary, guess, edge)


@_quiet
def erf(x: Any) -> Any:
    """The error function: ``2/sqrt(pi) * exp(-x**2) * sum of 2**n x**(2n+1) / (2n+1)!!``, of positive terms."""

    def inside(y: Any) -> Any:
        square, one = two_product(y, y), pair(np.ones_like(y))
        total = one
        for n in range(40 + int(3 * np.max(square.high, initial=0.0)), 0, -1):
            term = multiply(square.scaled(2.0), divide(pair(np.float64(1.0)), pair(np.float64(2 * n + 1))))
            total = add(one, multiply(term, total))
        k, e = _expm1(negate(square))
        decay = add(one, e).scaled(np.ldexp(1.0, k.astype(np.int64)))
        return multiply(multiply(multiply(pair(y), _TWO_OVER_ROOT_PI), decay), total).rounded()

    return _choose(x, np.abs(x) < 6, inside, np.where(np.isnan(x), x, np.sign(x)))


_TWO_OVER_ROOT_PI = _decimal(2 / _PI.sqrt())
