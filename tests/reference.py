"""The rules in float64 numpy, written from the papers by hand: what parity is tested against.

Every function takes float64 arrays and returns, for each new tensor, its value and the magnitude of its largest term:
the yardstick for rounding errors where terms cancel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def _sum(*terms: Any) -> Pair:
    total = sum(terms)
    return total, np.maximum.reduce([np.abs(total), *(np.abs(t) for t in terms)])


def one_minus_power(beta: float, step: int) -> float:
    """1 - beta**step to the last digit."""
    return -math.expm1(step * math.log(beta)) if beta > 0 else 1.0


def sgd(w: Any, g: Any, *, lr: float, weight_decay: float = 0.0, **_: Any) -> dict[str, Pair]:
    return {"w": _sum(w, -lr * (g + weight_decay * w))}


def sgd_momentum(
    w: Any, g: Any, m: Any, *, lr: float, momentum: float, weight_decay: float = 0.0, nesterov: bool = False, **_: Any
) -> dict[str, Pair]:
    d, d_term = _sum(g, weight_decay * w)
    new_m, m_term = _sum(momentum * m, d)
    m_term = np.maximum(m_term, d_term)
    if nesterov:
        u, u_term = _sum(d, momentum * new_m)
        u_term = np.maximum.reduce([u_term, d_term, momentum * m_term])
    else:
        u, u_term = new_m, m_term
    return {"w": (w - lr * u, np.maximum.reduce([np.abs(w - lr * u), np.abs(w), lr * u_term])), "m": (new_m, m_term)}


def adam(
    w: Any, g: Any, m: Any, v: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, weight_decay: float = 0.0, decoupled: bool = False, ivy: bool = False, **_: Any,
) -> dict[str, Pair]:  # fmt: skip
    d, d_term = (g, np.abs(g)) if decoupled else _sum(g, weight_decay * w)
    new_m, m_term = _sum(beta1 * m, (1 - beta1) * d)
    m_term = np.maximum(m_term, (1 - beta1) * d_term)
    new_v = beta2 * v + (1 - beta2) * d * d
    v_term = np.maximum(np.abs(new_v), (1 - beta2) * d_term**2)
    c1, c2 = one_minus_power(beta1, step), one_minus_power(beta2, step)
    if ivy:
        alpha = lr * math.sqrt(c2) / (c1 + eps)
        scale = alpha / (np.sqrt(new_v) + eps)
    else:
        scale = lr / c1 / (np.sqrt(new_v / c2) + eps)
    kept = w - lr * weight_decay * w if decoupled else w
    return {
        "w": (kept - scale * new_m, np.maximum.reduce([np.abs(kept - scale * new_m), np.abs(w), scale * m_term])),
        "m": (new_m, m_term),
        "v": (new_v, v_term),
    }


def adamw(*tensors: Any, weight_decay: float = 0.01, **hypers: Any) -> dict[str, Pair]:
    return adam(*tensors, weight_decay=weight_decay, decoupled=True, **hypers)
