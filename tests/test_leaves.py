"""Reductions and rounding at random on GPUs: run on Mesa's lavapipe, compiled and looked at for CUDA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from rule_cases import CASES
from test_lowering import centered, in_two_steps
from test_stages import chained, clipped, counting, normalised, reference

import optgen as og
from optgen.compiler.build import compile_kernel, flags_for
from optgen.compiler.driver import dump_assembly
from optgen.dsl import Variant, rule, tree_max
from optgen.dtypes import to_float64
from optgen.errors import LeafError
from optgen.lower import lower
from optgen.runtime import leaves
from optgen.runtime.execute import prepare
from optgen.runtime.optimizer import Optimizer
from optgen.runtime.verify import verify_bundle
from optgen.targets import get_target

BF16 = ml_dtypes.bfloat16
#: Around lanes and rows; 65,536 lanes of 20 and of 35 elements, where one loop over them all is one that Mesa leaves.
SIZES = (1, 7, 33, 16_383, 16_384, 16_385, 100_003, 1_300_001)
REDUCING = [case for case in CASES if case.rule in ("lars", "lamb", "novograd")]


@cache
def compiled(name: str, **settings: Any) -> Optimizer:
    """A chain or rule for CPUs and Vulkan; compiled once in a process."""
    made: dict[str, Any] = {
        "clip": lambda: og.chain(og.clip_by_global_norm(1.0, eps=1e-6), "adamw"),
        "averaged": lambda: og.chain(og.clip_by_global_norm(1.0), "adamw", og.ema(0.9)),
        "leafwise": lambda: og.chain(og.clip_by_norm(1.0), "sgd"),
        "skip": lambda: og.chain(og.skip_not_finite(), og.clip_by_global_norm(1.0), "adam"),
        "amp": lambda: og.chain(og.scale_by_loss(8.0), "sgd"),
        "accumulate": lambda: og.chain(og.accumulate(2), og.clip_by_global_norm(0.5), "sgd"),
        "clipped": lambda: clipped, "normalised": lambda: normalised, "chained": lambda: chained,
        "counting": lambda: counting, "centered": lambda: centered, "in_two_steps": lambda: in_two_steps,
    }  # fmt: skip
    found: Optimizer = og.compile(made.get(name, lambda: name)(), target=["cpu", "vulkan"], **settings)
    return found


def tree(rng: np.random.Generator, sizes: Any = SIZES, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    return {f"l{i}": rng.standard_normal(n).astype(dtype) for i, n in enumerate(sizes)}


def on(opt: Optimizer, device: str, params: Any, grads: Any, steps: int = 1, **hypers: Any) -> dict[str, Any]:
    """Params and state after so many steps on copies."""
    own = Optimizer(opt.bundle, device, opt.defaults)
    params = {k: v.copy() for k, v in params.items()}
    state = own.init(params)
    for _ in range(steps):
        own.step(params, grads, state, **hypers)
    return {"w": params, **state}


def errors(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error in units of f32's last place."""
    spacing = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - expected) / spacing))


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return all(a[k].tobytes() == b[k].tobytes() for k in a)


@pytest.mark.parametrize("case", REDUCING, ids=lambda c: c.id)
def test_rules_are_correctly_rounded(vulkan: str, case: Any, rng: np.random.Generator) -> None:
    opt = case.compile("f32", target="vulkan")
    [module] = opt.manifest.kernels[0].modules
    assert (module.in_place, module.copies, module.abi, module.pairs) == (True, 0, "leaves", True)
    params, grads, state = tree(rng), tree(rng), {"step": 4}
    for name in opt.manifest.state:
        state[name] = tree(rng) if name == "m" else {k: np.full_like(w, 0.75) for k, w in params.items()}
    before = [{k: a.astype(np.float64) for k, a in t.items()} for t in (params, grads, *list(state.values())[1:])]
    opt.step(params, grads, state, lr=2.0**-7)
    for k in params:
        expected = case.reference(*(t[k] for t in before), lr=2.0**-7, step=5, **case.settings)
        for name, values in expected.items():
            found = params[k] if name == "w" else state[name][k]
            assert errors(found, np.broadcast_to(values, found.shape)) <= 0.501, (k, name)


@pytest.mark.parametrize("name", ["clipped", "normalised", "chained"])
@pytest.mark.parametrize("sizes", [(1,), (31, 32, 33, 1), (16_385, 2_300_003, 3)], ids=len)
def test_reductions(vulkan: str, name: str, sizes: Any, rng: np.random.Generator) -> None:
    """Of leaves and of the tree, sums and extremes, in stages that need each other."""
    params, grads = tree(rng, sizes), tree(rng, sizes)
    expected = reference(name, list(params.values()), list(grads.values()), 0.5)
    found = on(compiled(name), vulkan, params, grads, lr=0.5)["w"]
    for mine, right in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(mine, right, rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("compute", ["f64", "f32"])
def test_a_global_norm(vulkan: str, compute: str, rng: np.random.Generator) -> None:
    """In f32 arithmetic, too, sums are those of pairs."""
    grads = {"g": rng.uniform(0.5, 1.5, 3_000_001).astype(np.float32)}
    opt = compiled("clipped", **({} if compute == "f64" else {"compute_dtype": "f32"}))
    found = on(opt, vulkan, {"g": np.zeros_like(grads["g"])}, grads, lr=1.0)["w"]["g"].astype(np.float64)
    norm = np.median(-grads["g"] / found)
    assert norm == pytest.approx(np.linalg.norm(grads["g"].astype(np.float64)), rel=1e-7)


def test_clipping_as_torch_does_it(vulkan: str, rng: np.random.Generator) -> None:
    import torch

    params, grads = tree(rng, SIZES[:-1]), tree(rng, SIZES[:-1])
    theirs = [torch.nn.Parameter(torch.tensor(w, dtype=torch.float64)) for w in params.values()]
    library = torch.optim.AdamW(theirs, lr=2.0**-7)
    for _ in range(2):
        for w, g in zip(theirs, grads.values(), strict=True):
            w.grad = torch.tensor(g, dtype=torch.float64)
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        library.step()
    found = on(compiled("clip"), vulkan, params, grads, 2, lr=2.0**-7)
    for mine, right in zip(found["w"].values(), theirs, strict=True):
        np.testing.assert_allclose(mine, right.detach().numpy(), rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["averaged", "leafwise", "skip", "accumulate", "counting", "in_two_steps"])
def test_as_on_cpus(vulkan: str, name: str, rng: np.random.Generator) -> None:
    """But for one in 10^4 elements, where a pair's last bits are not those of f64."""
    sizes = (5, 16_385, 70_001)
    params, grads = tree(rng, sizes), tree(rng, sizes)
    here, there = (on(compiled(name), d, params, grads, 2, lr=0.25) for d in ("local-sync", vulkan))
    for key, value in here.items():
        if not isinstance(value, dict):
            assert there[key] == pytest.approx(value, rel=1e-12)
            continue
        differing = sum(int(np.sum(value[k] != there[key][k])) for k in value)
        assert differing <= 9
        for k in value:
            np.testing.assert_allclose(there[key][k], value[k], rtol=2.5e-7, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_grads_that_are_not_finite(vulkan: str, bad: float, rng: np.random.Generator) -> None:
    sizes = (3, 16_385, 70_001)
    params, grads = tree(rng, sizes), tree(rng, sizes)
    grads["l2"][69_999] = bad
    for name, kept in (("skip", {"skipped": 1.0}), ("amp", {"loss_scale": 4.0, "good_steps": 0.0, "skipped": 1.0})):
        found = on(compiled(name), vulkan, params, grads, lr=0.25)
        assert same(found["w"], params)
        assert {n: v for n, v in found.items() if n in kept} == kept
    here, there = (on(compiled("averaged"), d, params, grads, lr=0.25) for d in ("local-sync", vulkan))
    for key in ("w", "m", "ema"):
        for k in params:
            np.testing.assert_array_equal(np.isfinite(there[key][k]), np.isfinite(here[key][k]))


@rule()
def by_largest(w: Any, g: Any, *, lr: Any) -> Any:
    return w - lr * tree_max(g)


def test_the_largest_of_nan_is_nan(vulkan: str) -> None:
    opt = og.compile(by_largest, target="vulkan")
    w, g = np.zeros(1000, np.float32), np.full(1000, -3.0, np.float32)
    opt.step(w, g, {"step": 0}, lr=0.5)
    assert (w == 1.5).all()
    g[77] = np.nan
    opt.step(w, g, {"step": 0}, lr=0.5)
    assert np.isnan(w).all()


@pytest.mark.parametrize("dtype", [BF16, np.float16])
def test_padding_does_not_count(vulkan: str, dtype: Any) -> None:
    """Leaves of 16 bits are padded where their size is odd; a mean divides by what the user sees."""
    opt = compiled("centered", dtypes=("bf16", "f16"))
    for size in (1, 3, 5, 16_385):
        w = np.zeros(size, dtype)
        g = (np.arange(size) % 4).astype(dtype)
        opt2 = Optimizer(opt.bundle, vulkan)
        opt2.step(w, g, {"step": 0}, lr=1.0)
        exact = g.astype(np.float64).mean() - g.astype(np.float64)
        np.testing.assert_allclose(w.astype(np.float64), exact, rtol=2.0**-8, atol=1e-6)


def test_kernels_of_one_tree_share_its_norm(vulkan: str, rng: np.random.Generator) -> None:
    """Leaves of other dtypes, and groups, are other calls; what they find is combined."""
    opt = compiled("clip", dtypes=("f32", "bf16"))
    params = {**tree(rng, (5, 30_001)), "h": rng.standard_normal(7).astype(BF16)}
    grads = {k: (3 * rng.standard_normal(w.shape)).astype(w.dtype) for k, w in params.items()}
    grouped = Optimizer(opt.bundle, vulkan, groups={"l0": {"weight_decay": 0.0}})
    mine, state = {k: w.copy() for k, w in params.items()}, grouped.init(params)
    bound = grouped.bind(mine, grads, state)
    bound.step(lr=0.125, weight_decay=0.0)
    norm = np.sqrt(sum(np.sum(to_float64(g, str(o))**2) for g, o in zip(grads.values(), ("f32", "f32", "bf16"),
                                                                        strict=True)))  # fmt: skip
    for k, g in grads.items():
        clipped_grad = g.astype(np.float64) / (norm + 1e-6)
        np.testing.assert_allclose(state["m"][k].astype(np.float64), 0.1 * clipped_grad, rtol=3e-7)


RANDOM: list[tuple[str, dict[str, Any], Any]] = [
    ("adamw", {"state_dtype": "f8", "compute_dtype": "f64"}, np.float32),
    ("adamw", {"state_dtype": "bf16", "rounding": "stochastic", "compute_dtype": "f64"}, np.float32),
    ("lamb", {"state_dtype": "f8", "compute_dtype": "f64"}, np.float32),
    ("sgd", {"dtypes": ("bf16",), "rounding": "stochastic", "compute_dtype": "f64"}, BF16),
    ("adamw", {"dtypes": ("bf16",), "state_dtype": "f8", "rounding": "stochastic"}, BF16),
]


@pytest.mark.parametrize(("name", "settings", "dtype"), RANDOM, ids=lambda x: str(x)[:60])
def test_random_bits_are_those_of_cpus(
    vulkan: str, name: str, settings: dict[str, Any], dtype: Any, rng: np.random.Generator
) -> None:
    """The same in f64 arithmetic, whatever the sizes; in f32, where divisions differ, all but a few."""
    sizes = (1, 2, 3, 5, 16_383, 16_385, 100_003)
    params, grads = tree(rng, sizes, dtype), tree(rng, sizes, dtype)
    opt = compiled(name, **settings)
    here, there, again, other = (
        on(opt, d, params, grads, 2, lr=0.01, seed=seed)
        for d, seed in (("local-sync", 7), (vulkan, 7), (vulkan, 7), (vulkan, 8))
    )
    coded = [o.name for o in opt.manifest.kernels[0].operands if o.rounding == "stochastic"]
    total = sum(sizes)
    for n in ("w", *opt.manifest.state):
        assert same(there[n], again[n])
        bits = f"u{there[n]['l0'].itemsize}"
        differing = sum(int(np.sum(here[n][k].view(bits) != there[n][k].view(bits))) for k in params)
        assert differing <= (3e-5 if settings.get("compute_dtype") else 2e-3) * total, (n, differing)
    for n in coded:
        assert not same(there[n], other[n])


def test_rounding_at_random_is_right_on_average(vulkan: str) -> None:
    opt = compiled("sgd", momentum=0.9, state_dtype="f8")
    w, g = {"w": np.zeros(30_001, np.float32)}, {"w": np.full(30_001, 0.7, np.float32)}
    values = to_float64(on(opt, vulkan, w, g, lr=0.1)["m"]["w"], "f8m")
    assert set(np.unique(values)) == {0.625, 0.75}
    assert values.mean() == pytest.approx(0.7, abs=0.002)


def test_bundles(vulkan: str, tmp_path: Path) -> None:
    """They are found right, and in place, by the probes that they carry, from a file of the format that says so."""
    for name, settings, formats in (
        ("lamb", {"state_dtype": "f8", "compute_dtype": "f64"}, 4), ("averaged", {}, 4), ("sgd", {}, 2),
    ):  # fmt: skip
        opt = compiled(name, **settings)
        loaded = og.load(opt.save(tmp_path / f"{name}.optgen"), vulkan)
        assert loaded.manifest == opt.manifest
        assert loaded.manifest.format == formats
        results = verify_bundle(loaded.bundle, [vulkan])
        assert results
        assert all(r.ok and r.in_place for r in results), [r for r in results if not r.ok]


def test_memory_that_the_device_can_use(vulkan: str, rng: np.random.Generator) -> None:
    """Where it is the leaves' own, it is what the kernels write into."""
    from optgen.runtime import memory

    opt, size = compiled("normalised"), 4096
    w, g = (memory.empty((size,), "f32", 4096) for _ in range(2))
    w[:], g[:] = rng.standard_normal((2, size)).astype(np.float32)
    [expected] = reference("normalised", [w.copy()], [g], 0.5)
    own = Optimizer(opt.bundle, vulkan)
    kernel = own.manifest.kernels[0]
    call: Any = prepare(own.device, *own.module(kernel, own.device), kernel, [[w, g]])
    assert call.run([0.5])
    assert not any(b.staged for bindings in call.bindings for b in bindings)
    np.testing.assert_allclose(w, expected, rtol=2e-7)


def test_leaves_too_large_for_random_bits(vulkan: str) -> None:
    opt = Optimizer(compiled("sgd", momentum=0.9, state_dtype="f8").bundle, vulkan)
    kernel = opt.manifest.kernels[0]
    huge = np.broadcast_to(np.zeros(1, np.uint8), (leaves.RANDOM_MOST + 1,))
    with pytest.raises(LeafError, match=r"at most 2\*\*32 elements to be rounded at random on vulkan"):
        prepare(opt.device, *opt.module(kernel, opt.device), kernel, [[huge] * len(kernel.operands)])


@pytest.mark.parametrize(
    ("name", "settings"),
    [(case.rule, {"convention": case.convention, **case.settings}) for case in REDUCING[1::2]]
    + [("clip_by_global_norm + adamw + ema", {}), ("skip_not_finite + adamw", {}), ("lamb", {"state_dtype": "f8"}),
       ("adamw", {"dtypes": ("bf16",), "rounding": "stochastic"})],
    ids=lambda x: str(x)[:40],
)  # fmt: skip
def test_cuda_modules_are_in_place(name: str, settings: dict[str, Any]) -> None:
    parts = [part.strip() for part in name.split("+")]
    made: Any = og.chain(*(getattr(og, p)() if hasattr(og, p) else p for p in parts)) if len(parts) > 1 else name
    opt = og.compile(made, target="cuda", **settings)
    [module] = opt.manifest.kernels[0].modules
    assert (module.in_place, module.copies, module.abi, module.pairs) == (True, 0, "leaves", False)


def test_ptx_of_reductions() -> None:
    """A kernel for each stage and one for the update: sums in f64, in the lane's own registers."""
    variant, target = Variant.of(og.get_rule("lamb")), get_target("cuda")
    (kernel,) = lower(variant.kernel(variant.dtypes("f32")))
    ptx = dump_assembly(kernel.mlir(target.style), flags_for(kernel, target))
    assert compile_kernel(kernel, target)[1] == 0
    assert kernel.plan is not None
    assert len(re.findall(r"\.visible \.entry", ptx)) == len(kernel.plan.reductions) + 1
    stage = next(part for part in ptx.split(".visible .entry") if part.lstrip().startswith("stage0"))
    assert "rn.f64" in stage
    assert re.search(r"st\.global\S*\.(?:f64|b64)", stage)
    assert not re.search(r"st\.global\S*\.(?:f32|b32)", stage)
    assert "call" not in ptx
    assert "bar.sync" not in ptx


def test_ptx_of_eight_bits() -> None:
    variant, target = Variant.of(og.get_rule("adamw"), eight_bits=True), get_target("cuda")
    (kernel,) = lower(variant.kernel(variant.dtypes("f32", state="f8")))
    ptx = dump_assembly(kernel.mlir(target.style), flags_for(kernel, target))
    assert len(re.findall(r"st\.global\S*\.(?:b8|u8|b32|v4)", ptx)) >= 3
    assert "call" not in ptx
