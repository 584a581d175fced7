"""Fast elementary functions and products of float64 arrays that are the same bits on every processor.

As :mod:`optgen.lower.rounded`, for many numbers: good to a few units in the last place instead of half of one, at a
twentieth of the time. Each is a polynomial by operations that IEEE 754 defines. numpy's own functions, BLAS and XLA
choose code by the processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10  # the first has 32 bits: k times it is exact
_HALF_PI = (1.57079632673412561417, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
#: Into how many slices a factor of a product is split: of 20 bits each, if 2,000 products are summed.
_SLICES = 3
#: Exponents for which the result is an argument, or a product, quotient or root that processors round alike.
_SIMPLE: dict[float, Callable[[Any], Any]] = {
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    0.5: np.sqrt,
    -1.0: lambda x: 1 / x,
}


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    def evaluate(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*(np.asarray(a, np.float64) for a in arguments))[()]

    evaluate.__doc__, evaluate.__name__ = function.__doc__, function.__name__
    return evaluate


def _series(x: Any, coefficients: list[float]) -> Any:
    total = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total *= x
        total += c
    return total


_EXP = [1 / math.factorial(n) for n in range(2, 15)]
_LOG = [1 / n for n in range(3, 24, 2)]
_SIN = [(-1) ** n / math.factorial(2 * n + 1) for n in range(1, 9)]
_COS = [(-1) ** n / math.factorial(2 * n) for n in range(2, 10)]


def _expm1_reduced(x: Any) -> tuple[Any, Any]:
    """``k`` and ``e`` with ``exp(x) = 2**k * (1 + e)``."""
    k = np.rint(x * (1 / math.log(2)))
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    return k.astype(np.int32), r + r * r * _series(r, _EXP)


@_quiet
def exp(x: Any) -> Any:
    """``e**x``."""
    k, e = _expm1_reduced(np.clip(np.nan_to_num(x), -800.0, 800.0))
    return np.where(np.isnan(x), x, np.ldexp(1 + e, k))


@_quiet
def expm1(x: Any) -> Any:
    """``e**x - 1``, without cancellation."""
    k, e = _expm1_reduced(np.clip(np.nan_to_num(x), -800.0, 800.0))
    scale = np.ldexp(1.0, np.minimum(k, 1000))
    value = np.where(k > 60, np.ldexp(1 + e, k), scale * e + (scale - 1))
    return np.where(np.isnan(x) | (x == 0), x, value)


@_quiet
def log(x: Any) -> Any:
    """The natural logarithm."""
    ordinary = (x > 0) & (x < np.inf)
    mantissa, exponent = np.frexp(np.where(ordinary, x, 1.0))
    small = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(small, mantissa * 2, mantissa), np.where(small, exponent - 1, exponent)
    value = exponent * _LN2_LOW + _log1p_near(mantissa - 1) + exponent * _LN2_HIGH
    return np.where(ordinary, value, np.where(x == 0, -np.inf, np.where(x < 0, np.nan, x)))


def _log1p_near(x: Any) -> Any:
    ratio = x / (2 + x)
    square = ratio * ratio
    return 2 * (ratio + ratio * square * _series(square, _LOG))


@_quiet
def log1p(x: Any) -> Any:
    """``log(1 + x)``, without cancellation."""
    near = (x > -0.29) & (x < 0.41)
    total = 1 + x
    far = log(total) + np.where(np.isfinite(total) & (total > 0), (x - (total - 1)) / total, 0.0)
    return np.where(x == 0, x, np.where(near, _log1p_near(np.where(near, x, 0.0)), far))


@_quiet
def power(x: Any, y: Any) -> Any:
    """``x**y``; its logarithm's rounding counts ``y`` times."""
    edge = np.power(x, y)  # signs, and all that is 0, 1, infinite or no number, which is exact everywhere
    ordinary = (x != 0) & np.isfinite(x) & np.isfinite(y) & (y != 0) & ~np.isnan(edge)
    value = exp(y * log(np.abs(np.where(ordinary, x, 1.0))))
    value = np.where(
        y == 1, x, np.where(y == 2, x * x, np.where(y == 0.5, np.sqrt(x), np.where(y == -1, 1 / x, value)))
    )
    return np.where(ordinary, np.copysign(value, edge), edge)


@_quiet
def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    e = expm1(2 * np.clip(x, -20.0, 20.0))
    return np.where(x == 0, x, e / (e + 2))


@_quiet
def sinh(x: Any) -> Any:
    """The hyperbolic sine."""
    e = expm1(np.minimum(np.abs(x), 700.0))
    large = exp(np.abs(x) - math.log(2))
    return np.copysign(np.where(np.abs(x) < 700, (e + e / (e + 1)) / 2, large), x)


@_quiet
def cosh(x: Any) -> Any:
    """The hyperbolic cosine."""
    half = exp(np.abs(x) - math.log(2))
    return half + 0.25 / half


@_quiet
def logistic(x: Any) -> Any:
    """``1 / (1 + exp(-x))``."""
    return 1 / (1 + exp(-x))


@_quiet
def exp2(x: Any) -> Any:
    """``2**x``."""
    inside = np.clip(np.nan_to_num(x), -1200.0, 1200.0)
    k = np.rint(inside)
    return np.where(np.isnan(x), x, np.ldexp(exp((inside - k) * math.log(2)), k.astype(np.int32)))


@_quiet
def cbrt(x: Any) -> Any:
    """The cube root."""
    guess = np.where(np.isfinite(x) & (x != 0), np.abs(x), 1.0)
    root = exp(log(guess) / 3)
    root = root - (root - guess / (root * root)) / 3
    return np.where(np.isfinite(x) & (x != 0), np.copysign(root, x), x)


def _circular(x: Any, shift: int) -> Any:
    if np.any(np.abs(x) > 2.0**30):  # rare: by whole numbers
        from optgen.lower import rounded

        return (rounded.cos if shift else rounded.sin)(x)
    inside = np.where(np.isfinite(x), x, 0.0)
    k = np.rint(inside * (2 / math.pi))
    r = inside
    for piece in _HALF_PI:
        r = r - k * piece
    square = r * r
    sine = r + r * square * _series(square, _SIN)
    cosine = 1 - square / 2 + square * square * _series(square, _COS)
    turned = np.mod(k + shift, 4)
    value = np.where(np.mod(turned, 2) == 0, sine, cosine)
    return np.where(np.isfinite(x), np.where(turned >= 2, -value, value), np.nan)


@_quiet
def sin(x: Any) -> Any:
    """The sine."""
    return _circular(x, 0)


@_quiet
def cos(x: Any) -> Any:
    """The cosine."""
    return _circular(x, 1)


@_quiet
def tan(x: Any) -> Any:
    """The tangent."""
    return _circular(x, 0) / _circular(x, 1)


@_quiet
def arctan2(y: Any, x: Any) -> Any:
    """The angle of the point (x, y)."""
    edge = np.arctan2(y, x)
    ordinary = (x != 0) & (y != 0) & np.isfinite(x) & np.isfinite(y)
    y1, x1 = np.where(ordinary, np.abs(y), 1.0), np.where(ordinary, np.abs(x), 1.0)
    steep = y1 > x1
    ratio = np.where(steep, x1 / y1, y1 / x1)
    small = ratio / (1 + np.sqrt(1 + ratio * ratio))  # twice the angle's half, twice over
    small = small / (1 + np.sqrt(1 + small * small))
    square = small * small
    angle = 4 * (small + small * square * _series(square, [(-1) ** n / (2 * n + 1) for n in range(1, 13)]))
    angle = np.where(steep, math.pi / 2 - angle, angle)
    angle = np.where(x < 0, math.pi - angle, angle)
    return np.where(ordinary, np.copysign(angle, y), edge)


@_quiet
def erf(x: Any) -> Any:
    """The error function, by its series of positive terms."""
    inside = np.clip(np.nan_to_num(x), -6.0, 6.0)
    square = inside * inside
    total = np.ones_like(square)
    for n in range(20 + int(4 * np.max(square, initial=0.0)), 0, -1):
        total *= square
        total *= 2 / (2 * n + 1)
        total += 1
    return np.where(np.isnan(x), x, np.clip(inside * exp(-square) * total * (2 / math.sqrt(math.pi)), -1.0, 1.0))


# Products.


def _slices(values: np.ndarray, axes: tuple[int, ...], count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """``values`` as a sum of slices of so few bits that sums of ``count`` products of two slices are exact, and the
    power of two that all are scaled by, along ``axes``."""
    bits = (52 - max(count - 1, 1).bit_length()) // 2
    largest = np.max(np.abs(values), axis=axes, keepdims=True, initial=0.0)
    exponent = np.frexp(largest)[1]
    rest, found = np.ldexp(values, -exponent), []
    for number in range(1, _SLICES + 1):
        shift = 1.5 * 2.0 ** (52 - bits * number)
        piece = (rest + shift) - shift
        found.append(piece)
        rest = rest - piece
    return found, exponent


def bilinear(
    function: Callable[[Any, Any], Any],
    left: np.ndarray,
    right: np.ndarray,
    count: int,
    axes: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
) -> np.ndarray:
    """``function(left, right)``, the same bits whatever the order of its sums.

    Factors are split into slices whose products can be summed exactly (Ozaki's method), so that neither the order of
    sums nor fused multiply-adds make a difference; what the slices give is added in a fixed order.

    Args:
        function: bilinear in its arguments, such as a convolution.
        left, right: its factors.
        count: of how many products each result is the sum, at most.
        axes: for each factor, those along which its elements are summed over; others are scaled each by themselves,
            and ``function`` must be ``numpy.matmul``. By default a factor has one scale.
    """
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return np.asarray(function(left, right))
    every = tuple(range(left.ndim)), tuple(range(right.ndim))
    lefts, left_scale = _slices(left, (axes or every)[0], count)
    rights, right_scale = _slices(right, (axes or every)[1], count)
    total: Any = 0.0
    for order in range(2 * _SLICES - 2, -1, -1):  # the smallest first
        if order >= _SLICES:
            continue
        for i in range(order + 1):
            total = total + np.asarray(function(lefts[i], rights[order - i]))
    scale = left_scale + right_scale if axes else (left_scale.reshape(()) + right_scale.reshape(()))
    return np.asarray(np.ldexp(total, scale))


def matmul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left @ right`` for matrices or stacks of them."""
    if not left.size or not right.size:
        return np.asarray(np.matmul(left, right))
    return bilinear(np.matmul, left, right, left.shape[-1], ((-1,), (-2,)))
