"""The remainder of floats, exact as C's ``fmod``, in integer arithmetic.

IREE's kernels for SPIR-V compute ``x - y * trunc(x / y)``, which is NaN where ``y`` is infinite and has no right digit
where the quotient is large; those for WebAssembly call an ``fmodf`` that is not there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optgen.dsl.trace import import_jax


def remainder(x: Any, y: Any) -> Any:
    """``x - y * trunc(x / y)`` without rounding; NaN where ``x`` is infinite or ``y`` is 0.

    Both are whole numbers times a power of 2. As in a division by hand, the digits of the first are taken down one
    after the other: some bits at a time, so many that the quotient, estimated in floats, is off by one at most.
    """
    jax = import_jax()
    jnp, lax = jax.numpy, jax.lax
    narrow = x.dtype == np.float32
    bits, mantissa, bias, signed = (32, 23, 127, np.int32) if narrow else (64, 52, 1023, np.int64)
    # The estimate's error is 2^step * 3 * 2^-mantissa with a quotient that is off by 2.5 ulp, which Vulkan allows.
    step, one = mantissa - 3, signed(1)
    sign, infinite = signed(-(2 ** (bits - 1))), signed((2 * bias + 1) << mantissa)
    raw = lax.bitcast_convert_type(x, signed)
    top, bottom = raw & ~sign, lax.bitcast_convert_type(y, signed) & ~sign

    def parts(value: Any) -> tuple[Any, Any]:
        """The whole number, and the exponent, which of denormal numbers is that of the least normal ones."""
        exponent = value >> signed(mantissa)
        digits = value & signed((1 << mantissa) - 1)
        return jnp.where(exponent > 0, digits | signed(1 << mantissa), digits), jnp.maximum(exponent, one)

    (number, above), (divisor, below) = parts(top), parts(bottom)
    divisor = jnp.maximum(divisor, one)  # of 0, below, the result is NaN
    inverse = x.dtype.type(1) / divisor.astype(x.dtype)

    def reduced(rest: Any, shift: Any, more: Any) -> Any:
        """The remainder of ``rest * 2^shift + more``. Products wrap around; their difference is small again."""
        scale = lax.bitcast_convert_type((shift + signed(bias)) << signed(mantissa), x.dtype)
        estimate = ((rest.astype(x.dtype) * scale + more.astype(x.dtype)) * inverse).astype(signed)
        rest = (rest << shift) + more - estimate * divisor
        rest = jnp.where(rest < 0, rest + divisor, rest)
        return jnp.where(rest >= divisor, rest - divisor, rest)

    half, zero = signed((mantissa + 1) // 2), jnp.zeros_like(number)
    rest = reduced(zero, half + zero, number >> half)
    rest = reduced(rest, half + zero, number & ((one << half) - one))
    left = jnp.maximum(above - below, signed(0))
    for _ in range(-(-(2 * bias - 1) // step)):
        shift = jnp.minimum(left, signed(step))
        rest, left = reduced(rest, shift, zero), left - shift
    # rest * 2^(below - bias - mantissa), by bits, since devices may take denormal numbers for zero.
    whole = lax.bitcast_convert_type(rest.astype(x.dtype), signed)
    exponent = (whole >> signed(mantissa)) + below - signed(bias + mantissa)
    small = rest << jnp.clip(below - one, signed(0), signed(bits - 1))
    found = jnp.where(exponent > 0, whole + ((below - signed(bias + mantissa)) << signed(mantissa)), small)
    found = jnp.where(rest == 0, signed(0), found)
    found = jnp.where(top < bottom, top, found)
    nothing = (top >= infinite) | (bottom > infinite) | (bottom == 0)
    quiet = infinite | signed(1 << (mantissa - 1))
    return lax.bitcast_convert_type(jnp.where(nothing, quiet, found | (raw & sign)), x.dtype)
