"""AdaBelief and Yogi: Adam with other second moments."""

from __future__ import annotations

from typing import Any

from optgen.dsl import rule, sign
from optgen.rules.common import adam_step, ema

_BETAS = ("beta1", "beta2")


@rule(
    state=("m", "s"), decays=_BETAS, convention="optax",
    source="Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients (2020); "
    "optax.adabelief",
)  # fmt: skip
def adabelief(
    w: Any, g: Any, m: Any, s: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-16, eps_root: Any = 1e-16,
) -> Any:  # fmt: skip
    r"""Adam that is divided by the grad's deviation from its mean.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad s' = \beta_2 s + (1-\beta_2) (g - m')^2 + \epsilon_r, \quad
        w' = w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{s'/(1-\beta_2^t)} + \epsilon}

    The :math:`\epsilon_r` is part of the state and adds up to :math:`\epsilon_r / (1-\beta_2)`, as in the paper.
    """
    m = ema(beta1, m, g)
    s = ema(beta2, s, (g - m) * (g - m)) + eps_root
    return adam_step(w, m, s, lr, step, beta1, beta2, eps), m, s


@rule(
    state=("m", "v"), decays=_BETAS, convention="optax",
    init={"m": "initial_accumulator_value", "v": "initial_accumulator_value"},
    source="Zaheer et al., Adaptive Methods for Nonconvex Optimization (2018); optax.yogi",
)  # fmt: skip
def yogi(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-3, initial_accumulator_value: Any = 1e-6,
) -> Any:  # fmt: skip
    r"""Adam whose second moment moves by no more than the squared grad.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = v - (1-\beta_2)\, \mathrm{sign}(v - g^2)\, g^2, \quad
        w' = w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{v'/(1-\beta_2^t)} + \epsilon}

    Both moments start at ``initial_accumulator_value``, and are corrected as if they had started at zero.
    """
    m = ema(beta1, m, g)
    v = v - (1 - beta2) * sign(v - g * g) * (g * g)
    return adam_step(w, m, v, lr, step, beta1, beta2, eps), m, v
