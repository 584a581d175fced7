"""Small models of every kind that a training step is tested with: params, a batch and a loss for each.

The losses import JAX when they are called, so that collecting tests does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Tree = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A model: what makes its params and a batch, its loss, and whether that takes a key."""

    params: Callable[[np.random.Generator], Tree]
    batch: Callable[[np.random.Generator], Tree]
    loss: Callable[..., Any]
    rng: bool = False


def _normal(rng: np.random.Generator, *shape: int, scale: float | None = None) -> np.ndarray:
    fan_in = int(np.prod(shape[:-1])) or 1
    return (rng.standard_normal(shape) * (scale or fan_in**-0.5)).astype(np.float32)


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _labels(features: Callable[[np.random.Generator], np.ndarray]) -> Callable[[np.random.Generator], Tree]:
    def batch(rng: np.random.Generator) -> Tree:
        x = features(rng)
        return {"x": x, "y": rng.integers(0, 10, len(x)).astype(np.int32)}

    return batch


def cross_entropy(logits: Any, y: Any) -> Any:
    import jax

    return -(jax.nn.log_softmax(logits) * jax.nn.one_hot(y, logits.shape[-1])).sum(-1).mean()


# A perceptron.


def mlp_params(rng: np.random.Generator) -> Tree:
    return {"w1": _normal(rng, 20, 32), "b1": _zeros(32), "w2": _normal(rng, 32, 10), "b2": _zeros(10)}


def mlp_loss(params: Tree, batch: Tree) -> Any:
    import jax.numpy as jnp

    logits = jnp.tanh(batch["x"] @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
    accuracy = (logits.argmax(-1) == batch["y"]).astype("float32").mean()
    return cross_entropy(logits, batch["y"]), {"accuracy": accuracy}


def dropout_loss(params: Tree, batch: Tree, rng: Any) -> Any:
    import jax

    hidden = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"])
    keep = jax.random.bernoulli(rng, 0.8, hidden.shape).astype("float32")
    return cross_entropy(hidden * keep / 0.8 @ params["w2"] + params["b2"], batch["y"])


# Convolutions: with strides, and with pools.


def _conv(x: Any, w: Any, stride: int) -> Any:
    import jax

    return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def cnn_params(rng: np.random.Generator) -> Tree:
    return {
        "conv1": {"w": _normal(rng, 3, 3, 1, 8), "b": _zeros(8)},
        "conv2": {"w": _normal(rng, 3, 3, 8, 8), "b": _zeros(8)},
        "head": {"w": _normal(rng, 32, 10), "b": _zeros(10)},
    }


def strided_loss(params: Tree, batch: Tree) -> Any:
    import jax

    x = batch["x"]
    for name in ("conv1", "conv2"):
        x = jax.nn.relu(_conv(x, params[name]["w"], 2) + params[name]["b"])
    return cross_entropy(x.reshape(len(x), -1) @ params["head"]["w"] + params["head"]["b"], batch["y"])


def pooled_loss(params: Tree, batch: Tree) -> Any:
    import jax
    import jax.numpy as jnp

    x = batch["x"]
    for name in ("conv1", "conv2"):
        x = jax.nn.relu(_conv(x, params[name]["w"], 1) + params[name]["b"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return cross_entropy(x.reshape(len(x), -1) @ params["head"]["w"] + params["head"]["b"], batch["y"])


# A transformer block, and adapters of low rank in it.

_WIDTH, _LENGTH, _WORDS = 16, 8, 12


def transformer_params(rng: np.random.Generator) -> Tree:
    w = _WIDTH
    return {
        "embed": _normal(rng, _WORDS, w, scale=0.5),
        "place": _normal(rng, _LENGTH, w, scale=0.1),
        "blocks": [
            {
                "norm1": {"scale": np.ones(w, np.float32), "bias": _zeros(w)},
                "attention": {name: _normal(rng, w, w) for name in ("q", "k", "v", "o")},
                "norm2": {"scale": np.ones(w, np.float32), "bias": _zeros(w)},
                "mlp": {
                    "w1": _normal(rng, w, 2 * w),
                    "b1": _zeros(2 * w),
                    "w2": _normal(rng, 2 * w, w),
                    "b2": _zeros(w),
                },
            }
        ],
        "head": _normal(rng, w, _WORDS),
    }


def transformer_batch(rng: np.random.Generator) -> Tree:
    words = rng.integers(0, _WORDS, (4, _LENGTH + 1)).astype(np.int32)
    return {"x": words[:, :-1].copy(), "y": words[:, 1:].copy()}


def _layer_norm(x: Any, norm: Tree) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / ((centred**2).mean(-1, keepdims=True) + 1e-5) ** 0.5 * norm["scale"] + norm["bias"]


def transformer_loss(params: Tree, batch: Tree) -> Any:
    import jax
    import jax.numpy as jnp

    x = params["embed"][batch["x"]] + params["place"]
    mask = jnp.tril(jnp.ones((_LENGTH, _LENGTH), "float32"))
    for block in params["blocks"]:
        attention = block["attention"]
        y = _layer_norm(x, block["norm1"])
        heads = [(y @ attention[n]).reshape(4, _LENGTH, 2, _WIDTH // 2) for n in ("q", "k", "v")]
        scores = jnp.einsum("bqhd,bkhd->bhqk", heads[0], heads[1]) / (_WIDTH // 2) ** 0.5
        weights = jax.nn.softmax(jnp.where(mask > 0, scores, -1e9))
        x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, heads[2]).reshape(x.shape) @ attention["o"]
        mlp = block["mlp"]
        x = x + jax.nn.gelu(_layer_norm(x, block["norm2"]) @ mlp["w1"] + mlp["b1"]) @ mlp["w2"] + mlp["b2"]
    return cross_entropy(x @ params["head"], batch["y"])


def lora_params(rng: np.random.Generator) -> Tree:
    """A transformer, and for queries and values of its block a pair of matrices of rank 2 beside them."""
    params = transformer_params(rng)
    adapters = {n: {"lora_a": _normal(rng, _WIDTH, 2), "lora_b": _zeros(2, _WIDTH)} for n in ("q", "v")}
    return {"base": params, "adapters": adapters}


def lora_loss(params: Tree, batch: Tree) -> Any:
    base = params["base"]
    (block,) = base["blocks"]
    changed = {
        n: w + params["adapters"][n]["lora_a"] @ params["adapters"][n]["lora_b"] if n in params["adapters"] else w
        for n, w in block["attention"].items()
    }
    return transformer_loss({**base, "blocks": [{**block, "attention": changed}]}, batch)


# A recurrent network: a loop in the program.


def gru_params(rng: np.random.Generator) -> Tree:
    return {
        "in": _normal(rng, 6, 36), "hidden": _normal(rng, 12, 36), "bias": _zeros(36),
        "head": _normal(rng, 12, 10), "head_bias": _zeros(10),
    }  # fmt: skip


def gru_loss(params: Tree, batch: Tree) -> Any:
    import jax
    import jax.numpy as jnp

    def cell(h: Any, x: Any) -> tuple[Any, None]:
        z, r, n = jnp.split(x @ params["in"] + params["bias"], 3, -1)
        hz, hr, hn = jnp.split(h @ params["hidden"], 3, -1)
        z, r = jax.nn.sigmoid(z + hz), jax.nn.sigmoid(r + hr)
        return (1 - z) * jnp.tanh(n + r * hn) + z * h, None

    start = jnp.zeros((batch["x"].shape[0], 12), "float32")
    last, _ = jax.lax.scan(cell, start, batch["x"].swapaxes(0, 1))
    return cross_entropy(last @ params["head"] + params["head_bias"], batch["y"])


MODELS = {
    "mlp": Model(mlp_params, _labels(lambda rng: _normal(rng, 16, 20, scale=1)), mlp_loss),
    "dropout": Model(mlp_params, _labels(lambda rng: _normal(rng, 16, 20, scale=1)), dropout_loss, rng=True),
    "strided": Model(cnn_params, _labels(lambda rng: _normal(rng, 8, 8, 8, 1, scale=1)), strided_loss),
    "pooled": Model(cnn_params, _labels(lambda rng: _normal(rng, 8, 8, 8, 1, scale=1)), pooled_loss),
    "transformer": Model(transformer_params, transformer_batch, transformer_loss),
    "lora": Model(lora_params, transformer_batch, lora_loss),
    "gru": Model(gru_params, _labels(lambda rng: _normal(rng, 8, 5, 6, scale=1)), gru_loss),
}
