"""What several families of rules share."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, minimum, sqrt


def ema(beta: Any, old: Any, new: Any) -> Any:
    """The exponential moving average: a decay rate's complement keeps every digit."""
    return beta * old + (1 - beta) * new


def clip(x: Any, limit: Any) -> Any:
    """``x``, at most ``limit`` from zero."""
    return maximum(-limit, minimum(x, limit))


def decoupled(w: Any, lr: Any, weight_decay: Any) -> Any:
    """The param after decoupled weight decay, to which the update itself is then added."""
    return w - (lr * weight_decay) * w


def adam_step(
    w: Any, m: Any, v: Any, lr: Any, step: Any, beta1: Any, beta2: Any, eps: Any, *, hat: bool = False
) -> Any:
    """The param after Adam's step with these new moments; with ``hat``, epsilon is added before v is corrected."""
    # sqrt(v / c2) + eps is (sqrt(v) + eps * sqrt(c2)) / sqrt(c2): both corrections leave the loop over elements.
    root = sqrt(1 - beta2**step)
    alpha = lr * root / (1 - beta1**step)
    return w - alpha * m / (sqrt(v) + (eps if hat else eps * root))
