"""Learning rate schedules inside modules, against optax's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optgen as og
from optgen.errors import HyperparameterError

STEPS = [1, 2, 3, 10, 11, 12, 30, 31, 50, 99, 100, 101, 102, 1000]


@og.rule()
def rate(w: Any, g: Any, *, lr: Any) -> Any:
    """The learning rate itself."""
    return lr * g


def schedules() -> dict[str, tuple[Any, Any]]:
    """By name ours, and optax's as a function of the number of updates before."""
    import optax

    s = og.schedule
    return {
        "constant": (s.constant(0.3), optax.constant_schedule(0.3)),
        "linear": (s.linear(0.5, 0.1, 50, begin=10), optax.linear_schedule(0.5, 0.1, 50, 10)),
        "polynomial": (s.polynomial(0.5, 0.1, 3, 50, begin=10), optax.polynomial_schedule(0.5, 0.1, 3, 50, 10)),
        "exponential": (
            s.exponential(0.5, 20, 0.7, begin=10, end=0.01),
            optax.exponential_decay(0.5, 20, 0.7, 10, end_value=0.01),
        ),
        "cosine": (s.cosine(0.5, 100, alpha=0.1), optax.cosine_decay_schedule(0.5, 100, 0.1)),
        "warmup_cosine": (
            s.warmup_cosine(peak=1e-3, warmup=10, total=100, end=1e-5),
            optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100, 1e-5),
        ),
        "one_cycle": (s.one_cycle(0.1, 101), optax.cosine_onecycle_schedule(101, 0.1)),
        "piecewise": (
            s.piecewise(0.4, {10: 0.5, 100: 0.1}),
            optax.piecewise_constant_schedule(0.4, {10: 0.5, 100: 0.1}),
        ),
        "inverse_sqrt": (
            s.inverse_sqrt(0.1, warmup=10),
            lambda count: 0.1 * min((count + 1) / 10, (10 / (count + 1)) ** 0.5),
        ),
    }


@pytest.mark.parametrize("name", schedules())
def test_schedules_as_in_optax(name: str) -> None:
    import jax

    ours, theirs = schedules()[name]
    opt = og.compile(og.chain(rate, lr=ours), dtypes=["f64"])
    assert "lr" not in opt.defaults
    w, g = np.zeros(2), np.ones(2)
    with jax.enable_x64(True):
        for step in STEPS:
            # optax's boundaries are constants of f32 in places; ours are f64.
            want = float(theirs(step - 1))
            opt.step(w, g, {"step": step - 1})
            np.testing.assert_allclose(w, want, rtol=2e-6, atol=1e-12, err_msg=f"{name} {step}")
            opt.step(w, g, {"step": step - 1}, lr_scale=0.5)
            np.testing.assert_allclose(w, 0.5 * want, rtol=2e-6, atol=1e-12)


def test_numbers_are_run_time_hyperparameters() -> None:
    opt = og.compile(og.chain("sgd", og.add_decayed_weights(0.5), lr=og.schedule.linear(end=0)))
    w, g = np.ones(1, np.float32), np.ones(1, np.float32)
    state = opt.init(w)
    with pytest.raises(HyperparameterError, match="'init' must be given"):
        opt.step(w, g, state)
    with pytest.raises(HyperparameterError, match="no hyperparameter 'lr'"):
        opt.step(w, g, state, lr=1)
    want = 1.0
    for i in range(3):
        opt.step(w, g, state, init=0.4, steps=2)
        rate = (0.4, 0.2, 0.0)[i]
        want = want - rate - rate * 0.5 * want
        assert w[0] == pytest.approx(want, rel=1e-6)


def test_schedules_count_updates_that_were_made() -> None:
    """Skipped updates and micro-steps do not count, as in optax."""
    lr = og.schedule.linear(1.0, 0.0, 4)
    opt = og.compile(og.chain(og.accumulate(2), og.skip_not_finite(), "sgd", lr=lr))
    w, g = np.zeros(1, np.float32), np.ones(1, np.float32)
    state = opt.init(w)
    seen = []
    for i in range(8):
        g[0] = np.nan if i == 2 else 1
        opt.step(w, g, state)
        seen.append(-float(w[0]))
    assert seen == [0, 1, 1, 1, 1, 1.75, 1.75, 2.25]
    assert (state["step"], state["skipped"]) == (4, 1)


def test_piecewise_as_text() -> None:
    """On the command line a chain is text; boundaries are part of it, as they are of the rule's structure."""
    from optgen.dsl.chain import parse_chain

    opt = og.compile(parse_chain("sgd + lr=piecewise(1:0.5, 2: 0.1)", og.get_rule))
    w, g = np.zeros(1, np.float32), np.ones(1, np.float32)
    state = opt.init(w)
    seen = []
    for _ in range(4):
        opt.step(w, g, state, init=0.8)
        seen.append(float(w[0]))
    assert seen == pytest.approx([-0.8, -1.2, -1.24, -1.28])
    for text in ("piecewise", "piecewise()", "piecewise(1:2", "piecewise(1)", "piecewise(a:b)"):
        with pytest.raises(HyperparameterError, match=r"must be lr=piecewise\(UPDATES:FACTOR"):
            parse_chain(f"sgd + lr={text}", og.get_rule)
    with pytest.raises(HyperparameterError, match="each number of updates once"):
        parse_chain("sgd + lr=piecewise(1:2, 1:3)", og.get_rule)
