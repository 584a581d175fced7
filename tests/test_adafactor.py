"""Adafactor: a rule whose state has shapes of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rule_cases import LR, UNTIED, Case

import optgen
from optgen.dsl import rule
from optgen.dsl.derivative import vjp_rule
from optgen.rules import get_rule
from optgen.runtime.verify import verify_bundle

#: The last one alone is factored by optax where nothing else is asked for; of three dimensions it takes two.
SHAPES = {"tall": (7, 5), "square": (6, 6), "cube": (6, 2, 7), "b": (5,), "c": (), "large": (130, 128)}


SMALL = [name for name in SHAPES if name != "large"]


def start(rng: np.random.Generator, dtype: type = np.float64, names: Iterable[str] = SHAPES) -> dict[str, np.ndarray]:
    return {k: np.asarray(rng.standard_normal(SHAPES[k]), dtype) for k in names}


def compiled(case: Case, params: Any, **more: Any) -> optgen.Optimizer:
    return optgen.compile(case.rule, params, convention=case.convention, target="cpu", **case.settings, **more)


@pytest.mark.parametrize("case", UNTIED, ids=[case.id for case in UNTIED])
def test_200_steps_of_the_library(case: Case, rng: np.random.Generator) -> None:
    """Module, reference and library, in f64; by default also the module for f32 params, within 1e-6 of that.

    optax computes the decay in f32 whatever the params are."""
    names = SMALL if case.settings else [*SHAPES]
    library_rtol = 1e-10 if case.convention == "torch" else 1e-6
    single = start(rng, np.float32, names)
    mine = {k: w.astype(np.float64) for k, w in single.items()}
    opt = compiled(case, mine)
    opt32 = None if case.settings else compiled(case, single)
    assert case.library is not None
    library = case.library([w.copy() for w in mine.values()], LR)
    state, state32 = opt.init(mine), opt32.init(single) if opt32 else {}
    numpy = {k: w.copy() for k, w in mine.items()}
    theirs = {k: {n: state[n][k].copy() for n in opt.manifest.state} for k in mine}
    for t in range(1, 201):
        grads32 = start(rng, np.float32, names)
        grads = {k: g.astype(np.float64) for k, g in grads32.items()}
        lr = LR / 2 ** (t % 4) if case.convention == "torch" else LR  # optax takes it once and for all
        opt.step(mine, grads, state, lr=lr)
        if opt32:
            opt32.step(single, grads32, state32, lr=lr)
        values = library(list(grads.values()), lr)
        for k, w in numpy.items():
            found = case.reference(w, grads[k], *theirs[k].values(), step=t, lr=lr, **case.settings)
            numpy[k], theirs[k] = found["w"], {n: found[n] for n in theirs[k]}
    for (k, w), value in zip(mine.items(), values, strict=True):
        np.testing.assert_allclose(w, value, rtol=library_rtol, atol=library_rtol * np.abs(value).max())
        np.testing.assert_allclose(w, numpy[k], rtol=1e-10, atol=1e-12)
        for n in opt.manifest.state:
            np.testing.assert_allclose(state[n][k], theirs[k][n], rtol=1e-11, atol=1e-14)
        assert opt32 is None or np.linalg.norm(single[k] - value) <= 1e-6 * np.linalg.norm(value)


def test_state_is_as_small_as_a_row_and_a_column(rng: np.random.Generator) -> None:
    params = start(rng, np.float32)
    for settings, row, column in (
        ({"convention": "optax"}, (128,), (130,)), ({"convention": "torch"}, (130, 1), (1, 128)),
    ):  # fmt: skip
        opt = optgen.compile("adafactor", params, target="cpu", **settings)
        state = opt.init(params)
        assert (state["row"]["large"].shape, state["col"]["large"].shape) == (row, column)
        assert state["v"]["large"].size == 1
        assert state["v"]["b"].shape == (5,)
    assert state["row"]["cube"].shape == (6, 2, 1)


@pytest.mark.parametrize("convention", ["torch", "optax"])
def test_saved_and_verified(tmp_path: Path, convention: str, rng: np.random.Generator) -> None:
    params, grads = start(rng, np.float32), start(rng, np.float32)
    opt = optgen.compile("adafactor", params, convention=convention, target="cpu")
    assert opt.manifest.format == 4
    assert all(r.ok for r in verify_bundle(opt.bundle, ["local-sync", "local-task"]))
    again = optgen.load(opt.save(tmp_path / "adafactor.optgen"))
    assert again.manifest == opt.manifest
    copy = {k: w.copy() for k, w in params.items()}
    state = again.init(copy)
    opt.step(params, grads, opt.init(params), lr=0.1)
    bound = again.bind(copy, grads, state)
    bound.step(lr=0.1)
    for k in params:
        np.testing.assert_array_equal(params[k], copy[k])


def test_torch_and_jax_arrays(rng: np.random.Generator) -> None:
    import jax
    import torch

    params, grads = start(rng, np.float32, ("tall", "b")), start(rng, np.float32, ("tall", "b"))
    opt = optgen.compile("adafactor", params, target="cpu")
    tensors = {k: torch.from_numpy(w.copy()) for k, w in params.items()}
    arrays = {k: jax.numpy.asarray(w.copy()) for k, w in params.items()}
    opt.step(params, grads, opt.init(params), lr=0.1)
    opt.step(tensors, {k: torch.from_numpy(g) for k, g in grads.items()}, opt.init(tensors), lr=0.1)
    new, state = opt.step(arrays, {k: jax.numpy.asarray(g) for k, g in grads.items()}, opt.init(arrays), lr=0.1)
    assert state["row"]["tall"].shape == (7, 1)
    for k, w in params.items():
        np.testing.assert_array_equal(tensors[k].numpy(), w)
        np.testing.assert_array_equal(np.asarray(new[k]), w)


def test_inside_a_chain(rng: np.random.Generator) -> None:
    """An average of the params behind it: the factors stay factors."""
    params, grads = start(rng, np.float32, ("tall", "b")), start(rng, np.float32, ("tall", "b"))
    opt = optgen.compile(optgen.chain("adafactor", optgen.ema(0.5)), params, target="cpu")
    plain = optgen.compile("adafactor", params, target="cpu")
    state, old = opt.init(params), {k: w.copy() for k, w in params.items()}
    alone = {k: w.copy() for k, w in params.items()}
    assert state["row"]["tall"].shape == (7, 1)
    opt.step(params, grads, state, lr=0.1)
    plain.step(alone, grads, plain.init(alone), lr=0.1)
    np.testing.assert_allclose(params["tall"], alone["tall"], rtol=1e-6)
    assert state["ema"]["tall"].shape == old["tall"].shape


def test_wrong_shapes_are_refused(rng: np.random.Generator) -> None:
    params, grads = {"w": np.ones((7, 5), np.float32)}, {"w": np.ones((7, 5), np.float32)}
    opt = optgen.compile("adafactor", params, target="cpu")
    state = opt.init(params)
    state["row"]["w"] = np.zeros((7, 5), np.float32)
    with pytest.raises(optgen.errors.LeafError, match=r"state 'row' 'w' must have the shape \(7, 1\) beside a param"):
        opt.step(params, grads, state, lr=0.1)
    assert (params["w"] == 1).all()
    with pytest.raises(optgen.errors.LoweringError, match="state 'row' of another shape than its param's"):
        optgen.compile("adafactor", target="cpu")
    with pytest.raises(optgen.errors.RuleError, match="'adafactor' has no derivative: its state 'row'"):
        vjp_rule(get_rule("adafactor"))


def test_declared_shapes_are_checked() -> None:
    with pytest.raises(optgen.errors.RuleError, match=r"'shapes' of rule 'f' must name its state .*'n'"):

        @rule(state=("m",), shapes={"n": lambda shape, flags: (1,)})
        def f(w: Any, g: Any, m: Any, *, lr: Any) -> Any:
            return w, m

    with pytest.raises(optgen.errors.RuleError, match="state 'm' of rule 'h' must have its param's shape"):

        @rule(state=("m",), init={"m": "param"}, shapes={"m": lambda shape, flags: (1,)})
        def h(w: Any, g: Any, m: Any, *, lr: Any) -> Any:
            return w, m

    @rule(state=("m",), shapes={"m": lambda shape, flags: (1,)})
    def wrong(w: Any, g: Any, m: Any, *, lr: Any) -> Any:
        return w - lr * g, m + g

    with pytest.raises(optgen.errors.RuleError, match=r"'m' of rule 'wrong' must have the declared shape \(1,\)"):
        optgen.compile(wrong, np.ones(3, np.float32), target="cpu")


def test_leaves_of_one_element_have_their_own_kernels(rng: np.random.Generator) -> None:
    """A scalar's kernel and that of a vector of one element are not the same."""
    params = {"scalar": np.array(2.0, np.float32), "one": np.array([2.0], np.float32)}
    opt = optgen.compile("adafactor", params, target="cpu")
    assert {k.name for k in opt.manifest.kernels} == {"f32-cf32-scalar", "f32-cf32-1"}
    opt.step(params, {k: np.ones_like(w) for k, w in params.items()}, opt.init(params), lr=0.1)
    assert float(params["scalar"]) == float(params["one"][0]) < 2
