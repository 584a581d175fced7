"""Trajectories against the libraries whose conventions the rules follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optgen

_NESTEROV = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
TORCH: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("SGD", "sgd", {}, {}),
    ("SGD", "sgd", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    ("SGD", "sgd", {"momentum": 0.9}, {"momentum": 0.9}),
    ("SGD", "sgd", _NESTEROV, _NESTEROV),
    ("Adam", "adam", {}, {}),
    (
        "Adam",
        "adam",
        {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
        {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.1},
    ),
    ("AdamW", "adamw", {}, {}),
    ("AdamW", "adamw", {"weight_decay": 0.3}, {"weight_decay": 0.3}),
]


@pytest.mark.parametrize(("name", "rule", "theirs", "ours"), TORCH)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch(name: str, rule: str, theirs: dict[str, Any], ours: dict[str, Any], dtype: str) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64).to(kind) for shape in ((7, 5), (5,), ())]
    param = [torch.nn.Parameter(w.clone()) for w in start]
    mine = [w.clone() for w in start]
    optimizer = getattr(torch.optim, name)(param, lr=0.01, **theirs)
    opt = optgen.prebuilt(rule, **ours)
    state = opt.init(mine)
    for _ in range(200):
        grads = [torch.randn(w.shape, generator=generator, dtype=torch.float64).to(kind) for w in start]
        for w, g in zip(param, grads, strict=True):
            w.grad = g.clone()
        optimizer.step()
        opt.step(mine, grads, state, lr=0.01)
    for a, b in zip(mine, param, strict=True):
        # 200 steps of torch in f32 drift that far by rounding; ours are exact but for the storage.
        torch.testing.assert_close(
            a, b.detach(), rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-5 if dtype == "float32" else 1e-12
        )


@pytest.mark.parametrize(
    ("make", "rule", "ours"),
    [
        ("sgd", "sgd", {}),
        ("momentum", "sgd", {"momentum": 0.9}),
        ("nesterov", "sgd", {"momentum": 0.9, "nesterov": True}),
        ("adam", "adam", {"beta1": 0.8, "beta2": 0.9}),
        ("adamw", "adamw", {"weight_decay": 0.2}),
    ],
)
def test_optax(make: str, rule: str, ours: dict[str, Any], rng: np.random.Generator) -> None:
    import jax.numpy as jnp
    import optax

    theirs = {
        "sgd": lambda: optax.sgd(0.01),
        "momentum": lambda: optax.sgd(0.01, momentum=0.9),
        "nesterov": lambda: optax.sgd(0.01, momentum=0.9, nesterov=True),
        "adam": lambda: optax.adam(0.01, b1=0.8, b2=0.9),
        "adamw": lambda: optax.adamw(0.01, weight_decay=0.2),
    }[make]()
    w = rng.standard_normal(40).astype(np.float32)
    params = jnp.asarray(w)
    their_state = theirs.init(params)
    opt = optgen.prebuilt(rule, **ours)
    state = opt.init(w)
    for _ in range(200):
        g = rng.standard_normal(40).astype(np.float32)
        updates, their_state = theirs.update(jnp.asarray(g), their_state, params)
        params = optax.apply_updates(params, updates)
        opt.step(w, g, state, lr=0.01)
    np.testing.assert_allclose(w, params, rtol=2e-5, atol=5e-6)
