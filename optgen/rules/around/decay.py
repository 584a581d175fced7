"""Weight decay for rules that have none."""

from __future__ import annotations

from typing import Any

from optgen.dsl.around import part


def _decoupled(update: Any, w: Any, g: Any, *, lr: Any, weight_decay: Any = 1e-4) -> Any:
    new = update(w, g)
    return new.param(new.w - (lr * weight_decay) * w)


@part(
    behind=None, other=_decoupled,
    source="optax.add_decayed_weights; Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019)",
)  # fmt: skip
def add_decayed_weights(update: Any, w: Any, g: Any, *, weight_decay: Any = 1e-4) -> Any:
    r"""In front of the rule L2, :math:`g' = g + \lambda w`; behind it decoupled, :math:`w' \mathrel{-}= \eta\lambda w`.

    As in optax it matters where it stands: what comes in front of a rule is scaled as the rule scales grads.
    """
    return update(w, g + weight_decay * w)
