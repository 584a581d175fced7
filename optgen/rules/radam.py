"""RAdam: Adam with a rectified learning rate."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, rule, sqrt, where
from optgen.rules.common import decoupled, ema

_SOURCE = "Liu et al., On the Variance of the Adaptive Learning Rate and Beyond (2020)"
_BETAS = ("beta1", "beta2")


@rule(state=("m", "v"), decays=_BETAS, source=f"{_SOURCE}; torch.optim.RAdam")
def radam(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8,
    weight_decay: Any = 0.0, decoupled_weight_decay: bool = False,
) -> Any:  # fmt: skip
    r"""Adam that is plain momentum until its second moment can be trusted.

    .. math::
        \rho_\infty = \frac{2}{1-\beta_2} - 1, \quad \rho_t = \rho_\infty - \frac{2t\beta_2^t}{1-\beta_2^t}, \quad
        r_t = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}

        w' = w - \frac{\eta m'}{1-\beta_1^t} \begin{cases}
        r_t \sqrt{1-\beta_2^t} / (\sqrt{v'} + \epsilon) & \rho_t > 5\\ 1 & \text{else}\end{cases}

    with Adam's moments of :math:`d = g + \lambda w`, or of :math:`g` and AdamW's decay with
    ``decoupled_weight_decay``. Epsilon is added before the second moment is corrected.
    """
    w, d = (decoupled(w, lr, weight_decay), g) if decoupled_weight_decay else (w, g + weight_decay * w)
    return _radam(w, d, m, v, lr, step, beta1, beta2, eps, hat=True)


@rule(name="radam", state=("m", "v"), decays=_BETAS, convention="optax", source=f"{_SOURCE}; optax.radam")
def radam_optax(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8,
    threshold: Any = 5.0,
) -> Any:  # fmt: skip
    r"""RAdam with epsilon added after the second moment is corrected, and a threshold that counts as passed itself.

    .. math::
        w' = w - \frac{\eta m'}{1-\beta_1^t} \begin{cases}
        r_t / (\sqrt{v'/(1-\beta_2^t)} + \epsilon) & \rho_t \ge \text{threshold}\\ 1 & \text{else}\end{cases}
    """
    return _radam(w, g, m, v, lr, step, beta1, beta2, eps, threshold=threshold)


def _radam(
    w: Any, g: Any, m: Any, v: Any, lr: Any, step: Any, beta1: Any, beta2: Any, eps: Any, *,
    hat: bool = False, threshold: Any = 5.0,
) -> Any:  # fmt: skip
    m, v = ema(beta1, m, g), ema(beta2, v, g * g)
    limit = 2 / (1 - beta2) - 1
    rho = limit - 2 * step * beta2**step / (1 - beta2**step)
    trusted = rho > threshold if hat else rho >= threshold
    # Below the threshold the quotient may be negative, and its root is not used.
    square = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
    root = sqrt(1 - beta2**step)
    adaptive = where(trusted, sqrt(maximum(square, 0.0)) * root, 0.0)
    plain = where(trusted, 0.0, 1.0)
    scale = adaptive / (sqrt(v) + (eps if hat else eps * root)) + plain
    return w - lr / (1 - beta1**step) * m * scale, m, v
