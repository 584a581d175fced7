"""Losses in which one operation needs what another reduces, in the ways that a compiler is tempted to fuse wrongly.

Each is a loss of its own params and batch. They are compiled together, several in one program: the sum of losses over
params that they do not share has the gradient of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Tree = dict[str, Any]
CLASSES, WIDTH = 10, 24


@dataclass(frozen=True)
class Case:
    """A loss, and the shapes of its params. All take the same batch: rows of ``x``, labels ``y``, signs ``sign``."""

    loss: Callable[[Tree, Tree], Any]
    shapes: dict[str, tuple[int, ...]]


def _jax() -> Any:
    import jax

    return jax


def _nll(logits: Any, y: Any) -> Any:
    jax = _jax()
    return -(jax.nn.log_softmax(logits) * jax.nn.one_hot(y, logits.shape[-1])).sum(-1).mean()


def classifier(p: Tree, b: Tree) -> Any:
    return _nll(_jax().nn.relu(b["x"] @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], b["y"])


def head_without_bias(p: Tree, b: Tree) -> Any:
    return _nll(b["x"] @ p["w"], b["y"])


def temperature(p: Tree, b: Tree) -> Any:
    jnp = _jax().numpy
    logp = _jax().nn.log_softmax(b["x"] @ p["w"] / (1 + p["t"] ** 2))
    return -jnp.take_along_axis(logp, b["y"][:, None], axis=1).mean()


def brier(p: Tree, b: Tree) -> Any:
    jax = _jax()
    return ((jax.nn.softmax(b["x"] @ p["w"]) - jax.nn.one_hot(b["y"], CLASSES)) ** 2).mean()


def smoothing(p: Tree, b: Tree) -> Any:
    jax = _jax()
    return -((jax.nn.one_hot(b["y"], CLASSES) * 0.9 + 0.01) * jax.nn.log_softmax(b["x"] @ p["w"])).sum(-1).mean()


def logistic(p: Tree, b: Tree) -> Any:
    jnp = _jax().numpy
    return jnp.log1p(jnp.exp(-b["sign"] * (b["x"] @ p["w"]))).mean()


def layer_norm(p: Tree, b: Tree) -> Any:
    h = b["x"] @ p["w"]
    centred = h - h.mean(-1, keepdims=True)
    h = centred / ((centred**2).mean(-1, keepdims=True) + 1e-5) ** 0.5 * p["scale"] + p["bias"]
    return _nll(h, b["y"])


def variance(p: Tree, b: Tree) -> Any:
    h = b["x"] @ p["w"]
    return h.var(0).mean() + (h / (1 + h.std(-1, keepdims=True))).mean() ** 2


def logsumexp(p: Tree, b: Tree) -> Any:
    jax = _jax()
    h = b["x"] * p["scale"]
    return (jax.nn.logsumexp(h, -1) - jax.nn.logsumexp(h @ p["w"], -1)).mean()


def cumulated(p: Tree, b: Tree) -> Any:
    jnp = _jax().numpy
    return (jnp.cumsum(jnp.tanh(b["x"] @ p["w"]), -1) ** 2).mean()


def attention(p: Tree, b: Tree) -> Any:
    jax = _jax()
    q, k, v = (b["x"] @ p[n] for n in "qkv")
    return ((jax.nn.softmax(q @ k.T / 4.0) @ v) ** 2).mean()


def heads(p: Tree, b: Tree) -> Any:
    jax = _jax()
    x = b["x"].reshape(len(b["x"]), 3, 8)
    weights = jax.nn.softmax((x @ p["q"]) @ (x @ p["k"]).swapaxes(1, 2) / 3.0)
    return ((weights @ (x @ p["v"])).mean(1) ** 2).sum(-1).mean()


def normalised_weights(p: Tree, b: Tree) -> Any:
    jnp = _jax().numpy
    w = p["w"] / jnp.sqrt((p["w"] ** 2).sum(0, keepdims=True) + 1e-6) * p["gain"]
    return _nll(b["x"] @ w, b["y"])


def mixture(p: Tree, b: Tree) -> Any:
    jax = _jax()
    gates = jax.nn.softmax(b["x"] @ p["gate"])
    return (jax.numpy.einsum("be,bd,edc->bc", gates, b["x"], p["experts"]) ** 2).mean()


_HEAD: dict[str, tuple[int, ...]] = {"w": (WIDTH, CLASSES)}
CASES = {
    "classifier": Case(classifier, {"w1": (WIDTH, 32), "b1": (32,), "w2": (32, CLASSES), "b2": (CLASSES,)}),
    "head_without_bias": Case(head_without_bias, _HEAD),
    "temperature": Case(temperature, {**_HEAD, "t": ()}),
    "brier": Case(brier, _HEAD),
    "smoothing": Case(smoothing, _HEAD),
    "logistic": Case(logistic, {"w": (WIDTH,)}),
    "layer_norm": Case(layer_norm, {**_HEAD, "scale": (CLASSES,), "bias": (CLASSES,)}),
    "variance": Case(variance, _HEAD),
    "logsumexp": Case(logsumexp, {"scale": (WIDTH,), "w": (WIDTH, 7)}),
    "cumulated": Case(cumulated, _HEAD),
    "attention": Case(attention, dict.fromkeys("qkv", (WIDTH, 16))),
    "heads": Case(heads, dict.fromkeys("qkv", (8, 9))),
    "normalised_weights": Case(normalised_weights, {**_HEAD, "gain": ()}),
    "mixture": Case(mixture, {"gate": (WIDTH, 3), "experts": (3, WIDTH, 4)}),
}
#: Losses whose work grows with the square of the batch.
SQUARE = ("attention",)


def loss(params: Tree, batch: Tree) -> Any:
    """The sum of the losses that ``params`` has a tree for, and each of them."""
    each = {name: CASES[name].loss(tree, batch) for name, tree in params.items()}
    return sum(each.values()), each


def params(names: tuple[str, ...], seed: int = 3) -> Tree:
    rng = np.random.default_rng(seed)

    def leaf(shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(rng.standard_normal(shape) / 3, np.float32)

    return {name: {n: leaf(shape) for n, shape in CASES[name].shapes.items()} for name in names}


def batch(rows: int, seed: int = 4) -> Tree:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((rows, WIDTH)).astype(np.float32),
        "y": rng.integers(0, CLASSES, rows).astype(np.int32),
        "sign": rng.choice([-1.0, 1.0], rows).astype(np.float32),
    }
