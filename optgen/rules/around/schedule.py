"""Learning rate schedules, evaluated inside the module: once per call, by its prologue.

At the first update they are what optax's are at count 0. Numbers that are not given must be given to steps.
"""

from __future__ import annotations

from typing import Any

from optgen.dsl.ops import cos, floor, maximum, minimum, sqrt, where
from optgen.dsl.schedule import schedule

_PI = 3.141592653589793


@schedule
def constant(*, step: Any, value: Any) -> Any:
    r""":math:`\eta = v`."""
    return value + 0.0 * step


@schedule
def linear(*, step: Any, init: Any, end: Any, steps: Any, begin: Any = 0.0) -> Any:
    r""":math:`\eta = a + (b-a) \min(1, \max(0, t - t_0) / T)`: optax.linear_schedule."""
    return init + (end - init) * _progress(step - 1 - begin, steps)


@schedule
def polynomial(*, step: Any, init: Any, end: Any, power: Any, steps: Any, begin: Any = 0.0) -> Any:
    r""":math:`\eta = b + (a-b) (1 - \min(1, \max(0, t - t_0) / T))^p`: optax.polynomial_schedule."""
    return end + (init - end) * (1 - _progress(step - 1 - begin, steps)) ** power


@schedule
def exponential(*, step: Any, init: Any, steps: Any, rate: Any, begin: Any = 0.0, end: Any = 0.0) -> Any:
    r""":math:`\eta = \max(b, a r^{\max(0, t - t_0) / T})`: optax.exponential_decay for rates below 1."""
    return maximum(init * rate ** (maximum(step - 1 - begin, 0.0) / steps), end)


@schedule
def cosine(*, step: Any, init: Any, steps: Any, alpha: Any = 0.0) -> Any:
    r""":math:`\eta = a ((1-\alpha) \frac{1 + \cos(\pi \min(1, t / T))}{2} + \alpha)`: optax.cosine_decay_schedule."""
    return init * ((1 - alpha) * _half_wave(_progress(step - 1, steps)) + alpha)


@schedule
def warmup_cosine(*, step: Any, peak: Any, warmup: Any, total: Any, init: Any = 0.0, end: Any = 0.0) -> Any:
    """Linear from ``init`` to ``peak``, then a cosine to ``end`` at ``total``: optax.warmup_cosine_decay_schedule."""
    count = step - 1
    rise = init + (peak - init) * _progress(count, maximum(warmup, 1.0))
    fall = end + (peak - end) * _half_wave(_progress(count - warmup, total - warmup))
    return where(count < warmup, rise, fall)


@schedule
def one_cycle(
    *, step: Any, peak: Any, total: Any, rise: Any = 0.3, div_factor: Any = 25.0, final_div_factor: Any = 1e4
) -> Any:
    """A cosine from ``peak / div_factor`` to ``peak``, then one to ``peak / (div_factor * final_div_factor)``.

    optax.cosine_onecycle_schedule; ``rise`` is the part of ``total`` that the first takes.
    """
    count, middle = step - 1, floor(rise * total)
    low = peak / div_factor
    last = low / final_div_factor
    up = peak + (low - peak) * _half_wave(_progress(count, maximum(middle, 1.0)))
    down = last + (peak - last) * _half_wave(_progress(count - middle, total - middle))
    return where(count < middle, up, down)


@schedule
def inverse_sqrt(*, step: Any, peak: Any, warmup: Any) -> Any:
    r""":math:`\eta = v \min(t / T, \sqrt{T / t})`: Vaswani et al., Attention Is All You Need (2017), section 5.3."""
    return peak * minimum(step / warmup, sqrt(warmup / step))


def piecewise(init: float | None = None, boundaries: Any = ()) -> Any:
    r"""Constant but at boundaries, after which it is multiplied: optax.piecewise_constant_schedule.

    Args:
        init: the first rate.
        boundaries: a mapping from a number of updates to a factor, or pairs of both. Each is the hyperparameters
            ``boundary0`` and ``factor0``, ``boundary1``...
    """
    from optgen.dsl.rule import Rule
    from optgen.dsl.schedule import Schedule
    from optgen.hyper import Hyper

    pairs = sorted(dict(boundaries).items())

    def function(*, step: Any, init: Any, lr_scale: Any, **numbers: Any) -> Any:
        value = lr_scale * init
        for i in range(len(pairs)):
            value = value * where(step - 1 >= numbers[f"boundary{i}"], numbers[f"factor{i}"], 1.0)
        return value

    function.__doc__ = piecewise.__doc__
    first = Hyper("init")
    hypers = [Hyper("step", "step"), Hyper("init", default=None if init is None else first.check(init))]
    for i, (boundary, factor) in enumerate(pairs):
        for name, value in ((f"boundary{i}", boundary), (f"factor{i}", factor)):
            hypers.append(Hyper(name, default=Hyper(name).check(value)))
    hypers.append(Hyper("lr_scale", default=1.0))
    return Schedule(Rule("piecewise", "torch", function, "w", (), (), tuple(hypers), {}, frozenset(), ""))


def _progress(count: Any, steps: Any) -> Any:
    return minimum(maximum(count / where(steps > 0, steps, 1.0), 0.0), 1.0)


def _half_wave(progress: Any) -> Any:
    """From 1 to 0."""
    return 0.5 * (1 + cos(_PI * progress))
