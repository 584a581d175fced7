"""NAdam: Adam with Nesterov's momentum."""

from __future__ import annotations

from typing import Any

from optgen.dsl import rule, sqrt
from optgen.rules.common import decoupled, ema

_SOURCE = "Dozat, Incorporating Nesterov Momentum into Adam (2016)"
_BETAS = ("beta1", "beta2")
_SCALARS = {"mu_product": 1.0}


@rule(state=("m", "v"), decays=_BETAS, scalars=_SCALARS, source=f"{_SOURCE}; torch.optim.NAdam")
def nadam(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any, mu_product: Any, beta1: Any = 0.9, beta2: Any = 0.999,
    eps: Any = 1e-8, weight_decay: Any = 0.0, momentum_decay: Any = 0.004,
) -> Any:  # fmt: skip
    r"""Adam with Nesterov's momentum and its schedule, and L2 weight decay.

    .. math::
        d = g + \lambda w, \quad \mu_t = \beta_1 \left(1 - \tfrac12\, 0.96^{\,t\psi}\right), \quad
        P_t = \prod_{i \le t} \mu_i, \quad m' = \beta_1 m + (1-\beta_1) d, \quad v' = \beta_2 v + (1-\beta_2) d^2

        w' = w - \eta \frac{\frac{1-\mu_t}{1-P_t} d + \frac{\mu_{t+1}}{1-P_{t+1}} m'}
        {\sqrt{v'/(1-\beta_2^t)} + \epsilon}

    The product :math:`P_t` is scalar state, ``mu_product``; :math:`\psi` is ``momentum_decay``.
    """
    d = g + weight_decay * w
    return _nadam(w, d, m, v, lr, step, mu_product, beta1, beta2, eps, momentum_decay)


@rule(
    state=("m", "v"), decays=_BETAS, scalars=_SCALARS,
    source=f"{_SOURCE}; torch.optim.NAdam(decoupled_weight_decay=True)",
)  # fmt: skip
def nadamw(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any, mu_product: Any, beta1: Any = 0.9, beta2: Any = 0.999,
    eps: Any = 1e-8, weight_decay: Any = 0.01, momentum_decay: Any = 0.004,
) -> Any:  # fmt: skip
    r"""NAdam with decoupled weight decay; what is not said here is as in ``nadam``, with :math:`d = g`.

    .. math::
        w' = (1 - \eta\lambda) w - \eta \frac{\frac{1-\mu_t}{1-P_t} g + \frac{\mu_{t+1}}{1-P_{t+1}} m'}
        {\sqrt{v'/(1-\beta_2^t)} + \epsilon}

    torch has no default for :math:`\lambda` other than 0; here it is AdamW's.
    """
    w = decoupled(w, lr, weight_decay)
    return _nadam(w, g, m, v, lr, step, mu_product, beta1, beta2, eps, momentum_decay)


@rule(
    name="nadam", state=("m", "v"), decays=_BETAS, scalars=_SCALARS, convention="keras",
    source=f"{_SOURCE}; keras.optimizers.Nadam",
)  # fmt: skip
def nadam_keras(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any, mu_product: Any, beta1: Any = 0.9, beta2: Any = 0.999,
    eps: Any = 1e-7, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""torch's with :math:`\psi = 1`, so that the schedule ends 250 times as soon, and decoupled weight decay.

    .. math::
        \mu_t = \beta_1 \left(1 - \tfrac12\, 0.96^{\,t}\right), \quad P_t = \prod_{i \le t} \mu_i, \quad
        w' = (1 - \eta\lambda) w - \eta \frac{\frac{1-\mu_t}{1-P_t} g + \frac{\mu_{t+1}}{1-P_{t+1}} m'}
        {\sqrt{v'/(1-\beta_2^t)} + \epsilon}
    """
    w = decoupled(w, lr, weight_decay)
    return _nadam(w, g, m, v, lr, step, mu_product, beta1, beta2, eps, 1.0)


@rule(name="nadam", state=("m", "v"), decays=_BETAS, convention="optax", source=f"{_SOURCE}; optax.nadam")
def nadam_optax(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8
) -> Any:
    r"""Adam with Nesterov's momentum and no schedule for it.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad
        w' = w - \eta \frac{\frac{\beta_1}{1-\beta_1^{t+1}} m' + \frac{1-\beta_1}{1-\beta_1^t} g}
        {\sqrt{v'/(1-\beta_2^t)} + \epsilon}
    """
    return _plain(w, g, m, v, lr, step, beta1, beta2, eps)


@rule(name="nadamw", state=("m", "v"), decays=_BETAS, convention="optax", source=f"{_SOURCE}; optax.nadamw")
def nadamw_optax(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 1e-4,
) -> Any:  # fmt: skip
    r"""optax's ``nadam`` with decoupled weight decay.

    .. math::
        w' = (1 - \eta\lambda) w - \eta \frac{\frac{\beta_1}{1-\beta_1^{t+1}} m' + \frac{1-\beta_1}{1-\beta_1^t} g}
        {\sqrt{v'/(1-\beta_2^t)} + \epsilon}
    """
    return _plain(decoupled(w, lr, weight_decay), g, m, v, lr, step, beta1, beta2, eps)


def _nadam(
    w: Any, g: Any, m: Any, v: Any, lr: Any, step: Any, product: Any, beta1: Any, beta2: Any, eps: Any, psi: Any
) -> Any:
    mu = beta1 * (1 - 0.5 * 0.96 ** (step * psi))
    following = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * psi))
    product = product * mu
    m, v = ema(beta1, m, g), ema(beta2, v, g * g)
    a, b = (1 - mu) / (1 - product), following / (1 - product * following)
    return _move(w, a * g + b * m, v, lr, step, beta2, eps), m, v, product


def _plain(w: Any, g: Any, m: Any, v: Any, lr: Any, step: Any, beta1: Any, beta2: Any, eps: Any) -> Any:
    m, v = ema(beta1, m, g), ema(beta2, v, g * g)
    a, b = (1 - beta1) / (1 - beta1**step), beta1 / (1 - beta1 ** (step + 1))
    return _move(w, a * g + b * m, v, lr, step, beta2, eps), m, v


def _move(w: Any, direction: Any, v: Any, lr: Any, step: Any, beta2: Any, eps: Any) -> Any:
    root = sqrt(1 - beta2**step)
    return w - (lr * root) * direction / (sqrt(v) + eps * root)
