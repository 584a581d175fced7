"""Bad input: a clear exception of its own class, and nothing touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import optgen
from optgen import errors
from optgen.runtime import get_device
from optgen.runtime.loading import prebuilt_bundle
from optgen.runtime.select import choose

Tree = dict[str, Any]


def arrays() -> tuple[Tree, Tree, Tree]:
    shapes = {"a": (3, 4), "b": (5,)}
    params = {k: np.full(s, 1.0, np.float32) for k, s in shapes.items()}
    grads = {k: np.full(s, 0.5, np.float32) for k, s in shapes.items()}
    state: Tree = {"step": 3, **{n: {k: np.full(s, 0.25, np.float32) for k, s in shapes.items()} for n in "mv"}}
    return params, grads, state


def wrong_grad_shape(p: Tree, g: Tree, s: Tree) -> None:
    g["b"] = np.zeros(4, np.float32)


def wrong_state_shape(p: Tree, g: Tree, s: Tree) -> None:
    s["v"]["a"] = np.zeros((4, 3), np.float32)


def wrong_grad_dtype(p: Tree, g: Tree, s: Tree) -> None:
    g["b"] = g["b"].astype(np.float64)


def integer_grad(p: Tree, g: Tree, s: Tree) -> None:
    g["b"] = g["b"].astype(np.int32)


def complex_param(p: Tree, g: Tree, s: Tree) -> None:
    p["b"] = p["b"].astype(np.complex64)


def swapped_bytes(p: Tree, g: Tree, s: Tree) -> None:
    p["b"] = p["b"].astype(">f4")


def list_instead_of_array(p: Tree, g: Tree, s: Tree) -> None:
    p["b"] = "five"


def missing_state_leaf(p: Tree, g: Tree, s: Tree) -> None:
    del s["m"]["a"]


def missing_state(p: Tree, g: Tree, s: Tree) -> None:
    del s["m"]


def extra_grad(p: Tree, g: Tree, s: Tree) -> None:
    g["c"] = np.zeros(1, np.float32)


def read_only_param(p: Tree, g: Tree, s: Tree) -> None:
    p["b"].flags.writeable = False


def read_only_state(p: Tree, g: Tree, s: Tree) -> None:
    s["m"]["b"].flags.writeable = False


def broadcast_param(p: Tree, g: Tree, s: Tree) -> None:
    p["b"] = np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (5,), (0,))


def param_is_moment(p: Tree, g: Tree, s: Tree) -> None:
    s["m"]["b"] = p["b"]


def grad_is_param(p: Tree, g: Tree, s: Tree) -> None:
    g["b"] = p["b"]


def two_views_of_one_buffer(p: Tree, g: Tree, s: Tree) -> None:
    base = np.ones(9, np.float32)
    p["b"], s["v"]["b"] = base[:5], base[4:]


def no_step(p: Tree, g: Tree, s: Tree) -> None:
    del s["step"]


CASES: list[tuple[Callable[[Tree, Tree, Tree], None], type[Exception], str]] = [
    (wrong_grad_shape, errors.LeafError, r"grads 'b' must have the shape of its param, \(5,\) \(got \(4,\)\)"),
    (wrong_state_shape, errors.LeafError, r"state 'v' 'a' must have the shape of its param"),
    (wrong_grad_dtype, errors.LeafError, r"grads 'b' must have dtype f32 \(got f64\)"),
    (integer_grad, errors.LeafError, r"grads 'b' must have dtype f32, f64, bf16 or f16 \(got int32\)"),
    (complex_param, errors.LeafError, r"params 'b' must have dtype .* \(got complex64\)"),
    (swapped_bytes, errors.LeafError, r"params 'b' must have native byte order"),
    (list_instead_of_array, errors.LeafError, r"params 'b' must be a numpy, torch, JAX or optgen array \(got str\)"),
    (missing_state_leaf, errors.TreeError, r"lacks the leaf 'a'"),
    (missing_state, errors.TreeError, r"'state' must have 'm'"),
    (extra_grad, errors.TreeError, r"it has a leaf 'c' that they lack"),
    (read_only_param, errors.LeafError, r"params 'b' must be writable"),
    (read_only_state, errors.LeafError, r"state 'm' 'b' must be writable"),
    (broadcast_param, errors.LeafError, r"params 'b' must have memory of its own"),
    (param_is_moment, errors.OverlapError, r"share memory"),
    (grad_is_param, errors.OverlapError, r"share memory"),
    (two_views_of_one_buffer, errors.OverlapError, r"share memory"),
    (no_step, errors.TreeError, r"a dict with 'step'"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_bad_trees(device: str, spoil: Any, error: type[Exception], message: str) -> None:
    opt = optgen.prebuilt("adamw", device)
    params, grads, state = arrays()
    spoil(params, grads, state)
    everything = [leaf for tree in (params, grads, state) for leaf in _leaves(tree)]
    before = [leaf.copy() for leaf in everything]
    step = state.get("step")
    with pytest.raises(error, match=message) as caught:
        opt.step(params, grads, state, lr=0.1)
    assert isinstance(caught.value, optgen.OptgenError)
    assert state.get("step") == step
    for leaf, old in zip(everything, before, strict=True):
        np.testing.assert_array_equal(leaf, old)


def _leaves(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in _leaves(child)]
    return [tree] if isinstance(tree, np.ndarray) else []


@pytest.mark.parametrize(
    ("hypers", "message"),
    [
        ({"lr": float("nan")}, "'lr' must be finite"),
        ({"lr": float("inf")}, "'lr' must be finite"),
        ({"lr": -1e-3}, "'lr' must be at least 0"),
        ({"lr": "fast"}, "'lr' must be a number"),
        ({}, "'lr' must be given"),
        ({"lr": 0.1, "beta1": 1.0}, r"'beta1' must be in \[0, 1\)"),
        ({"lr": 0.1, "beta2": -0.1}, r"'beta2' must be in \[0, 1\)"),
        ({"lr": 0.1, "beta2": float("nan")}, "'beta2' must be finite"),
        ({"lr": 0.1, "eps": -1e-8}, "'eps' must be at least 0"),
        ({"lr": 0.1, "momentum": 0.9}, "'adamw' has no hyperparameter 'momentum'"),
        ({"lr": 0.1, "step": 5}, "'step' is counted in the state"),
        ({"lr": np.zeros(3)}, "must be one number"),
        ({"lr": {"a": 0.1}}, "'lr' must have the structure"),
        ({"lr": {"a": 0.1, "b": -1}}, "'lr' must be at least 0"),
    ],
)
def test_bad_hyperparameters(hypers: dict[str, Any], message: str) -> None:
    opt = optgen.prebuilt("adamw")
    params, grads, state = arrays()
    with pytest.raises(errors.OptgenError, match=message):
        opt.step(params, grads, state, **hypers)
    np.testing.assert_array_equal(params["a"], 1)
    np.testing.assert_array_equal(state["m"]["a"], 0.25)
    assert state["step"] == 3


def test_structure_is_not_a_run_time_hyperparameter() -> None:
    opt = optgen.prebuilt("sgd", momentum=0.9)
    w = np.ones(3, np.float32)
    with pytest.raises(errors.HyperparameterError, match="'nesterov' is structure"):
        opt.step(w, w.copy(), opt.init(w), lr=0.1, nesterov=True)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(errors.UnknownRuleError, match=r"unknown rule 'adamm'.* adamw"):
        optgen.compile("adamm")
    with pytest.raises(errors.UnknownTargetError, match=r"did you mean 'cpu:x86-64-v3'.*vulkan:adreno"):
        optgen.compile("adamw", target="cpu:x86-64v3")
    with pytest.raises(errors.BundleNotFoundError, match=r"no prebuilt bundle .*adamw"):
        prebuilt_bundle("shampoo")
    with pytest.raises(errors.UnsupportedTargetError, match=r"'vulkan' cannot compute in f64"):
        optgen.compile("adamw", target="vulkan", dtypes=["f64"])
    with pytest.raises(errors.HyperparameterError, match="'sgd' has no hyperparameter 'beta1'"):
        optgen.compile("sgd", beta1=0.9)


def test_devices_that_are_not_there() -> None:
    with pytest.raises(errors.DeviceError, match="unknown device 'tpu'; the devices are local-sync"):
        optgen.prebuilt("adamw", "tpu")
    if not any(name == "cuda" for name, _ in optgen.list_devices()):
        with pytest.raises(errors.DeviceError, match=r"'cuda' is not there .*there are .*local-task"):
            optgen.prebuilt("adamw", "cuda")


def test_no_module_for_the_device(vulkan: str) -> None:
    opt = optgen.compile("sgd", target="cpu")
    with pytest.raises(errors.DeviceError, match="cpu is for cpu"):
        optgen.Optimizer(opt.bundle, vulkan)


def test_modules_of_another_vendor_are_refused(vulkan: str) -> None:
    """They load, and compute NaN."""
    opt = optgen.compile("sgd", target="vulkan:adreno")
    with pytest.raises(errors.DeviceError, match="is for adreno"):
        optgen.Optimizer(opt.bundle, vulkan)


def test_modules_for_a_better_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """IREE would load them, and the process would die of an illegal instruction."""
    from optgen import host

    opt = optgen.prebuilt("adamw")
    w = np.ones(3, np.float32)
    monkeypatch.setattr(host, "features", lambda: frozenset(host.x86_requirements("x86-64-v2")))
    monkeypatch.setattr(host, "architecture", lambda: "x86_64")
    chosen = choose(opt.manifest.kernels[0], get_device("local-sync"))
    assert chosen.target == "cpu:x86-64-v2"
    monkeypatch.setattr(host, "features", frozenset)
    with pytest.raises(errors.DeviceError, match=r"cpu:x86-64-v2 needs cx16"):
        opt.step(w, w.copy(), opt.init(w), lr=0.1)
    np.testing.assert_array_equal(w, 1)
