"""The functions that a rule's mathematics uses, beside ``+ - * / **`` and comparisons.

They are JAX's, imported when first called, so that importing the rules does not import JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from optgen.dsl.decay import plain

#: How functions that reduce all leaves together are called in traces; the lowering knows them by it.
TREE_PREFIX = "optgen_tree_"


def _jnp() -> Any:
    import jax.numpy

    return jax.numpy


def sqrt(x: Any) -> Any:
    """The square root, elementwise."""
    return _jnp().sqrt(plain(x))


def where(condition: Any, x: Any, y: Any) -> Any:
    """``x`` where ``condition`` holds, else ``y``, elementwise."""
    return _jnp().where(condition, plain(x), plain(y))


def maximum(x: Any, y: Any) -> Any:
    """The larger of both, elementwise; NaN if either is."""
    return _jnp().maximum(plain(x), plain(y))


def minimum(x: Any, y: Any) -> Any:
    """The smaller of both, elementwise; NaN if either is."""
    return _jnp().minimum(plain(x), plain(y))


def sign(x: Any) -> Any:
    """-1, 0 or 1, elementwise; NaN if ``x`` is."""
    return _jnp().sign(plain(x))


def cos(x: Any) -> Any:
    """The cosine, elementwise."""
    return _jnp().cos(x)


def floor(x: Any) -> Any:
    """The largest whole number that is not larger, elementwise."""
    return _jnp().floor(x)


def zeros_like(x: Any) -> Any:
    """Zeros of the shape and type of ``x``, whatever it holds."""
    return _jnp().zeros_like(x)


def is_finite(x: Any) -> Any:
    """Whether ``x`` is neither NaN nor infinite, elementwise."""
    return _jnp().isfinite(plain(x))


def norm(x: Any) -> Any:
    """The Euclidean norm over a whole leaf, a scalar."""
    return _jnp().sqrt(_jnp().sum(x * x))


def tree_sum(x: Any) -> Any:
    """The sum over all elements of all leaves of the tree, a scalar, accumulated in f64."""
    return _over_tree("sum")(x)


def tree_max(x: Any) -> Any:
    """The largest element of all leaves of the tree, a scalar; NaN if one is."""
    return _over_tree("max")(x)


def tree_min(x: Any) -> Any:
    """The smallest element of all leaves of the tree, a scalar; NaN if one is."""
    return _over_tree("min")(x)


def global_norm(x: Any) -> Any:
    """The Euclidean norm over all leaves of the tree, a scalar, accumulated in f64."""
    return _jnp().sqrt(tree_sum(x * x))


@cache
def _over_tree(reduction: str) -> Callable[[Any], Any]:
    import jax

    def reduce(x: Any) -> Any:
        return getattr(jax.numpy, reduction)(x)

    reduce.__name__ = f"{TREE_PREFIX}{reduction}"
    return jax.jit(reduce)  # type: ignore[no-any-return]
