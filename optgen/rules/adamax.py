"""Adamax: Adam with the infinity norm."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, rule
from optgen.rules.common import decoupled, ema

_SOURCE = "Kingma and Ba, Adam: A Method for Stochastic Optimization (2015), section 7.1"
_BETAS = ("beta1", "beta2")


@rule(state=("m", "u"), decays=_BETAS, source=f"{_SOURCE}; torch.optim.Adamax")
def adamax(
    w: Any, g: Any, m: Any, u: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Adam with a decayed maximum for the second moment, epsilon inside it, and L2 weight decay.

    .. math::
        d = g + \lambda w, \quad m' = \beta_1 m + (1-\beta_1) d, \quad u' = \max(\beta_2 u, |d| + \epsilon), \quad
        w' = w - \frac{\eta}{1-\beta_1^t} \frac{m'}{u'}

    optax's is this without weight decay.
    """
    return _adamax(w, g + weight_decay * w, m, u, lr, step, beta1, beta2, eps)


@rule(state=("m", "u"), decays=_BETAS, convention="optax", source=f"{_SOURCE}; optax.adamaxw")
def adamaxw(
    w: Any, g: Any, m: Any, u: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 1e-4,
) -> Any:  # fmt: skip
    r"""Adamax with decoupled weight decay.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad u' = \max(\beta_2 u, |g| + \epsilon), \quad
        w' = w - \eta\lambda w - \frac{\eta}{1-\beta_1^t} \frac{m'}{u'}
    """
    return _adamax(decoupled(w, lr, weight_decay), g, m, u, lr, step, beta1, beta2, eps)


@rule(name="adamax", state=("m", "u"), decays=_BETAS, convention="keras", source=f"{_SOURCE}; keras.optimizers.Adamax")
def adamax_keras(
    w: Any, g: Any, m: Any, u: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-7, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Adamax with epsilon in the denominator alone, and decoupled weight decay.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad u' = \max(\beta_2 u, |g|), \quad
        w' = w - \eta\lambda w - \frac{\eta}{1-\beta_1^t} \frac{m'}{u' + \epsilon}
    """
    m, u = ema(beta1, m, g), maximum(beta2 * u, abs(g))
    return decoupled(w, lr, weight_decay) - lr / (1 - beta1**step) * m / (u + eps), m, u


def _adamax(w: Any, g: Any, m: Any, u: Any, lr: Any, step: Any, beta1: Any, beta2: Any, eps: Any) -> Any:
    m, u = ema(beta1, m, g), maximum(beta2 * u, abs(g) + eps)
    return w - lr / (1 - beta1**step) * m / u, m, u
