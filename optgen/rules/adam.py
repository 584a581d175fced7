"""Adam, AdamW and AMSGrad."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, rule, sqrt
from optgen.rules.common import adam_step, decoupled, ema

_ADAM = "Kingma and Ba, Adam: A Method for Stochastic Optimization (2015)"
_ADAMW = "Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019)"
_AMSGRAD = "Reddi, Kale and Kumar, On the Convergence of Adam and Beyond (2018)"
_BETAS = ("beta1", "beta2")


@rule(state=("m", "v"), decays=_BETAS, source=f"{_ADAM}; torch.optim.Adam")
def adam(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Adam, with weight decay, where given, as L2 (added to the grad, as in torch).

    .. math::
        d = g + \lambda w, \quad m' = \beta_1 m + (1-\beta_1) d, \quad v' = \beta_2 v + (1-\beta_2) d^2, \quad
        w' = w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{v'/(1-\beta_2^t)} + \epsilon}

    optax's is this without weight decay.
    """
    return _adam(w, g + weight_decay * w, m, v, lr, step, beta1, beta2, eps)


@rule(name="adam", state=("m", "v"), decays=_BETAS, convention="keras", source=f"{_ADAM}; keras.optimizers.Adam")
def adam_keras(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-7, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Adam with the paper's epsilon-hat, which is added before the second moment is corrected.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad
        w' = w - \eta\lambda w - \eta \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \frac{m'}{\sqrt{v'} + \epsilon}
    """
    return _adam(decoupled(w, lr, weight_decay), g, m, v, lr, step, beta1, beta2, eps, hat=True)


@rule(state=("m", "v"), decays=_BETAS, source=f"{_ADAMW}; torch.optim.AdamW")
def adamw(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 0.01,
) -> Any:  # fmt: skip
    r"""Adam with decoupled weight decay.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad
        w' = w - \eta\lambda w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{v'/(1-\beta_2^t)} + \epsilon}
    """
    return _adam(decoupled(w, lr, weight_decay), g, m, v, lr, step, beta1, beta2, eps)


@rule(name="adamw", state=("m", "v"), decays=_BETAS, convention="optax", source=f"{_ADAMW}; optax.adamw")
def adamw_optax(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 1e-4,
) -> Any:  # fmt: skip
    r"""torch's arithmetic; the weight decay is 1e-4 where none is given, not 1e-2.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad
        w' = w - \eta\lambda w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{v'/(1-\beta_2^t)} + \epsilon}
    """
    return _adam(decoupled(w, lr, weight_decay), g, m, v, lr, step, beta1, beta2, eps)


@rule(name="adamw", state=("m", "v"), decays=_BETAS, convention="keras", source=f"{_ADAMW}; keras.optimizers.AdamW")
def adamw_keras(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-7, weight_decay: Any = 0.004,
) -> Any:  # fmt: skip
    r"""Adam with the paper's epsilon-hat and decoupled weight decay.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad
        w' = w - \eta\lambda w - \eta \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \frac{m'}{\sqrt{v'} + \epsilon}
    """
    return _adam(decoupled(w, lr, weight_decay), g, m, v, lr, step, beta1, beta2, eps, hat=True)


@rule(state=("m", "v", "top"), decays=_BETAS, source=f"{_AMSGRAD}; torch.optim.Adam(amsgrad=True)")
def amsgrad(
    w: Any, g: Any, m: Any, v: Any, top: Any, *, lr: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.999,
    eps: Any = 1e-8, weight_decay: Any = 0.0, decoupled_weight_decay: bool = False,
) -> Any:  # fmt: skip
    r"""Adam whose second moment never falls; the largest is kept before bias correction.

    .. math::
        m' = \beta_1 m + (1-\beta_1) d, \quad v' = \beta_2 v + (1-\beta_2) d^2, \quad u' = \max(u, v'), \quad
        w' = w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{u'/(1-\beta_2^t)} + \epsilon}

    Weight decay is L2, :math:`d = g + \lambda w`; with ``decoupled_weight_decay`` that of AdamW.
    """
    w, d = (decoupled(w, lr, weight_decay), g) if decoupled_weight_decay else (w, g + weight_decay * w)
    m, v = ema(beta1, m, d), ema(beta2, v, d * d)
    top = maximum(top, v)
    return adam_step(w, m, top, lr, step, beta1, beta2, eps), m, v, top


@rule(name="amsgrad", state=("m", "v", "top"), decays=_BETAS, convention="optax", source=f"{_AMSGRAD}; optax.amsgrad")
def amsgrad_optax(
    w: Any, g: Any, m: Any, v: Any, top: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8,
) -> Any:  # fmt: skip
    r"""Adam whose second moment never falls; the largest is kept after bias correction.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad
        u' = \max\left(u, \frac{v'}{1-\beta_2^t}\right), \quad
        w' = w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{u'} + \epsilon}
    """
    m, v = ema(beta1, m, g), ema(beta2, v, g * g)
    top = maximum(top, v / (1 - beta2**step))
    return w - lr / (1 - beta1**step) * m / (sqrt(top) + eps), m, v, top


@rule(
    name="amsgrad", state=("m", "v", "top"), decays=_BETAS, convention="keras",
    source=f"{_AMSGRAD}; keras.optimizers.Adam(amsgrad=True)",
)  # fmt: skip
def amsgrad_keras(
    w: Any, g: Any, m: Any, v: Any, top: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-7, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Adam whose second moment never falls, with epsilon-hat; weight decay is decoupled.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad u' = \max(u, v'), \quad
        w' = w - \eta\lambda w - \eta \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \frac{m'}{\sqrt{u'} + \epsilon}
    """
    m, v = ema(beta1, m, g), ema(beta2, v, g * g)
    top = maximum(top, v)
    w = decoupled(w, lr, weight_decay)
    return adam_step(w, m, top, lr, step, beta1, beta2, eps, hat=True), m, v, top


def _adam(
    w: Any, g: Any, m: Any, v: Any, lr: Any, step: Any, beta1: Any, beta2: Any, eps: Any, *, hat: bool = False
) -> Any:
    m, v = ema(beta1, m, g), ema(beta2, v, g * g)
    return adam_step(w, m, v, lr, step, beta1, beta2, eps, hat=hat), m, v
