"""Prepared steps and packed trees: the same numbers, by a shorter way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optgen
from optgen.errors import HyperparameterError, LeafError, OverlapError, TreeError
from optgen.runtime.bound import BoundStep


def tree(rng: np.random.Generator, sizes: Any = (1, 7, 128, 40_000, 3)) -> optgen.Container:
    return optgen.Container({f"l{i}": rng.standard_normal(n).astype(np.float32) for i, n in enumerate(sizes)})


def rows(bound: BoundStep) -> int:
    call: Any = bound._calls[0].call
    return len(call.rows)


def test_bound_steps_are_steps(device: str, rng: np.random.Generator) -> None:
    params, grads = tree(rng), tree(rng)
    twin = params.copy()
    opt = optgen.prebuilt("adamw", device)
    state, twin_state = opt.init(params), opt.init(twin)
    bound = opt.bind(params, grads, state)
    for i in range(4):
        for leaf in grads.values():
            leaf += np.float32(0.25)  # what a device holds a copy of must be seen anew
        hypers = {"lr": 0.1 / (i + 1)} if i != 2 else {"lr": 0.05, "beta1": 0.8, "weight_decay": 0.0}
        bound.step(**hypers)
        opt.step(twin, grads, twin_state, **hypers)
    assert bound.state is state
    assert state["step"] == twin_state["step"] == 4
    for key in params:
        np.testing.assert_array_equal(params[key], twin[key])
        np.testing.assert_array_equal(state["v"][key], twin_state["v"][key])


def test_mixed_dtypes(rng: np.random.Generator) -> None:
    params = {k: rng.standard_normal(9).astype(k) for k in ("float32", "float64", "float16")}
    grads = {k: rng.standard_normal(9).astype(k) for k in params}
    twin = {k: v.copy() for k, v in params.items()}
    opt = optgen.prebuilt("adamw")
    opt.bind(params, grads, opt.init(params)).step(lr=0.1)
    opt.step(twin, grads, opt.init(twin), lr=0.1)
    for key in params:
        np.testing.assert_array_equal(params[key], twin[key])


def test_packed_trees_are_one_row(rng: np.random.Generator) -> None:
    plain, grads = tree(rng, [16] * 50), tree(rng, [16] * 50)
    packed, packed_grads = plain.pack(), grads.pack()
    assert isinstance(packed, optgen.Container)
    assert packed.l0.base is packed.l49.base
    assert not np.shares_memory(packed.l0, plain.l0)
    opt = optgen.prebuilt("adamw")
    loose = opt.bind(plain, grads, opt.init(plain))
    tight = opt.bind(packed, packed_grads, opt.init(packed))
    assert rows(loose) == 50
    assert rows(tight) == 1
    for _ in range(3):
        loose.step(lr=0.1)
        tight.step(lr=0.1)
    for key in plain:
        np.testing.assert_array_equal(plain[key], packed[key])


def test_large_leaves_are_many_rows(rng: np.random.Generator) -> None:
    params = tree(rng, (100_003,)).pack()
    opt = optgen.prebuilt("sgd")
    assert rows(opt.bind(params, params.zeros(), opt.init(params))) == 7


def test_zeros_have_the_layout(rng: np.random.Generator) -> None:
    params = optgen.Container(
        a=optgen.array([[1.0, 2.0]]), b={"c": np.ones(3, np.float64), "d": np.ones((), np.float32)}
    )
    zeros = params.zeros()
    assert isinstance(zeros.a, optgen.Array)
    assert zeros.b.c.dtype == np.float64
    assert zeros.b.d.shape == ()
    assert float(np.asarray(zeros.a).sum()) == 0


def test_packing_torch(rng: np.random.Generator) -> None:
    import torch

    from optgen.interop.torch import pack_parameters

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    twin = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    twin.load_state_dict(model.state_dict())
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01)
    params, grads = pack_parameters(dict(model.named_parameters()))
    assert params["0.weight"] is model[0].weight
    opt = optgen.prebuilt("adamw")
    bound = opt.bind(params, grads, opt.init(params))
    assert rows(bound) == 1
    for _ in range(20):
        x = torch.randn(8, 5)
        for net in (model, twin):
            net.zero_grad(set_to_none=False)
            net(x).square().mean().backward()
        bound.step(lr=0.01)
        theirs.step()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_bound(rng: np.random.Generator) -> None:
    import jax.numpy as jnp

    opt = optgen.prebuilt("sgd")
    strided = np.zeros((4, 4), np.float32)[:, 0]
    with pytest.raises(LeafError, match="not contiguous"):
        opt.bind(strided, np.zeros(4, np.float32), {"step": 0})
    with pytest.raises(LeafError, match="JAX arrays never change"):
        opt.bind(jnp.zeros(3), np.zeros(3, np.float32), {"step": 0})
    with pytest.raises(LeafError, match="cannot be packed"):
        optgen.Container(a=jnp.zeros(3)).pack()
    w = np.zeros(4, np.float32)
    with pytest.raises(OverlapError):
        opt.bind(w, w, {"step": 0})
    with pytest.raises(TreeError, match="'state' must be"):
        opt.bind(w, w.copy(), {})
    bound = opt.bind(w, np.ones(4, np.float32), {"step": 0})
    for bad in ({"lr": float("nan")}, {}, {"lr": {"a": 1.0}}, {"lr": 0.1, "beta": 1}, {"lr": 0.1, "step": 2}):
        with pytest.raises(HyperparameterError):
            bound.step(**bad)
    assert bound.state["step"] == 0
    assert not w.any()


def stepper(opt: Any) -> Any:
    """Steps on copies by an optimizer that remembers nothing."""

    def step(params: Any, grads: Any, state: Any, lr: float) -> Any:
        fresh = optgen.Optimizer(opt.bundle)
        return fresh.step(params, grads, state, lr=lr)

    return step


def test_the_same_arrays_again_take_the_short_way(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    params, grads = tree(rng), tree(rng)
    twin = params.copy()
    opt = optgen.prebuilt("adamw")
    state, twin_state = opt.init(params), opt.init(twin)
    opt.step(params, grads, state, lr=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(opt, "_collect", lambda trees: pytest.fail("collected again"))
        for lr in (0.1, 0.05, 0.05):
            grads.l0[...] += 1
            opt.step(params, grads, state, lr=lr)
    grads.l0[...] -= 3
    step = stepper(opt)
    step(twin, grads, twin_state, 0.1)
    for lr in (0.1, 0.05, 0.05):
        grads.l0[...] += 1
        step(twin, grads, twin_state, lr)
    assert state["step"] == 4
    for key in params:
        np.testing.assert_array_equal(params[key], twin[key])


def test_anything_else_takes_the_long_way(rng: np.random.Generator) -> None:
    """Each change after a first step must be noticed, whatever it is."""
    import torch

    opt = optgen.prebuilt("sgd")
    w, g, other = (np.full(4, x, np.float32) for x in (1.0, 1.0, 1.0))
    for params, grads in (({"a": w, "b": other}, {"a": g, "b": g * 3}), ({"b": w, "a": other}, {"b": g, "a": g * 3})):
        w[:], other[:] = 1, 1
        opt.step(params, grads, {"step": 0}, lr=0.5)
        assert (w[0], other[0]) == (0.5, -0.5)
    grads = {"a": grads["b"], "b": grads["a"]}  # the same leaves in the same order under other names
    w[:], other[:] = 1, 1
    opt.step(params, grads, {"step": 0}, lr=0.5)
    assert (w[0], other[0]) == (-0.5, 0.5)
    w.flags.writeable = False
    with pytest.raises(LeafError, match="read-only"):
        opt.step(params, grads, {"step": 0}, lr=0.5)
    t = torch.ones(3)
    opt.step(t, torch.ones(3), {"step": 0}, lr=1.0)
    one = torch.ones(3)
    opt.step(t, one, {"step": 0}, lr=1.0)
    t.data = torch.ones(3)  # the same object over other memory
    version = t._version
    opt.step(t, one, {"step": 0}, lr=1.0)
    opt.step(t, one, {"step": 0}, lr=1.0)
    assert t.tolist() == [-1.0] * 3
    assert t._version > version
    opt.step(t, None, {"step": 0}, lr=1.0)
    assert t.tolist() == [-1.0] * 3
    with pytest.raises(HyperparameterError):
        opt.step(t, one, {"step": 0}, lr=-1.0)


def test_nothing_is_kept_alive(rng: np.random.Generator) -> None:
    import gc
    import weakref

    opt = optgen.prebuilt("adamw")
    params, grads = tree(rng), tree(rng)
    state = opt.init(params)
    opt.step(params, grads, state, lr=0.1)
    watched = [weakref.ref(leaf) for leaf in (params.l3, grads.l3, state["m"].l3)]
    del params, grads, state
    gc.collect()
    assert [ref() for ref in watched] == [None] * 3


def test_arrays_take_the_short_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = optgen.prebuilt("sgd")
    params = optgen.Container(a=optgen.array([1.0, 2.0]))
    grads = optgen.Container(a=optgen.array([1.0, 0.0]))
    opt.step(params, grads, {"step": 0}, lr=0.5)
    monkeypatch.setattr(opt, "_collect", lambda trees: pytest.fail("collected again"))
    opt.step(params, grads, {"step": 1}, lr=0.5)
    assert params.a.tolist() == [0.0, 2.0]


def test_numbers_in_arrays_are_read_at_each_step() -> None:
    """A schedule may change them in place; the object is the same then, the number is not."""
    import torch

    opt = optgen.prebuilt("sgd")
    for lr in (np.array(1.0), np.array([1.0]), torch.tensor(1.0), optgen.array(1.0)):
        w, g = np.zeros(2, np.float32), np.ones(2, np.float32)
        bound = opt.bind(w, g, opt.init(w))
        for _ in range(2):
            bound.step(lr=lr)
            opt.step(w, g, bound.state, lr=lr)
            number = lr.data if isinstance(lr, optgen.Array) else lr
            number *= 0.5
        assert w.tolist() == [-3.0, -3.0]
        with pytest.raises(HyperparameterError, match="must be one number"):
            bound.step(lr=np.zeros(3))


def test_only_what_is_written_gets_a_new_version() -> None:
    import torch

    w, g = torch.ones(3), torch.ones(3)
    opt = optgen.prebuilt("sgd", momentum=0.9)
    state = opt.init(w)
    versions = w._version, g._version, state["m"]._version
    for _ in range(3):
        opt.step(w, g, state, lr=0.1)
    assert (w._version, g._version, state["m"]._version) == (versions[0] + 3, versions[1], versions[2] + 3)
