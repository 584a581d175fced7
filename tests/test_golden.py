"""Bundles of formats that must stay readable: never rebuilt, always read, and their numbers are those of float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rule_references as reference

import optgen
from optgen.artifact import Bundle
from optgen.artifact.kinds import read_any
from optgen.dtypes import ulp
from optgen.runtime.verify import verify_bundle
from optgen.train import TrainStep

GOLDEN = Path(__file__).parent / "golden"


def test_every_golden_bundle_is_tested_here() -> None:
    assert sorted(p.name for p in GOLDEN.iterdir()) == [
        "format1-sgd.optgen", "format4-lamb.optgen", "function2-predict.optgen", "step1-adamw.optgen",
        "step2-adamw.optgen", "transform2-adam.optgen",
    ]  # fmt: skip


def test_rules_of_format_1() -> None:
    """Its modules by rows are of the kind before stages."""
    golden = optgen.read_bundle(GOLDEN / "format1-sgd.optgen")
    w = np.array([1.0, 2.0], np.float32)
    optgen.Optimizer(golden).step(w, np.array([1.0, -1.0], np.float32), {"step": 0}, lr=0.5)
    assert w.tolist() == [0.5, 2.5]


@pytest.mark.parametrize("device", ["local-sync", "vulkan"])
def test_rules_of_format_4(device: str, request: pytest.FixtureRequest) -> None:
    """Norms by stages on CPUs, and by leaves on Vulkan."""
    if device == "vulkan":
        request.getfixturevalue("vulkan")
    golden = read_any(GOLDEN / "format4-lamb.optgen")
    assert isinstance(golden, Bundle)
    assert golden.manifest.format == 4
    assert {m.target: m.abi for m in golden.manifest.kernels[0].modules}["vulkan"] == "leaves"
    rng = np.random.default_rng(4)
    w, g, m = (rng.standard_normal(35).astype(np.float32) for _ in range(3))
    v = rng.random(35, np.float32)
    hypers = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}
    right = reference.lamb(*(a.astype(np.float64) for a in (w, g, m, v)), step=3, **hypers)
    state = {"step": 2, "m": m, "v": v}
    optgen.Optimizer(golden, device).step(w, g, state, **hypers)
    for name, array in (("w", w), ("m", m), ("v", v)):
        assert np.max(np.abs(array - right[name]) / ulp(right[name], "f32")) <= 0.51, name
    assert state["step"] == 3


@pytest.mark.parametrize("number", [1, 2])
def test_steps_of_format(number: int) -> None:
    """Two steps of a perceptron with 24 params, whose gradient is written out here."""
    step = optgen.load(GOLDEN / f"step{number}-adamw.optgen")
    assert isinstance(step, TrainStep)
    assert step.manifest.format == number
    assert [p.entry for p in step.manifest.probes] == ["step"] * (number - 1)
    rng = np.random.default_rng(5)
    shapes = {"w1": (3, 4), "b1": (4,), "w2": (4, 2)}
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    batch = {"x": rng.standard_normal((5, 3), np.float32), "y": rng.standard_normal((5, 2), np.float32)}
    x, y = (batch[name].astype(np.float64) for name in "xy")
    state, hypers = step.init(params), {"lr": 0.01, "weight_decay": 0.1}
    wide = {name: array.astype(np.float64) for name, array in params.items()}
    moments = {name: (np.zeros(shape), np.zeros(shape)) for name, shape in shapes.items()}
    for count in (1, 2):
        hidden = np.tanh(x @ wide["w1"] + wide["b1"])
        off = hidden @ wide["w2"] - y
        slope = 2 * off / off.size
        before = slope @ wide["w2"].T * (1 - hidden**2)
        grads = {"w1": x.T @ before, "b1": before.sum(0), "w2": hidden.T @ slope}
        loss, metrics = step.step(params, state, batch, **hypers)
        assert loss == pytest.approx((off**2).mean(), rel=1e-6)
        assert metrics["grad_norm"] == pytest.approx(np.sqrt(sum((g**2).sum() for g in grads.values())), rel=1e-6)
        for name, grad in grads.items():
            new = reference.adam(wide[name], grad, *moments[name], step=count, eps=1e-8, **hypers)
            wide[name], moments[name] = new["w"], (new["m"], new["v"])
            np.testing.assert_allclose(params[name], wide[name], atol=1e-6, rtol=0, err_msg=name)
            np.testing.assert_allclose(state["v"][name], new["v"], atol=1e-8, rtol=2e-6, err_msg=name)
    assert state["step"] == 2


@pytest.mark.parametrize("name", ["step2-adamw", "function2-predict", "transform2-adam"])
def test_bundles_with_probes_prove_themselves(name: str) -> None:
    golden = read_any(GOLDEN / f"{name}.optgen")
    assert golden.manifest.format == 2
    results = verify_bundle(golden, ["local-sync"])
    assert results
    assert all(result.ok and result.proven for result in results)


def test_a_bundle_without_probes_proves_nothing() -> None:
    assert verify_bundle(read_any(GOLDEN / "step1-adamw.optgen"), ["local-sync"]) == []
