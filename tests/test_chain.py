"""Chains: what is around a rule, against optax, torch and float64 numpy; and that it is one pass over memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT
from typer.testing import CliRunner

import optgen as og
from optgen.artifact import Manifest
from optgen.cli.app import app
from optgen.compiler.build import flags_for
from optgen.compiler.driver import compile_mlir
from optgen.dsl import global_norm
from optgen.dsl.around import part
from optgen.dsl.variant import Variant
from optgen.errors import HyperparameterError, LoweringError, RuleError, UnknownRuleError
from optgen.lower import Kernel, lower
from optgen.runtime.verify import verify_bundle
from optgen.targets import get_target
from tests.reference import adamw

BF16 = ml_dtypes.bfloat16


@pytest.fixture(scope="module")
def opts() -> dict[str, Any]:
    """Each is compiled when it is first asked for."""
    return {}


def get(opts: dict[str, Any], name: str) -> og.Optimizer:
    make: dict[str, Any] = {
        "clip": lambda: og.compile(
            og.chain(og.clip_by_global_norm(1.0), "adamw", og.ema(0.99)), dtypes=["f32", "bf16"], weight_decay=0.1
        ),
        "leafwise": lambda: og.compile(og.chain(og.clip_by_value(0.5), og.clip_by_norm(1.0), "sgd", og.polyak(2))),
        "debias": lambda: og.compile(og.chain("sgd", og.ema(0.9, debias=True))),
        "amp": lambda: og.compile(og.chain(og.scale_by_loss(8.0, growth_interval=3), "nadam", og.ema(0.9))),
        "skip": lambda: og.compile(og.chain(og.skip_not_finite(), og.clip_by_global_norm(1.0), "adam")),
        "accumulate": lambda: og.compile(
            og.chain(og.accumulate(3), og.clip_by_global_norm(0.5), "adam"), dtypes=["f32", "bf16"]
        ),
    }
    if name not in opts:
        opts[name] = make[name]()
    found: og.Optimizer = opts[name]
    return found


def tree(rng: np.random.Generator, scale: float = 1.0) -> og.Container:
    return og.Container(
        a=(scale * rng.standard_normal((3, 5))).astype(np.float32),
        b=og.Container(c=(scale * rng.standard_normal(40_001)).astype(np.float32)),
        d=(scale * rng.standard_normal(4)).astype(np.float32),
    )


def leaves(each: Any) -> dict[str, np.ndarray]:
    from optgen.runtime.tree import leaves_of

    return {p: np.asarray(v, np.float64) for p, v in leaves_of(each).items()}


def close(found: Any, wanted: Any, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    for path, value in leaves(wanted).items():
        np.testing.assert_allclose(leaves(found)[path], value, rtol, atol, err_msg=path)


# One pass over memory.


def kernel_of(rule: og.Rule) -> Kernel:
    variant = Variant.of(rule)
    return lower(variant.kernel(variant.dtypes("f32")))[0]


def traffic(rule: og.Rule) -> dict[str, tuple[int, int]]:
    """For each entry point its dispatches, and the bytes of f32 leaves that they read and write for each element."""
    kernel, target = kernel_of(rule), get_target("cpu")
    stream = compile_mlir(kernel.mlir(target.style), [*flags_for(kernel, target), "--compile-to=stream"]).decode()
    assert not re.search(r"stream\.(?:cmd\.copy|cmd\.fill|async\.)", stream)
    found = {}
    for text in stream.split("util.func public @")[1:]:
        accesses = re.findall(r"^ +(ro|rw|wo) %", text, re.MULTILINE)
        name = text.partition("(")[0]
        # Beside leaves there is the table of rows, and for a stage its partial results, a line for 16,384 elements.
        accesses.remove("ro")
        if name != "apply":
            accesses.remove("rw")
        found[name] = text.count("stream.cmd.dispatch"), sum(8 if a == "rw" else 4 for a in accesses)
    return found


def test_a_chain_is_one_pass() -> None:
    assert traffic(og.chain("adamw", og.ema())) == {"apply": (1, 36)}  # w, m, v, ema twice, g once
    clipped = og.chain(og.clip_by_global_norm(), "adamw")
    assert traffic(clipped) == {"stage0": (1, 4), "apply": (1, 28)}  # g once more
    # All that looks at the grads together does so at once; what the schedule costs is the host's.
    everything = og.chain(
        og.scale_by_loss(), og.clip_by_global_norm(), "adamw", og.ema(), og.polyak(), lr=og.schedule.warmup_cosine()
    )
    plan = kernel_of(everything).plan
    assert plan is not None
    assert [(len(p.work.leaves), [n.op for n in p.nodes]) for p in plan.reductions] == [(1, ["reduce_add"] * 2)]
    assert len(plan.update.leaves) == 6
    shown = CliRunner().invoke(app, ["lower", "clip_by_global_norm + adamw + ema", "--emit", "plan"]).output
    assert re.fullmatch(
        r"prologue \d+ ops; reduction pass over 1 leaves, 2 ops; update pass over 5 leaves, \d+ ops\n", shown
    )


# Clipping.


@pytest.mark.parametrize("size", [1_000_000, 4_000_003])
def test_the_global_norm_is_exact(opts: dict[str, Any], size: int) -> None:
    """A sum in f32 would be off by 1e-4 and more; here the norm is what makes the update, so it can be read off."""
    if "norm" not in opts:

        @og.rule()
        def unit(w: Any, g: Any) -> Any:
            return g / global_norm(g)

        opts["norm"] = og.compile(unit, dtypes=["f32", "bf16"])
    rng = np.random.default_rng(size)
    grads = {
        "a": (1 + 0.1 * rng.standard_normal(size)).astype(np.float32),
        "b": (3 + rng.standard_normal(size // 2)).astype(BF16),
        "c": np.float32([100.0]),
    }
    params = {k: np.zeros_like(v) for k, v in grads.items()}
    want = np.sqrt(sum(float(np.sum(np.square(g.astype(np.float64)))) for g in grads.values()))
    opts["norm"].step(params, grads, {"step": 0})
    assert 100 / float(params["c"][0]) == pytest.approx(want, rel=1e-6)


def test_adamw_clipped_and_averaged(opts: dict[str, Any], rng: np.random.Generator) -> None:
    """Against float64 numpy; and bound, packed, by threads and in one: always the same bits."""
    opt = get(opts, "clip")
    start, grads = tree(rng), [tree(rng, 0.002 if i % 2 else 1) for i in range(4)]
    w = {p: v.astype(np.float64) for p, v in leaves(start).items()}
    m, v = ({p: np.zeros_like(x) for p, x in w.items()} for _ in "mv")
    average = dict(w)
    for t, grad in enumerate(grads, 1):
        g = leaves(grad)
        scale = min(1.0, 1 / np.sqrt(sum(np.sum(x * x) for x in g.values())))
        assert (scale == 1) == (t % 2 == 0)
        for p in w:
            new = adamw(w[p], g[p] * scale, m[p], v[p], lr=0.1, step=t, weight_decay=0.1)
            w[p], m[p], v[p] = (new[n][0] for n in "wmv")
            average[p] = 0.99 * average[p] + 0.01 * w[p]
    runs = []
    for how in ("step", "bind", "packed", "local-task"):
        params = start.pack() if how == "packed" else start.copy()
        used = og.Optimizer(opt.bundle, "local-task") if how == "local-task" else opt
        state = used.init(params)
        held = params.zeros()
        bound = used.bind(params, held, state) if how == "bind" else None
        for grad in grads:
            for leaf, new in zip((held.a, held.b.c, held.d), (grad.a, grad.b.c, grad.d), strict=True):
                leaf[...] = new
            if bound:
                bound.step(lr=0.1)
            else:
                used.step(params, held, state, lr=0.1)
        close(params, w)
        close(state["m"], m)
        close(state["ema"], average)
        runs.append((leaves(params), leaves(state["ema"])))
    for run in runs[1:]:
        for mine, first in zip(run, runs[0], strict=True):
            for path in first:
                np.testing.assert_array_equal(mine[path], first[path], err_msg=path)


def test_the_norm_spans_all_dtypes(opts: dict[str, Any], rng: np.random.Generator) -> None:
    opt = get(opts, "clip")
    params = {"a": np.ones(3, np.float32), "b": np.ones(50, BF16), "c": np.ones(40_000, np.float32)}
    grads = {k: rng.standard_normal(v.shape).astype(v.dtype) for k, v in params.items()}
    twin = {k: v.copy() for k, v in params.items()}
    state, twin_state = opt.init(params), opt.init(twin)
    opt.step(params, grads, state, lr=0.1)
    opt.bind(twin, grads, twin_state).step(lr=0.1)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
    for key in params:
        np.testing.assert_allclose(state["m"][key], 0.1 * grads[key].astype(np.float64) / norm, rtol=3e-7)
        np.testing.assert_array_equal(params[key], twin[key])
        np.testing.assert_array_equal(state["ema"][key], twin_state["ema"][key])


@pytest.mark.parametrize("library", ["torch", "optax"])
def test_clipping_as_in_other_libraries(opts: dict[str, Any], library: str, rng: np.random.Generator) -> None:
    opt = get(opts, "clip")
    params = tree(rng)
    state = opt.init(params)
    if library == "torch":
        import torch

        theirs = [torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in leaves(params).values()]
        adam = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.1)
        average = torch.optim.swa_utils.AveragedModel(
            torch.nn.ParameterList(theirs), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        )
        average.update_parameters(torch.nn.ParameterList(theirs))  # theirs starts after the first update, else
    else:
        import jax
        import optax

        with jax.enable_x64(True):
            chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1))
            ours = leaves(params)
            held = chain.init(ours)
            mean = ours
    for scale in (1.0, 1e-3, 0.3):
        grads = tree(rng, scale)
        opt.step(params, grads, state, lr=0.1, clip_by_global_norm_eps=1e-6 if library == "torch" else 0.0)
        if library == "torch":
            for p, g in zip(theirs, leaves(grads).values(), strict=True):
                p.grad = torch.tensor(g)
            torch.nn.utils.clip_grad_norm_(theirs, 1.0)
            adam.step()
            average.update_parameters(torch.nn.ParameterList(theirs))
        else:
            with jax.enable_x64(True):
                updates, held = chain.update(leaves(grads), held, ours)
                ours = optax.apply_updates(ours, updates)
                mean = optax.incremental_update(ours, mean, 0.01)
    if library == "torch":
        names = list(leaves(params))
        close(params, dict(zip(names, (p.detach().numpy() for p in theirs), strict=True)))
        close(state["ema"], dict(zip(names, (p.detach().numpy() for p in average.parameters()), strict=True)))
    else:
        close(params, ours)
        close(state["ema"], mean)


def test_clipping_leaf_by_leaf_and_means(opts: dict[str, Any], rng: np.random.Generator) -> None:
    import torch

    opt = get(opts, "leafwise")
    params = tree(rng)
    state = opt.init(params)
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in leaves(params).values()]
    average = torch.optim.swa_utils.AveragedModel(torch.nn.ParameterList(theirs))
    sgd = torch.optim.SGD(theirs, lr=0.1)
    for step in range(5):
        grads = tree(rng, 0.1 * (step + 1))
        opt.step(params, grads, state, lr=0.1)
        for p, g in zip(theirs, leaves(grads).values(), strict=True):
            p.grad = torch.tensor(g)
            torch.nn.utils.clip_grad_value_(p, 0.5)
            torch.nn.utils.clip_grad_norm_(p, 1.0)
        sgd.step()
        if step >= 1:  # polyak(2): from the second step on
            average.update_parameters(torch.nn.ParameterList(theirs))
    names = list(leaves(params))
    close(params, dict(zip(names, (p.detach().numpy() for p in theirs), strict=True)), rtol=2e-6)
    close(state["mean"], dict(zip(names, (p.detach().numpy() for p in average.parameters()), strict=True)), rtol=2e-6)


def test_debiased_averages(opts: dict[str, Any], rng: np.random.Generator) -> None:
    import optax

    opt = get(opts, "debias")
    w = rng.standard_normal(9).astype(np.float32)
    state, theirs = opt.init(w), optax.ema(0.9, debias=True)
    held = theirs.init(w)
    for _ in range(5):
        opt.step(w, rng.standard_normal(9).astype(np.float32), state, lr=0.1)
        want, held = theirs.update(w, held)
        np.testing.assert_allclose(state["ema"], want, rtol=1e-5)
    np.testing.assert_array_equal(opt.init(w)["ema"], w)


def test_weight_decay_where_it_stands() -> None:
    w, g = np.array([1.0, -2.0], np.float32), np.array([0.5, 0.5], np.float32)
    for rule, want in (
        (og.chain(og.add_decayed_weights(0.1), "signsgd"), w - 0.5 * np.sign(g + 0.1 * w)),
        (og.chain("signsgd", og.add_decayed_weights(0.1)), w - 0.5 * np.sign(g) - 0.5 * 0.1 * w),
    ):
        opt, mine = og.compile(rule), w.copy()
        opt.step(mine, g, opt.init(mine), lr=0.5)
        np.testing.assert_allclose(mine, want, rtol=1e-6)


# Skipped updates.


@pytest.mark.parametrize("how", ["step", "bind"])
def test_loss_scaling_as_in_torch(opts: dict[str, Any], how: str, rng: np.random.Generator) -> None:
    import torch

    opt = get(opts, "amp")
    params = {"a": rng.standard_normal(5).astype(np.float32), "b": rng.standard_normal(20_000).astype(np.float32)}
    grads = {k: np.zeros_like(v) for k, v in params.items()}
    theirs = {k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for k, v in params.items()}
    nadam = torch.optim.NAdam(theirs.values(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    state = opt.init(params)
    bound = opt.bind(params, grads, state) if how == "bind" else None
    bad = {2: np.inf, 5: np.nan, 6: -np.inf}
    for i in range(16):
        scale = scaler.get_scale()
        assert state["loss_scale"] == scale
        before = {k: v.copy() for k, v in (*params.items(), ("m", state["m"]["a"]), ("ema", state["ema"]["b"]))}
        product = state["mu_product"]
        for leaf in grads.values():
            leaf[...] = rng.standard_normal(leaf.shape) * scale
        if i in bad:
            grads["b"][12_345] = bad[i]
        for key, p in theirs.items():
            p.grad = torch.tensor(grads[key].astype(np.float64))
        scaler.scale(torch.tensor(1.0))  # else it does not look at the grads
        scaler.step(nadam)
        scaler.update()
        bound.step(lr=0.01) if bound else opt.step(params, grads, state, lr=0.01)
        if i in bad:
            for key, value in before.items():
                now = state["m"]["a"] if key == "m" else state["ema"]["b"] if key == "ema" else params[key]
                np.testing.assert_array_equal(now, value, err_msg=key)
            assert state["mu_product"] == product
        assert state["skipped"] == sum(j in bad for j in range(i + 1))
        assert state["step"] == i + 1
    for key, p in theirs.items():
        np.testing.assert_allclose(params[key], p.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert state["loss_scale"] == scaler.get_scale()
    assert state["good_steps"] == scaler._get_growth_tracker()


def test_skipping_as_in_optax(opts: dict[str, Any], rng: np.random.Generator) -> None:
    import jax
    import optax

    opt = get(opts, "skip")
    params = tree(rng)
    state = opt.init(params)
    with jax.enable_x64(True):
        chain = optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), 100)
        ours = leaves(params)
        held = chain.init(ours)
        for i in range(6):
            grads = tree(rng)
            if i in (0, 3):
                grads.b.c[-1] = np.nan
            opt.step(params, grads, state, lr=0.1)
            updates, held = chain.update(leaves(grads), held, ours)
            ours = optax.apply_updates(ours, updates)
    close(params, ours)
    assert state["skipped"] == held.total_notfinite == 2


# Accumulation.


@pytest.mark.parametrize("kind", ["numpy", "bind", "torch", "jax"])
def test_accumulation_as_in_optax(opts: dict[str, Any], kind: str, rng: np.random.Generator) -> None:
    import jax
    import optax

    opt = get(opts, "accumulate")
    if kind == "torch":
        import torch

        make: Any = torch.from_numpy
    else:
        make = jax.numpy.asarray if kind == "jax" else np.asarray
    first = {k: np.asarray(v, np.float32) for k, v in leaves(tree(rng)).items()}
    params = {k: make(v.copy()) for k, v in first.items()}
    state: Any = opt.init(params)
    held = {k: np.zeros_like(v) for k, v in first.items()}
    bound = opt.bind(params, held, state) if kind == "bind" else None
    with jax.enable_x64(True):
        chain = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)), 3)
        ours = {k: v.astype(np.float64) for k, v in first.items()}
        theirs, update = chain.init(ours), jax.jit(chain.update)
    for i in range(8):
        grads = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in first.items()}
        before = {k: np.asarray(v).copy() for k, v in params.items()}
        if bound:
            for k, v in grads.items():
                held[k][...] = v
            bound.step(lr=0.1)
        else:
            params, state = opt.step(params, {k: make(v) for k, v in grads.items()}, state, lr=0.1)
        with jax.enable_x64(True):
            updates, theirs = update({k: v.astype(np.float64) for k, v in grads.items()}, theirs, ours)
            ours = optax.apply_updates(ours, updates)
        assert (state["step"], state["micro"]) == ((i + 1) // 3, (i + 1) % 3)
        if (i + 1) % 3:
            for k, v in before.items():
                np.testing.assert_array_equal(np.asarray(params[k]), v)
        close(state["grad_mean"], theirs.acc_grads, atol=1e-6)
    close(params, ours)


def test_micro_steps_touch_the_mean_alone(opts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a micro-step has no business with is read-only, and it does not even look; steps are recalled."""
    import torch

    opt = get(opts, "accumulate")
    kernels = opt.manifest.micro
    assert kernels is not None
    assert [[(o.name, o.dtype) for o in k.operands] for k in kernels.kernels] == [
        [("grad_mean", "f32"), ("g", "f32")],
        [("grad_mean", "f32"), ("g", "bf16")],
    ]
    assert all(m.in_place for k in kernels.kernels for m in k.modules)
    params, g = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}, torch.ones(3)
    grads = {"a": g, "b": torch.ones(2, dtype=torch.bfloat16)}
    state = opt.init(params)
    for _ in range(4):
        opt.step(params, grads, state, lr=0.1)
    versions = [t._version for t in (params["a"], state["m"]["b"], state["grad_mean"]["a"])]
    monkeypatch.setattr(opt, "_collect", lambda trees: pytest.fail("collected again"))
    opt.step(params, grads, state, lr=0.1)
    assert [t._version for t in (params["a"], state["m"]["b"], state["grad_mean"]["a"])] == [
        versions[0], versions[1], versions[2] + 1,
    ]  # fmt: skip
    opt.step(params, grads, state, lr=0.1)
    assert state["step"] == 2
    assert params["a"]._version > versions[0]
    state["micro"] = 5.0  # more than `every`, which may change at run time: the next step updates
    opt.step(params, grads, state, lr=0.1, every=2)
    assert (state["step"], state["micro"]) == (3, 0)
    with pytest.raises(HyperparameterError, match="'beta'"):
        opt.step(params, grads, state, lr=0.1, beta=2)
    assert state["micro"] == 0


# Chains as rules.


def test_bundles_of_chains(opts: dict[str, Any], tmp_path: Path) -> None:
    for name in ("clip", "amp", "accumulate"):
        opt = get(opts, name)
        loaded = og.load(opt.save(tmp_path / f"{name}.optgen"))
        assert loaded.manifest == opt.manifest
        results = verify_bundle(opt.bundle, ["local-sync"])
        assert results
        assert all(r.ok for r in results), results
    assert {r.kernel for r in results} == {"f32", "bf16", "micro-f32", "micro-f32-gbf16-cf32"}
    without = get(opts, "clip").manifest.to_json()
    assert Manifest.from_json(without).micro is None


def test_chains_on_vulkan(vulkan: str, rng: np.random.Generator) -> None:
    rule = og.chain(og.accumulate(2), og.clip_by_value(0.5), "sgd", og.ema(0.5))
    w, grads = np.ones(5, np.float32), [rng.standard_normal(5).astype(np.float32) for _ in range(4)]
    mine = w.copy()
    opt = og.compile(rule, target="vulkan")
    state = opt.init(mine)
    for g in grads:
        opt.step(mine, g, state, lr=0.5)
    first = w - 0.5 * np.clip((grads[0] + grads[1]) / 2, -0.5, 0.5)
    second = first - 0.5 * np.clip((grads[2] + grads[3]) / 2, -0.5, 0.5)
    np.testing.assert_allclose(mine, second, rtol=1e-6)
    np.testing.assert_allclose(state["ema"], 0.25 * w + 0.25 * first + 0.5 * second, rtol=1e-6)


def test_names() -> None:
    rule = og.chain(
        og.clip_by_value(1), og.clip_by_value(2), og.add_decayed_weights(0.3), "adamw", og.ema(), og.ema(0.5)
    )
    assert rule.name == "clip_by_value+clip_by_value+add_decayed_weights+adamw+ema+ema"
    defaults = {h.name: h.default for h in rule.hypers}
    assert (defaults["max_value"], defaults["clip_by_value_max_value"]) == (1, 2)
    assert (defaults["weight_decay"], defaults["add_decayed_weights_weight_decay"]) == (0.01, 0.3)
    assert (defaults["decay"], defaults["ema_decay"]) == (0.999, 0.5)
    assert [(s.name, s.init) for s in rule.state][2:] == [("ema", "param"), ("ema_ema", "param")]
    assert set(og.chain(og.scale_by_loss(2.0), "nadam").scalars.items()) == {
        ("mu_product", 1.0), ("loss_scale", 2.0), ("good_steps", 0.0), ("skipped", 0.0),
    }  # fmt: skip
    nested = og.chain(og.clip_by_norm(), og.chain("adamw", og.ema(), lr=og.schedule.linear(1, 0, 10)), og.polyak())
    assert [s.name for s in nested.state] == ["m", "v", "ema", "mean"]
    assert "lr" not in [h.name for h in nested.hypers]
    assert og.chain("sgd", og.ema(debias=True)).flags["debias"] is True
    assert og.chain("sgd", lr=0.5).hyper("lr").default == 0.5
    assert "clip_by_norm:" in nested.doc


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        (("adamw", "sgd"), RuleError, "exactly one rule"),
        ((og.ema(),), RuleError, "exactly one rule"),
        ((og.ema(), "sgd"), RuleError, "'ema' must be behind the rule"),
        (("sgd", og.clip_by_norm()), RuleError, "'clip_by_norm' must be in front of the rule"),
        ((og.clip_by_norm(), og.accumulate(2), "sgd"), RuleError, "'accumulate' must be the first part"),
        ((og.clip_by_norm(), og.chain(og.accumulate(2), "sgd")), RuleError, "'accumulate' must be the first part"),
        (("adagard",), UnknownRuleError, "unknown rule 'adagard'"),
        ((3, "sgd"), RuleError, r"must be parts, one a rule or a rule's name \(got 3\)"),
    ],
)
def test_what_is_no_chain(parts: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        og.chain(*parts)


def test_numbers_are_checked() -> None:
    for call, text in (
        (lambda: og.ema(1.0), r"'decay' must be in \[0, 1\)"),
        (lambda: og.ema(0.9, 2), "at most 1 numbers"),
        (lambda: og.ema(0.9, decay=0.9), "'decay' of 'ema' must be given once"),
        (lambda: og.ema(rate=0.9), "'ema' has no hyperparameter 'rate'"),
        (lambda: og.ema(debias=1), "'debias' must be True or False"),
        (lambda: og.clip_by_norm(True), "'max_norm' of 'clip_by_norm' must be a number"),
        (lambda: og.scale_by_loss(0), "must be above 0"),
        (lambda: og.schedule.linear(-1), "'init' must be at least 0"),
        (lambda: og.schedule.linear(1, first=1), "'linear' has no hyperparameter 'first'"),
        (lambda: og.chain("sgd", lr=-1.0), "'lr' must be at least 0"),
    ):
        with pytest.raises(HyperparameterError, match=text):
            call()
    with pytest.raises(RuleError, match="has no learning rate"):
        og.chain(og.chain("sgd", lr=og.schedule.linear()), lr=0.1)
    with pytest.raises(RuleError, match="must be given a rule with a learning rate"):
        og.chain(og.chain("sgd", lr=og.schedule.linear()), og.add_decayed_weights())


def test_parts_of_ones_own() -> None:
    @part(behind=False)
    def halve(update: Any, w: Any, g: Any, *, factor: Any = 0.5) -> Any:
        return update(w, factor * g)

    @part(behind=True)
    def forgetful(update: Any, w: Any, g: Any) -> Any:
        return update(w, g).w

    opt, w = og.compile(og.chain(halve(0.25), "sgd")), np.ones(2, np.float32)
    opt.step(w, w * 4, opt.init(w), lr=0.5)
    assert w.tolist() == [0.5, 0.5]
    with pytest.raises(RuleError, match="'forgetful' must return what its update did"):
        og.compile(og.chain("sgd", forgetful))


def test_whole_trees_need_a_kernel_in_place() -> None:
    """Out of place, each leaf would be reduced for itself."""
    with pytest.raises(LoweringError, match="reduces the whole tree and must run in place"):
        og.compile(og.chain(og.clip_by_global_norm(), "muon"), np.ones((3, 4), np.float32))
    shown = CliRunner().invoke(app, ["lower", "skip_not_finite + sgd", "--emit", "kernel", "-t", "cuda"])
    assert shown.exit_code == 0
    assert "util.func public @stage0" in shown.output


@pytest.mark.parametrize("index", range(3))
def test_examples_in_the_docs_run(index: int) -> None:
    text = (ROOT / "docs" / "chain.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 3
    exec(compile(examples[index], "chain.md", "exec"), {})


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "c.optgen"
    arguments = ["compile", "clip_by_global_norm + adamw + ema", "--set", "max_norm=0.5", "--set", "decay=0.9"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(path)])
    assert result.exit_code == 0, result.output
    loaded = og.load(path)
    assert loaded.manifest.rule == "clip_by_global_norm+adamw+ema"
    assert (loaded.defaults["max_norm"], loaded.defaults["decay"]) == (0.5, 0.9)
    for text, error in (
        ("clip + adamw", "the parts of a chain are clip_by_value"),
        ("adamw + lr=cos", "must be lr=SCHEDULE, one of constant"),
        ("adamw + lr=linear + lr=cosine", "'lr' must be given once"),
    ):
        shown = CliRunner().invoke(app, ["lower", text, "--emit", "plan"])
        assert shown.exit_code != 0
        assert error in " ".join(str(shown.exception or shown.output).split()) or error in shown.output
