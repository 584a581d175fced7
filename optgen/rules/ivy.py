"""The rules of the functional API, in the arithmetic of its published examples (ivy 1.0).

The last printed digits of those examples are those of f32 arithmetic, so these rules are computed in f32.
"""

from __future__ import annotations

from typing import Any

from optgen.dsl import rule, sqrt

_SOURCE = "ivy 1.0, ivy.functional.ivy.gradients; Kingma and Ba (2015), section 2, with epsilon-hat"


@rule(signed=("lr",), convention="ivy", source=_SOURCE, exact=False)
def gradient_descent(w: Any, g: Any, *, lr: Any) -> Any:
    r"""Plain gradient descent: :math:`w' = w - \eta g`."""
    return w - lr * g


@rule(
    name="adam", state=("m", "v"), decays=("beta1", "beta2"), signed=("lr",), closed=("beta1", "beta2", "step"),
    convention="ivy", source=_SOURCE, exact=False,
)  # fmt: skip
def adam_ivy(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-7
) -> Any:
    r"""Adam with epsilon-hat, and epsilon also inside the denominator of the bias correction.

    .. math::
        m' = \beta_1 m + (1-\beta_1) g, \quad v' = \beta_2 v + (1-\beta_2) g^2, \quad
        \alpha = \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t+\epsilon}, \quad
        w' = w - \eta \frac{\alpha m'}{\sqrt{v'} + \epsilon}
    """
    delta, m, v = _step(g, m, v, step, beta1, beta2, eps)
    return w - lr * delta, m, v


@rule(
    state=("m", "v"), decays=("beta1", "beta2"), closed=("beta1", "beta2", "step"),
    convention="ivy", source=_SOURCE, exact=False,
)  # fmt: skip
def adam_step(
    delta: Any, g: Any, m: Any, v: Any, *, step: Any, beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-7
) -> Any:
    r"""The effective grad :math:`\alpha m' / (\sqrt{v'} + \epsilon)` of Adam; the old ``delta`` is not read."""
    return _step(g, m, v, step, beta1, beta2, eps)


def _step(g: Any, m: Any, v: Any, step: Any, beta1: Any, beta2: Any, eps: Any) -> Any:
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    alpha = sqrt(1 - beta2**step) / (1 - beta1**step + eps)
    return alpha * m / (sqrt(v) + eps), m, v
