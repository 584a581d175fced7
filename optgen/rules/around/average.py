"""Averages of the params, as state beside them: for evaluation, they are often better than the params."""

from __future__ import annotations

from typing import Any

from optgen.dsl.around import part
from optgen.dsl.ops import where


@part(
    behind=True, state=("ema",), init={"ema": "param"}, decays=("decay",),
    source="Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992); optax.ema",
)  # fmt: skip
def ema(update: Any, w: Any, g: Any, ema: Any, *, step: Any, decay: Any = 0.999, debias: bool = False) -> Any:
    r"""The exponential moving average of the params, as the state ``ema``, which starts as the params do.

    .. math::
        e' = \beta e + (1-\beta) w'

    With ``debias`` the params before the first step do not count, and :math:`1-\beta` is divided by
    :math:`1-\beta^t`: what is stored is optax's ``ema(debias=True)`` as it is returned, no matter when it is read.
    """
    new = update(w, g)
    rate = (1 - decay) / (1 - decay**step) if debias else 1 - decay
    return new, ema + rate * (new.w - ema)


@part(
    behind=True, state=("mean",), init={"mean": "param"},
    source="Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992); "
    "torch.optim.swa_utils.AveragedModel",
)  # fmt: skip
def polyak(update: Any, w: Any, g: Any, mean: Any, *, step: Any, start: Any = 1.0) -> Any:
    r"""The mean of the params after each step from step ``start`` on, as the state ``mean``; before it, the params.

    .. math::
        a' = a + \frac{w' - a}{\max(1, t - t_0 + 1)}
    """
    new = update(w, g)
    count = step - start + 1
    return new, mean + (new.w - mean) / where(count > 1, count, 1.0)
