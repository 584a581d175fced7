"""Sophia: clipped steps by an estimate of the Hessian's diagonal."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, rule, where
from optgen.rules.common import clip, decoupled, ema


@rule(
    state=("m", "v"), decays=("beta1", "beta2"), convention="optax",
    source="Liu et al., Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training (2023); "
    "optax.contrib.sophia",
)  # fmt: skip
def sophia_g(
    w: Any, g: Any, h: Any, m: Any, v: Any, *, lr: Any, step: Any, beta1: Any = 0.965, beta2: Any = 0.99,
    eps: Any = 1e-8, weight_decay: Any = 1e-4, gamma: Any = 0.01, clip_threshold: Any = 1.0, refresh: Any = 1.0,
) -> Any:  # fmt: skip
    r"""Momentum divided by a running estimate of curvature, and clipped.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad
        w' = w - \eta\lambda w - \eta\, \mathrm{clip}\left(\frac{m'/(1-\beta_1^t)}{\max(\gamma v, \epsilon)},
        -\rho, \rho\right), \quad v' = \begin{cases} \beta_2 v + (1-\beta_2) h & \text{refresh}\\ v & \text{else}
        \end{cases}

    Its second input ``h`` estimates the Hessian's diagonal: for Sophia-G the batch size times the square of a grad
    for sampled labels, for Sophia-H Hutchinson's product. Give ``refresh=1`` on the steps that have a new one (each
    tenth, in the paper) and ``refresh=0`` on all others, where ``h`` is not used; grads of a step are then
    ``{"g": ..., "h": ...}``. As in optax, :math:`m'` is corrected and a step uses the :math:`v` before it; in the
    paper neither is so.
    """
    m = ema(beta1, m, g)
    u = clip(m / (1 - beta1**step) / maximum(gamma * v, eps), clip_threshold)
    keep = where(refresh > 0, beta2 * 1.0, 1.0)
    # Not by a factor of 0: an h that was never computed may hold anything.
    v = keep * v + where(refresh > 0, (1 - beta2) * h, 0.0)
    return decoupled(w, lr, weight_decay) - lr * u, m, v
