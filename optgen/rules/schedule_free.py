"""Schedule-free SGD and AdamW: averaging in the place of a learning rate schedule."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, rule, sqrt, where
from optgen.rules.common import ema

_SOURCE = "Defazio et al., The Road Less Scheduled (2024)"
_SCALARS = {"weight_sum": 0.0, "max_lr": 0.0}


@rule(
    state=("z",), init={"z": "param"}, decays=("beta1",), scalars=_SCALARS, convention="optax",
    source=f"{_SOURCE}; optax.contrib.schedule_free_sgd",
)  # fmt: skip
def schedule_free_sgd(
    w: Any, g: Any, z: Any, *, lr: Any, weight_sum: Any, max_lr: Any,
    beta1: Any = 0.9, weight_decay: Any = 0.0, weight_lr_power: Any = 2.0,
) -> Any:  # fmt: skip
    r"""SGD at :math:`z`, whose average :math:`x` is the result, with grads taken between both, at the params.

    .. math::
        \hat\eta_t = \max_{i \le t} \eta_i, \quad c_t = \frac{\hat\eta_t^p}{\sum_{i \le t} \hat\eta_i^p}, \quad
        z' = z - \eta (g + \lambda w), \quad x' = (1-c_t)\, x + c_t z', \quad w' = \beta_1 x' + (1-\beta_1) z'

    The params are the points :math:`w` where grads are taken. For evaluation use
    :math:`x = (w - (1-\beta_1) z) / \beta_1`. A warm-up is an ``lr`` that differs from step to step.
    """
    d = g + weight_decay * w
    c, weight_sum, max_lr = _weight(lr, weight_sum, max_lr, weight_lr_power)
    return *_average(w, z, z - lr * d, beta1, c), weight_sum, max_lr


@rule(
    state=("v", "z"), init={"z": "param"}, decays=("beta1", "beta2"), scalars=_SCALARS, convention="optax",
    source=f"{_SOURCE}; optax.contrib.schedule_free_adamw",
)  # fmt: skip
def schedule_free_adamw(
    w: Any, g: Any, v: Any, z: Any, *, lr: Any, step: Any, weight_sum: Any, max_lr: Any, beta1: Any = 0.9,
    beta2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 0.0, weight_lr_power: Any = 2.0,
) -> Any:  # fmt: skip
    r"""As ``schedule_free_sgd``, with Adam's second moment: weight decay is taken at the params.

    .. math::
        v' = \beta_2 v + (1-\beta_2) g^2, \quad
        z' = z - \eta \left(\frac{g}{\sqrt{v'/(1-\beta_2^t)} + \epsilon} + \lambda w\right), \quad
        x' = (1-c_t)\, x + c_t z', \quad w' = \beta_1 x' + (1-\beta_1) z'
    """
    v, u = _scaled(g, v, step, beta2, eps)
    c, weight_sum, max_lr = _weight(lr, weight_sum, max_lr, weight_lr_power)
    w, z = _average(w, z, z - lr * (u + weight_decay * w), beta1, c)
    return w, v, z, weight_sum, max_lr


@rule(
    name="schedule_free_adamw", state=("v", "z"), init={"z": "param"}, decays=("beta1", "beta2"), convention="keras",
    source=f"{_SOURCE}; keras.optimizers.ScheduleFreeAdamW",
)  # fmt: skip
def schedule_free_adamw_keras(
    w: Any, g: Any, v: Any, z: Any, *, lr: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8,
    weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Schedule-free AdamW with equal weights, :math:`c_t = 1/t`, whatever the learning rates were.

    .. math::
        v' = \beta_2 v + (1-\beta_2) g^2, \quad \hat w = w - \eta\lambda w, \quad
        z' = z - \eta \frac{g}{\sqrt{v'/(1-\beta_2^t)} + \epsilon}, \quad
        x' = (1-\tfrac1t) \frac{\hat w - (1-\beta_1) z}{\beta_1} + \tfrac1t z', \quad
        w' = \beta_1 x' + (1-\beta_1) z'
    """
    v, u = _scaled(g, v, step, beta2, eps)
    w, z = _average(w - (lr * weight_decay) * w, z, z - lr * u, beta1, 1 / step)
    return w, v, z


def _weight(lr: Any, total: Any, largest: Any, power: Any) -> tuple[Any, Any, Any]:
    largest = maximum(largest, lr)
    weight = largest**power
    total = total + weight
    return where(total > 0, weight / where(total > 0, total, 1.0), 0.0), total, largest


def _scaled(g: Any, v: Any, step: Any, beta2: Any, eps: Any) -> tuple[Any, Any]:
    v = ema(beta2, v, g * g)
    root = sqrt(1 - beta2**step)
    return v, root * g / (sqrt(v) + eps * root)


def _average(w: Any, z: Any, new: Any, beta1: Any, c: Any) -> tuple[Any, Any]:
    # beta1 times x, so that nothing is divided by beta1.
    x = (1 - c) * (w - (1 - beta1) * z) + (beta1 * c) * new
    return x + (1 - beta1) * new, new
