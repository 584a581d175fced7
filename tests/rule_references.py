"""Every rule and convention in float64 numpy, written from the papers and the libraries by hand.

Each function takes the tensors and hyperparameters of one update, and returns what the update replaces by name. They
are written as one would on paper, without the algebra by which the rules keep work out of their loops. torch's sgd,
adam and adamw, and ivy's rules, are in ``reference.py``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from reference import one_minus_power

Arrays = dict[str, Any]


def _corrected(x: Any, beta: float, step: int) -> Any:
    return x / one_minus_power(beta, step)


def sgd_dampened(
    w: Any, g: Any, m: Any, *, lr: float, step: int, momentum: float, dampening: float, weight_decay: float = 0.0
) -> Arrays:
    d = g + weight_decay * w
    m = d if step == 1 else momentum * m + (1 - dampening) * d
    return {"w": w - lr * m, "m": m}


def sgd_keras(
    w: Any, g: Any, m: Any = None, *, lr: float, step: int, momentum: float = 0.0, weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Arrays:  # fmt: skip
    w = w * (1 - lr * weight_decay)
    if m is None:
        return {"w": w - lr * g}
    m = momentum * m - lr * g
    return {"w": w + momentum * m - lr * g if nesterov else w + m, "m": m}


def adam(
    w: Any, g: Any, m: Any, v: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999, eps: float,
    weight_decay: float = 0.0, hat: bool = False,
) -> Arrays:  # fmt: skip
    """Weight decay decoupled; epsilon as in torch, or with ``hat`` as in section 2 of the paper."""
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    w = w - lr * weight_decay * w
    if hat:
        rate = lr * math.sqrt(one_minus_power(beta2, step)) / one_minus_power(beta1, step)
        return {"w": w - rate * m / (np.sqrt(v) + eps), "m": m, "v": v}
    return {"w": w - lr * _corrected(m, beta1, step) / (np.sqrt(_corrected(v, beta2, step)) + eps), "m": m, "v": v}


def adam_keras(*tensors: Any, eps: float = 1e-7, **hypers: Any) -> Arrays:
    return adam(*tensors, eps=eps, hat=True, **hypers)


def adamw_optax(*tensors: Any, eps: float = 1e-8, weight_decay: float = 1e-4, **hypers: Any) -> Arrays:
    return adam(*tensors, eps=eps, weight_decay=weight_decay, **hypers)


def adamw_keras(*tensors: Any, eps: float = 1e-7, weight_decay: float = 0.004, **hypers: Any) -> Arrays:
    return adam(*tensors, eps=eps, weight_decay=weight_decay, hat=True, **hypers)


def amsgrad(
    w: Any, g: Any, m: Any, v: Any, top: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, weight_decay: float = 0.0, decoupled_weight_decay: bool = False, hat: bool = False,
    corrected: bool = False,
) -> Arrays:  # fmt: skip
    d = g if decoupled_weight_decay else g + weight_decay * w
    w = w - lr * weight_decay * w if decoupled_weight_decay else w
    m, v = beta1 * m + (1 - beta1) * d, beta2 * v + (1 - beta2) * d**2
    top = np.maximum(top, _corrected(v, beta2, step) if corrected else v)
    mean = _corrected(m, beta1, step)
    if hat:
        below = (np.sqrt(top) + eps) / math.sqrt(one_minus_power(beta2, step))
    else:
        below = np.sqrt(top if corrected else _corrected(top, beta2, step)) + eps
    return {"w": w - lr * mean / below, "m": m, "v": v, "top": top}


def amsgrad_optax(*tensors: Any, **hypers: Any) -> Arrays:
    return amsgrad(*tensors, corrected=True, **hypers)


def amsgrad_keras(*tensors: Any, eps: float = 1e-7, **hypers: Any) -> Arrays:
    return amsgrad(*tensors, eps=eps, hat=True, decoupled_weight_decay=True, **hypers)


def adamax(
    w: Any, g: Any, m: Any, u: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, weight_decay: float = 0.0, decoupled: bool = False,
) -> Arrays:  # fmt: skip
    d = g if decoupled else g + weight_decay * w
    m, u = beta1 * m + (1 - beta1) * d, np.maximum(beta2 * u, np.abs(d) + eps)
    kept = w * (1 - lr * weight_decay) if decoupled else w
    return {"w": kept - lr * _corrected(m, beta1, step) / u, "m": m, "u": u}


def adamaxw(*tensors: Any, weight_decay: float = 1e-4, **hypers: Any) -> Arrays:
    return adamax(*tensors, weight_decay=weight_decay, decoupled=True, **hypers)


def adamax_keras(
    w: Any, g: Any, m: Any, u: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-7, weight_decay: float = 0.0,
) -> Arrays:  # fmt: skip
    m, u = beta1 * m + (1 - beta1) * g, np.maximum(beta2 * u, np.abs(g))
    return {"w": w * (1 - lr * weight_decay) - lr * _corrected(m, beta1, step) / (u + eps), "m": m, "u": u}


def nadam(
    w: Any, g: Any, m: Any, v: Any, *, lr: float, step: int, mu_product: float, beta1: float = 0.9,
    beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, momentum_decay: float = 0.004,
    decoupled: bool = False,
) -> Arrays:  # fmt: skip
    d = g if decoupled else g + weight_decay * w
    w = w * (1 - lr * weight_decay) if decoupled else w
    mu, following = (beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (step, step + 1))
    product = mu_product * mu
    m, v = beta1 * m + (1 - beta1) * d, beta2 * v + (1 - beta2) * d**2
    above = (1 - mu) * d / (1 - product) + following * m / (1 - product * following)
    below = np.sqrt(_corrected(v, beta2, step)) + eps
    return {"w": w - lr * above / below, "m": m, "v": v, "mu_product": product}


def nadamw(*tensors: Any, weight_decay: float = 0.01, **hypers: Any) -> Arrays:
    return nadam(*tensors, weight_decay=weight_decay, decoupled=True, **hypers)


def nadam_keras(*tensors: Any, eps: float = 1e-7, **hypers: Any) -> Arrays:
    return nadam(*tensors, eps=eps, momentum_decay=1.0, decoupled=True, **hypers)


def nadam_optax(
    w: Any, g: Any, m: Any, v: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, weight_decay: float = 0.0,
) -> Arrays:  # fmt: skip
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    mean = beta1 * _corrected(m, beta1, step + 1) + (1 - beta1) * _corrected(g, beta1, step)
    u = mean / (np.sqrt(_corrected(v, beta2, step)) + eps)
    return {"w": w - lr * (u + weight_decay * w), "m": m, "v": v}


def nadamw_optax(*tensors: Any, weight_decay: float = 1e-4, **hypers: Any) -> Arrays:
    return nadam_optax(*tensors, weight_decay=weight_decay, **hypers)


def radam(
    w: Any, g: Any, m: Any, v: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, weight_decay: float = 0.0, decoupled_weight_decay: bool = False, threshold: float | None = None,
) -> Arrays:  # fmt: skip
    """torch's; with a threshold, optax's."""
    d = g if decoupled_weight_decay else g + weight_decay * w
    w = w * (1 - lr * weight_decay) if decoupled_weight_decay else w
    m, v = beta1 * m + (1 - beta1) * d, beta2 * v + (1 - beta2) * d**2
    mean = _corrected(m, beta1, step)
    limit = 2 / (1 - beta2) - 1
    rho = limit - 2 * step * beta2**step / one_minus_power(beta2, step)
    if rho <= 5 if threshold is None else rho < threshold:
        return {"w": w - lr * mean, "m": m, "v": v}
    r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
    c2 = one_minus_power(beta2, step)
    below = (np.sqrt(v) + eps) / math.sqrt(c2) if threshold is None else np.sqrt(v / c2) + eps
    return {"w": w - lr * r * mean / below, "m": m, "v": v}


def radam_optax(*tensors: Any, threshold: float = 5.0, **hypers: Any) -> Arrays:
    return radam(*tensors, threshold=threshold, **hypers)


def adabelief(
    w: Any, g: Any, m: Any, s: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-16, eps_root: float = 1e-16,
) -> Arrays:  # fmt: skip
    m = beta1 * m + (1 - beta1) * g
    s = beta2 * s + (1 - beta2) * (g - m) ** 2 + eps_root
    u = _corrected(m, beta1, step) / (np.sqrt(_corrected(s, beta2, step)) + eps)
    return {"w": w - lr * u, "m": m, "s": s}


def yogi(
    w: Any, g: Any, m: Any, v: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-3,
) -> Arrays:  # fmt: skip
    m = beta1 * m + (1 - beta1) * g
    v = v - (1 - beta2) * np.sign(v - g**2) * g**2
    u = _corrected(m, beta1, step) / (np.sqrt(_corrected(v, beta2, step)) + eps)
    return {"w": w - lr * u, "m": m, "v": v}


def adan(
    w: Any, g: Any, m: Any, v: Any, n: Any, old: Any, *, lr: float, step: int, beta1: float = 0.98,
    beta2: float = 0.92, beta3: float = 0.99, eps: float = 1e-8, eps_root: float = 1e-8, weight_decay: float = 0.0,
) -> Arrays:  # fmt: skip
    delta = np.zeros_like(g) if step == 1 else g - old
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * delta
    n = beta3 * n + (1 - beta3) * (g + (1 - beta2) * delta) ** 2
    u = _corrected(m, beta1, step) + (1 - beta2) * _corrected(v, beta2, step)
    u = u / (np.sqrt(_corrected(n, beta3, step) + eps_root) + eps)
    return {"w": w - lr * (u + weight_decay * w), "m": m, "v": v, "n": n, "old": g}


def ademamix(
    w: Any, g: Any, m: Any, slow: Any, v: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    beta3: float = 0.9999, alpha: float = 5.0, eps: float = 1e-8, weight_decay: float = 0.0,
) -> Arrays:  # fmt: skip
    m, slow = beta1 * m + (1 - beta1) * g, beta3 * slow + (1 - beta3) * g
    v = beta2 * v + (1 - beta2) * g**2
    u = (_corrected(m, beta1, step) + alpha * slow) / (np.sqrt(_corrected(v, beta2, step)) + eps)
    return {"w": w - lr * (u + weight_decay * w), "m": m, "slow": slow, "v": v}


def adopt(
    w: Any, g: Any, m: Any, v: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.9999,
    eps: float = 1e-6, weight_decay: float = 0.0, nesterov: bool = False, unclipped: bool = False,
) -> Arrays:  # fmt: skip
    kept = w - lr * weight_decay * w
    if step == 1:
        return {"w": kept - lr * m, "m": m, "v": g**2}
    x = g / np.maximum(np.sqrt(v), eps)
    x = x if unclipped else np.clip(x, -((step - 1) ** 0.25), (step - 1) ** 0.25)
    m = beta1 * m + (1 - beta1) * x
    u = beta1 * m + (1 - beta1) * x if nesterov else m
    return {"w": kept - lr * u, "m": m, "v": beta2 * v + (1 - beta2) * g**2}


def adagrad(
    w: Any, g: Any, s: Any, *, lr: float, step: int, lr_decay: float = 0.0, weight_decay: float = 0.0,
    eps: float = 1e-10,
) -> Arrays:  # fmt: skip
    d = g + weight_decay * w
    s = s + d**2
    return {"w": w - lr / (1 + (step - 1) * lr_decay) * d / (np.sqrt(s) + eps), "s": s}


def adagrad_inside(
    w: Any, g: Any, s: Any, *, lr: float, step: int, weight_decay: float = 0.0, eps: float = 1e-7
) -> Arrays:
    s = s + g**2
    return {"w": w - lr * weight_decay * w - lr * g / np.sqrt(s + eps), "s": s}


def adadelta(
    w: Any, g: Any, v: Any, u: Any, *, lr: float = 1.0, step: int, rho: float = 0.9, eps: float = 1e-6,
    weight_decay: float = 0.0, decoupled: bool = False,
) -> Arrays:  # fmt: skip
    d = g if decoupled else g + weight_decay * w
    w = w - lr * weight_decay * w if decoupled else w
    v = rho * v + (1 - rho) * d**2
    delta = np.sqrt(u + eps) / np.sqrt(v + eps) * d
    return {"w": w - lr * delta, "v": v, "u": rho * u + (1 - rho) * delta**2}


def adadelta_keras(*tensors: Any, rho: float = 0.95, eps: float = 1e-7, lr: float = 0.001, **hypers: Any) -> Arrays:
    return adadelta(*tensors, rho=rho, eps=eps, lr=lr, decoupled=True, **hypers)


def rmsprop(w: Any, g: Any, v: Any, *rest: Any, lr: float, step: int, alpha: float = 0.99, eps: float = 1e-8,
            weight_decay: float = 0.0, momentum: float | None = None, centered: bool = False) -> Arrays:  # fmt: skip
    d = g + weight_decay * w
    slots = list(rest)
    v = alpha * v + (1 - alpha) * d**2
    out = {"v": v}
    if centered:
        mean = out["mean"] = alpha * slots.pop(0) + (1 - alpha) * d
        v = v - mean**2
    u = d / (np.sqrt(v) + eps)
    if momentum is not None:
        u = out["m"] = momentum * slots.pop(0) + u
    return {"w": w - lr * u, **out}


def rmsprop_inside(w: Any, g: Any, v: Any, *rest: Any, lr: float, step: int, alpha: float = 0.9, eps: float = 1e-8,
                   weight_decay: float = 0.0, momentum: float | None = None, nesterov: bool = False,
                   centered: bool = False) -> Arrays:  # fmt: skip
    slots = list(rest)
    v = alpha * v + (1 - alpha) * g**2
    out = {"v": v}
    if centered:
        mean = out["mean"] = alpha * slots.pop(0) + (1 - alpha) * g
        v = v - mean**2
    u = lr * g / np.sqrt(v + eps)
    if momentum is not None:
        m = out["m"] = momentum * slots.pop(0) + u
        u = u + momentum * m if nesterov else m
    return {"w": w - lr * weight_decay * w - u, **out}


def rmsprop_keras(*tensors: Any, eps: float = 1e-7, **hypers: Any) -> Arrays:
    return rmsprop_inside(*tensors, eps=eps, **hypers)


def rprop(
    w: Any, g: Any, old: Any, s: Any, *, step: int, lr: float = 0.01, eta_minus: float = 0.5, eta_plus: float = 1.2,
    min_step: float = 1e-6, max_step: float = 50.0, optax: bool = False,
) -> Arrays:  # fmt: skip
    w, g, old, s = (np.array(x) for x in (w, g, old, s))
    for i in range(w.size):
        p = np.sign(g[i]) * np.sign(old[i])
        if p != 0 or not optax:
            s[i] = min(max(s[i] * (eta_plus if p > 0 else eta_minus if p < 0 else 1), min_step), max_step)
        if p < 0:
            g[i] = 0
        w[i] -= (0 if p < 0 else old[i]) if optax else np.sign(g[i]) * s[i]
    return {"w": w, "old": s * np.sign(g) if optax else g, "s": s}


def rprop_optax(*tensors: Any, **hypers: Any) -> Arrays:
    return rprop(*tensors, optax=True, **hypers)


def lion(
    w: Any, g: Any, m: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.99,
    weight_decay: float = 1e-3,
) -> Arrays:  # fmt: skip
    u = np.sign(beta1 * m + (1 - beta1) * g)
    return {"w": w - lr * (u + weight_decay * w), "m": beta2 * m + (1 - beta2) * g}


def lion_keras(*tensors: Any, weight_decay: float = 0.0, **hypers: Any) -> Arrays:
    return lion(*tensors, weight_decay=weight_decay, **hypers)


def signsgd(w: Any, g: Any, *, lr: float, step: int, weight_decay: float = 0.0) -> Arrays:
    return {"w": w - lr * (np.sign(g) + weight_decay * w)}


def signum(w: Any, g: Any, m: Any, *, lr: float, step: int, beta: float = 0.9, weight_decay: float = 0.0) -> Arrays:
    m = beta * m + (1 - beta) * g
    return {"w": w - lr * (np.sign(m) + weight_decay * w), "m": m}


def _length(x: Any) -> float:
    return math.sqrt(math.fsum(float(e) ** 2 for e in x))


def lars(
    w: Any, g: Any, m: Any, *, lr: float, step: int, momentum: float = 0.9, weight_decay: float = 0.0,
    trust_coefficient: float = 0.001, eps: float = 0.0, nesterov: bool = False,
) -> Arrays:  # fmt: skip
    d = g + weight_decay * w
    a, b = _length(w), _length(d)
    u = lr * (trust_coefficient * a / (b + eps) if a > 0 and b > 0 else 1.0) * d
    m = momentum * m + u
    return {"w": w - (u + momentum * m if nesterov else m), "m": m}


def lamb(
    w: Any, g: Any, m: Any, v: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-6, weight_decay: float = 0.0, before: bool = False,
) -> Arrays:  # fmt: skip
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    u = _corrected(m, beta1, step) / (np.sqrt(_corrected(v, beta2, step)) + eps)
    if before:
        w = w - lr * weight_decay * w
    else:
        u = u + weight_decay * w
    a, b = _length(w), _length(u)
    return {"w": w - lr * (a / b if a > 0 and b > 0 else 1.0) * u, "m": m, "v": v}


def lamb_keras(*tensors: Any, eps: float = 1e-7, **hypers: Any) -> Arrays:
    return lamb(*tensors, eps=eps, before=True, **hypers)


def novograd(
    w: Any, g: Any, m: Any, v: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.25,
    eps: float = 1e-6, weight_decay: float = 0.0,
) -> Arrays:  # fmt: skip
    square = np.full_like(v, _length(g) ** 2)
    v = square if step == 1 else beta2 * v + (1 - beta2) * square
    m = beta1 * m + g / (np.sqrt(v) + eps) + weight_decay * w
    return {"w": w - lr * m, "m": m, "v": v}


def _schedule_free(
    w: Any, z: Any, u: Any, lr: float, beta1: float, weight_sum: float, max_lr: float, power: float
) -> Arrays:
    max_lr = max(max_lr, lr)
    weight_sum = weight_sum + max_lr**power
    c = max_lr**power / weight_sum if weight_sum else 0.0
    x = (w - (1 - beta1) * z) / beta1
    z = z - lr * u
    x = (1 - c) * x + c * z
    return {"w": beta1 * x + (1 - beta1) * z, "z": z, "weight_sum": weight_sum, "max_lr": max_lr}


def schedule_free_sgd(
    w: Any, g: Any, z: Any, *, lr: float, step: int, weight_sum: float, max_lr: float, beta1: float = 0.9,
    weight_decay: float = 0.0, weight_lr_power: float = 2.0,
) -> Arrays:  # fmt: skip
    return _schedule_free(w, z, g + weight_decay * w, lr, beta1, weight_sum, max_lr, weight_lr_power)


def schedule_free_adamw(
    w: Any, g: Any, v: Any, z: Any, *, lr: float, step: int, weight_sum: float, max_lr: float, beta1: float = 0.9,
    beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, weight_lr_power: float = 2.0,
) -> Arrays:  # fmt: skip
    v = beta2 * v + (1 - beta2) * g**2
    u = g / (np.sqrt(_corrected(v, beta2, step)) + eps) + weight_decay * w
    return {"v": v, **_schedule_free(w, z, u, lr, beta1, weight_sum, max_lr, weight_lr_power)}


def schedule_free_adamw_keras(
    w: Any, g: Any, v: Any, z: Any, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, weight_decay: float = 0.0,
) -> Arrays:  # fmt: skip
    v = beta2 * v + (1 - beta2) * g**2
    u = g / (np.sqrt(_corrected(v, beta2, step)) + eps)
    # Weights of 1 at each step: the largest rate to the power of 0, and as many of them as there were steps.
    found = _schedule_free(w - lr * weight_decay * w, z, u, lr, beta1, step - 1.0, 1.0, 0.0)
    return {"w": found["w"], "v": v, "z": found["z"]}


def sophia_g(
    w: Any, g: Any, h: Any, m: Any, v: Any, *, lr: float, step: int, beta1: float = 0.965, beta2: float = 0.99,
    eps: float = 1e-8, weight_decay: float = 1e-4, gamma: float = 0.01, clip_threshold: float = 1.0,
    refresh: float = 1.0,
) -> Arrays:  # fmt: skip
    m = beta1 * m + (1 - beta1) * g
    u = np.clip(_corrected(m, beta1, step) / np.maximum(gamma * v, eps), -clip_threshold, clip_threshold)
    return {"w": w - lr * (u + weight_decay * w), "m": m, "v": beta2 * v + (1 - beta2) * h if refresh else v}


def muon(
    w: Any, g: Any, m: Any, *, lr: float, step: int, beta: float = 0.95, eps: float = 1e-8,
    weight_decay: float = 0.0, plain_momentum: bool = False,
) -> Arrays:  # fmt: skip
    """By singular values: the iteration changes them alone."""
    m = beta * m + (1 - beta) * g
    if plain_momentum:
        u = _corrected(m, beta, step)
    else:
        u = beta * _corrected(m, beta, step + 1) + (1 - beta) * _corrected(g, beta, step)
    left, values, right = np.linalg.svd(u, full_matrices=False)
    values = values / (math.sqrt(np.sum(values**2)) + eps)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    x = left * values @ right
    scale = math.sqrt(max(1, w.shape[1] / w.shape[0]))
    return {"w": w - lr * (scale * x + weight_decay * w), "m": m}


def ftrl(
    w: Any, g: Any, n: Any, z: Any, *, lr: float, step: int, l1: float = 0.0, l2: float = 0.0,
    l2_shrinkage: float = 0.0, beta: float = 0.0, power: float = 0.5,
) -> Arrays:  # fmt: skip
    new = n + g**2
    sigma = (new**power - n**power) / lr
    z = z + g + 2 * l2_shrinkage * w - sigma * w
    w = np.where(np.abs(z) <= l1, 0.0, (np.sign(z) * l1 - z) / (new**power / lr + 2 * (l2 + beta / (2 * lr))))
    return {"w": w, "n": new, "z": z}


def adafactor(
    w: Any, g: Any, row: Any, col: Any, v: Any, m: Any = None, *, lr: float, step: int, decay_rate: float = 0.8,
    decay_offset: float = 0.0, eps: float = 1e-30, clip_threshold: float = 1.0, min_scale: float = 1e-3,
    momentum: float | None = None, weight_decay: float = 0.0, factored: bool = True, any_size: bool = False,
    scale_by_param: bool = True,
) -> Arrays:  # fmt: skip
    """The second moment written out, by numpy's own order of the dimensions."""
    keep, q = 1 - (step - decay_offset) ** -decay_rate, g**2 + eps
    order = np.argsort(w.shape, kind="stable")
    if factored and w.ndim > 1 and (any_size or w.shape[order[-2]] >= 128):
        second, largest = order[-2:]
        row = keep * row + (1 - keep) * q.mean(largest)
        col = keep * col + (1 - keep) * q.mean(second)
        rows = np.expand_dims(row, largest)
        square = rows * np.expand_dims(col, second) / rows.mean(second, keepdims=True)
    else:
        square = v = keep * v + (1 - keep) * q
    u = g * square**-0.5
    u = lr * u / max(1, math.sqrt(np.mean(u**2)) / clip_threshold)
    u = u * max(math.sqrt(np.mean(w**2)), min_scale) if scale_by_param else u
    state = {"row": row, "col": col, "v": v}
    if momentum is not None:
        u = state["m"] = momentum * m + (1 - momentum) * u
    return {"w": w - (u + weight_decay * w), **state}


def adafactor_torch(
    w: Any, g: Any, row: Any, col: Any, v: Any, *, lr: float, step: int, decay_rate: float = 0.8,
    eps: float = 2.0**-52, clip_threshold: float = 1.0, min_scale: float = 1e-3, weight_decay: float = 0.0,
) -> Arrays:  # fmt: skip
    keep = 1 - step**-decay_rate
    if w.ndim > 1:
        row = keep * row + (1 - keep) * (g**2).mean(-1, keepdims=True)
        col = keep * col + (1 - keep) * (g**2).mean(-2, keepdims=True)
        square = row @ col / np.maximum(row.mean(-2, keepdims=True), eps)
    else:
        square = v = keep * v + (1 - keep) * g**2
    u = g / np.maximum(np.sqrt(square), eps)
    alpha = max(min_scale, math.sqrt(np.mean(w**2))) * min(lr, step**-0.5)
    alpha = alpha / max(1, math.sqrt(np.mean(u**2)) / clip_threshold)
    return {"w": (1 - lr * weight_decay) * w - alpha * u, "row": row, "col": col, "v": v}
