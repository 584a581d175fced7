"""Parity with float64 numpy, in ulp, on every device, for awkward sizes, steps and layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optgen
from optgen.dtypes import from_float64, storage_dtype, to_float64, ulp

RULES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "sgd": ("sgd", {}, reference.sgd),
    "sgd-momentum": ("sgd", {"momentum": 0.9}, reference.sgd_momentum),
    "sgd-momentum-nesterov": ("sgd", {"momentum": 0.85, "nesterov": True}, reference.sgd_momentum),
    "adam": ("adam", {}, reference.adam),
    "adamw": ("adamw", {"beta1": 0.95, "beta2": 0.98}, reference.adamw),
}
STEPS = (1, 2, 10, 1000, 1_000_000)
SIZES = (1, 2, 3, 7, 31, 64, 65, 1000, 4099, 100_003)


def draw(rng: np.random.Generator, opt: Any, size: int, step: int, dtype: str, scale: float) -> dict[str, np.ndarray]:
    """Tensors for one update; the state of a first step is zero."""
    state = opt.manifest.kernels[0].operands[2:]
    wide = "f64" if dtype == "f64" else "f32"
    out = {
        "w": from_float64(rng.standard_normal(size) * scale, dtype),
        "g": from_float64(rng.standard_normal(size), dtype),
    }
    for operand in state:
        values = np.abs(rng.standard_normal(size)) * 0.1 * (step > 1)
        out[operand.name] = values.astype(storage_dtype(wide))
    return out


def typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """bf16 bits as ml_dtypes' array."""
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16) if dtype == "bf16" else array


def errors(
    opt: Any, ref: Any, tensors: dict[str, np.ndarray], step: int, dtype: str, hypers: dict[str, float]
) -> dict[str, float]:
    """The largest error of each tensor, in ulp of its own dtype at its largest term."""
    exact = {n: to_float64(a, dtype if n in "wg" else ("f64" if dtype == "f64" else "f32")) for n, a in tensors.items()}
    if dtype == "f64" and np.finfo(np.longdouble).nmant > 60:
        exact = {n: a.astype(np.longdouble) for n, a in exact.items()}
    expected = ref(*exact.values(), step=step, **hypers)
    state = {n: a for n, a in tensors.items() if n not in "wg"}
    opt.step(typed(tensors["w"], dtype), typed(tensors["g"], dtype), {"step": step - 1, **state}, **hypers)
    found = {}
    for name, (value, term) in expected.items():
        kind = dtype if name == "w" else ("f64" if dtype == "f64" else "f32")
        error = np.abs(to_float64(tensors[name], kind) - value) / ulp(term.astype(np.float64), kind)
        found[name] = float(error.max())
    return found


@pytest.mark.parametrize("name", RULES)
def test_f32_is_correctly_rounded(device: str, name: str, rng: np.random.Generator) -> None:
    """Half an ulp, and no more than the last of 24 bits of slack, at every size and step."""
    rule, given_hypers, ref = RULES[name]
    opt = optgen.prebuilt(rule, device, **given_hypers)
    worst: dict[str, float] = {}
    for step in STEPS:
        for size in SIZES if step in (2, 1000) else (5, 4099):
            for scale in (1.0, 1e-3, 0.0):
                hypers = {
                    "lr": 1e-3,
                    "weight_decay": 0.01,
                    **{k: v for k, v in given_hypers.items() if k != "nesterov"},
                }
                extra = {"nesterov": True} if given_hypers.get("nesterov") else {}
                tensors = draw(rng, opt, size, step, "f32", scale)
                found = errors(opt, lambda *a, extra=extra, **h: ref(*a, **h, **extra), tensors, step, "f32", hypers)
                worst = {k: max(worst.get(k, 0.0), v) for k, v in found.items()}
    assert all(v <= 0.501 for v in worst.values()), worst


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", RULES)
def test_16_bit_params_are_rounded_once(device: str, name: str, dtype: str, rng: np.random.Generator) -> None:
    """Params within half an ulp of theirs (f32's error shows at ties), f32 state within 4 ulp of f32 arithmetic."""
    rule, given_hypers, ref = RULES[name]
    opt = optgen.prebuilt(rule, device, **given_hypers)
    extra = {"nesterov": True} if given_hypers.get("nesterov") else {}
    for step, size in ((1, 1), (2, 100_003), (1000, 333)):
        hypers = {"lr": 1e-2, "weight_decay": 0.01, **{k: v for k, v in given_hypers.items() if k != "nesterov"}}
        tensors = draw(rng, opt, size, step, dtype, 1.0)
        found = errors(opt, lambda *a, **h: ref(*a, **h, **extra), tensors, step, dtype, hypers)
        assert found.pop("w") <= 0.51
        assert all(v <= 4 for v in found.values()), found


@pytest.mark.parametrize("threads", ["local-sync", "local-task"])
@pytest.mark.parametrize("name", RULES)
def test_f64_within_four_ulp(threads: str, name: str, rng: np.random.Generator) -> None:
    rule, given_hypers, ref = RULES[name]
    opt = optgen.prebuilt(rule, threads, **given_hypers)
    extra = {"nesterov": True} if given_hypers.get("nesterov") else {}
    for step, size in ((1, 1), (2, 100_003), (1_000_000, 333)):
        hypers = {"lr": 1e-3, "weight_decay": 0.01, **{k: v for k, v in given_hypers.items() if k != "nesterov"}}
        found = errors(
            opt, lambda *a, **h: ref(*a, **h, **extra), draw(rng, opt, size, step, "f64", 1.0), step, "f64", hypers
        )
        assert all(v <= 4 for v in found.values()), found


@pytest.mark.parametrize("step", STEPS)
def test_ivy_convention_keeps_f32_arithmetic_and_stays_near(device: str, step: int, rng: np.random.Generator) -> None:
    """Its published digits are those of f32 arithmetic; near enough where the param is the largest term."""
    opt = optgen.prebuilt("adam", device, convention="ivy")
    tensors = draw(rng, opt, 10_007, step, "f32", 1.0)
    tensors["w"] += np.copysign(np.float32(0.5), tensors["w"])
    found = errors(opt, lambda *a, **h: reference.adam(*a, ivy=True, eps=1e-7, **h), tensors, step, "f32", {"lr": 1e-3})
    assert found["w"] <= 2
    assert found["m"] <= 2.5
    assert found["v"] <= 2.5


LAYOUTS = ("unaligned", "strided", "transposed", "reversed")


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers in memory that no kernel could use as it is."""
    if layout == "unaligned":
        raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
        view = raw.view(array.dtype) if False else np.ndarray(array.shape, array.dtype, raw.data)
    elif layout == "strided":
        view = np.zeros((*array.shape, 3), array.dtype)[..., 1]
    elif layout == "transposed":
        view = np.zeros(array.shape[::-1], array.dtype).T
    else:
        view = np.zeros_like(array)[::-1]
    view[...] = array
    return view


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(device: str, layout: str, rng: np.random.Generator) -> None:
    opt = optgen.prebuilt("adamw", device)
    shape = (37, 11)
    plain = {k: v.reshape(shape) for k, v in draw(rng, opt, 37 * 11, 5, "f32", 1.0).items()}
    odd = {k: laid_out(v, layout) for k, v in plain.items()}
    before = odd["g"].copy()
    opt.step(plain["w"], plain["g"], {"step": 4, "m": plain["m"], "v": plain["v"]}, lr=0.1)
    params, state = opt.step(odd["w"], odd["g"], {"step": 4, "m": odd["m"], "v": odd["v"]}, lr=0.1)
    assert params is odd["w"]
    assert state["m"] is odd["m"]
    for key in ("w", "m", "v"):
        np.testing.assert_array_equal(odd[key], plain[key])
    np.testing.assert_array_equal(odd["g"], before)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 3000),
    offset=st.integers(0, 15),
    step=st.integers(1, 2_000_000),
    lr=st.floats(0, 10),
    beta1=st.floats(0, 0.9999),
    beta2=st.floats(0, 0.99999),
    eps=st.floats(1e-12, 1e-2),
    decay=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_hyperparameters(
    size: int, offset: int, step: int, lr: float, beta1: float, beta2: float, eps: float, decay: float, seed: int
) -> None:
    """One module, every value: nothing about a hyperparameter is compiled in."""
    opt = optgen.prebuilt("adamw", "local-sync")
    rng = np.random.default_rng(seed)
    tensors = {
        k: np.concatenate([np.zeros(offset, v.dtype), v])[offset:]
        for k, v in draw(rng, opt, size, 2, "f32", 1.0).items()
    }
    hypers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": decay}
    found = errors(opt, reference.adamw, tensors, step, "f32", hypers)
    assert all(v <= 0.501 for v in found.values()), found


def test_extreme_values(device: str) -> None:
    """Zeros, infinities, NaN, denormals: what float64 says, rounded; nothing leaks into neighbours."""
    opt = optgen.prebuilt("adam", device)
    g = np.array([0, np.inf, -np.inf, np.nan, 1e30, 1e-30, 1e-42, 1.0, -1.0], np.float32)
    w = np.ones_like(g)
    state = opt.init(w)
    opt.step(w, g, state, lr=0.5)
    with np.errstate(all="ignore"):
        m, v = 0.1 * g.astype(np.float64), 0.001 * g.astype(np.float64) ** 2
        expected = 1 - 0.5 * (m / 0.1) / (np.sqrt(v / 0.001) + 1e-8)
    assert w[0] == 1
    assert np.isnan(w[3])
    assert np.isnan(state["m"][3])
    # 1e30 squared is beyond f32: v is infinite, as in every library. f64 arithmetic still moves the param rightly;
    # pairs of f32 have f32's range, and leave it where it was, as f32 arithmetic does.
    assert np.isinf(state["v"][4])
    assert w[4] == (1.0 if device == "vulkan" else 0.5)
    np.testing.assert_allclose(w[5:], expected[5:], rtol=1e-6)
    assert state["m"][1] == np.inf
    assert state["v"][2] == np.inf
