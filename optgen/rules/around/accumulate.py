"""Gradient accumulation: one update by the mean of the grads of several steps."""

from __future__ import annotations

from typing import Any

from optgen.dsl.around import part
from optgen.dsl.ops import zeros_like
from optgen.dsl.rule import rule


def _mean(old: Any, g: Any, count: Any) -> Any:
    return old + (g - old) / (count + 1)


@rule(scalars={"micro": 0.0})
def micro_step(grad_mean: Any, g: Any, *, micro: Any) -> Any:
    """The mean of the grads so far: all that a step does that does not update."""
    return _mean(grad_mean, g, micro), micro + 1


@part(
    behind=False, outermost=True, micro=micro_step, state=("grad_mean",), scalars={"micro": 0.0},
    source="optax.MultiSteps",
)  # fmt: skip
def accumulate(update: Any, w: Any, g: Any, grad_mean: Any, *, every: Any, micro: Any) -> Any:
    r"""Each ``every``th step updates, by the mean of the grads since the last one; the others add to that mean alone.

    .. math::
        a' = a + \frac{g - a}{n + 1}

    Steps that do not update run a kernel of their own, which touches neither params nor any other state. ``step``
    counts updates; ``micro`` says how many grads are in the mean.
    """
    return update(w, _mean(grad_mean, g, micro)), zeros_like(grad_mean), 0.0 * micro
