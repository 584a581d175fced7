"""Adan, AdEMAMix and ADOPT: later relatives of Adam."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, rule, sqrt, where
from optgen.rules.common import adam_step, clip, decoupled, ema


@rule(
    state=("m", "v", "n", "old"), decays=("beta1", "beta2", "beta3"), convention="optax",
    source="Xie et al., Adan: Adaptive Nesterov Momentum Algorithm (2022); optax.adan",
)  # fmt: skip
def adan(
    w: Any, g: Any, m: Any, v: Any, n: Any, old: Any, *, lr: Any, step: Any, beta1: Any = 0.98, beta2: Any = 0.92,
    beta3: Any = 0.99, eps: Any = 1e-8, eps_root: Any = 1e-8, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Adam with Nesterov's momentum from differences of grads.

    .. math::
        \delta = g_t - g_{t-1}, \quad m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) \delta, \quad
        n' = \beta_3 n + (1-\beta_3) (g + (1-\beta_2) \delta)^2

        w' = w - \eta\lambda w - \eta \frac{m'/(1-\beta_1^t) + (1-\beta_2)\, v'/(1-\beta_2^t)}
        {\sqrt{n'/(1-\beta_3^t) + \epsilon_r} + \epsilon}

    The first :math:`\delta` is zero. The betas are weights of the old value, as in Adam; the paper's are their
    complements, its :math:`\beta_2` weighs :math:`\delta` by its complement, and it divides by :math:`1 + \eta\lambda`.
    """
    delta = where(step == 1, 0.0, 1.0) * (g - old)
    m, v = ema(beta1, m, g), ema(beta2, v, delta)
    ahead = g + (1 - beta2) * delta
    n = ema(beta3, n, ahead * ahead)
    u = m / (1 - beta1**step) + (1 - beta2) / (1 - beta2**step) * v
    w = decoupled(w, lr, weight_decay) - lr * u / (sqrt(n / (1 - beta3**step) + eps_root) + eps)
    return w, m, v, n, g


@rule(
    state=("m", "slow", "v"), decays=("beta1", "beta2", "beta3"), convention="optax",
    source="Pagliardini, Ablin and Grangier, The AdEMAMix Optimizer: Better, Faster, Older (2024); "
    "optax.contrib.ademamix",
)  # fmt: skip
def ademamix(
    w: Any, g: Any, m: Any, slow: Any, v: Any, *, lr: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.999,
    beta3: Any = 0.9999, alpha: Any = 5.0, eps: Any = 1e-8, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""AdamW with a second, slow mean of the grads, which is not corrected.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad s' = \beta_3 s + (1-\beta_3) g, \quad v' = \beta_2 v + (1-\beta_2) g^2

        w' = w - \eta\lambda w - \eta \frac{m'/(1-\beta_1^t) + \alpha s'}{\sqrt{v'/(1-\beta_2^t)} + \epsilon}

    The paper warms :math:`\alpha` and :math:`\beta_3` up: give them anew at each step.
    """
    m, slow, v = ema(beta1, m, g), ema(beta3, slow, g), ema(beta2, v, g * g)
    correction = 1 - beta1**step
    w = decoupled(w, lr, weight_decay)
    return adam_step(w, m + (alpha * correction) * slow, v, lr, step, beta1, beta2, eps), m, slow, v


@rule(
    state=("m", "v"), decays=("beta1", "beta2"), convention="optax",
    source="Taniguchi et al., ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate (2024); "
    "optax.contrib.adopt",
)  # fmt: skip
def adopt(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.9999, eps: Any = 1e-6,
    weight_decay: Any = 0.0, nesterov: bool = False, unclipped: bool = False,
) -> Any:  # fmt: skip
    r"""Adam that divides by the second moment of the steps before, and takes the mean after that.

    .. math::
        c_t = (t-1)^{1/4}, \quad x = \mathrm{clip}\left(\frac{g}{\max(\sqrt{v}, \epsilon)}, -c_t, c_t\right), \quad
        m' = \beta_1 m + (1-\beta_1) x, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad w' = w - \eta\lambda w - \eta m'

    The first step only sets :math:`v' = g^2`. With ``unclipped`` there is no :math:`c_t`; with ``nesterov``
    :math:`\beta_1 m' + (1-\beta_1) x` takes the place of :math:`m'`.
    """
    first = step == 1
    x = g / maximum(sqrt(v), eps)
    if not unclipped:
        x = clip(x, sqrt(sqrt(step - 1)))
    keep, add = where(first, 1.0, beta1 * 1.0), where(first, 0.0, 1 - beta1)
    m = keep * m + add * x
    v = where(first, 0.0, beta2 * 1.0) * v + where(first, 1.0, 1 - beta2) * (g * g)
    u = keep * m + add * x if nesterov else m
    return decoupled(w, lr, weight_decay) - lr * u, m, v
