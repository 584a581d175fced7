"""The demo's model, in JAX: imported only where it is compiled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def predict(params: Any, x: Any) -> Any:
    """The logits of a batch of images."""
    # Not relu: where rounding flips the sign of a sum near its kink, the gradients of two devices part for good.
    hidden = jnp.tanh(x @ params["layer0"]["w"] + params["layer0"]["b"])
    return hidden @ params["layer1"]["w"] + params["layer1"]["b"]


def loss(params: Any, x: Any, y: Any) -> Any:
    """Mean softmax cross-entropy; ``y`` holds class numbers."""
    logits = predict(params, x)
    # A comparison instead of an index: gathers and scatters are slow on GPUs.
    right = jnp.sum(jnp.where(y[:, None] == jnp.arange(logits.shape[1]), logits, 0.0), axis=1)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - right)


def loss_and_grad(params: Any, x: Any, y: Any) -> Any:
    """The loss of a batch, and its gradient in the params."""
    return jax.value_and_grad(loss)(params, x, y)
