"""FTRL-proximal."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, minimum, rule, sqrt, where
from optgen.rules.common import clip


@rule(
    state=("n", "z"), init={"n": "initial_accumulator_value"}, convention="keras",
    source="McMahan et al., Ad Click Prediction: a View from the Trenches (2013); keras.optimizers.Ftrl",
)  # fmt: skip
def ftrl(
    w: Any, g: Any, n: Any, z: Any, *, lr: Any, l1: Any = 0.0, l2: Any = 0.0, l2_shrinkage: Any = 0.0,
    beta: Any = 0.0, initial_accumulator_value: Any = 0.1, power: Any = None,
) -> Any:  # fmt: skip
    r"""Follow the regularised leader: an L1 penalty that makes params exactly zero.

    .. math::
        n' = n + g^2, \quad z' = z + g + 2\lambda_s w - \frac{n'^p - n^p}{\eta} w, \quad
        w' = \frac{\mathrm{clip}(z', -\lambda_1, \lambda_1) - z'}{n'^p / \eta + 2\lambda_2 + \beta/\eta}

    :math:`p` is 1/2; where ``power`` is given, it is that. Keras' ``learning_rate_power`` is its negative. The
    learning rate must stay what it is: a smaller one pulls all params to zero.
    """
    new = n + g * g
    if power is None:
        bottom = sqrt(n)
        top = _hypot(bottom, g)
        # The roots' difference times w, without cancellation, and small numbers times large ones, lest g * g underflow.
        pull = g / where(top > 0, top + bottom, 1.0) * (w / lr) * g
    else:
        top = new**power
        pull = (top - n**power) / lr * w
    z = z + (g + (2 * l2_shrinkage) * w) - pull
    return (clip(z, l1) - z) / (top / lr + (2 * l2 + beta / lr)), new, z


def _hypot(a: Any, b: Any) -> Any:
    """The root of the sum of squares, wherever it is a number in range; ``a`` is not negative."""
    b = abs(b)
    larger = maximum(a, b)
    ratio = minimum(a, b) / where(larger > 0, larger, 1.0)
    return larger * sqrt(1 + ratio * ratio)
