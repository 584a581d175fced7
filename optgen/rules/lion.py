"""Rules that move by signs: Lion, sign SGD and Signum."""

from __future__ import annotations

from typing import Any

from optgen.dsl import rule, sign
from optgen.rules.common import decoupled, ema

_LION = "Chen et al., Symbolic Discovery of Optimization Algorithms (2023)"
_SIGN = "Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems (2018)"
_BETAS = ("beta1", "beta2")


@rule(state=("m",), decays=_BETAS, convention="optax", source=f"{_LION}; optax.lion")
def lion(w: Any, g: Any, m: Any, *, lr: Any, beta1: Any = 0.9, beta2: Any = 0.99, weight_decay: Any = 1e-3) -> Any:
    r"""The sign of a mean of mean and grad, with decoupled weight decay.

    .. math::
        w' = w - \eta\lambda w - \eta\, \mathrm{sign}(\beta_1 m + (1-\beta_1) g), \quad
        m' = \beta_2 m + (1-\beta_2) g
    """
    return _lion(w, g, m, lr, beta1, beta2, weight_decay)


@rule(name="lion", state=("m",), decays=_BETAS, convention="keras", source=f"{_LION}; keras.optimizers.Lion")
def lion_keras(w: Any, g: Any, m: Any, *, lr: Any, beta1: Any = 0.9, beta2: Any = 0.99, weight_decay: Any = 0.0) -> Any:
    r"""optax's arithmetic, without weight decay where none is given.

    .. math::
        w' = w - \eta\lambda w - \eta\, \mathrm{sign}(\beta_1 m + (1-\beta_1) g), \quad
        m' = \beta_2 m + (1-\beta_2) g
    """
    return _lion(w, g, m, lr, beta1, beta2, weight_decay)


@rule(convention="optax", source=f"{_SIGN}; optax.sign_sgd")
def signsgd(w: Any, g: Any, *, lr: Any, weight_decay: Any = 0.0) -> Any:
    r"""Steps of one size: :math:`w' = w - \eta\lambda w - \eta\, \mathrm{sign}(g)`."""
    return decoupled(w, lr, weight_decay) - lr * sign(g)


@rule(state=("m",), decays=("beta",), convention="optax", source=f"{_SIGN}; optax.signum")
def signum(w: Any, g: Any, m: Any, *, lr: Any, beta: Any = 0.9, weight_decay: Any = 0.0) -> Any:
    r"""Sign SGD with momentum.

    .. math::
        m' = \beta m + (1-\beta) g, \quad w' = w - \eta\lambda w - \eta\, \mathrm{sign}(m')
    """
    m = ema(beta, m, g)
    return decoupled(w, lr, weight_decay) - lr * sign(m), m


def _lion(w: Any, g: Any, m: Any, lr: Any, beta1: Any, beta2: Any, weight_decay: Any) -> Any:
    return decoupled(w, lr, weight_decay) - lr * sign(ema(beta1, m, g)), ema(beta2, m, g)
