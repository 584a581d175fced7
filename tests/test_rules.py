"""Every rule: against float64 numpy, against the library that its convention is of, in place, and downhill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rule_references as ref
from rule_cases import CASES, LR, UNTIED, Case, compiled, optax
from test_parity import typed

import optgen
from optgen.dtypes import from_float64, storage_dtype, to_float64, ulp
from optgen.rules import RULES, SAME
from optgen.runtime.verify import verify_bundle

SHAPES = {"a": (7, 5), "b": (5,), "c": ()}
#: Small cases that between them have every kind of state, for what takes long to compile or to run.
FEW = ("nadam.torch-weight_decay=0.1", "adamax.keras", "rprop.torch", "adopt.optax", "schedule_free_adamw.optax",
       "rmsprop.torch-centered-momentum=0.9", "ftrl.keras-l1")  # fmt: skip

each_case = pytest.mark.parametrize("index", range(len(CASES)), ids=[case.id for case in CASES])
each_of_few = pytest.mark.parametrize(
    "index", [i for i, case in enumerate(CASES) if case.id.startswith(FEW)],
    ids=[case.id for case in CASES if case.id.startswith(FEW)],
)  # fmt: skip


def test_every_rule_is_a_case() -> None:
    assert {(case.rule, case.convention) for case in (*CASES, *UNTIED)} == {*RULES, *SAME} - {
        ("adam_step", "ivy"),
        ("muon", "optax"),
    }
    assert len({case.id for case in (*CASES, *UNTIED)}) == len(CASES) + len(UNTIED)


def read_by_steps(opt: Any, **hypers: Any) -> dict[str, Any]:
    """Those of some hyperparameters that a step takes: Rprop's learning rate is what its state starts with."""
    return {k: v for k, v in hypers.items() if k not in opt.idle}


def start(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {k: np.asarray(rng.standard_normal(shape)) for k, shape in SHAPES.items()}


@each_case
def test_200_steps_of_the_library(index: int, rng: np.random.Generator) -> None:
    """Module, reference and library, in f64, from random params with random grads and a changing learning rate."""
    case, opt = CASES[index], compiled(index)
    mine = start(rng)
    numpy = {k: w.ravel().copy() for k, w in mine.items()}
    # optax and Keras' ScheduleFree take their learning rate once and for all.
    changing = case.convention == "torch" or (case.convention == "keras" and "schedule_free" not in case.rule)
    library = case.library([w.copy() for w in mine.values()], LR) if case.library else None
    state = opt.init(mine, **({"lr": LR} if case.rule == "rprop" else {}))
    theirs = {k: {n: state[n][k].ravel().copy() for n in opt.manifest.state} for k in mine}
    scalars = dict(opt.manifest.scalars)
    for t in range(1, 201):
        lr = LR / 2 ** (t % 4) if changing and case.rule != "rprop" else LR
        grads, h = start(rng), {k: np.asarray(np.abs(x)) for k, x in start(rng).items()}
        hypers = {"lr": lr, **({"refresh": float(t % 3 == 1)} if case.rule == "sophia_g" else {})}
        given = {"g": grads, "h": h} if case.rule == "sophia_g" else grads
        mine, state = opt.step(mine, given, state, **read_by_steps(opt, **hypers))
        for k in numpy:
            inputs = [grads[k].ravel(), h[k].ravel()] if case.rule == "sophia_g" else [grads[k].ravel()]
            found = case.reference(
                numpy[k], *inputs, *theirs[k].values(), step=t, **{**_numbers(case), **hypers}, **scalars
            )
            numpy[k] = found["w"]
            theirs[k] = {n: found[n] for n in opt.manifest.state}
        scalars = {n: found[n] for n in scalars}
        if library is not None:
            values = library(list(grads.values()), lr, h=h.values() if case.rule == "sophia_g" else None)
    for k in numpy:
        np.testing.assert_allclose(mine[k].ravel(), numpy[k], rtol=1e-11, atol=1e-12)
        for n in opt.manifest.state:
            np.testing.assert_allclose(state[n][k].ravel(), theirs[k][n], rtol=1e-10, atol=1e-12)
    assert {n: state[n] for n in scalars} == pytest.approx(scalars, rel=1e-13)
    if library is not None:
        for k, value in zip(mine, values, strict=True):
            np.testing.assert_allclose(mine[k], value, rtol=1e-9, atol=1e-10)


def _numbers(case: Case) -> dict[str, Any]:
    """What the reference takes of the settings."""
    return {k: v for k, v in case.settings.items() if k not in ("initial_accumulator_value", "initial_scale")}


@each_case
def test_in_place(index: int, rng: np.random.Generator) -> None:
    """No copy in the compiler's IR, and the very memory of params and state is what has changed."""
    case, opt = CASES[index], compiled(index)
    for kernel in opt.manifest.kernels:
        for module in kernel.modules:
            assert (module.in_place, module.copies) == (True, 0)
            assert module.abi == "stages"
    params = {k: w.astype(np.float32) for k, w in start(rng).items()}
    state = opt.init(params)
    before = {k: w.copy() for k, w in params.items()}
    owners = [id(x) for tree in (params, *(state[n] for n in opt.manifest.state)) for x in tree.values()]
    grads = {k: w.astype(np.float32) for k, w in start(rng).items()}
    for _ in range(2):  # ADOPT's first step only looks
        given = {"g": grads, "h": grads} if case.rule == "sophia_g" else grads
        new, state = opt.step(params, given, state, **read_by_steps(opt, lr=LR))
    assert new is params
    assert [id(x) for tree in (new, *(state[n] for n in opt.manifest.state)) for x in tree.values()] == owners
    assert all((params[k] != before[k]).all() for k in params)


def _draw(opt: Any, case: Case, rng: np.random.Generator, size: int, step: int, dtype: str) -> dict[str, np.ndarray]:
    """Tensors for one update: as ``init`` leaves them before the first step, else random ones."""
    wide = "f64" if dtype == "f64" else "f32"
    w = typed(from_float64(rng.standard_normal(size), dtype), dtype)
    first = opt.init(w)
    out = {"w": w, **{n: typed(from_float64(rng.standard_normal(size), dtype), dtype) for n in opt.manifest.inputs}}
    for name in opt.manifest.state:
        values = rng.standard_normal(size) * 0.3
        # What a square root is taken of, or a step's size, is positive; a centered mean is less than its square.
        values = np.abs(values) if name in ("v", "s", "n", "top", "u") else values
        values = values * 0.01 if name == "mean" else values
        if case.rule == "novograd" and name == "v":
            values[:] = values[0]
        out[name] = first[name] if step == 1 else values.astype(storage_dtype(wide))
    return out


def _errors(
    opt: Any, case: Case, tensors: dict[str, np.ndarray], step: int, dtype: str, scalars: dict[str, float]
) -> dict[str, float]:
    """The largest error of each tensor in ulp of the larger of its old and its new value."""
    wide = "f64" if dtype == "f64" else "f32"
    kinds = {n: dtype if n in (opt.manifest.param, *opt.manifest.inputs) else wide for n in tensors}
    exact = {n: to_float64(np.asarray(a), kinds[n]) for n, a in tensors.items()}
    hypers = {"lr": 0.01}
    expected = case.reference(*exact.values(), step=step, **{**_numbers(case), **hypers}, **scalars)
    state = {"step": step - 1, **scalars, **{n: tensors[n] for n in opt.manifest.state}}
    inputs = {n: tensors[n] for n in opt.manifest.inputs}
    opt.step(tensors["w"], inputs if len(inputs) > 1 else tensors["g"], state, **read_by_steps(opt, **hypers))
    found = {}
    for name in ("w", *opt.manifest.state):
        size = np.maximum(np.abs(expected[name]), np.abs(exact[name]))
        error = np.abs(to_float64(tensors[name], kinds[name]) - expected[name]) / ulp(size, kinds[name])
        found[name] = float(error.max())
    compute = 1e-6 if dtype in ("bf16", "f16") else 1e-13
    assert {n: state[n] for n in scalars} == pytest.approx({n: expected[n] for n in scalars}, rel=compute)
    return found


def _worst(opt: Any, case: Case, rng: np.random.Generator, dtype: str, *where: tuple[int, int]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for step, size in where:
        moved = {"mu_product": 0.3, "weight_sum": 5e-4, "max_lr": 0.02}
        scalars = {n: v if step == 1 else moved[n] for n, v in opt.manifest.scalars.items()}
        found = _errors(opt, case, _draw(opt, case, rng, size, step, dtype), step, dtype, scalars)
        worst = {k: max(worst.get(k, 0.0), v) for k, v in found.items()}
    return worst


PLACES = ((1, 5), (1, 4099), (2, 64), (2, 4099), (10, 1), (1000, 4099), (1_000_000, 1000))


@each_case
def test_f32_is_correctly_rounded(index: int, rng: np.random.Generator) -> None:
    """Half an ulp of f32, at any step; ivy's are computed in f32."""
    case = CASES[index]
    worst = _worst(compiled(index), case, rng, "f32", *PLACES)
    limit = 16 if case.convention == "ivy" else 0.501
    assert all(v <= limit for v in worst.values()), worst


@each_case
def test_probes(index: int) -> None:
    """What a bundle carries to verify itself by is what its modules answer."""
    results = verify_bundle(compiled(index).bundle, ["local-sync"])
    assert all(r.ok for r in results), [(r.kernel, r.output, r.max_ulp, r.problem) for r in results if not r.ok]
    assert {r.output for r in results} >= {"w", *compiled(index).manifest.state, *compiled(index).manifest.scalars}


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@each_of_few
def test_16_bit_params(index: int, dtype: str, rng: np.random.Generator) -> None:
    """Params are rounded once; the state is f32's."""
    case = CASES[index]
    worst = _worst(case.compile(dtype, target="cpu"), case, rng, dtype, (1, 5), (2, 4099), (1000, 333))
    assert worst.pop("w") <= 0.51
    assert all(v <= 16 for v in worst.values()), worst  # where the terms of f32 arithmetic cancel


@each_of_few
def test_vulkan(vulkan: str, index: int, rng: np.random.Generator) -> None:
    case = CASES[index]
    opt = case.compile("f32", target="vulkan")
    assert opt.manifest.kernels[0].modules[0].in_place
    worst = _worst(opt, case, rng, "f32", (1, 5), (2, 4099), (1000, 333))
    assert all(v <= 0.501 for v in worst.values()), worst


def quadratic(w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, grad and diagonal of the Hessian."""
    scale = np.geomspace(0.1, 3, w.size)
    return float(scale @ w**2) / 2, scale * w, scale


def rosenbrock(w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    x, y = w
    value = (1 - x) ** 2 + 100 * (y - x**2) ** 2
    grad = np.array([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])
    return float(value), grad, np.abs([2 - 400 * (y - 3 * x**2), 200])


def descend(opt: Any, case: Case, function: Any, w: np.ndarray, lr: float, steps: int) -> float:
    """The value after so many steps with a falling learning rate."""
    grads = {n: np.empty_like(w) for n in opt.manifest.inputs}
    bound = opt.bind(w, grads if len(grads) > 1 else grads["g"], opt.init(w))
    fixed = {} if "weight_decay" not in opt.defaults else {"weight_decay": 0.0}
    fixed |= {n: 0.0 for n in ("l1", "l2", "l2_shrinkage") if n in opt.defaults}
    for t in range(steps):
        factor = 1.0 if case.rule == "ftrl" else min(1.0, (t + 1) / 100)  # RAdam begins without adapting to anything
        factor *= 1.0 if case.rule == "ftrl" or "schedule_free" in case.rule else 1 - t / steps
        _, grads["g"][:], h = function(w)
        if "h" in grads:
            grads["h"][:] = h
        bound.step(**read_by_steps(opt, lr=lr * factor), **fixed)
    return float(function(w)[0])


@each_case
def test_converges_on_a_quadratic(index: int, rng: np.random.Generator) -> None:
    case, w = CASES[index], rng.standard_normal(20)
    before = quadratic(w)[0]
    assert descend(compiled(index), case, quadratic, w, case.lr[0], 1000) < 1e-2 * before


@each_case
def test_converges_on_rosenbrock(index: int) -> None:
    """From (-1.2, 1), where it is 24: along the bent valley, whose floor is 4 on this side."""
    case, w = CASES[index], np.array([-1.2, 1.0])
    assert descend(compiled(index), case, rosenbrock, w, case.lr[1], 5000) < 0.5


def test_several_inputs_are_given_by_name() -> None:
    opt = compiled(next(i for i, case in enumerate(CASES) if case.rule == "sophia_g"))
    w = np.ones(3)
    with pytest.raises(optgen.errors.TreeError, match="a dict with a tree for each input of rule 'sophia_g', g, h"):
        opt.step(w, w.copy(), opt.init(w), lr=0.1)
    v = opt.init(w)
    opt.step(w, {"g": np.ones(3), "h": np.full(3, np.nan)}, v, lr=0.1, refresh=0)
    assert (v["v"] == 0).all()
    assert np.isfinite(w).all()


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(optgen.errors.HyperparameterError, match="'dampening' must not be given with nesterov=True"):
        optgen.compile("sgd", momentum=0.9, dampening=0.1, nesterov=True)
    with pytest.raises(optgen.errors.HyperparameterError, match="'step' must not be given"):
        optgen.compile("sgd", momentum=0.9, step=3)


def test_conventions_by_name() -> None:
    assert optgen.get_rule("lion").convention == "optax"
    assert optgen.get_rule("ftrl").convention == "keras"
    assert optgen.get_rule("adam", "optax") is optgen.get_rule("adam", "torch")
    with pytest.raises(optgen.errors.UnknownRuleError, match="rule 'lion' must be in the convention of optax or keras"):
        optgen.get_rule("lion", "torch")


@pytest.mark.parametrize("settings", [{"weight_decay": 0.1}, {"plain_momentum": True}], ids=["nesterov", "plain"])
def test_muon(settings: dict[str, Any], rng: np.random.Generator) -> None:
    """Out of place, for the shapes that it was compiled for: as optax, and as singular values have it."""
    mine = {"tall": rng.standard_normal((7, 5)), "wide": rng.standard_normal((4, 9))}
    opt = optgen.compile("muon", mine, target="cpu", **settings)
    assert {k.shape for k in opt.manifest.kernels} == {(7, 5), (4, 9)}
    assert not any(k.in_place for k in opt.manifest.kernels)
    theirs = {"nesterov": False} if "plain_momentum" in settings else settings
    library = optax("muon", **theirs)([w.copy() for w in mine.values()], LR)
    numpy = {k: (w.copy(), np.zeros_like(w)) for k, w in mine.items()}
    state = opt.init(mine)
    for t in range(1, 51):
        grads = {k: rng.standard_normal(w.shape) for k, w in mine.items()}
        opt.step(mine, grads, state, lr=LR)
        values = library(list(grads.values()), LR)
        for k, (w, m) in numpy.items():
            numpy[k] = tuple(ref.muon(w, grads[k], m, lr=LR, step=t, **settings).values())
    for (k, w), value in zip(mine.items(), values, strict=True):
        np.testing.assert_allclose(w, value, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(w, numpy[k][0], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state["m"][k], numpy[k][1], rtol=1e-12, atol=1e-14)


def test_muon_is_for_matrices() -> None:
    with pytest.raises(optgen.errors.LoweringError, match="Give the leaves' shapes"):
        optgen.compile("muon")
    with pytest.raises(ValueError, match="muon is for matrices"):
        optgen.compile("muon", np.ones(3, np.float32))
