"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from optgen.dsl import rule


@rule(
    state={"m": "momentum"},
    source="Sutskever et al., On the importance of initialization and momentum (2013); torch.optim.SGD",
)
def sgd(
    w: Any, g: Any, m: Any = None, *, lr: Any, weight_decay: Any = 0.0, momentum: Any = None, nesterov: bool = False
) -> Any:
    r"""Gradient descent, with momentum (heavy ball) or Nesterov's where given, and L2 weight decay.

    .. math::
        d = g + \lambda w, \qquad m' = \mu m + d, \qquad
        w' = w - \eta \begin{cases} d & \text{no momentum}\\ m' & \text{momentum}\\
        d + \mu m' & \text{nesterov}\end{cases}
    """
    d = g + weight_decay * w
    if m is None:
        return w - lr * d
    m = momentum * m + d
    return w - lr * (d + momentum * m if nesterov else m), m
