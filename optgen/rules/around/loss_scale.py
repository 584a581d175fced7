"""Loss scaling, and updates that are skipped because a grad is not finite."""

from __future__ import annotations

from typing import Any

from optgen.dsl.around import Part, part
from optgen.dsl.ops import is_finite, tree_sum, where
from optgen.errors import HyperparameterError

_SOURCE = "Micikevicius et al., Mixed Precision Training (2018)"
_LARGEST = 3.4028234663852886e38  # of f32: torch's scale does not grow beyond it


def _skipping(update: Any, w: Any, g: Any, scale: Any, step: Any, skipped: Any) -> tuple[Any, Any]:
    """The update by ``g / scale`` if all of ``g`` is finite, as one of those that were made; and whether it is."""
    finite = tree_sum(where(is_finite(g), 0.0, 1.0)) == 0  # not g * 0, which GPU compilers take for 0
    new = update(w, g / scale, step=step - skipped)
    return new.only_if(finite, update.old), finite


@part(behind=False, scalars={"skipped": 0.0}, source=f"{_SOURCE}; optax.apply_if_finite")
def _static(update: Any, w: Any, g: Any, *, step: Any, skipped: Any, loss_scale: Any = 1.0) -> Any:
    r""":math:`g' = g / s`; where an element of any leaf is NaN or infinite, nothing changes but ``skipped``."""
    new, finite = _skipping(update, w, g, loss_scale, step, skipped)
    return new, skipped + where(finite, 0.0, 1.0)


@part(
    behind=False, initial=("loss_scale",), scalars={"loss_scale": 65536.0, "good_steps": 0.0, "skipped": 0.0},
    source=f"{_SOURCE}; torch.amp.GradScaler",
)  # fmt: skip
def _dynamic(
    update: Any, w: Any, g: Any, *, step: Any, loss_scale: Any, good_steps: Any, skipped: Any,
    growth_factor: Any = 2.0, backoff_factor: Any = 0.5, growth_interval: Any = 2000.0,
) -> Any:  # fmt: skip
    r""":math:`g' = g / s`; where an element of any leaf is NaN or infinite, nothing changes but the scale.

    .. math::
        s' = \begin{cases} s b & \text{skipped}\\ s a & \text{the } n\text{th good step in a row}\\ s & \text{else}
        \end{cases}
    """
    new, finite = _skipping(update, w, g, loss_scale, step, skipped)
    good = where(finite, good_steps + 1, 0.0)
    grows = good >= growth_interval
    grown = where(loss_scale * growth_factor <= _LARGEST, loss_scale * growth_factor, loss_scale)
    scale = where(finite, where(grows, grown, loss_scale), loss_scale * backoff_factor)
    return new, scale, where(grows, 0.0, good), skipped + where(finite, 0.0, 1.0)


def scale_by_loss(scale: float = 65536.0, *, dynamic: bool = True, **numbers: float) -> Part:
    """Divides grads by the scale that the loss was multiplied with, and skips updates with grads that are not finite.

    A skipped update changes neither params nor state, and does not count as a step for what lies further in: only
    ``state["skipped"]`` grows. One more pass over the grads alone looks for them, together with the norm where grads
    are clipped as well.

    Args:
        scale: the first scale. Multiply the loss by ``state["loss_scale"]`` before each step; whole training steps
            (:func:`optgen.train.compile_step`) do that themselves.
        dynamic: whether the scale changes, as ``torch.amp.GradScaler``'s does; else it is the hyperparameter
            ``loss_scale``.
        numbers: ``growth_factor`` (2), ``backoff_factor`` (0.5), ``growth_interval`` (2000).
    """
    if not scale > 0:
        raise HyperparameterError(f"'scale' of 'scale_by_loss' must be above 0 (got {scale!r})")
    part = (_dynamic if dynamic else _static)(loss_scale=scale, **numbers)
    return _named(part, "scale_by_loss")


def skip_not_finite() -> Part:
    """Skips updates with grads that are not finite, as :func:`scale_by_loss` does, at a scale of 1."""
    return _named(_static(), "skip_not_finite")


def _named(part: Part, name: str) -> Part:
    from dataclasses import replace

    assert part.before is not None
    return replace(part, name=name, before=replace(part.before, name=name, loss_scales=("loss_scale",)))
