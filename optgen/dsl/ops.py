"""The functions that a rule's mathematics uses, beside ``+ - * / **`` and comparisons.

They are JAX's, imported when first called, so that importing the rules does not import JAX.
"""

from __future__ import annotations

from typing import Any


def _jnp() -> Any:
    import jax.numpy

    return jax.numpy


def sqrt(x: Any) -> Any:
    """The square root, elementwise."""
    return _jnp().sqrt(x)


def where(condition: Any, x: Any, y: Any) -> Any:
    """``x`` where ``condition`` holds, else ``y``, elementwise."""
    return _jnp().where(condition, x, y)


def maximum(x: Any, y: Any) -> Any:
    """The larger of both, elementwise; NaN if either is."""
    return _jnp().maximum(x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller of both, elementwise; NaN if either is."""
    return _jnp().minimum(x, y)


def sign(x: Any) -> Any:
    """-1, 0 or 1, elementwise; NaN if ``x`` is."""
    return _jnp().sign(x)


def norm(x: Any) -> Any:
    """The Euclidean norm over a whole leaf, a scalar."""
    return _jnp().sqrt(_jnp().sum(x * x))
