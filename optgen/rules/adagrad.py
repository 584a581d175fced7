"""Adagrad and Adadelta: rates from sums of squared grads."""

from __future__ import annotations

from typing import Any

from optgen.dsl import rule, sqrt
from optgen.rules.common import decoupled, ema

_ADAGRAD = "Duchi, Hazan and Singer, Adaptive Subgradient Methods (2011)"
_ADADELTA = "Zeiler, ADADELTA: An Adaptive Learning Rate Method (2012)"
_FIRST = {"s": "initial_accumulator_value"}


@rule(state=("s",), init=_FIRST, source=f"{_ADAGRAD}; torch.optim.Adagrad")
def adagrad(
    w: Any, g: Any, s: Any, *, lr: Any, step: Any, lr_decay: Any = 0.0, weight_decay: Any = 0.0,
    initial_accumulator_value: Any = 0.0, eps: Any = 1e-10,
) -> Any:  # fmt: skip
    r"""Gradient descent divided by the root of all squared grads so far, with L2 weight decay.

    .. math::
        d = g + \lambda w, \quad s' = s + d^2, \quad
        w' = w - \frac{\eta}{1 + (t-1)\,\eta_d} \frac{d}{\sqrt{s'} + \epsilon}
    """
    d = g + weight_decay * w
    s = s + d * d
    return w - lr / (1 + (step - 1) * lr_decay) * d / (sqrt(s) + eps), s


@rule(name="adagrad", state=("s",), init=_FIRST, convention="optax", source=f"{_ADAGRAD}; optax.adagrad")
def adagrad_optax(w: Any, g: Any, s: Any, *, lr: Any, initial_accumulator_value: Any = 0.1, eps: Any = 1e-7) -> Any:
    r"""Adagrad that starts at 0.1, with epsilon inside the root.

    .. math::
        s' = s + g^2, \quad w' = w - \eta \frac{g}{\sqrt{s' + \epsilon}}
    """
    return _adagrad(w, g, s, lr, eps)


@rule(name="adagrad", state=("s",), init=_FIRST, convention="keras", source=f"{_ADAGRAD}; keras.optimizers.Adagrad")
def adagrad_keras(
    w: Any, g: Any, s: Any, *, lr: Any, weight_decay: Any = 0.0, initial_accumulator_value: Any = 0.1,
    eps: Any = 1e-7,
) -> Any:  # fmt: skip
    r"""optax's, with decoupled weight decay.

    .. math::
        s' = s + g^2, \quad w' = w - \eta\lambda w - \eta \frac{g}{\sqrt{s' + \epsilon}}
    """
    return _adagrad(decoupled(w, lr, weight_decay), g, s, lr, eps)


@rule(state=("v", "u"), decays=("rho",), source=f"{_ADADELTA}; torch.optim.Adadelta")
def adadelta(
    w: Any, g: Any, v: Any, u: Any, *, lr: Any = 1.0, rho: Any = 0.9, eps: Any = 1e-6, weight_decay: Any = 0.0
) -> Any:
    r"""Steps as large as the steps before, with L2 weight decay.

    .. math::
        d = g + \lambda w, \quad v' = \rho v + (1-\rho) d^2, \quad
        \delta = \frac{\sqrt{u + \epsilon}}{\sqrt{v' + \epsilon}} d, \quad u' = \rho u + (1-\rho) \delta^2, \quad
        w' = w - \eta \delta

    optax's is the same.
    """
    return _adadelta(w, g + weight_decay * w, v, u, lr, rho, eps)


@rule(
    name="adadelta", state=("v", "u"), decays=("rho",), convention="keras",
    source=f"{_ADADELTA}; keras.optimizers.Adadelta",
)  # fmt: skip
def adadelta_keras(
    w: Any, g: Any, v: Any, u: Any, *, lr: Any = 0.001, rho: Any = 0.95, eps: Any = 1e-7, weight_decay: Any = 0.0
) -> Any:
    r"""torch's arithmetic with the paper's rho and another epsilon; weight decay is decoupled.

    .. math::
        v' = \rho v + (1-\rho) g^2, \quad
        \delta = \frac{\sqrt{u + \epsilon}}{\sqrt{v' + \epsilon}} g, \quad u' = \rho u + (1-\rho) \delta^2, \quad
        w' = w - \eta\lambda w - \eta \delta
    """
    return _adadelta(decoupled(w, lr, weight_decay), g, v, u, lr, rho, eps)


def _adagrad(w: Any, g: Any, s: Any, lr: Any, eps: Any) -> Any:
    s = s + g * g
    return w - lr * g / sqrt(s + eps), s


def _adadelta(w: Any, g: Any, v: Any, u: Any, lr: Any, rho: Any, eps: Any) -> Any:
    v = ema(rho, v, g * g)
    delta = sqrt(u + eps) / sqrt(v + eps) * g
    return w - lr * delta, v, ema(rho, u, delta * delta)
