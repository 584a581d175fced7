"""RMSprop and Rprop."""

from __future__ import annotations

from typing import Any

from optgen.dsl import maximum, minimum, rule, sign, sqrt, where
from optgen.rules.common import decoupled, ema

_RMSPROP = "Tieleman and Hinton, Lecture 6.5: RMSprop (2012); Graves (2013) for the centered form"
_RPROP = "Riedmiller and Braun, A Direct Adaptive Method for Faster Backpropagation Learning (1993)"
_STATE = {"v": None, "mean": "centered", "m": "momentum"}


@rule(state=_STATE, decays=("alpha",), source=f"{_RMSPROP}; torch.optim.RMSprop")
def rmsprop(
    w: Any, g: Any, v: Any, mean: Any = None, m: Any = None, *, lr: Any, alpha: Any = 0.99, eps: Any = 1e-8,
    weight_decay: Any = 0.0, momentum: Any = None, centered: bool = False,
) -> Any:  # fmt: skip
    r"""Gradient descent divided by a running root mean square, epsilon outside it, and L2 weight decay.

    .. math::
        d = g + \lambda w, \quad v' = \alpha v + (1-\alpha) d^2, \quad a' = \alpha a + (1-\alpha) d, \quad
        u = \frac{d}{\sqrt{v' - a'^2} + \epsilon}, \quad m' = \mu m + u, \quad w' = w - \eta m'

    :math:`a` is there with ``centered``, and :math:`m` where ``momentum`` is given; else :math:`w' = w - \eta u`.
    """
    d = g + weight_decay * w
    v, mean, spread = _spread(d, v, mean, alpha)
    u = d / (sqrt(spread) + eps)
    m = None if m is None else momentum * m + u
    return _results(w - lr * (u if m is None else m), v, mean, m)


@rule(
    name="rmsprop", state=_STATE, decays=("alpha",), init={"v": "initial_scale"}, convention="optax",
    source=f"{_RMSPROP}; optax.rmsprop",
)  # fmt: skip
def rmsprop_optax(
    w: Any, g: Any, v: Any, mean: Any = None, m: Any = None, *, lr: Any, alpha: Any = 0.9, eps: Any = 1e-8,
    initial_scale: Any = 0.0, momentum: Any = None, nesterov: bool = False, centered: bool = False,
) -> Any:  # fmt: skip
    r"""RMSprop with epsilon inside the root, and the learning rate inside the momentum.

    .. math::
        v' = \alpha v + (1-\alpha) g^2, \quad a' = \alpha a + (1-\alpha) g, \quad
        u = \frac{\eta g}{\sqrt{v' - a'^2 + \epsilon}}, \quad m' = \mu m + u, \quad w' = w - m'

    :math:`a` is there with ``centered``, and :math:`m` where ``momentum`` is given; with ``nesterov``
    :math:`w' = w - (u + \mu m')`. optax's name for :math:`\alpha` is ``decay``.
    """
    return _rmsprop(w, g, v, mean, m, lr, alpha, eps, momentum, nesterov)


@rule(
    name="rmsprop", state=_STATE, decays=("alpha",), convention="keras", source=f"{_RMSPROP}; keras.optimizers.RMSprop"
)
def rmsprop_keras(
    w: Any, g: Any, v: Any, mean: Any = None, m: Any = None, *, lr: Any, alpha: Any = 0.9, eps: Any = 1e-7,
    weight_decay: Any = 0.0, momentum: Any = None, centered: bool = False,
) -> Any:  # fmt: skip
    r"""optax's arithmetic with another epsilon and decoupled weight decay. Keras' name for :math:`\alpha` is ``rho``.

    .. math::
        v' = \alpha v + (1-\alpha) g^2, \quad a' = \alpha a + (1-\alpha) g, \quad
        u = \frac{\eta g}{\sqrt{v' - a'^2 + \epsilon}}, \quad m' = \mu m + u, \quad w' = w - \eta\lambda w - m'
    """
    return _rmsprop(decoupled(w, lr, weight_decay), g, v, mean, m, lr, alpha, eps, momentum, False)


@rule(state=("old", "s"), init={"s": "lr"}, source=f"{_RPROP}; torch.optim.Rprop")
def rprop(
    w: Any, g: Any, old: Any, s: Any, *, lr: Any = 0.01, eta_minus: Any = 0.5, eta_plus: Any = 1.2,
    min_step: Any = 1e-6, max_step: Any = 50.0,
) -> Any:  # fmt: skip
    r"""Steps of each element's own size: larger while its grad keeps its sign, smaller when that turns.

    .. math::
        p = g\, g_{old}, \quad s' = \mathrm{clip}\left(s \begin{cases} \eta_+ & p > 0\\ \eta_- & p < 0\\
        1 & p = 0\end{cases},\; s_{min}, s_{max}\right), \quad
        g'_{old} = \begin{cases} 0 & p < 0\\ g & \text{else}\end{cases}, \quad w' = w - s'\, \mathrm{sign}(g'_{old})

    The sizes start at ``lr``, which is used by ``init`` alone.
    """
    p = sign(g) * sign(old)  # the product itself could underflow to zero
    s = minimum(maximum(s * _factor(p, eta_minus, eta_plus), min_step), max_step)
    g = where(p < 0, 0.0, g)
    return w - sign(g) * s, g, s


@rule(name="rprop", state=("old", "s"), init={"s": "lr"}, convention="optax", source=f"{_RPROP}; optax.rprop")
def rprop_optax(
    w: Any, g: Any, old: Any, s: Any, *, lr: Any = 0.01, eta_minus: Any = 0.5, eta_plus: Any = 1.2,
    min_step: Any = 1e-6, max_step: Any = 50.0,
) -> Any:  # fmt: skip
    r"""As optax 0.2 has it: the param moves by the step that was found one call before.

    .. math::
        p = g\, u, \quad s' = \begin{cases} \mathrm{clip}(\eta_+ s,\; s_{min}, s_{max}) & p > 0\\
        \mathrm{clip}(\eta_- s,\; s_{min}, s_{max}) & p < 0\\ s & p = 0\end{cases}, \quad
        u' = \begin{cases} 0 & p < 0\\ s'\, \mathrm{sign}(g) & \text{else}\end{cases}, \quad
        w' = w - \begin{cases} 0 & p < 0\\ u & \text{else}\end{cases}

    The first call therefore moves nothing. A size that does not change is not clipped either, unlike torch's.
    """
    p = sign(g) * sign(old)
    s = where(p == 0, s, minimum(maximum(s * _factor(p, eta_minus, eta_plus), min_step), max_step))
    return w - where(p < 0, 0.0, old), where(p < 0, 0.0, s * sign(g)), s


def _factor(p: Any, eta_minus: Any, eta_plus: Any) -> Any:
    return where(p > 0, eta_plus, where(p < 0, eta_minus, 1.0))


def _spread(g: Any, v: Any, mean: Any, alpha: Any) -> tuple[Any, Any, Any]:
    v = ema(alpha, v, g * g)
    if mean is None:
        return v, None, v
    mean = ema(alpha, mean, g)
    return v, mean, v - mean * mean


def _rmsprop(
    w: Any, g: Any, v: Any, mean: Any, m: Any, lr: Any, alpha: Any, eps: Any, momentum: Any, nesterov: bool
) -> Any:
    v, mean, spread = _spread(g, v, mean, alpha)
    u = lr * g / sqrt(spread + eps)
    if m is None:
        return _results(w - u, v, mean, None)
    m = momentum * m + u
    return _results(w - (u + momentum * m if nesterov else m), v, mean, m)


def _results(*tensors: Any) -> tuple[Any, ...]:
    return tuple(t for t in tensors if t is not None)
