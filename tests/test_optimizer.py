"""The object API: any tree, any kind of array, in place, across threads and processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import optgen
from optgen.errors import HyperparameterError, LeafError, TreeError
from optgen.runtime import get_device
from optgen.runtime.execute import StagesCall, prepare


def reference(w: Any, g: Any, steps: int, lr: float = 0.1) -> np.ndarray:
    w, g = np.asarray(w, np.float64), np.asarray(g, np.float64)
    m = v = np.zeros_like(w)
    for t in range(1, steps + 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - lr * 0.01 * w - lr / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


Layer = namedtuple("Layer", "w b")


def trees(make: Any) -> Any:
    return {
        "layers": [Layer(make(4, 3), make(3)), Layer(make(3, 2), make(2))],
        "scale": make(),
        "pair": (make(1), OrderedDict(x=make(7))),
        "empty": make(0, 5),
        "none": None,
    }


def flat(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in flat(child)]
    if isinstance(tree, list | tuple):
        return [leaf for child in tree for leaf in flat(child)]
    return [] if tree is None else [tree]


def test_any_tree_in_place(device: str, rng: np.random.Generator) -> None:
    def make(*shape: int) -> np.ndarray:
        return np.asarray(rng.standard_normal(shape), np.float32)

    params, grads = trees(make), trees(make)
    before = [w.copy() for w in flat(params)]
    grads_before = [g.copy() for g in flat(grads)]
    opt = optgen.prebuilt("adamw", device)
    state = opt.init(params)
    assert isinstance(state["m"]["layers"][0], Layer)
    assert isinstance(state["v"]["pair"][1], OrderedDict)
    addresses = [w.ctypes.data for w in flat(params)]
    for _ in range(3):
        new_params, new_state = opt.step(params, grads, state, lr=0.1)
        assert new_params is params
        assert new_state is state
    assert state["step"] == 3
    assert [w.ctypes.data for w in flat(params)] == addresses
    for w, old, g, g_old in zip(flat(params), before, flat(grads), grads_before, strict=True):
        np.testing.assert_allclose(w, reference(old, g, 3), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(g, g_old)


def test_a_lone_array_is_a_tree(device: str) -> None:
    w = np.ones((3, 3), np.float32)
    opt = optgen.prebuilt("adamw", device)
    state = opt.init(w)
    opt.step(w, np.ones_like(w), state, lr=0.1)
    np.testing.assert_allclose(w, reference(np.ones((3, 3)), np.ones((3, 3)), 1), rtol=1e-6)


def test_results_lie_where_their_arguments_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pointers, as the module itself returns them."""
    opt = optgen.prebuilt("adamw", "local-task")
    kernel = opt.manifest.kernels[0]
    dev = get_device("local-task")
    arrays = [np.zeros(n, np.float32) for n in (1, 17, 100_003) for _ in kernel.operands]
    leaves = [arrays[i : i + 4] for i in range(0, len(arrays), 4)]
    info, module = opt.module(kernel, dev)
    call = prepare(dev, info, module, kernel, leaves)
    assert isinstance(call, StagesCall)
    seen: dict[int, int] = {}
    monkeypatch.setattr(dev, "address", lambda view: seen.setdefault(len(seen), type(dev).address(dev, view)))
    assert call.run([0.1] * len(kernel.scalars))
    assert list(seen.values()) == [min(leaf[i].ctypes.data for leaf in leaves) for i in (0, 2, 3)]


def test_torch(rng: np.random.Generator) -> None:
    import torch

    values = [rng.standard_normal((5, 3)).astype(np.float32) for _ in range(2)]
    param = torch.nn.Parameter(torch.from_numpy(values[0].copy()))
    grad = torch.from_numpy(values[1].copy())
    opt = optgen.prebuilt("adamw")
    params = {"w": param}
    state = opt.init(params)
    assert isinstance(state["m"]["w"], torch.Tensor)
    pointer, version = param.data_ptr(), param._version
    opt.step(params, {"w": grad}, state, lr=0.1)
    assert params["w"] is param
    assert param.data_ptr() == pointer
    assert param._version > version  # autograd must notice
    np.testing.assert_allclose(param.detach().numpy(), reference(*values, 1), rtol=1e-6)


def test_autograd_notices_the_update() -> None:
    import torch

    param = torch.nn.Parameter(torch.ones(3))
    loss = (param * param).sum()
    opt = optgen.prebuilt("sgd")
    opt.step(param, torch.ones(3), opt.init(param), lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_torch_dtypes(dtype: str, rng: np.random.Generator) -> None:
    import torch

    kind = getattr(torch, dtype)
    w = torch.from_numpy(rng.standard_normal(33)).to(kind)
    g = torch.from_numpy(rng.standard_normal(33)).to(kind)
    expected = torch.from_numpy(reference(w.double(), g.double(), 1)).to(kind)
    opt = optgen.prebuilt("adamw")
    state = opt.init(w)
    assert state["m"].dtype == (torch.float64 if dtype == "float64" else torch.float32)
    opt.step(w, g, state, lr=0.1)
    torch.testing.assert_close(w, expected, rtol=1e-2 if dtype == "bfloat16" else 1e-3, atol=0)


def test_jax_arrays_are_replaced_not_changed(rng: np.random.Generator) -> None:
    import jax
    import jax.numpy as jnp

    values = [rng.standard_normal((4, 2)).astype(np.float32) for _ in range(2)]
    params = {"w": jnp.array(values[0])}
    kept = params["w"]
    opt = optgen.prebuilt("adamw")
    state = opt.init(params)
    assert isinstance(state["m"]["w"], jax.Array)
    new, new_state = opt.step(params, {"w": jnp.array(values[1])}, state, lr=0.1)
    np.testing.assert_array_equal(kept, values[0])
    np.testing.assert_array_equal(state["m"]["w"], 0)
    assert isinstance(new["w"], jax.Array)
    np.testing.assert_allclose(new["w"], reference(*values, 1), rtol=1e-6)
    assert new_state["step"] == 1


def test_mixed_dtypes_in_one_tree(rng: np.random.Generator) -> None:
    params = {k: rng.standard_normal(9).astype(k) for k in ("float32", "float64", "float16")}
    grads = {k: rng.standard_normal(9).astype(k) for k in params}
    before = {k: v.copy() for k, v in params.items()}
    opt = optgen.prebuilt("adamw")
    opt.step(params, grads, opt.init(params), lr=0.1)
    for key, w in params.items():
        np.testing.assert_allclose(w, reference(before[key], grads[key], 1), rtol=2e-3 if key == "float16" else 1e-6)


def test_leaves_without_grads_stay() -> None:
    params = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32), "c": np.ones(3, np.float32)}
    opt = optgen.prebuilt("sgd")
    opt.step(params, {"a": np.ones(3, np.float32), "b": None}, opt.init(params), lr=0.5)
    assert [v[0] for v in params.values()] == [0.5, 1.0, 1.0]


def test_a_hyperparameter_for_each_leaf() -> None:
    params = {"a": np.ones(3, np.float32), "b": [np.ones(2, np.float32)]}
    grads = {"a": np.ones(3, np.float32), "b": [np.ones(2, np.float32)]}
    opt = optgen.prebuilt("sgd")
    opt.step(params, grads, opt.init(params), lr={"a": 0.5, "b": [np.float32(0.25)]})
    assert params["a"].tolist() == [0.5] * 3
    assert params["b"][0].tolist() == [0.75] * 2


def test_one_artifact_any_tree_unless_fixed(tmp_path: Path) -> None:
    params = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}
    other = {"w": np.zeros((2, 4), np.float32), "b": np.zeros(3, np.float32)}
    free = optgen.load(optgen.compile("adamw", params, weight_decay=0.1).save(tmp_path / "free.optgen"))
    assert free.defaults["weight_decay"] == 0.1
    assert [leaf.path for leaf in free.manifest.layout or ()] == ["w", "b"]
    free.step(other, {k: v.copy() for k, v in other.items()}, free.init(other), lr=0.1)
    fixed = optgen.load(optgen.compile("adamw", params, fixed_layout=True).save(tmp_path / "fixed"))
    fixed.init(params)
    with pytest.raises(TreeError, match=r"at 'w' it expects f32 of shape \(2, 3\) \(got f32 of shape \(2, 4\)\)"):
        fixed.init(other)
    with pytest.raises(TreeError, match=r"at 'extra' it expects no such leaf"):
        fixed.init({**params, "extra": np.zeros(1, np.float32)})
    with pytest.raises(TreeError, match=r"at 'b' .* \(got no such leaf\)"):
        fixed.init({"w": params["w"]})


def test_dtype_without_a_kernel() -> None:
    opt = optgen.compile("sgd", dtypes=["f32"])
    with pytest.raises(LeafError, match=r"has dtype f64 .* no kernel \(it has f32\)"):
        opt.init(np.zeros(3))


@pytest.mark.parametrize("make", [optgen.compile, optgen.prebuilt])
def test_fast_arithmetic_is_a_choice(make: Any, rng: np.random.Generator) -> None:
    opt = make("adamw", compute_dtype="f32")
    w = np.ones(3, np.float32)
    assert [c.kernel.dtypes["compute"] for c in opt.bind(w, w.copy(), opt.init(w))._calls] == ["f32"]
    with pytest.raises(HyperparameterError, match="'compute_dtype' must be one that the bundle has"):
        optgen.Optimizer(opt.bundle, compute_dtype="f16")
    w, g = (rng.standard_normal(100).astype(np.float32) for _ in range(2))
    expected = reference(w, g, 1)
    opt.step(w, g, opt.init(w), lr=0.1)
    np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-6)


def test_other_grad_and_state_dtypes(rng: np.random.Generator) -> None:
    opt = optgen.compile("adamw", dtypes=["f32"], grad_dtype="f16", state_dtype="f16")
    w, g = rng.standard_normal(50).astype(np.float32), rng.standard_normal(50).astype(np.float16)
    expected = reference(w, g, 1)
    state = opt.init(w)
    assert state["v"].dtype == np.float16
    opt.step(w, g, state, lr=0.1)
    np.testing.assert_allclose(w, expected, rtol=2e-2, atol=1e-3)


def test_threads_share_an_optimizer() -> None:
    opt = optgen.prebuilt("sgd", "local-task")
    params = [np.zeros(50_000, np.float32) for _ in range(4)]
    g = np.ones(50_000, np.float32)

    def work(w: np.ndarray) -> None:
        for _ in range(20):
            opt.step(w, g, {"step": 0}, lr=1.0)

    threads = [threading.Thread(target=work, args=(w,)) for w in params]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((w == -20).all() for w in params)


FORK_AND_EXIT = """
import os, numpy as np, optgen
opt, w = optgen.prebuilt("sgd", "local-task"), np.zeros(200_000, np.float32)
opt.step(w, np.ones_like(w), {"step": 0}, lr=1.0)
child = os.fork()
opt.step(w, np.ones_like(w), {"step": 0}, lr=1.0)
if child:
    assert os.waitpid(child, 0)[1] == 0
assert (w == -2).all()
"""


def test_a_forked_child_ends() -> None:
    """It releases what it inherited when the interpreter shuts down."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK_AND_EXIT], check=True, timeout=60)


FORK_AND_ANSWER = """
import multiprocessing, numpy as np, optgen

def answer(opt, queue):
    w = np.zeros(200_000, np.float32)
    opt.step(w, np.ones_like(w), {"step": 0}, lr=1.0)
    queue.put(float(w.sum()))

context = multiprocessing.get_context("fork")
for device in ("local-task", "cpu"):
    opt, w = optgen.prebuilt("sgd", device), np.zeros(2_000_000, np.float32)
    opt.step(w, np.ones_like(w), {"step": 0}, lr=1.0)
    queue = context.Queue()
    child = context.Process(target=answer, args=(opt, queue))
    child.start()
    assert queue.get(timeout=60) == -200_000
    child.join(timeout=60)
    assert child.exitcode == 0
"""


def test_after_a_fork() -> None:
    """IREE's worker threads do not survive one; a child that used its parent's device would hang.

    In a process of its own: this one has threads of JAX and torch, which may hold a lock when it forks.
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK_AND_ANSWER], check=True, timeout=150)
