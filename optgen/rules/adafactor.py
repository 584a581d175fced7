"""Adafactor: the second moment of a matrix as the product of a row and a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optgen.dsl import maximum, minimum, rule, sqrt
from optgen.rules.common import decoupled

_SOURCE = "Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (2018)"
Shape = tuple[int, ...]
Flags = Mapping[str, bool]
#: From how many rows and columns on optax factors.
_LEAST = 128
#: Of state that a leaf has no use for.
_NONE = (1,)


def _axes(shape: Shape, flags: Flags) -> tuple[int, int] | None:
    """The second largest and the largest dimension, where optax factors over them."""
    if not flags["factored"] or len(shape) < 2:
        return None
    second, largest = sorted(range(len(shape)), key=shape.__getitem__)[-2:]
    return (second, largest) if flags["any_size"] or shape[second] >= _LEAST else None


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def _row(shape: Shape, flags: Flags) -> Shape:
    axes = _axes(shape, flags)
    return _NONE if axes is None else _without(shape, axes[1])


def _column(shape: Shape, flags: Flags) -> Shape:
    axes = _axes(shape, flags)
    return _NONE if axes is None else _without(shape, axes[0])


def _whole(shape: Shape, flags: Flags) -> Shape:
    return shape if _axes(shape, flags) is None else _NONE


@rule(
    state={"row": None, "col": None, "v": None, "m": "momentum"}, shapes={"row": _row, "col": _column, "v": _whole},
    decays=("momentum",), convention="optax", source=f"{_SOURCE}; optax.adafactor",
)  # fmt: skip
def adafactor(
    w: Any, g: Any, row: Any, col: Any, v: Any, m: Any = None, *, lr: Any, step: Any, decay_rate: Any = 0.8,
    decay_offset: Any = 0.0, eps: Any = 1e-30, clip_threshold: Any = 1.0, min_scale: Any = 1e-3, momentum: Any = None,
    weight_decay: Any = 0.0, factored: bool = True, any_size: bool = False, scale_by_param: bool = True,
) -> Any:  # fmt: skip
    r"""Grads over the root of their mean square, which a matrix keeps by rows and columns. Out of place.

    .. math::
        \rho = (t - t_0)^{-d}, \quad q = g^2 + \epsilon, \quad
        r' = (1-\rho) r + \rho\, \mathrm{mean}_{cols}\, q, \quad
        c' = (1-\rho) c + \rho\, \mathrm{mean}_{rows}\, q, \quad v' = \frac{r' c'}{\mathrm{mean}\, r'}

        u = g / \sqrt{v'}, \quad \hat u = \frac{u}{\max(1, \mathrm{rms}(u) / \theta)}, \quad
        w' = w - \eta \max(s, \mathrm{rms}(w))\, \hat u - \lambda w

    :math:`d` is ``decay_rate``, :math:`t_0` ``decay_offset``, :math:`\theta` ``clip_threshold`` and :math:`s`
    ``min_scale``. The means are over the two largest dimensions, where the smaller one has at least 128 elements, or
    with ``any_size`` at all; other leaves have a whole :math:`v' = (1-\rho) v + \rho q`. Weight decay is not multiplied
    by the learning rate. With ``momentum`` the step is an average, :math:`m' = \mu m + (1-\mu) \eta \ldots \hat u`.
    Without ``scale_by_param`` the step is not in proportion to the param. ``row`` lacks the largest dimension, ``col``
    the second largest; what a leaf does not use has one element. Compile with ``like=``.
    """
    axes = _axes(tuple(w.shape), {"factored": factored, "any_size": any_size})
    new = (step - decay_offset) ** -decay_rate  # the share of this grad
    q = g * g + eps
    if axes is None:
        v = _mixed(new, v, q)
        u = g / sqrt(v)
    else:
        second, largest = axes
        row = _mixed(new, row, q.mean(axis=largest))
        col = _mixed(new, col, q.mean(axis=second))
        mean = row.mean(axis=second - (second > largest), keepdims=True)
        u = g / _expanded(sqrt(row / mean), largest) / _expanded(sqrt(col), second)
    u = lr * (u / maximum(1.0, _rms(u) / clip_threshold))
    if scale_by_param:
        u = u * maximum(_rms(w), min_scale)
    if momentum is not None:
        u = m = momentum * m + (1 - momentum) * u
    w = w - u - weight_decay * w
    return (w, row, col, v) if momentum is None else (w, row, col, v, m)


def _torch_row(shape: Shape, flags: Flags) -> Shape:
    return (*shape[:-1], 1) if len(shape) > 1 else _NONE


def _torch_column(shape: Shape, flags: Flags) -> Shape:
    return (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else _NONE


def _torch_whole(shape: Shape, flags: Flags) -> Shape:
    return _NONE if len(shape) > 1 else shape


@rule(
    name="adafactor", state=("row", "col", "v"),
    shapes={"row": _torch_row, "col": _torch_column, "v": _torch_whole}, source=f"{_SOURCE}; torch.optim.Adafactor",
)  # fmt: skip
def adafactor_torch(
    w: Any, g: Any, row: Any, col: Any, v: Any, *, lr: Any, step: Any, decay_rate: Any = 0.8, eps: Any = None,
    clip_threshold: Any = 1.0, min_scale: Any = 1e-3, weight_decay: Any = 0.0,
) -> Any:  # fmt: skip
    r"""Grads over the root of their mean square, which a matrix keeps by rows and columns. Out of place.

    .. math::
        \rho = t^{-d}, \quad r' = (1-\rho) r + \rho\, \mathrm{mean}_{cols}\, g^2, \quad
        c' = (1-\rho) c + \rho\, \mathrm{mean}_{rows}\, g^2, \quad
        v' = \frac{r' c'}{\max(\mathrm{mean}\, r', \epsilon)}

        u = \frac{g}{\sqrt{\max(v', \epsilon^2)}}, \quad \alpha = \min(\eta, t^{-1/2}) \max(s, \mathrm{rms}(w)), \quad
        w' = (1 - \eta\lambda) w - \alpha \frac{u}{\max(1, \mathrm{rms}(u) / \theta)}

    :math:`d` is ``decay_rate``, torch's ``beta2_decay`` with the other sign; :math:`\theta` is ``clip_threshold``,
    torch's ``d``; ``eps`` and :math:`s`, ``min_scale``, are its pair ``eps``. Where ``eps`` is not given, it is that of
    the arithmetic. The means are over the last two dimensions; vectors have a whole :math:`v`. What a leaf does not use
    has one element. Compile with ``like=``.
    """
    new = step**-decay_rate
    eps = float(np.finfo(w.dtype).eps) if eps is None else eps
    q = g * g
    if len(w.shape) > 1:
        row = _mixed(new, row, q.mean(axis=-1, keepdims=True))
        col = _mixed(new, col, q.mean(axis=-2, keepdims=True))
        square = row * col / maximum(row.mean(axis=-2, keepdims=True), eps)
    else:
        square = v = _mixed(new, v, q)
    u = g / sqrt(maximum(square, eps * eps))
    alpha = maximum(_rms(w), min_scale) * minimum(lr, 1 / sqrt(step))
    return decoupled(w, lr, weight_decay) - alpha / maximum(1.0, _rms(u) / clip_threshold) * u, row, col, v


def _mixed(share: Any, old: Any, new: Any) -> Any:
    """``share`` of ``new`` and the rest of ``old``: exact where the share is 1, as at the first step."""
    return (1 - share) * old + share * new


def _rms(x: Any) -> Any:
    return sqrt((x * x).mean())


def _expanded(x: Any, axis: int) -> Any:
    """``x`` with a dimension of one element at ``axis``."""
    return x.reshape(*x.shape[:axis], 1, *x.shape[axis:])
