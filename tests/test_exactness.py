"""Bounded versions of the sweep that docs/exactness.md reports, and what it reports of all rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exactness import CLASSES, DOC, ROWS, measure_row, peers_of, special_row, specials, worse_than_torch

import optgen
from optgen.rules import rule_names

PLACES = ((1, 65), (2, 7), (1000, 4099), (1_000_000, 333))
F32 = ("cpu f32", "torch fused", "torch foreach", "optax")


def row(name: str) -> Any:
    return next(r for r in ROWS if r.name == name)


@pytest.mark.parametrize("name", ["sgd", "sgd momentum nesterov", "adam", "adamw"])
def test_never_worse_than_torch(name: str) -> None:
    """Correctly rounded, with nothing allowed for terms that cancel; also of denormals, and where f32 overflows."""
    found = measure_row(row(name), F32, PLACES)
    ours = found["cpu f32"]
    for part in {"w", "state"} & {p for _, p in ours}:
        assert 0.3 < ours["normal", part] <= 0.501
        assert ours["beyond", part] <= 0.501
        assert ours["denormal", part] <= 0.501
        for other in F32[1:]:  # their f32 arithmetic rounds terms that then cancel
            assert found[other]["normal", part] > 2
    assert not any(worse_than_torch(found, "cpu f32", label) for label in CLASSES)


@pytest.mark.parametrize("name", ["adagrad", "rprop", "lion", "yogi", "nadam"])
def test_exact_rules_are_correctly_rounded(name: str) -> None:
    ours = measure_row(row(name), ("cpu f32",), PLACES)["cpu f32"]
    assert all(v <= 0.501 for v in ours.values()), ours


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_vulkan_keeps_denormals(vulkan: str, name: str) -> None:
    ours = measure_row(row(name), ("vulkan f32",), PLACES)["vulkan f32"]
    assert all(v <= 0.501 for (label, _), v in ours.items() if label == "normal"), ours
    assert 0 < ours["denormal", "w" if name == "sgd" else "state"] <= 1.01
    assert ours["absolute", "w"] < 1e-35  # what is lost below f32's range on the way, divided by an eps of 1e-8


@pytest.mark.parametrize("name", ["sgd momentum nesterov", "adamw", "lion", "lamb"])
def test_infinite_and_nan_grads(name: str) -> None:
    assert set(special_row(row(name), ("cpu f32", "cpu f32/f32")).values()) == {""}


def test_what_would_be_found() -> None:
    """The checks can fail: of an update that leaves NaN out, and of one that is an ulp off."""
    [(peer, opt)] = peers_of(row("sgd"), "f32", ("cpu f32",)).values()

    def without_nan(step: int, tensors: Any, scalars: Any) -> Any:
        return {
            n: np.nan_to_num(a, nan=0.0, posinf=np.inf, neginf=-np.inf) for n, a in peer(step, tensors, scalars).items()
        }

    def spread(step: int, tensors: Any, scalars: Any) -> Any:
        return {n: np.where(np.isnan(a).any(), np.nan, a) for n, a in peer(step, tensors, scalars).items()}

    assert specials(row("sgd"), without_nan, opt) == "w is finite, not nan, for nan"
    assert "w is nan, not finite, for finite" in specials(row("sgd"), spread, opt)


def test_the_table_has_every_rule() -> None:
    lines = DOC.read_text().partition("## Whole steps")[0].splitlines()  # a table of some rules
    for r in ROWS:
        assert sum(line.startswith(f"| `{r.name}` |") for line in lines) == 3, "run: python tests/exactness.py"
    assert {r.rule for r in ROWS} == set(rule_names())


@pytest.mark.parametrize("rule", ["adamw", "nadam"])
@pytest.mark.parametrize("before", [2**31 - 1, 2**31, 2**40])
def test_steps_beyond_32_bits(device: str, rule: str, before: int) -> None:
    """The step is Python's integer in the state, and a float in the module: nothing wraps around."""
    opt = optgen.compile(rule, target="vulkan" if device == "vulkan" else "cpu", device=device)
    w, g = np.array([1.0, -2.0, 0.5], np.float32), np.array([0.5, 0.25, -4.0], np.float32)
    state = opt.init(w)
    state["step"] = before
    state["v"][:] = 0.25
    exact = row(rule).reference(
        *(x.astype(np.float64) for x in (w, g, state["m"], state["v"])), step=before + 1, lr=0.01,
        **{n: state[n] for n in opt.manifest.scalars},
    )  # fmt: skip
    bound = {n: a.copy() if isinstance(a, np.ndarray) else a for n, a in state.items()}
    w2 = w.copy()
    _, state = opt.step(w, g, state, lr=0.01)
    assert state["step"] == before + 1
    np.testing.assert_allclose(w, exact["w"], rtol=6e-8)
    np.testing.assert_allclose(state["v"], exact["v"], rtol=6e-8)
    step = opt.bind(w2, g, bound)
    step.step(lr=0.01)
    np.testing.assert_array_equal(w2, w)
    assert step.state["step"] == before + 1
