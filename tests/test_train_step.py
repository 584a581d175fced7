"""Whole training steps: against JAX and optax, overwriting their arguments and not, on every backend."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import textwrap
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import vulkan_reason
from step_models import MODELS, lora_loss, mlp_loss, pooled_loss

import optgen as og
from optgen.artifact.step import StepBundle
from optgen.compiler.driver import compile_and_print
from optgen.errors import (
    BundleError,
    HyperparameterError,
    LeafError,
    LoweringError,
    OverlapError,
    RuleError,
    TreeError,
    UnsupportedTargetError,
)
from optgen.lower.hazard import find_hazards
from optgen.runtime.tree import leaves_of, map_tree, walk
from optgen.targets import get_target
from optgen.train import TrainStep, compile_step, lower_step, step_flags

STEPS, LR = 50, 1e-2
#: The update is rounded once, as the reference's is. What remains is f32 in the gradient, which two compilers add up in
#: different order: 1e-6 of it, which Adam's division by the root of small second moments magnifies.
TOLERANCE = 1e-5
ON_VULKAN = pytest.mark.skipif(bool(vulkan_reason()), reason=vulkan_reason() or "there is one")


@cache
def data(name: str) -> tuple[Any, list[Any]]:
    """Params and four batches."""
    rng = np.random.default_rng(1)
    params = MODELS[name].params(rng)
    return params, [MODELS[name].batch(rng) for _ in range(4)]


def fresh(params: Any) -> Any:
    return map_tree(lambda _, leaf: np.array(leaf), params)


def patterns(name: str) -> list[str] | None:
    return ["adapters/*"] if name == "lora" else None


@cache
def reference(name: str) -> tuple[list[float], Any]:
    """Losses and params of 50 steps: gradients by JAX in f32, updates by optax in f64, rounded to f32."""
    import jax
    import optax

    model, (params, batches) = MODELS[name], data(name)
    keys = "adapters" if name == "lora" else None

    def loss(trained: Any, frozen: Any, *rest: Any) -> Any:
        found = model.loss({**frozen, "adapters": trained} if keys else trained, *rest)
        return found[0] if isinstance(found, tuple) else found

    gradient = jax.jit(jax.value_and_grad(loss))
    trained, frozen = (params["adapters"], {"base": params["base"]}) if keys else (params, {})
    optimizer, losses = optax.adam(LR), []
    with jax.enable_x64(True):
        state = optimizer.init(jax.tree.map(lambda w: w.astype(np.float64), trained))
        update = jax.jit(optimizer.update)
    for i in range(STEPS):
        key = (jax.random.key(i),) if model.rng else ()
        value, grads = gradient(trained, frozen, batches[i % 4], *key)
        losses.append(float(value))
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda g: np.asarray(g, np.float64), grads)
            updates, state = update(wide, state)
            trained = jax.tree.map(
                lambda w, u: (np.asarray(w, np.float64) + np.asarray(u)).astype(np.float32), trained, updates
            )
    return losses, {**frozen, "adapters": trained} if keys else trained


def run(step: TrainStep, name: str) -> tuple[list[float], Any]:
    """The same 50 steps, compiled."""
    start, batches = data(name)
    params = fresh(start)
    state = step.init(params)
    losses = []
    for i in range(STEPS):
        loss, _ = step.step(params, state, batches[i % 4], lr=LR, **({"rng": i} if MODELS[name].rng else {}))
        losses.append(loss)
    assert state["step"] == STEPS
    return losses, params


@cache
def bundle(name: str, target: str, in_place: bool = True) -> StepBundle:
    params, batches = data(name)
    model = MODELS[name]
    return compile_step(
        model.loss, params, batches[0], "adam", targets=target, rng=model.rng, trainable=patterns(name),
        # Mesa compiles the kernels of a step each time that one is loaded, for up to a minute, and these tests look
        # themselves at what the probes would.
        in_place=in_place, check=target != "vulkan",
    )  # fmt: skip


def assert_same(found: tuple[list[float], Any], expected: tuple[list[float], Any], tolerance: float) -> None:
    np.testing.assert_allclose(found[0], expected[0], atol=tolerance, rtol=0)
    theirs = leaves_of(expected[1])  # JAX sorts keys
    assert theirs.keys() == leaves_of(found[1]).keys()
    for path, leaf in walk(found[1]):
        np.testing.assert_allclose(leaf, np.asarray(theirs[path]), atol=tolerance, rtol=0, err_msg=path)


@pytest.mark.parametrize("name", MODELS)
def test_aliased_and_not_agree_with_jax_on_the_cpu(name: str) -> None:
    aliased, plain = bundle(name, "cpu"), bundle(name, "cpu", False)
    (module,), (other,) = aliased.manifest.modules, plain.manifest.modules
    assert (module.in_place, module.apart, module.compute) == (True, (), "f64")
    assert (other.in_place, other.reason) == (False, "it was asked for out of place")
    found = run(TrainStep(aliased, "local-sync"), name)
    assert found[0][-1] < found[0][0]
    assert_same(found, reference(name), TOLERANCE)
    assert_same(found, run(TrainStep(aliased, "local-task"), name), TOLERANCE)
    # The same kernels but for where results go: the order of operations may differ, no more.
    assert_same(found, run(TrainStep(plain, "local-sync"), name), TOLERANCE)


@ON_VULKAN
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("dropout", "strided")])
def test_aliased_agrees_with_jax_on_vulkan(name: str) -> None:
    """The update is in f32 there. What is left out differs from others by little, and Mesa takes long to load it."""
    aliased = bundle(name, "vulkan")
    (module,) = aliased.manifest.modules
    assert (module.in_place, module.compute) == (True, "f32")
    assert_same(run(TrainStep(aliased, "vulkan"), name), reference(name), 2 * TOLERANCE)


@ON_VULKAN
def test_not_aliased_agrees_with_jax_on_vulkan() -> None:
    assert_same(run(TrainStep(bundle("mlp", "vulkan", False)), "mlp"), reference("mlp"), 2 * TOLERANCE)


def test_the_analysis_finds_the_step_without_a_barrier() -> None:
    """JAX's donated step, as it is: it loses 2e-2 of its loss in 60 steps."""
    import jax

    params, (batch, *_) = data("mlp")

    def step(params: Any, batch: Any) -> Any:
        grads, metrics = jax.grad(mlp_loss, has_aux=True)(params, batch)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, grads), metrics

    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, batch))
    text = jax.jit(step, donate_argnums=0).trace(*structs).lower(lowering_platforms=("cpu",)).as_text()
    hazards = find_hazards(compile_and_print(text, get_target("cpu").flags).printed)
    assert hazards
    assert {h.kind for h in hazards} <= {"after", "concurrent"}
    program = lower_step(mlp_loss, params, batch, "sgd")
    assert not program.hazards(step_flags(get_target("cpu"), program.results))


@ON_VULKAN
def test_the_analysis_finds_what_goes_wrong_on_vulkan_alone() -> None:
    """One kernel for param and moments reads the old moment when the new one has been written: Mesa moves loads."""
    params, (batch, *_) = data("mlp")
    program = lower_step(mlp_loss, params, batch, "adam", compute_dtype="f32")
    flags = step_flags(get_target("vulkan"), program.results)
    fused = (*flags, "--iree-dispatch-creation-enable-aggressive-fusion")
    assert not program.hazards(flags, movable=True)
    assert {h.kind for h in program.hazards(fused, movable=True)} == {"within"}


# Optimizers. The reference is the same rule as an optimizer of its own, or optax, fed with JAX's gradients.


@og.rule(state=("old",))
def keeps(w: Any, g: Any, old: Any, *, lr: Any) -> Any:
    """SGD that remembers the last params: one kernel reads them before it overwrites them."""
    return w - lr * g, w + 0 * old


def chained() -> Any:
    rate = og.schedule.warmup_cosine(peak=LR, warmup=5, total=40)
    return og.chain(og.clip_by_global_norm(0.1), "adamw", og.ema(0.99), lr=rate)


GROUPS = {"b*": {"weight_decay": 0.0}}


@pytest.mark.parametrize(
    ("optimizer", "settings", "hypers", "in_place"),
    [
        (chained(), {"weight_decay": 0.1, "groups": GROUPS}, {}, True),
        (og.chain(og.scale_by_loss(2.0, growth_interval=3.0), "adam"), {}, {"lr": LR}, True),
        ("lamb", {}, {"lr": LR}, True),
        ("sgd", {"momentum": 0.9, "nesterov": True}, {"lr": 0.1}, True),
        (keeps, {}, {"lr": 0.1}, True),
    ],
    ids=["chain", "loss_scale", "lamb", "sgd", "keeps"],
)
def test_rules_agree_with_the_optimizer(optimizer: Any, settings: Any, hypers: Any, in_place: bool) -> None:
    params, batches = data("mlp")
    made = compile_step(mlp_loss, params, batches[0], optimizer, **settings)
    (module,) = made.manifest.modules
    assert module.in_place is in_place
    assert bool(module.apart) is not in_place
    assert ("after" in module.reason or "concurrent" in module.reason or "while" in module.reason) is not in_place
    other = og.compile(optimizer, like=params, **settings)
    step = TrainStep(made)
    _compare(step, hypers, other.init, lambda p, g, s: other.step(p, g, s, **hypers), every=1)


def test_accumulated_grads_agree_with_the_optimizer() -> None:
    params, batches = data("mlp")
    other = og.compile(og.chain(og.accumulate(3), "adam"), like=params)
    step = TrainStep(compile_step(mlp_loss, params, batches[0], "adam", accumulate=3, lr=LR))
    assert [e.name for e in step.manifest.entries] == ["step", "micro"]
    state = _compare(step, {}, other.init, lambda p, g, s: other.step(p, g, s, lr=LR), every=3)
    assert (state["step"], state["micro"]) == (20 // 3, 20 % 3)


def _compare(step: TrainStep, hypers: Any, init: Any, update: Any, every: int) -> Any:
    import jax

    params, batches = data("mlp")
    gradient = jax.jit(jax.value_and_grad(mlp_loss, has_aux=True))
    mine, theirs = fresh(params), fresh(params)
    state, other = step.init(mine), init(theirs)
    before = fresh(mine)
    for i in range(20):
        loss, metrics = step.step(mine, state, batches[i % 4], **hypers)
        (value, extra), grads = gradient(theirs, batches[i % 4])
        scale = np.float32(other.get("loss_scale", 1.0))  # of the loss, and so of the grads that scale_by_loss divides
        update(theirs, {n: np.array(g) * scale for n, g in grads.items()}, other)
        assert loss == pytest.approx(float(value), abs=1e-6)
        assert metrics["accuracy"] == pytest.approx(float(extra["accuracy"]))
        if i + 1 < every:
            np.testing.assert_array_equal(mine["w1"], before["w1"])
    assert list(state) == list(other)
    for (path, a), (_, b) in zip(walk(mine), walk(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-7, rtol=0, err_msg=path)
    for (path, a), (_, b) in zip(walk(state), walk(other), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-7, rtol=1e-6, err_msg=path)
    return state


@pytest.mark.parametrize("name", ["clipped", "multi"])
def test_optax_transformations(name: str) -> None:
    import jax
    import optax

    transformation: Any = {
        "clipped": optax.chain(
            optax.clip_by_global_norm(0.1), optax.inject_hyperparams(optax.adamw)(learning_rate=LR, weight_decay=0.1)
        ),
        "multi": optax.MultiSteps(optax.adam(LR), 3),
    }[name]
    params, batches = data("mlp")
    step = TrainStep(compile_step(mlp_loss, params, batches[0], transformation))
    mine = fresh(params)
    state = step.init(mine)

    @jax.jit
    def update(params: Any, state: Any, batch: Any) -> Any:
        (loss, _), grads = jax.value_and_grad(mlp_loss, has_aux=True)(params, batch)
        updates, state = transformation.update(grads, state, params)
        return loss, optax.apply_updates(params, updates), state

    theirs, other = params, transformation.init(params)
    for i in range(20):
        loss, _ = step.step(mine, state, batches[i % 4])
        value, theirs, other = update(theirs, other, batches[i % 4])
        assert loss == pytest.approx(float(value), abs=5e-6)
    for path, a in walk(mine):
        np.testing.assert_allclose(a, np.asarray(theirs[path]), atol=5e-6, rtol=0, err_msg=path)
    if name == "clipped":
        assert state[1]["hyperparams"]["learning_rate"] == np.float32(LR)
        state[1]["hyperparams"]["learning_rate"][...] = 0
        state[1]["hyperparams"]["weight_decay"][...] = 0
        kept = fresh(mine)
        step.step(mine, state, batches[0])
        np.testing.assert_array_equal(mine["w1"], kept["w1"])


# What a step takes and gives.


@pytest.fixture(scope="module")
def full() -> StepBundle:
    """A step with everything: metrics, evaluation on another batch size, dropout's key is elsewhere."""
    params, batches = data("mlp")
    batch = {n: np.repeat(a, 2, 0) for n, a in batches[0].items()}
    return compile_step(
        mlp_loss, params, batches[0], "adam", metrics=["grad_norm", "param_norm"], lr=LR,
        eval_fn=lambda p, b: {"loss": mlp_loss(p, b)[0], "x": b["x"] * 2}, eval_batch=batch, name="full",
    )  # fmt: skip


def test_metrics_and_evaluation(full: StepBundle) -> None:
    import jax

    params, batches = data("mlp")
    step, mine = TrainStep(full), fresh(params)
    norm = float(np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in params.values())))
    grads = jax.grad(mlp_loss, has_aux=True)(params, batches[0])[0]
    loss, metrics = step.step(mine, step.init(mine), batches[0])
    assert loss == pytest.approx(float(mlp_loss(params, batches[0])[0]), abs=1e-6)
    assert list(metrics) == ["accuracy", "grad_norm", "param_norm"]
    assert metrics["param_norm"] == pytest.approx(norm, rel=1e-6)  # before the update
    assert metrics["grad_norm"] == pytest.approx(float(np.sqrt(sum((g**2).sum() for g in grads.values()))), rel=1e-5)
    double = {n: np.repeat(a, 2, 0) for n, a in batches[1].items()}
    result = step.evaluate(mine, double)
    assert result["loss"] == pytest.approx(float(mlp_loss(mine, batches[1])[0]), abs=1e-6)
    np.testing.assert_array_equal(result["x"], 2 * double["x"])
    with pytest.raises(LeafError, match=r"'x' must have shape \(32, 20\)"):
        step.evaluate(mine, batches[1])
    with pytest.raises(TreeError, match="without 'eval_fn'"):
        TrainStep(bundle("mlp", "cpu")).evaluate(mine, double)


def test_arrays_are_written_where_they_are(full: StepBundle) -> None:
    """Without a copy of the params for each step: what modules see is bound once."""
    params, batches = data("mlp")
    step = TrainStep(full, "local-sync")
    mine = fresh(params)
    mine["w1"] = mine["w1"].reshape(-1)[:].reshape(20, 32)
    state = step.init(mine)
    step.step(mine, state, batches[0])
    held = step._held
    assert held is not None
    bound = dict(held.bound(step._loaded().device))
    assert not any(b.staged for b in bound.values())
    addresses = {path: leaf.ctypes.data for path, leaf in walk(mine)}
    step.step(mine, state, batches[1])
    assert step._held is held
    assert held.bound(step._loaded().device) == bound
    assert {path: leaf.ctypes.data for path, leaf in walk(mine)} == addresses
    assert {b.array.ctypes.data for b in bound.values()} >= set(addresses.values())


def test_what_the_loop_drops_is_freed(full: StepBundle) -> None:
    params, batches = data("mlp")
    step, mine = TrainStep(full, "local-sync"), fresh(params)
    state = step.init(mine)
    step.step(mine, state, batches[0])
    gone = [weakref.ref(mine["w1"]), weakref.ref(state["m"]["w1"])]
    kept = mine["w1"].copy()
    mine = {**mine, "w1": kept}
    state["m"]["w1"] = state["m"]["w1"].copy()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    step.step(mine, state, batches[0])
    assert not np.array_equal(kept, params["w1"])


def test_other_kinds_and_layouts_of_arrays(full: StepBundle) -> None:
    import torch

    params, batches = data("mlp")
    step = TrainStep(full)
    plain = fresh(params)
    loss, _ = step.step(plain, step.init(plain), batches[0])
    strange: Any = og.Container(fresh(params))
    strange["w1"] = np.asfortranarray(strange["w1"])
    strange["w2"] = torch.from_numpy(strange["w2"])
    unaligned = np.empty(32 * 4 + 1, np.uint8)[1:].view(np.float32)
    unaligned[...] = params["b1"]
    strange["b1"] = unaligned
    version = strange["w2"]._version
    state = step.init(strange)
    for _ in range(2):
        before = {n: np.asarray(a).copy() for n, a in strange.items()}
        found, _ = step.step(strange, state, {n: torch.from_numpy(a) for n, a in batches[0].items()})
    assert strange["w2"]._version > version
    assert {n: a.tobytes() for n, a in before.items()} == {n: a.tobytes() for n, a in plain.items()}
    assert found < loss


def test_state_is_saved_and_loaded(full: StepBundle, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    params, batches = data("mlp")
    step, mine = TrainStep(full), fresh(params)
    state = step.init(mine)
    for i in range(3):
        step.step(mine, state, batches[i])
    flat = {path: np.asarray(leaf) for path, leaf in walk({"params": mine, "state": state})}
    save_file(flat, tmp_path / "run.safetensors")
    found = load_file(tmp_path / "run.safetensors")
    again = {n: found[f"params/{n}"] for n in mine}
    other = {"step": found["state/step"], **{s: {n: found[f"state/{s}/{n}"] for n in mine} for s in "mv"}}
    assert step.step(again, other, batches[3]) == step.step(mine, state, batches[3])
    assert other["step"] == state["step"] == 4
    for path, leaf in walk(mine):
        np.testing.assert_array_equal(again[path], leaf)


_ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "torch", "optax") or name.startswith("iree.compiler"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np, optgen
step = optgen.load(sys.argv[1])
rng = np.random.default_rng(0)
params = {"w1": rng.standard_normal((20, 32), np.float32), "b1": np.zeros(32, np.float32),
          "w2": rng.standard_normal((32, 10), np.float32), "b2": np.zeros(10, np.float32)}
batch = {"x": rng.standard_normal((16, 20), np.float32), "y": np.arange(16, dtype=np.int32) % 10}
state = step.init(params)
losses = [step.step(params, state, batch, lr=0.01)[0] for _ in range(30)]
assert losses[-1] < losses[0] / 2, losses
print(repr(step))
"""


def test_it_trains_without_jax_and_the_compiler(full: StepBundle, tmp_path: Path) -> None:
    path = full.save(tmp_path / "full.optgen")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_ALONE), str(path)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "TrainStep('full', 'adam', device='cpu')\n"


def test_bundles_are_verified(full: StepBundle, tmp_path: Path) -> None:
    path = full.save(tmp_path / "full")
    assert StepBundle.read(path).manifest == full.manifest
    assert isinstance(og.load(path), TrainStep)
    (path / full.manifest.modules[0].file).write_bytes(b"x")
    with pytest.raises(BundleError, match="SHA-256"):
        og.load(path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(BundleError, match="format 99"):
        og.load(path)
    with pytest.raises(BundleError, match="a training step, not"):
        og.read_bundle(full.save(tmp_path / "again"))


# What is refused.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p, s, b: {"batch": {n: a[:9] for n, a in b.items()}}, LeafError,
         r"batch 'x' must have shape \(16, 20\) \(got \(9, 20\)\): a step is compiled for one batch size. Pad"),
        (lambda p, s, b: {"batch": {**b, "y": b["y"].astype(np.int64)}}, LeafError, "batch 'y' must have dtype i32"),
        (lambda p, s, b: {"batch": {"x": b["x"]}}, TreeError, "'batch' of step 'full' must have the leaf 'y'"),
        (lambda p, s, b: {"params": {**p, "w3": p["w1"]}}, TreeError, "must not have the leaf 'w3'"),
        (lambda p, s, b: {"params": {**p, "b2": p["b1"]}}, LeafError, r"params 'b2' must have shape \(10,\)"),
        (lambda p, s, b: {"params": {**p, "b1": np.broadcast_to(p["b1"][:1], 32)}}, LeafError, "must be writable"),
        (lambda p, s, b: {"state": {**s, "m": s["v"]}}, OverlapError, "share memory"),
        (lambda p, s, b: {"batch": {**b, "x": p["w1"][:10].reshape(16, 20)}}, OverlapError, "share memory"),
        (lambda p, s, b: {"state": {"m": s["m"], "v": s["v"]}}, TreeError, "a dict with 'step'"),
        (lambda p, s, b: {"state": {**s, "step": 0.5}}, TreeError, "whole number"),
        (lambda p, s, b: {"lr": -1.0}, HyperparameterError, "'lr' must be at least 0"),
        (lambda p, s, b: {"momentum": 1.0}, HyperparameterError, "no hyperparameter 'momentum'"),
        (lambda p, s, b: {"rng": 1}, HyperparameterError, "takes no key"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_and_change_nothing(full: StepBundle, change: Any, error: Any, message: str) -> None:
    params, batches = data("mlp")
    step, mine = TrainStep(full), fresh(params)
    state = step.init(mine)
    kept = fresh({"params": mine, "state": {n: t for n, t in state.items() if n != "step"}})
    given = {"params": mine, "state": state, "batch": batches[0]} | change(mine, state, batches[0])
    with pytest.raises(error, match=message):
        step.step(given.pop("params"), given.pop("state"), given.pop("batch"), **given)
    after = {"params": mine, "state": {n: t for n, t in state.items() if n != "step"}}
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(walk(kept), walk(after), strict=True))
    assert state["step"] == 0


def test_jax_arrays_and_missing_keys_are_refused() -> None:
    import jax.numpy as jnp

    params, batches = data("dropout")
    step, mine = TrainStep(bundle("dropout", "cpu")), fresh(params)
    state = step.init(mine)
    with pytest.raises(HyperparameterError, match="'rng' must be given"):
        step.step(mine, state, batches[0], lr=LR)
    with pytest.raises(LeafError, match="two words of uint32"):
        step.step(mine, state, batches[0], lr=LR, rng=np.zeros(3, np.uint32))
    with pytest.raises(HyperparameterError, match="'lr' must be given"):
        step.step(mine, state, batches[0], rng=0)
    with pytest.raises(LeafError, match=r"can be written \(got JAX's\)"):
        step.step({n: jnp.asarray(a) for n, a in mine.items()}, state, batches[0], lr=LR, rng=0)


def test_what_cannot_be_compiled_is_refused() -> None:
    import jax
    import optax
    from jax import export

    params, (batch, *_) = data("mlp")
    (size,) = export.symbolic_shape("b")
    dynamic = {"x": jax.ShapeDtypeStruct((size, 20), "float32"), "y": batch["y"]}
    cases: list[tuple[Any, str, dict[str, Any]]] = [
        (LeafError, r"'batch/x' must have a static shape, of whole numbers \(got \(b, 20\)\): a step is compiled "
         "for one batch size. Give an example", {"batch": dynamic}),
        (RuleError, "must return one float, the loss", {"loss_fn": lambda p, b: b["x"] @ p["w1"]}),
        (RuleError, "must return its loss, or the loss and a dict", {"loss_fn": lambda p, b: (p["b1"].sum(), 3)}),
        (RuleError, "cannot be traced by JAX", {"loss_fn": lambda p, b: p["nothing"].sum()}),
        (RuleError, "'metrics' must be of grad_norm", {"metrics": ["loss_norm"]}),
        (LeafError, "'w9' matches none", {"trainable": ["w9"]}),
        (LeafError, "at least one leaf to train", {"trainable": lambda path, leaf: False}),
        (LeafError, "'params/n' must have a float dtype to be trained", {"params": {**params, "n": np.arange(3)}}),
        (LeafError, "'rng' must be True", {"rng": "seed"}),
        (HyperparameterError, "'accumulate' must be a whole number", {"accumulate": 0}),
        (HyperparameterError, "no hyperparameter 'speed'", {"speed": 1.0}),
        (HyperparameterError, "wrap it, optax.MultiSteps", {"optimizer": optax.sgd(1.0), "accumulate": 2}),
        (HyperparameterError, "'lr' must not be given with an optax", {"optimizer": optax.sgd(1.0), "lr": 2.0}),
        (HyperparameterError, "must be a float", {"state_dtype": "f8"}),
        (RuleError, "'sophia_g' must not be the optimizer of a step", {"optimizer": "sophia_g"}),
        (RuleError, "'adam_step' must not be the optimizer of a step: its new 'delta' depends neither on the old one",
         {"optimizer": "adam_step"}),
        (LoweringError, "has no program 'micro'", {"entry": "micro"}),
    ]  # fmt: skip
    for error, message, change in cases:
        given = {"loss_fn": mlp_loss, "params": params, "batch": batch, "optimizer": "adam", **change}
        with pytest.raises(error, match=message):
            lower_step(given.pop("loss_fn"), given.pop("params"), given.pop("batch"), given.pop("optimizer"), **given)
    with pytest.raises(UnsupportedTargetError, match="f64"):
        compile_step(mlp_loss, params, batch, "adam", targets="vulkan", compute_dtype="f64")


# For code generators.


def test_programs_have_one_function_and_say_what_it_takes() -> None:
    params, (batch, *_) = data("mlp")
    program = lower_step(mlp_loss, params, batch, "adam", compute_dtype="f32", bake=["beta1", "beta2", "eps"])
    assert program.mlir.count("func.func public") == 1
    assert f"@{program.entry}(" in program.mlir
    assert [a.name for a in program.arguments if a.role == "hyper"] == ["lr", "weight_decay"]
    assert {a.dtype for a in program.arguments} == {"f32", "i32"}
    by_name = {a.name: a for a in program.arguments}
    for name in ("params/w1", "state/m/w1", "state/v/w1"):
        argument = by_name[name]
        assert argument.aliased
        assert argument.result is not None
        assert program.results[argument.result].path == name
        assert program.results[argument.result].shape == argument.shape == (20, 32)
    assert by_name["state/v/b1"].number == 0
    assert by_name["state/step"].result is not None
    assert not by_name["state/step"].aliased
    assert by_name["batch/x"].result is None
    assert by_name["weight_decay"].number == 0
    assert by_name["lr"].number is None
    kept = lower_step(mlp_loss, params, batch, "adam", apart=["params/w1"])
    assert not next(a for a in kept.arguments if a.name == "params/w1").aliased
    assert "aliasing_output" not in lower_step(mlp_loss, params, batch, "adam", in_place=False).mlir
    micro = lower_step(mlp_loss, params, batch, "sgd", accumulate=2, entry="micro")
    assert [a.name for a in micro.arguments if a.aliased] == [f"state/grad_mean/{n}" for n in params]
    assert [a.name for a in micro.arguments if a.role == "hyper"] == []
    assert [r.path for r in micro.results] == [
        "loss", "metrics/accuracy", *(f"state/grad_mean/{n}" for n in params), "state/micro",
    ]  # fmt: skip


def test_only_adapters_are_trained() -> None:
    params, batches = data("lora")
    program = lower_step(lora_loss, params, batches[0], "adam", trainable=lambda path, leaf: "lora" in path)
    assert {a.name.split("/")[1] for a in program.arguments if a.role == "param"} == {"adapters"}
    assert {a.name.split("/")[2] for a in program.arguments if a.role == "state"} == {"adapters"}
    assert {a.name.split("/")[1] for a in program.arguments if a.role == "frozen"} == {"base"}
    step, mine = TrainStep(bundle("lora", "cpu")), fresh(params)
    state = step.init(mine)
    assert list(state["m"]) == ["adapters"]
    for path, leaf in walk(mine["base"]):
        leaf.flags.writeable = False  # what is frozen need not be writable
        assert path
    step.step(mine, state, batches[0], lr=LR)
    assert np.abs(mine["adapters"]["q"]["lora_b"]).max() > 0
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(walk(mine["base"]), walk(params["base"]), strict=True))


def test_gradients_of_pools_are_not_written_to_places_that_are_searched() -> None:
    """For which Mesa's driver needed barriers around them."""
    params, (batch, *_) = data("pooled")
    plain = lower_step(pooled_loss, params, batch, "sgd").mlir
    assert "reduce_window" in plain
    assert "select_and_scatter" not in plain
    (module,) = bundle("pooled", "cpu").manifest.modules
    assert module.in_place
