"""Clipping of grads: by value, by the norm of each leaf, by the norm of the whole tree."""

from __future__ import annotations

from typing import Any

from optgen.dsl.around import part
from optgen.dsl.ops import global_norm, norm, where
from optgen.rules.common import clip

_PASCANU = "Pascanu, Mikolov and Bengio, On the Difficulty of Training Recurrent Neural Networks (2013)"


@part(behind=False, source="optax.clip; torch.nn.utils.clip_grad_value_")
def clip_by_value(update: Any, w: Any, g: Any, *, max_value: Any = 1.0) -> Any:
    r""":math:`g' = \max(-c, \min(g, c))`, element by element."""
    return update(w, clip(g, max_value))


@part(behind=False, source=f"{_PASCANU}, leaf by leaf")
def clip_by_norm(update: Any, w: Any, g: Any, *, max_norm: Any = 1.0, eps: Any = 0.0) -> Any:
    r""":math:`g' = g \min\left(1, \frac{c}{\|g\| + \epsilon}\right)`, where the norm is that of the leaf."""
    return update(w, _factor(norm(g), max_norm, eps) * g)


@part(behind=False, source=f"{_PASCANU}; optax.clip_by_global_norm; torch.nn.utils.clip_grad_norm_ (eps=1e-6)")
def clip_by_global_norm(update: Any, w: Any, g: Any, *, max_norm: Any = 1.0, eps: Any = 0.0) -> Any:
    r""":math:`g' = g \min\left(1, \frac{c}{\|g\| + \epsilon}\right)`, where the norm is that of the whole tree.

    It costs one more pass over the grads alone. torch's has :math:`\epsilon = 10^{-6}`, optax's has none. Where a grad
    is NaN or infinite all become NaN, or zero; to skip such updates put ``scale_by_loss`` in front.
    """
    return update(w, _factor(global_norm(g), max_norm, eps) * g)


def _factor(length: Any, limit: Any, eps: Any) -> Any:
    length = length + eps
    fits = length <= limit  # false for NaN, which must not pass
    return where(fits, 1.0, limit / where(fits, 1.0, length))
