"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from optgen.dsl import rule, where
from optgen.errors import HyperparameterError
from optgen.rules.common import decoupled


@rule(
    state={"m": "momentum"},
    needs={"step": "dampening"},
    source="Sutskever et al., On the importance of initialization and momentum (2013); torch.optim.SGD",
)
def sgd(
    w: Any, g: Any, m: Any = None, *, lr: Any, weight_decay: Any = 0.0, momentum: Any = None, dampening: Any = None,
    step: Any = None, nesterov: bool = False,
) -> Any:  # fmt: skip
    r"""Gradient descent, with momentum (heavy ball) or Nesterov's where given, and L2 weight decay.

    .. math::
        d = g + \lambda w, \qquad m' = \mu m + (1-\tau) d, \qquad
        w' = w - \eta \begin{cases} d & \text{no momentum}\\ m' & \text{momentum}\\
        d + \mu m' & \text{nesterov}\end{cases}

    The dampening :math:`\tau`, where given, does not apply to the first step. optax's is this without weight decay
    and dampening.
    """
    d = g + weight_decay * w
    if m is None:
        return w - lr * d
    if dampening is None:
        m = momentum * m + d
    elif nesterov:
        raise HyperparameterError("'dampening' must not be given with nesterov=True")
    else:
        m = momentum * m + where(step == 1, 1.0, 1 - dampening) * d
    return w - lr * (d + momentum * m if nesterov else m), m


@rule(
    name="sgd", state={"m": "momentum"}, convention="keras",
    source="Sutskever et al., On the importance of initialization and momentum (2013); keras.optimizers.SGD",
)  # fmt: skip
def sgd_keras(
    w: Any, g: Any, m: Any = None, *, lr: Any, weight_decay: Any = 0.0, momentum: Any = None, nesterov: bool = False
) -> Any:
    r"""Gradient descent with the learning rate inside the momentum: it matters where the rate changes.

    .. math::
        m' = \mu m - \eta g, \qquad w' = w - \eta\lambda w + \begin{cases} -\eta g & \text{no momentum}\\
        m' & \text{momentum}\\ \mu m' - \eta g & \text{nesterov}\end{cases}
    """
    w = decoupled(w, lr, weight_decay)
    if m is None:
        return w - lr * g
    m = momentum * m - lr * g
    return w + (momentum * m - lr * g if nesterov else m), m
