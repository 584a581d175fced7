"""Arithmetic on unevaluated sums of two float64 arrays, of about 106 bits.

It is built of ``+``, ``-``, ``*`` and ``/`` alone, which IEEE 754 defines to the last bit, so it gives the same bits on
every processor. Products are split by Dekker's method rather than by a fused multiply-add, which not every processor
has. Magnitudes must stay between 1e-140 and 1e140, or be zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_SPLIT = 2.0**27 + 1


class Pair(NamedTuple):
    """A number ``high + low`` with ``|low|`` at most half a unit in the last place of ``high``."""

    high: Any
    low: Any

    def rounded(self) -> Any:
        """The float64 nearest to it."""
        return self.high + self.low

    def scaled(self, factor: Any) -> Pair:
        """It times a power of two."""
        return Pair(self.high * factor, self.low * factor)


def two_sum(a: Any, b: Any) -> Pair:
    """``a + b`` without an error."""
    total = a + b
    part = total - a
    return Pair(total, (a - (total - part)) + (b - part))


def two_product(a: Any, b: Any) -> Pair:
    """``a * b`` without an error."""
    product = a * b
    scaled_a, scaled_b = _SPLIT * a, _SPLIT * b
    high_a, high_b = scaled_a - (scaled_a - a), scaled_b - (scaled_b - b)
    low_a, low_b = a - high_a, b - high_b
    return Pair(product, ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b)


def _normalised(high: Any, low: Any) -> Pair:
    total = high + low
    return Pair(total, low - (total - high))


def add(a: Pair, b: Pair) -> Pair:
    """``a + b``, right to 2**-104 of the larger of the two."""
    high, low = two_sum(a.high, b.high), two_sum(a.low, b.low)
    first = _normalised(high.high, high.low + low.high)
    return _normalised(first.high, first.low + low.low)


def multiply(a: Pair, b: Pair) -> Pair:
    """``a * b``."""
    product = two_product(a.high, b.high)
    return _normalised(product.high, product.low + (a.high * b.low + a.low * b.high))


def divide(a: Pair, b: Pair) -> Pair:
    """``a / b``."""
    first = a.high / b.high
    rest = add(a, negate(multiply(b, pair(first))))
    second = rest.high / b.high
    rest = add(rest, negate(multiply(b, pair(second))))
    return add(_normalised(first, second), pair(rest.high / b.high))


def negate(a: Pair) -> Pair:
    """``-a``."""
    return Pair(-a.high, -a.low)


def pair(a: Any) -> Pair:
    """A float64 as a pair."""
    return Pair(a, np.zeros_like(a))
