"""Rules with a rate for each leaf, by its norm: LARS, LAMB and NovoGrad. Each leaf counts as a layer."""

from __future__ import annotations

from typing import Any

from optgen.dsl import norm, rule, sqrt, where
from optgen.rules.common import decoupled, ema

_LAMB = "You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes (2020)"
_BETAS = ("beta1", "beta2")


@rule(
    state=("m",), convention="optax", source="You, Gitman and Ginsburg, Large Batch Training of Convolutional Networks "
    "(2017); optax.lars",
)  # fmt: skip
def lars(
    w: Any, g: Any, m: Any, *, lr: Any, momentum: Any = 0.9, weight_decay: Any = 0.0, trust_coefficient: Any = 0.001,
    eps: Any = 0.0, nesterov: bool = False,
) -> Any:  # fmt: skip
    r"""Momentum with a rate for each leaf, in proportion to its norm.

    .. math::
        d = g + \lambda w, \quad q = \begin{cases} \kappa \frac{\|w\|}{\|d\| + \epsilon} & \|w\|, \|d\| > 0\\
        1 & \text{else}\end{cases}, \quad m' = \mu m + \eta q d, \quad w' = w - m'

    With ``nesterov`` :math:`w' = w - (\eta q d + \mu m')`. The paper divides by :math:`\|g\| + \lambda\|w\|`.
    """
    d = g + weight_decay * w
    u = (lr * _trust(w, d, trust_coefficient, eps)) * d
    m = momentum * m + u
    return w - (u + momentum * m if nesterov else m), m


@rule(state=("m", "v"), decays=_BETAS, convention="optax", source=f"{_LAMB}; optax.lamb")
def lamb(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-6, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""AdamW with a rate for each leaf, in proportion to its norm.

    .. math::
        u = \frac{m'/(1-\beta_1^t)}{\sqrt{v'/(1-\beta_2^t)} + \epsilon} + \lambda w, \quad
        w' = w - \eta u \begin{cases} \|w\|/\|u\| & \|w\|, \|u\| > 0\\ 1 & \text{else}\end{cases}

    with Adam's moments. The norms are of the whole leaf, and of the update with its weight decay.
    """
    u, m, v = _adam_direction(g, m, v, step, beta1, beta2, eps)
    u = u + weight_decay * w
    return w - (lr * _trust(w, u, 1.0, 0.0)) * u, m, v


@rule(name="lamb", state=("m", "v"), decays=_BETAS, convention="keras", source=f"{_LAMB}; keras.optimizers.Lamb")
def lamb_keras(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-7, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""LAMB whose weight decay comes before the update: it is in :math:`\|w\|`, and not in :math:`\|u\|`.

    .. math::
        \hat w = w - \eta\lambda w, \quad u = \frac{m'/(1-\beta_1^t)}{\sqrt{v'/(1-\beta_2^t)} + \epsilon}, \quad
        w' = \hat w - \eta u \begin{cases} \|\hat w\|/\|u\| & \|\hat w\|, \|u\| > 0\\ 1 & \text{else}\end{cases}
    """
    u, m, v = _adam_direction(g, m, v, step, beta1, beta2, eps)
    w = decoupled(w, lr, weight_decay)
    return w - (lr * _trust(w, u, 1.0, 0.0)) * u, m, v


@rule(
    state=("m", "v"), decays=_BETAS, convention="optax", source="Ginsburg et al., Stochastic Gradient Methods with "
    "Layer-wise Adaptive Moments (2019); optax.novograd",
)  # fmt: skip
def novograd(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.25, eps: Any = 1e-6, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Momentum on grads that are divided by a running norm of their leaf.

    .. math::
        v' = \begin{cases} \|g\|^2 & t = 1\\ \beta_2 v + (1-\beta_2) \|g\|^2 & \text{else}\end{cases}, \quad
        m' = \beta_1 m + \frac{g}{\sqrt{v'} + \epsilon} + \lambda w, \quad w' = w - \eta m'

    :math:`v` is one number for each leaf; it is stored once for each element, as all state is.
    """
    first = step == 1
    size = norm(g)
    v = where(first, 0.0, beta2 * 1.0) * v + where(first, 1.0, 1 - beta2) * (size * size)
    m = beta1 * m + (g / (sqrt(v) + eps) + weight_decay * w)
    return w - lr * m, m, v


def _adam_direction(g: Any, m: Any, v: Any, step: Any, beta1: Any, beta2: Any, eps: Any) -> tuple[Any, Any, Any]:
    m, v = ema(beta1, m, g), ema(beta2, v, g * g)
    root = sqrt(1 - beta2**step)
    return (root / (1 - beta1**step)) * m / (sqrt(v) + eps * root), m, v


def _trust(w: Any, u: Any, coefficient: Any, eps: Any) -> Any:
    size, length = norm(w), norm(u)
    return where(size > 0, where(length > 0, coefficient * size / (length + eps), 1.0), 1.0)
