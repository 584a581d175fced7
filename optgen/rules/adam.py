"""Adam and AdamW, in the convention of torch and optax."""

from __future__ import annotations

from typing import Any

from optgen.dsl import rule, sqrt


@rule(
    state=("m", "v"),
    decays=("beta1", "beta2"),
    source="Kingma and Ba, Adam: A Method for Stochastic Optimization (2015); torch.optim.Adam",
)
def adam(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Adam, with weight decay, where given, as L2 (added to the grad, as in torch).

    .. math::
        d = g + \lambda w, \quad m' = \beta_1 m + (1-\beta_1) d, \quad v' = \beta_2 v + (1-\beta_2) d^2, \quad
        w' = w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{v'/(1-\beta_2^t)} + \epsilon}
    """
    return _adam(w, g + weight_decay * w, m, v, lr, step, beta1, beta2, eps)


@rule(
    state=("m", "v"),
    decays=("beta1", "beta2"),
    source="Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019); torch.optim.AdamW",
)
def adamw(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any,
    beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 0.01,
) -> Any:  # fmt: skip
    r"""Adam with decoupled weight decay.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad
        w' = w - \eta\lambda w - \frac{\eta}{1-\beta_1^t} \frac{m'}{\sqrt{v'/(1-\beta_2^t)} + \epsilon}
    """
    return _adam(w - (lr * weight_decay) * w, g, m, v, lr, step, beta1, beta2, eps)


def _adam(w: Any, g: Any, m: Any, v: Any, lr: Any, step: Any, beta1: Any, beta2: Any, eps: Any) -> Any:
    # sqrt(v / c2) + eps is (sqrt(v) + eps * sqrt(c2)) / sqrt(c2): both corrections leave the loop over elements.
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    root = sqrt(1 - beta2**step)
    alpha = lr * root / (1 - beta1**step)
    return w - alpha * m / (sqrt(v) + eps * root), m, v
