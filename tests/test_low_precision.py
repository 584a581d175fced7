"""Fewer bytes for a param: 16-bit and 8-bit state, rounding at random, master weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

import optgen as og
from optgen.artifact import read_bundle
from optgen.cli.app import app
from optgen.dtypes import CODES, code_values, from_float64, to_float64
from optgen.errors import HyperparameterError, LeafError, LoweringError
from optgen.lower.codes import random_words
from optgen.runtime import rows
from optgen.runtime.files import read_arrays, write_arrays
from optgen.runtime.verify import verify_bundle

BF16 = ml_dtypes.bfloat16
F8 = {"m": "f8m", "v": "f8v"}


@og.rule(state=("m", "v"))
def put(w: Any, g: Any, m: Any, v: Any, *, lr: Any) -> Any:
    """State becomes what the grad is; the param stays.

    Second moments of eight bits have no sign, so the probes say rightly that a negative grad is not kept: the rule is
    compiled without their check.
    """
    return w + lr * 0.0 * g, g, g


@og.rule(state=("m", "v"))
def keep(w: Any, g: Any, m: Any, v: Any, *, lr: Any) -> Any:
    """State stays; the param becomes what it stands for."""
    return m + v + lr * 0.0 * g, m, v


@og.rule(state=())
def become(w: Any, g: Any, *, lr: Any) -> Any:
    """The param becomes the grad."""
    return g + lr * 0.0 * w


@cache
def compiled(rule: Any, **settings: Any) -> og.Optimizer:
    """A compiled rule; the same for the same settings."""
    if isinstance(settings.get("state_dtype"), tuple):
        settings["state_dtype"] = dict(settings["state_dtype"])
    if "dtype" in settings:
        settings["dtypes"] = [settings.pop("dtype")]
    return og.compile(rule, **settings)


def adamw(**settings: Any) -> og.Optimizer:
    return compiled("adamw", **settings)


# The codes.


@pytest.mark.parametrize("name", CODES)
def test_codes_are_the_numbers_that_the_docs_say(name: str) -> None:
    values = code_values(name)
    code = CODES[name]
    positive = values[: code.top + 1]
    assert values[0] == 0
    assert (np.diff(positive) > 0).all()
    assert positive[1] == 2.0 ** (code.lowest - 2)
    ratio = positive[5:] / positive[4:-1]
    assert ratio.max() == 1.25
    assert ratio.min() == 8 / 7
    assert positive[-1] == {"f8m": 112.0, "f8v": 28672.0}[name]
    if code.signed:
        assert np.array_equal(values[128:], -positive)
        assert np.signbit(values[128])


@pytest.mark.parametrize("name", CODES)
def test_every_code_encodes_to_itself_in_numpy(name: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(from_float64(to_float64(codes, name), name), codes)


@pytest.mark.parametrize("name", CODES)
def test_numpy_encodes_to_the_nearest(name: str) -> None:
    values = code_values(name)
    rng = np.random.default_rng(1)
    x = np.exp(rng.uniform(-36, 4, 5000)) * (rng.choice([-1, 1], 5000) if CODES[name].signed else 1)
    found = to_float64(from_float64(x, name), name)
    nearest = np.abs(values[:, None] - x).min(axis=0)
    assert np.array_equal(np.abs(found - x), nearest)
    top = code_values(name)[CODES[name].top]
    assert to_float64(from_float64(np.array([1e9, np.inf, np.nan]), name), name).tolist() == [top] * 3


def test_every_code_stays_as_it_is_in_a_kernel() -> None:
    opt = compiled(keep, state_dtype="f8")
    codes = np.arange(256, dtype=np.uint8)
    for step in range(3):
        w, state = np.zeros(256, np.float32), {"step": step, "m": codes.copy(), "v": np.zeros(256, np.uint8)}
        opt.step(w, np.zeros_like(w), state, lr=0.0, seed=step)
        assert np.array_equal(state["m"], codes)
        assert np.array_equal(w.astype(np.float64), code_values("f8m"))
        state |= {"m": np.zeros(256, np.uint8), "v": codes.copy()}
        opt.step(w, np.zeros_like(w), state, lr=0.0)
        assert np.array_equal(state["v"], codes)
        assert np.array_equal(w.astype(np.float64), code_values("f8v"))


def _encoded(x: np.ndarray, name: str, word: np.ndarray, half: int) -> np.ndarray:
    """What a kernel makes of float32 ``x`` and the lower or upper bits of a random word, by numpy's integers."""
    bits = x.view(np.uint32).astype(np.int64)
    spare = 16 if name == "bf16" else 21
    random = (word >> np.uint32(32 - spare) if half else word % 2**spare).astype(np.int64)
    if name == "bf16":
        return ((bits + random) >> 16).astype(np.uint16)
    code = CODES[name]
    low = (127 + code.lowest) << 23
    small = (np.abs(x) + np.float32(2.0**code.lowest)).view(np.uint32).astype(np.int64) - low
    fine = np.maximum((bits & 0x7FFFFFFF) - (low - (1 << 23)), small)
    number = np.minimum((fine + random) >> 21, code.top)
    return (number | (((bits >> 31) << 7) if code.signed else 0)).astype(np.uint8)


def _numbers(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (np.exp(rng.uniform(-40, 12, size)) * rng.choice([-1, 1], size)).astype(np.float32)


# Random bits: what they depend on.


def test_kernels_round_by_the_documented_bits() -> None:
    """Bit for bit as numpy does it: leaves of several rows, seeds and steps beyond 16 bits."""
    opt = compiled(put, state_dtype="f8", check=False)
    sizes = [5, 40_000, 17]
    params = [np.zeros(n, np.float32) for n in sizes]
    grads = [_numbers(n, n) for n in sizes]
    for seed, step in ((0, 0), (7, 70_000), (2**32 - 1, 123_456_789)):
        state = opt.init(params)
        state["step"] = step
        opt.step(params, grads, state, lr=0.0, seed=seed)
        for leaf, g in enumerate(grads):
            (word,) = random_words(1, g.size, seed=seed, step=step + 1, leaf=leaf)
            assert np.array_equal(state["m"][leaf], _encoded(g, "f8m", word, 0))
            assert np.array_equal(state["v"][leaf], _encoded(g, "f8v", word, 1))


def test_three_results_use_two_words() -> None:
    opt = compiled("adamw", dtype="bf16", state_dtype="bf16", rounding="stochastic", compute_dtype="f32")
    n = 1000
    rng = np.random.default_rng(0)
    w = rng.standard_normal(n).astype(BF16)
    g = rng.standard_normal(n).astype(BF16)
    state = opt.init(w)
    before = w.astype(np.float32)
    opt.step(w, g, state, lr=1e-3, seed=3, beta1=0.0, beta2=0.0, weight_decay=0.0, eps=0.0)
    # With betas of 0: m is g, v is g * g, and the change of w is the sign of g times lr.
    words = random_words(2, n, seed=3, step=1)
    assert np.array_equal(state["m"].view(np.uint16), g.view(np.uint16))
    square = g.astype(np.float32) ** 2
    assert np.array_equal(state["v"].view(np.uint16), _encoded(square, "bf16", words[1], 0))
    exact = before - np.float32(1e-3) * np.sign(g.astype(np.float32))
    same = w.view(np.uint16) == _encoded(exact, "bf16", words[0], 0)
    assert same.mean() > 0.995  # the kernel divides m by the root of v, so some are off by a bit of f32


def test_bits_do_not_depend_on_threads_rows_packing_or_grouping(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = adamw(state_dtype="f8")
    sizes = {"a": 100_000, "b": 3, "c": 700_001, "d": 16_384}
    rng = np.random.default_rng(0)
    first = {k: rng.standard_normal(n).astype(np.float32) for k, n in sizes.items()}
    slopes = {k: rng.standard_normal(n).astype(np.float32) for k, n in sizes.items()}

    def run(optimizer: og.Optimizer, *, pack: bool = False, **hypers: Any) -> list[bytes]:
        params: Any = og.Container({k: v.copy() for k, v in first.items()})
        grads: Any = og.Container({k: v.copy() for k, v in slopes.items()})
        if pack:
            params, grads = params.pack(), grads.pack()
        state = optimizer.init(params)
        for _ in range(2):
            params, state = optimizer.step(params, grads, state, lr=1e-2, seed=11, **hypers)
        return [np.asarray(tree[k]).tobytes() for tree in (params, state["m"], state["v"]) for k in sizes]

    expected = run(opt)  # 800,000 elements: shared with the workers
    assert run(opt, pack=True) == expected
    assert run(og.Optimizer(opt.bundle, "local-sync")) == expected
    assert run(opt, weight_decay={"a": 0.01, "b": 0.01, "c": 0.0, "d": 0.01})[:2] == expected[:2]
    monkeypatch.setattr(rows, "ROW", 1000)
    assert run(opt) == expected
    monkeypatch.undo()
    # Leaves that are left out do not renumber the others.
    params = {k: v.copy() for k, v in first.items()}
    state = opt.init(params)
    opt.step(params, {k: v for k, v in slopes.items() if k != "a"}, state, lr=1e-2, seed=11)
    whole, other = {k: v.copy() for k, v in first.items()}, opt.init(first)
    opt.step(whole, slopes, other, lr=1e-2, seed=11)
    assert state["v"]["d"].tobytes() == other["v"]["d"].tobytes()
    assert state["v"]["a"].tobytes() != other["v"]["a"].tobytes()
    opt.step(whole2 := {k: v.copy() for k, v in first.items()}, slopes, third := opt.init(whole2), lr=1e-2, seed=12)
    assert third["v"]["d"].tobytes() != other["v"]["d"].tobytes()


def test_random_bits_are_even_and_uncorrelated() -> None:
    n = 1 << 18
    near = [
        random_words(2, n, seed=seed, step=step, leaf=leaf)
        for seed, step, leaf in ((0, 1, 0), (0, 2, 0), (0, 3, 0), (1, 1, 0), (0, 1, 1), (0, 65_537, 0))
    ]
    halves = [half for words in near for word in words for half in (word & 0xFFFF, word >> 16)]
    unit = [(h.astype(np.float64) + 0.5) / 2**16 - 0.5 for h in halves]
    limit = 4.5 / np.sqrt(n)  # in standard deviations of a correlation; 300 are looked at
    for u in unit:
        assert abs(u.mean()) * np.sqrt(12) < limit
        assert abs((u * u).mean() * 12 - 1) < 2 * limit
        for lag in (1, 2, 3, 4, 8, 16, 64, 1024):
            assert abs((u[lag:] * u[:-lag]).mean() * 12) < limit
    for i, a in enumerate(unit):
        for b in unit[:i]:
            assert abs((a * b).mean() * 12) < limit
    for h in halves[:4]:
        counts = np.bincount(h >> 4, minlength=4096)
        chi = ((counts - n / 4096) ** 2).sum() / (n / 4096)
        assert abs(chi - 4095) < 4.5 * np.sqrt(2 * 4095)
    for words in near:  # the bits that codes take of a word, of which ten are shared
        for word in words:
            low, high = (word % 2**21) / 2**21 - 0.5, (word >> 11) / 2**21 - 0.5
            assert abs((low * high).mean() * 12) < limit + 2**-10
    for bit in range(32):
        assert abs(((near[0][0] >> np.uint32(bit)) & 1).mean() - 0.5) < limit / 2


# Rounding: right on average, and never further than the next number.


@pytest.mark.parametrize("name", ["f8m", "f8v", "bf16"])
def test_rounding_is_to_a_neighbour_and_unbiased(name: str) -> None:
    n = 20_000
    opt = compiled(become, dtype="bf16", grad_dtype="f32", rounding="stochastic") if name == "bf16" else None
    opt = opt or compiled(put, state_dtype="f8", check=False)
    at = [1.2345, 1.0 + 1 / 512, 3e-7, 1e-8, 1.1e-8, 63.9, 1e-5, 0.0] if name != "f8v" else []
    at += [] if name == "f8m" else [1.9e-15, 4e-12, 1e-16, 0.3, 2000.0]
    params = [np.zeros(n, BF16 if name == "bf16" else np.float32) for _ in at]
    grads = [np.full(n, x, np.float32) for x in at]
    state = opt.init(params)
    opt.step(params, grads, state, lr=0.0, seed=5)
    for i, x in enumerate(np.float32(at).astype(np.float64)):
        found = params[i] if name == "bf16" else state[name[-1]][i]
        values = found.astype(np.float64) if name == "bf16" else to_float64(found, name)
        low, high = values.min(), values.max()
        assert len(np.unique(values)) == (1 if low == x == high else 2)
        assert low <= x <= high
        spread = np.sqrt((x - low) * (high - x) / n)
        assert abs(values.mean() - x) <= 5 * spread + 1e-4 * (high - low)
        if name != "bf16":  # neighbours indeed
            codes = np.unique(found)
            assert codes[-1] - codes[0] <= 1


def test_what_is_no_number_stays_none_in_bf16_and_is_the_largest_in_eight_bits() -> None:
    special = np.array([np.inf, -np.inf, np.nan, -np.nan, 1e30, -0.0], np.float32)
    special = np.concatenate([special, np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)])
    w = np.zeros(special.size, BF16)
    opt = compiled(become, dtype="bf16", grad_dtype="f32", rounding="stochastic")
    opt.step(w, special, opt.init(w), lr=0.0)
    assert np.array_equal(np.isnan(w.astype(np.float32)), np.isnan(special))
    assert w[:2].astype(np.float32).tolist() == [np.inf, -np.inf]
    opt = compiled(put, state_dtype="f8", check=False)
    state = opt.init(p := np.zeros(special.size, np.float32))
    opt.step(p, special, state, lr=0.0)
    assert to_float64(state["m"], "f8m")[[0, 1, 4, 5]].tolist() == [112.0, -112.0, 112.0, -0.0]
    assert (np.abs(to_float64(state["m"], "f8m")[[2, 3, 6, 7]]) == 112.0).all()
    assert (state["v"] == [255, 255, 255, 255, 255, 0, 255, 255]).all()


def test_second_moments_stall_in_bf16_unless_rounded_at_random() -> None:
    n, steps = 4096, 1500
    moments = {}
    for rounding in ("nearest", "stochastic"):
        opt = adamw(state_dtype="bf16", rounding=rounding)
        w, g = np.zeros(n, np.float32), np.zeros(n, np.float32)
        state = opt.init(w)
        state["v"][...] = 1.0
        bound = opt.bind(w, g, state)
        for _ in range(steps):  # no grads any more: v should fall to 0.999**1500
            bound.step(lr=1e-3)
        falling = state["v"].astype(np.float64)
        g[...] = 1.0
        state["v"][...] = 0.0
        for _ in range(steps):
            bound.step(lr=1e-3)
        moments[rounding] = falling, state["v"].astype(np.float64)
    falling, rising = moments["nearest"]
    assert (falling == 1.0).all()  # has not moved at all
    assert rising.max() < 0.3  # and would be 0.78
    falling, rising = moments["stochastic"]
    assert falling.mean() == pytest.approx(0.999**steps, rel=0.02)
    assert rising.mean() == pytest.approx(1 - 0.999**steps, rel=0.02)


# Whole optimizers.


def test_bytes_for_each_param() -> None:
    expected = {
        (("state_dtype", "bf16"),): 20,
        (("dtype", "bf16"), ("state_dtype", "bf16")): 14,
        (("state_dtype", "f8"),): 16,
        (("dtype", "bf16"), ("state_dtype", "f8")): 10,
        (("dtype", "bf16"), ("master", True), ("state_dtype", "f8")): 16,
    }
    sizes = {"f32": 4, "bf16": 2, "f8m": 1, "f8v": 1}
    for settings, traffic in expected.items():
        opt = adamw(**dict(settings))
        (kernel,) = opt.manifest.kernels
        assert kernel.modules[0].in_place
        moved = sum(sizes[o.dtype] * (1 if o.role == "input" else 2) for o in kernel.operands)
        # The param of master weights is only written.
        assert moved - (2 if opt.manifest.variant.endswith("master") else 0) == traffic
        assert kernel.dtypes["compute"] == "f32"


def test_sixteen_bit_moments_by_slot() -> None:
    opt = adamw(state_dtype=(("m", "bf16"),))
    (kernel,) = opt.manifest.kernels
    assert (kernel.name, kernel.operand("m").dtype, kernel.operand("v").dtype) == ("f32-m_bf16", "bf16", "f32")
    w = np.linspace(-1, 1, 100, dtype=np.float32)
    g = np.cos(np.arange(100, dtype=np.float32))
    exact, ours = w.copy(), w.copy()
    reference = og.prebuilt("adamw")
    reference_state, state = reference.init(exact), opt.init(ours)
    for _ in range(5):
        reference.step(exact, g, reference_state, lr=1e-2)
        opt.step(ours, g, state, lr=1e-2)
    assert state["m"].dtype == BF16
    assert np.abs(ours - exact).max() < 5 * 1e-2 * 2**-8
    np.testing.assert_allclose(state["v"], reference_state["v"], rtol=1e-5)


def test_master_weights_keep_what_sixteen_bits_lose() -> None:
    opt = adamw(dtype="bf16", master=True)
    assert opt.manifest.state == ("m", "v", "master")
    assert "seed" not in [h.name for h in opt.manifest.hypers]
    rng = np.random.default_rng(0)
    w = rng.standard_normal(999).astype(BF16)
    plain, exact = w.copy(), w.astype(np.float32)
    state = opt.init(w)
    assert np.array_equal(state["master"], exact)
    reference, lossy = og.prebuilt("adamw", compute_dtype="f32"), og.prebuilt("adamw")
    reference_state, lossy_state = reference.init(exact), lossy.init(plain)
    for _ in range(30):
        g = np.abs(rng.standard_normal(999)).astype(BF16)  # always downhill: too little at a time for bf16
        opt.step(w, g, state, lr=1e-4)
        reference.step(exact, g.astype(np.float32), reference_state, lr=1e-4)
        lossy.step(plain, g, lossy_state, lr=1e-4)
    np.testing.assert_allclose(state["master"], exact, atol=1e-6)
    assert np.array_equal(w, state["master"].astype(BF16))
    off = [abs((x.astype(np.float64) - exact).mean()) for x in (w, plain)]
    assert off[0] < 0.3 * off[1]


def test_wide_range_of_scales() -> None:
    """A quadratic whose curvatures span nine orders of magnitude, with noise: 8 bits go where f32 goes."""
    n, steps = 4096, 600
    scale = np.logspace(-7, 1.5, n).astype(np.float32)
    losses = {}
    for name, settings in {"f32": {"compute_dtype": "f32"}, "f8": {"state_dtype": "f8"}}.items():
        opt, rng = adamw(**settings), np.random.default_rng(4)
        w, g = np.ones(n, np.float32), np.zeros(n, np.float32)
        bound = opt.bind(w, g, opt.init(w))
        for step in range(steps):
            g[...] = scale * (w + 0.1 * rng.standard_normal(n, dtype=np.float32))
            bound.step(lr=1e-2 * (1 - step / steps), weight_decay=0.0)
        losses[name] = (w.astype(np.float64) ** 2).reshape(16, -1).mean(axis=1)  # by scale, whose factor is left out
    assert losses["f32"][1:].max() < 1e-2
    assert losses["f8"][1:].max() < 1e-2
    assert losses["f8"][1:].mean() < 1.5 * losses["f32"][1:].mean()


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def _train(opt: og.Optimizer, seed: int, dtype: Any) -> tuple[float, float]:
    """Accuracy on held-out digits, and the loss of training, after 20 epochs of a network with one hidden layer."""
    x, y = _digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    test, train = order[:597], order[597:]
    first = {"w1": rng.standard_normal((64, 64)) / 8, "b1": np.zeros(64)}
    first |= {"w2": rng.standard_normal((64, 10)) / 8, "b2": np.zeros(10)}
    params = {k: v.astype(dtype) for k, v in first.items()}
    grads = {k: np.zeros_like(v) for k, v in params.items()}
    bound = opt.bind(params, grads, opt.init(params))

    def forward(rows_: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        p = {k: v.astype(np.float32) for k, v in params.items()}
        hidden = np.maximum(x[rows_] @ p["w1"] + p["b1"], 0)
        z = hidden @ p["w2"] + p["b2"]
        return p, hidden, z - z.max(axis=1, keepdims=True)

    for _ in range(20):
        train = rng.permutation(train)
        for i in range(0, len(train), 48):
            batch = train[i : i + 48]
            p, hidden, z = forward(batch)
            q = np.exp(z)
            q /= q.sum(axis=1, keepdims=True)
            q[np.arange(len(batch)), y[batch]] -= 1
            q /= len(batch)
            back = (q @ p["w2"].T) * (hidden > 0)
            grads["w2"][...], grads["b2"][...] = hidden.T @ q, q.sum(axis=0)
            grads["w1"][...], grads["b1"][...] = x[batch].T @ back, back.sum(axis=0)
            bound.step(lr=2e-3)
    _, _, z = forward(train)
    loss = np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(train)), y[train]])
    return float((forward(test)[2].argmax(axis=1) == y[test]).mean()), float(loss)


def test_trains_digits_as_f32_does() -> None:
    kinds: dict[str, dict[str, Any]] = {
        "f32": {"compute_dtype": "f32"},
        "f8": {"state_dtype": "f8"},
        "bf16 moments": {"state_dtype": "bf16", "rounding": "stochastic"},
        "all bf16": {"dtype": "bf16", "state_dtype": "bf16", "rounding": "stochastic"},
        "master": {"dtype": "bf16", "master": True, "state_dtype": "f8"},
    }
    found = {
        name: np.mean([_train(adamw(**kw), s, BF16 if "dtype" in kw else np.float32) for s in range(4)], axis=0)
        for name, kw in kinds.items()
    }
    accuracy, loss = found["f32"]
    assert accuracy > 0.95
    for name, (other, other_loss) in found.items():
        assert abs(other - accuracy) <= 0.005, name
        assert other_loss < 1.15 * loss, name


# Bundles, files, verification.


def test_bundles_say_what_they_hold_and_verify(tmp_path: Path) -> None:
    opt = adamw(dtype="bf16", state_dtype="f8", rounding="stochastic")
    assert opt.manifest.variant == "adamw-stochastic"
    bundle = read_bundle(opt.save(tmp_path / "a.optgen"))
    (kernel,) = bundle.manifest.kernels
    assert bundle.manifest.format == 3
    assert [(o.dtype, o.rounding) for o in kernel.operands] == [
        ("bf16", "stochastic"), ("bf16", "nearest"), ("f8m", "stochastic"), ("f8v", "stochastic"),
    ]  # fmt: skip
    results = verify_bundle(bundle, ["local-sync"])
    assert [r.output for r in results] == ["w", "m", "v"]
    assert all(r.ok and r.in_place and 0.5 < r.max_ulp <= r.bound == 1.01 for r in results)
    # Nothing new in it: older readers may have it.
    assert adamw(dtype="bf16", master=True).manifest.format == 2


def test_verify_finds_a_kernel_that_rounds_to_the_wrong_neighbour() -> None:
    """The probes of a bundle, with answers a step away: what a biased kernel would look like."""
    import dataclasses
    import io

    bundle = adamw(state_dtype="f8").bundle
    (kernel,) = bundle.manifest.kernels
    arrays = dict(bundle.probes(kernel))
    arrays["2.out.v"] = arrays["2.out.v"] * 1.5
    file = io.BytesIO()
    np.savez(file, **arrays)
    changed = dataclasses.replace(bundle, files={**bundle.files, kernel.probes: file.getvalue()})
    assert {r.output: r.ok for r in verify_bundle(changed, ["local-sync"])} == {"w": True, "m": True, "v": False}


def test_f64_arithmetic_with_eight_bits() -> None:
    opt = adamw(state_dtype="f8", compute_dtype="f64")
    assert all(r.ok for r in verify_bundle(opt.bundle, ["local-sync"]))
    w, fast = np.ones(50, np.float32), np.ones(50, np.float32)
    g = np.linspace(-1, 1, 50, dtype=np.float32)
    opt.step(w, g, a := opt.init(w), lr=0.1, seed=3)
    adamw(state_dtype="f8").step(fast, g, b := adamw(state_dtype="f8").init(fast), lr=0.1, seed=3)
    np.testing.assert_allclose(w, fast, rtol=1e-5)
    assert (a["m"] == b["m"]).mean() > 0.9


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_state_goes_to_a_file_and_back(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("safetensors")
    slots = (("m", "bf16" if suffix == ".safetensors" else "f8m"), ("v", "f8v"))
    opt = adamw(state_dtype=slots)
    w, g = np.ones(40, np.float32), np.linspace(-1, 1, 40, dtype=np.float32)
    state = opt.init(w)
    opt.step(w, g, state, lr=0.1)
    path = tmp_path / f"state{suffix}"
    write_arrays(path, {name: state[name] for name in ("m", "v")})
    again = {"step": 1, **read_arrays(path)}
    assert again["v"].dtype == np.uint8
    other = w.copy()
    opt.step(w, g, state, lr=0.1, seed=1)
    opt.step(other, g, again, lr=0.1, seed=1)
    assert w.tobytes() == other.tobytes()
    assert state["v"].tobytes() == again["v"].tobytes()


def test_command_line(tmp_path: Path) -> None:
    runner = CliRunner()
    path = tmp_path / "a.optgen"
    result = runner.invoke(
        app, ["compile", "adamw", "--state-dtype", "m=f8m,v=f8v", "--set", "seed=9", "-o", str(path)]
    )
    assert result.exit_code == 0, result.output
    assert og.load(path).defaults["seed"] == 9
    result = runner.invoke(app, ["lower", "adamw", "--emit", "kernel", "--state-dtype", "f8"])
    assert "linalg.index 0" in result.output
    result = runner.invoke(app, ["lower", "adamw", "--emit", "kernel", "--state-dtype", "f9"])
    assert result.exit_code == 2
    write_arrays(tmp_path / "p.npz", {"w": np.ones(8, np.float32)})
    for _ in range(2):
        more = ["--state", str(tmp_path / "s.npz")] if (tmp_path / "s.npz").exists() else []
        result = runner.invoke(
            app,
            ["run", str(path), "--params", str(tmp_path / "p.npz"), "--grads", str(tmp_path / "p.npz"), "--set",
             "lr=0.1", "--out-params", str(tmp_path / "n.npz"), "--out-state", str(tmp_path / "s.npz"), *more],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    assert read_arrays(tmp_path / "s.npz")["m/w"].dtype == np.uint8


def test_other_kinds_of_array() -> None:
    torch = pytest.importorskip("torch")
    opt = adamw(state_dtype="f8")
    w, g = torch.ones(33), torch.linspace(-1, 1, 33)
    state = opt.init(w)
    assert state["m"].dtype == torch.uint8
    plain = np.ones(33, np.float32)
    other = opt.init(plain)
    for _ in range(3):
        opt.step(w, g, state, lr=0.1)
        opt.step(plain, g.numpy(), other, lr=0.1)
    assert np.array_equal(w.numpy(), plain)
    assert np.array_equal(state["v"].numpy(), other["v"])
    arrays = og.array(np.ones(33, np.float32))
    third = opt.init(arrays)
    for _ in range(3):
        opt.step(arrays, g.numpy(), third, lr=0.1)
    assert np.array_equal(arrays.data, plain)


def test_rules_without_step_and_with_reductions_round_at_random_too() -> None:
    sgd = compiled("sgd", state_dtype="f8", momentum=0.9)
    w, g = np.zeros(30_000, np.float32), np.full(30_000, 0.7, np.float32)
    state = sgd.init(w)
    sgd.step(w, g, state, lr=0.1)
    values = to_float64(state["m"], "f8m")
    assert set(np.unique(values)) == {0.625, 0.75}
    assert values.mean() == pytest.approx(0.7, abs=0.002)
    lamb = compiled("lamb", state_dtype="f8")
    assert all(r.ok for r in verify_bundle(lamb.bundle, ["local-sync"]))
    assert lamb.manifest.kernels[0].stages


def test_vulkan_has_sixteen_bit_moments_and_master_weights() -> None:
    devices = dict(og.devices() if callable(getattr(og, "devices", None)) else _devices())
    for settings in ({"state_dtype": "bf16"}, {"dtype": "bf16", "master": True}):
        opt = adamw(target="vulkan", **settings)
        assert opt.manifest.kernels[0].modules[0].in_place
        if "vulkan" in devices:
            assert all(r.ok for r in verify_bundle(opt.bundle, ["vulkan"]))


def _devices() -> list[tuple[str, str]]:
    from optgen.runtime.device import list_devices

    return list_devices()


def test_what_is_refused() -> None:
    with pytest.raises(HyperparameterError, match=r"'state_dtype' must say what 's' is to be, f8m .* or f8v"):
        og.compile("adagrad", state_dtype="f8")
    with pytest.raises(HyperparameterError, match=r"'state_dtype' names 'q', no state of this rule \(it has m, v\)"):
        og.compile("adamw", state_dtype={"q": "bf16"})
    with pytest.raises(HyperparameterError, match="must be 'f8', or say which"):
        og.compile("adamw", state_dtype="f8m")
    with pytest.raises(ValueError, match="'state_dtype' must be one of f16, bf16, f32, f64, f8m, f8v"):
        og.compile("adamw", state_dtype={"m": "f9"})
    with pytest.raises(HyperparameterError, match="'rounding' must be 'nearest' or 'stochastic'"):
        og.compile("adamw", state_dtype="bf16", rounding="up")
    with pytest.raises(HyperparameterError, match="'rounding' must be 'nearest' where neither"):
        og.compile("adamw", rounding="stochastic")
    with pytest.raises(HyperparameterError, match="'master' must be False for f32 params"):
        og.compile("adamw", master=True)
    with pytest.raises(HyperparameterError, match="no hyperparameter 'seed'"):
        og.compile("adamw", state_dtype="bf16", seed=1)
    with pytest.raises(LoweringError, match="without 8-bit state"):
        og.compile("muon", like={"w": np.zeros((4, 4), np.float32)}, state_dtype="f8")
    opt = adamw(state_dtype="f8")
    w = np.ones(4, np.float32)
    for seed in (0.5, -1, 2**32):
        with pytest.raises(HyperparameterError, match="'seed' must be a whole number"):
            opt.step(w, w.copy(), opt.init(w), lr=0.1, seed=seed)
    wrong = {**opt.init(w), "m": np.zeros(4, np.float32)}
    with pytest.raises(LeafError, match=r"state 'm'.* must have dtype ui8 \(got f32\)"):
        opt.step(w, w.copy(), wrong, lr=0.1)
    with pytest.raises(LeafError, match="must have dtype f32, f64, bf16 or f16"):
        opt.init(np.zeros(4, np.uint8))


def test_other_processors() -> None:
    targets = ["cpu:x86-64-v2", "cpu:aarch64", "cpu:riscv64"]
    opt = compiled("adamw", dtype="bf16", state_dtype="f8", rounding="stochastic", target=tuple(targets))
    assert [m.in_place for m in opt.manifest.kernels[0].modules] == [True] * 3
    ran = [r for r in verify_bundle(opt.bundle, ["local-sync"]) if r.target == "cpu:x86-64-v2"]
    assert all(r.ok for r in ran)
    assert len(ran) in (0, 3)  # none elsewhere than on x86-64
