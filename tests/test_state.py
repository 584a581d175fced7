"""State that does not start at zero, and state that is a number for the whole tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import optgen
from optgen.artifact import Manifest
from optgen.cli.app import app
from optgen.dsl import norm
from optgen.errors import HyperparameterError, LoweringError, RuleError, TreeError
from optgen.runtime.verify import verify_bundle


@optgen.rule(state=("a", "z", "u"), init={"a": "start", "z": "param", "u": 2.5})
def starting(w: Any, g: Any, a: Any, z: Any, u: Any, *, lr: Any, start: Any = 0.5) -> Any:
    """Adds what each state tensor starts with."""
    return w - lr * g + 0 * start, a + 1, z + w, u * 2


@optgen.rule(state=("m",), decays=("beta",), scalars={"product": 1.0, "count": 0.0})
def scheduled(w: Any, g: Any, m: Any, *, lr: Any, beta: Any = 0.9, product: Any, count: Any, step: Any) -> Any:
    """A bias correction by a running product."""
    product = product * beta
    m = beta * m + (1 - beta) * g
    return w - lr / (1 - product) * m, m, product, count + 2 * step


@pytest.fixture(scope="module")
def opts() -> dict[str, optgen.Optimizer]:
    return {
        "starting": optgen.compile(starting, dtypes=["f32", "bf16"]),
        "rows": optgen.compile(scheduled, dtypes=["f32", "bf16"], target="cpu"),
    }


def expected(w: np.ndarray, g: np.ndarray, steps: int, lr: float = 0.1, beta: float = 0.9) -> np.ndarray:
    m, product = np.zeros(w.shape), 1.0
    w = w.astype(np.float64)
    for _ in range(steps):
        product *= beta
        m = beta * m + (1 - beta) * g
        w = w - lr / (1 - product) * m
    return w


def test_initial_values(opts: dict[str, optgen.Optimizer]) -> None:
    import ml_dtypes

    params = {"a": np.array([1.5, -2.0], np.float32), "b": np.full((2, 3), 0.1, ml_dtypes.bfloat16)}
    opt = opts["starting"]
    state = opt.init(params)
    assert {s: v.dtype.name for s, v in state["z"].items()} == {"a": "float32", "b": "float32"}
    np.testing.assert_array_equal(state["z"]["a"], params["a"])
    np.testing.assert_array_equal(state["z"]["b"], params["b"].astype(np.float32))
    assert {float(x) for x in state["a"]["b"].ravel()} == {0.5}
    assert {float(x) for x in state["u"]["a"].ravel()} == {2.5}
    assert state["z"]["a"] is not params["a"]
    custom = opt.init(params, start={"a": 3, "b": 4})
    assert [float(custom["a"][k].ravel()[0]) for k in "ab"] == [3, 4]
    opt.step({"a": params["a"]}, {"a": np.zeros(2, np.float32)}, {n: {"a": v["a"]} if n != "step" else v
             for n, v in state.items()}, lr=1)  # fmt: skip
    np.testing.assert_array_equal(state["a"]["a"], [1.5, 1.5])
    np.testing.assert_array_equal(state["z"]["a"], 2 * params["a"])
    with pytest.raises(HyperparameterError, match="'begin'"):
        opt.init(params, begin=1)
    with pytest.raises(HyperparameterError, match="'start' must be at least 0"):
        opt.init(params, start=-1)


def test_initial_value_without_default_must_be_given() -> None:
    @optgen.rule(state=("s",), init={"s": "lr"})
    def steps(w: Any, g: Any, s: Any, *, lr: Any) -> Any:
        return w - s * g, s + 0 * lr

    opt = optgen.compile(steps)
    with pytest.raises(HyperparameterError, match="'lr' must be given to init"):
        opt.init(np.ones(2, np.float32))
    np.testing.assert_array_equal(opt.init(np.ones(2, np.float32), lr=0.25)["s"], [0.25, 0.25])
    assert optgen.compile(steps, lr=0.5).init(np.ones(1, np.float32))["s"][0] == 0.5


@pytest.mark.parametrize("kind", ["numpy", "torch", "jax"])
def test_scalar_state_in_steps(opts: dict[str, optgen.Optimizer], kind: str) -> None:
    """Recalled, new and replaced arrays: always the same numbers."""
    if kind == "torch":
        import torch as library

        make = library.from_numpy
    elif kind == "jax":
        import jax.numpy as jnp

        make = jnp.asarray
    else:
        make = np.asarray
    start, g = np.array([1.0, -2, 3], np.float32), np.array([0.5, 1, -1], np.float32)
    params, opt = {"w": make(start.copy())}, opts["rows"]
    state = opt.init(params)
    assert {n: state[n] for n in ("step", "product", "count")} == {"step": 0, "product": 1.0, "count": 0.0}
    for _ in range(4):
        params, state = opt.step(params, {"w": make(g)}, state, lr=0.1)
    assert state["product"] == pytest.approx(0.9**4, rel=1e-15)
    assert state["count"] == 20
    np.testing.assert_allclose(np.asarray(params["w"]), expected(start, g, 4), rtol=1e-6)


def test_scalar_state_bound_and_applied(opts: dict[str, optgen.Optimizer]) -> None:
    import ml_dtypes

    opt = opts["rows"]
    params = {"a": np.ones(3, np.float32), "b": np.ones(5, ml_dtypes.bfloat16)}
    grads = {k: np.full_like(v, 0.5) for k, v in params.items()}
    bound = opt.bind(params, grads, opt.init(params))
    for i in range(3):
        bound.step(lr=0.1 / (i + 1))
    # f32 params are computed in f64, bf16 in f32: the number of the wider arithmetic is the one that stays.
    assert bound.state["product"] == pytest.approx(0.729, rel=1e-15)
    assert type(bound.state["product"]) is float
    assert bound.state["count"] == 12
    w, m = np.ones(3, np.float32), np.zeros(3, np.float32)
    results = opt.apply({"w": w, "g": grads["a"], "m": m}, {"lr": 0.1, "step": 3, "product": 0.5})
    assert results["product"] == 0.45
    assert results["count"] == 6
    assert results["w"] is w
    assert opt.apply({"w": w, "g": grads["a"], "m": m}, {"lr": 0.1, "step": 3})["product"] == 0.9


def test_scalar_state_is_checked(opts: dict[str, optgen.Optimizer]) -> None:
    opt, w = opts["rows"], np.ones(3, np.float32)
    state = opt.init(w)
    with pytest.raises(TreeError, match="must have 'product'"):
        opt.step(w, w.copy(), {n: v for n, v in state.items() if n != "product"}, lr=1)
    with pytest.raises(TreeError, match="'product' must be a finite number"):
        opt.step(w, w.copy(), {**state, "product": float("nan")}, lr=1)
    with pytest.raises(HyperparameterError, match="'beta' must be one number for all leaves"):
        opt.step([w], [w.copy()], {**state, "m": [state["m"]]}, lr=1, beta=[0.5])
    with pytest.raises(HyperparameterError, match="no hyperparameter 'product'"):
        opt.step(w, w.copy(), state, lr=1, product=1)
    np.testing.assert_array_equal(w, 1)
    two = opt.init([w, w.copy()])  # lr may differ: neither number depends on it
    params, two = opt.step([w, w.copy()], [np.ones_like(w), np.ones_like(w)], two, lr=[0, 1])
    np.testing.assert_array_equal(params[0], 1)
    np.testing.assert_allclose(params[1], 0, atol=1e-6)
    assert two["product"] == 0.9


def test_scalar_state_on_vulkan_and_by_lists(vulkan: str) -> None:
    opt = optgen.compile(scheduled, target="vulkan")
    assert opt.manifest.kernels[0].modules[0].abi == "list"
    w, g = np.array([1.0, -2, 3], np.float32), np.array([0.5, 1, -1], np.float32)
    want, state = expected(w, g, 3), opt.init(w)
    for _ in range(3):
        opt.step(w, g, state, lr=0.1)
    np.testing.assert_allclose(w, want, rtol=1e-6)
    assert state["product"] == pytest.approx(0.729, rel=1e-15)
    assert all(r.ok for r in verify_bundle(opt.bundle, ["vulkan"]))


def test_manifest_and_probes(opts: dict[str, optgen.Optimizer], tmp_path: Path) -> None:
    for opt in opts.values():
        manifest = optgen.load(opt.save(tmp_path / "x.optgen")).manifest
        assert manifest == opt.manifest
        assert all(m.in_place for k in manifest.kernels for m in k.modules)
        results = verify_bundle(opt.bundle, ["local-sync"])
        assert results
        assert all(r.ok for r in results), results
    assert opts["starting"].manifest.init == {"a": "start", "z": "param", "u": 2.5}
    assert {r.output for r in results} == {"w", "m", "product", "count"}
    # What older bundles lack means zeros and no numbers.
    data = json.loads(opts["rows"].manifest.to_json())
    del data["init"], data["scalars"]
    for kernel in data["kernels"]:
        del kernel["returned"]
    old = Manifest.from_json(json.dumps(data))
    assert (old.init, old.scalars, old.kernels[0].returned) == ({}, {}, ())


def test_saved_state_goes_on_where_it_was(opts: dict[str, optgen.Optimizer], tmp_path: Path) -> None:
    bundle = str(opts["rows"].save(tmp_path / "s.optgen"))
    w, g = np.array([1.0, -2, 3], np.float32), np.array([0.5, 1, -1], np.float32)
    for suffix in ("npz", "safetensors"):
        import safetensors.numpy

        write = np.savez if suffix == "npz" else lambda p, **a: safetensors.numpy.save_file(a, p)
        p, gr, st = (tmp_path / f"{n}.{suffix}" for n in "pgs")
        write(p, w=w)
        write(gr, w=g)
        for i in range(3):
            arguments = [
                "run",
                bundle,
                "--params",
                str(p),
                "--grads",
                str(gr),
                "--out-params",
                str(p),
                "--set",
                "lr=0.1",
            ]
            arguments += ["--out-state", str(st), *(["--state", str(st)] if i else [])]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        read = np.load if suffix == "npz" else safetensors.numpy.load_file
        np.testing.assert_allclose(read(p)["w"], expected(w, g, 3), rtol=1e-6)
        assert read(st)["product"].item() == pytest.approx(0.729, rel=1e-15)
        assert read(st)["step"].item() == 3
    shown = CliRunner().invoke(app, ["inspect", bundle]).output
    assert "product (a number, first 1)" in shown


def test_scalars_come_from_scalars() -> None:
    @optgen.rule(scalars={"total": 0.0})
    def elementwise(w: Any, g: Any, *, lr: Any, total: Any) -> Any:
        return w - lr * g, total + g

    @optgen.rule(scalars={"total": 0.0})
    def reduced(w: Any, g: Any, *, lr: Any, total: Any) -> Any:
        return w - lr * g, total + norm(g)

    @optgen.rule(scalars={"total": 0.0})
    def forgotten(w: Any, g: Any, *, lr: Any, total: Any) -> Any:
        return w - (lr + total) * g

    @optgen.rule(scalars={"total": 0.0})
    def crossing(w: Any, g: Any, *, lr: Any, total: Any) -> Any:
        return w - lr * g[::-1], total

    with pytest.raises(RuleError, match="'total' of rule 'elementwise' must be computed from scalars alone"):
        optgen.compile(elementwise)
    with pytest.raises(RuleError, match="'total' must be computed from scalars alone"):
        optgen.compile(reduced)
    with pytest.raises(RuleError, match="must return 2 values, the new w, total"):
        optgen.compile(forgotten)
    with pytest.raises(LoweringError, match="scalar state"):
        optgen.compile(crossing, np.ones(3, np.float32))


def test_declarations_are_checked() -> None:
    def function(w: Any, g: Any, m: Any, *, lr: Any) -> Any:
        return w - lr * g, m

    with pytest.raises(RuleError, match="'init' of rule 'function' must name its state tensors"):
        optgen.rule(state=("m",), init={"n": 1})(function)
    with pytest.raises(RuleError, match="must be a number, 'param' or one of its hyperparameters"):
        optgen.rule(state=("m",), init={"m": "step"})(function)
    with pytest.raises(RuleError, match="'scalars' of rule 'function' must name its keyword parameters"):
        optgen.rule(state=("m",), scalars={"m": 1})(function)
