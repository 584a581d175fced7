"""Modules by rows: reductions over leaves and over the tree, and rows shared with worker threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optgen
from optgen import host
from optgen.dsl import global_norm, minimum, norm, rule, tree_max, tree_min, tree_sum
from optgen.runtime import device, stages
from optgen.runtime.rows import ROW

SIZES = ([1], [31, 32, 33], [15, 16, 17, 1], [128] * 40, [ROW, ROW + 1, 3], [3 * ROW + 5, 700_001])


@rule()
def clipped(w: Any, g: Any, *, lr: Any, max_norm: Any = 1.0) -> Any:
    return w - lr * g * minimum(1.0, max_norm / global_norm(g))


@rule()
def normalised(w: Any, g: Any, *, lr: Any) -> Any:
    return w - lr * norm(w) * g / norm(g)


@rule()
def chained(w: Any, g: Any, *, lr: Any) -> Any:
    """A reduction over leaves of what a reduction over the tree gives, and one over the tree of that."""
    g = g / global_norm(g)
    u = w * norm(g) + g
    return w - lr * u / tree_max(u * u) + tree_min(w) * 0.5


@rule(scalars={"seen": 0.0})
def counting(w: Any, g: Any, *, lr: Any, seen: Any) -> Any:
    return w - lr * g, seen + tree_sum(g)


def reference(name: str, ws: Sequence[np.ndarray], gs: Sequence[np.ndarray], lr: float) -> list[np.ndarray]:
    ws, gs = [w.astype(np.float64) for w in ws], [g.astype(np.float64) for g in gs]
    whole = np.sqrt(sum(np.sum(g * g) for g in gs))
    if name == "clipped":
        return [w - lr * g * min(1.0, 1.0 / whole) for w, g in zip(ws, gs, strict=True)]
    if name == "normalised":
        return [w - lr * np.linalg.norm(w) * g / np.linalg.norm(g) for w, g in zip(ws, gs, strict=True)]
    gs = [g / whole for g in gs]
    us = [w * np.linalg.norm(g) + g for w, g in zip(ws, gs, strict=True)]
    top, low = max(np.max(u * u) for u in us), min(w.min() for w in ws)
    return [w - lr * u / top + low * 0.5 for w, u in zip(ws, us, strict=True)]


@pytest.fixture(scope="module")
def optimizers() -> dict[str, optgen.Optimizer]:
    return {r.name: optgen.compile(r, dtypes=["f32", "bf16"]) for r in (clipped, normalised, chained, counting)}


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, whatever the machine has, and calls that are shared however small they are."""
    monkeypatch.setattr(host, "threads", lambda: 2)
    monkeypatch.setattr(device, "SHARED_FROM", {"f32": 0, "f64": 0})


def tree(rng: np.random.Generator, sizes: Sequence[int]) -> dict[str, np.ndarray]:
    return {f"l{i}": rng.standard_normal(n).astype(np.float32) for i, n in enumerate(sizes)}


@pytest.mark.parametrize("name", ["clipped", "normalised", "chained"])
@pytest.mark.parametrize("sizes", SIZES, ids=len)
def test_reductions(
    optimizers: dict[str, optgen.Optimizer], rng: np.random.Generator, name: str, sizes: Sequence[int]
) -> None:
    params, grads = tree(rng, sizes), tree(rng, sizes)
    expected = reference(name, list(params.values()), list(grads.values()), 0.5)
    optimizers[name].step(params, grads, {"step": 0}, lr=0.5)
    for found, right in zip(params.values(), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=2e-7, atol=1e-7)


def test_a_global_norm_of_a_million_elements(optimizers: dict[str, optgen.Optimizer], rng: np.random.Generator) -> None:
    """f32 sums would be off by 4e-4 here."""
    grads = rng.uniform(0.5, 1.5, 2**20 + 3).astype(np.float32)
    params = np.zeros_like(grads)
    optimizers["clipped"].step(params, grads, {"step": 0}, lr=1.0)
    found = grads[0] / -params[0].astype(np.float64)
    assert found == pytest.approx(np.sqrt(np.sum(grads.astype(np.float64) ** 2)), rel=2e-7)


@pytest.mark.parametrize("name", ["clipped", "normalised", "chained"])
def test_the_same_bits_by_any_way(
    optimizers: dict[str, optgen.Optimizer], rng: np.random.Generator, shared: None, name: str
) -> None:
    """On one thread or two, packed or not, bound or not."""
    sizes = [ROW * 5 + 77, 3, 128, 700_001]
    params, grads = tree(rng, sizes), tree(rng, sizes)
    results = []
    for kind in ("one", "two", "packed", "bound"):
        opt = optgen.Optimizer(optimizers[name].bundle, "local-sync" if kind == "one" else "cpu")
        p: Any = {k: v.copy() for k, v in params.items()}
        g: Any = {k: v.copy() for k, v in grads.items()}
        if kind == "packed":
            p, g = optgen.Container(p).pack(), optgen.Container(g).pack()
        if kind == "bound":
            bound = opt.bind(p, g, {"step": 0})
            bound.step(lr=0.5)
            assert bound._calls[0].call._theirs is not None
        else:
            opt.step(p, g, {"step": 0}, lr=0.5)
        results.append([np.asarray(p[k]).tobytes() for k in params])
    assert results[0] == results[1] == results[2] == results[3]


def test_a_tree_of_two_dtypes_has_one_norm(optimizers: dict[str, optgen.Optimizer], rng: np.random.Generator) -> None:
    import ml_dtypes

    params: Any = {"a": np.zeros(1000, np.float32), "b": np.zeros(500, ml_dtypes.bfloat16)}
    grads = {
        "a": rng.standard_normal(1000).astype(np.float32),
        "b": rng.standard_normal(500).astype(ml_dtypes.bfloat16),
    }
    whole = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
    for kind in ("step", "bind"):
        for leaf in params.values():
            leaf[...] = 0
        opt = optimizers["clipped"]
        if kind == "bind":
            opt.bind(params, grads, {"step": 0}).step(lr=1.0)
        else:
            opt.step(params, grads, {"step": 0}, lr=1.0)
        np.testing.assert_allclose(params["a"], -grads["a"] / whole, rtol=1e-6)
        np.testing.assert_allclose(params["b"].astype(np.float64), -grads["b"].astype(np.float64) / whole, rtol=2**-8)


def test_nan_is_never_hidden(optimizers: dict[str, optgen.Optimizer]) -> None:
    params, grads = {"a": np.ones(40, np.float32)}, {"a": np.ones(40, np.float32)}
    grads["a"][37] = np.nan
    optimizers["clipped"].step(params, grads, {"step": 0}, lr=1.0)
    assert np.isnan(params["a"]).all()


def test_scalar_state_from_the_whole_tree(optimizers: dict[str, optgen.Optimizer], rng: np.random.Generator) -> None:
    params, grads = tree(rng, [5, ROW + 1]), tree(rng, [5, ROW + 1])
    opt = optimizers["counting"]
    state = opt.init(params)
    for _ in range(3):
        params, state = opt.step(params, grads, state, lr=0.0)
    total = sum(g.astype(np.float64).sum() for g in grads.values())
    assert state["seen"] == pytest.approx(3 * total, rel=1e-12)


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=60), st.integers(1, 5))
def test_every_row_is_in_one_piece(counts: list[int], threads: int) -> None:
    pieces = stages._pieces(np.array(counts) * 200, threads)
    assert [row for low, high in pieces for row in range(low, high)] == list(range(len(counts)))
    assert len(pieces) == 1 or threads > 1


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=12))
def test_shared_rows_meet(sizes: list[int]) -> None:
    """Every element is updated once, whoever takes its row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "threads", lambda: 2)
        patch.setattr(device, "SHARED_FROM", {"f32": 0, "f64": 0})
        patch.setattr(stages, "_MANY_FROM", 0)
        opt = optgen.prebuilt("sgd")
        params = {f"l{i}": np.arange(n, dtype=np.float32) for i, n in enumerate(sizes)}
        grads = {k: np.ones_like(v) for k, v in params.items()}
        bound = opt.bind(params, grads, opt.init(params))
        for _ in range(3):
            bound.step(lr=1.0)
        for leaf in params.values():
            np.testing.assert_array_equal(leaf, np.arange(leaf.size, dtype=np.float32) - 3)


def test_the_number_of_threads_is_a_setting() -> None:
    code = (
        "import numpy as np, threading, optgen; from optgen.runtime import device;"
        "o = optgen.prebuilt('sgd'); w = np.ones(2**20, np.float32); o.step(w, w.copy(), o.init(w), lr=0.1);"
        "print([d for d in device._devices])"
    )
    for count, expected in (("1", "['cpu']"), ("3", "['cpu', 'cpu-workers']")):
        environment = {**os.environ, "OPTGEN_THREADS": count}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells where threads may run")
def test_workers_keep_off_the_callers_core(shared: None) -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("there is one core")
    pool = device.get_device("cpu-workers")
    assert pool.aside is not None
    assert pool.aside.threads
    mine = min(cores)
    os.sched_setaffinity(0, {mine})
    try:
        pool.aside.step()
    finally:
        os.sched_setaffinity(0, cores)
    assert all(mine not in os.sched_getaffinity(thread) for thread in pool.aside.threads)
