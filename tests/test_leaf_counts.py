"""Leaves that miss grads: their steps are counted as torch counts those of its params, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optgen as og
from optgen.errors import TreeError

NAMES = ("a", "b", "c")
CLASSES = {
    "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam, "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
}  # fmt: skip


def grads(steps: int) -> list[dict[str, Any]]:
    """At some steps some leaves have none, at one nobody has, and one leaf has its first late."""
    rng = np.random.default_rng(7)
    found = []
    for i in range(steps):
        here = {k: rng.standard_normal(3).astype("f") if rng.random() < 0.7 else None for k in NAMES}
        found.append(dict.fromkeys(NAMES) if i == 4 else here | ({"c": None} if i < 6 else {}))
    return found


def torchs(name: str, given: list[dict[str, Any]], each: int = 1) -> dict[str, np.ndarray]:
    params = {k: torch.ones(3, dtype=torch.float64, requires_grad=True) for k in NAMES}
    optimizer = CLASSES[name](list(params.values()), lr=1e-2)
    for i, found in enumerate(given):
        for k, g in found.items():
            if g is not None:
                new = torch.tensor(g.astype("d")) / each
                old = params[k].grad
                params[k].grad = new if old is None else old + new
        if i % each == each - 1:
            optimizer.step()
            optimizer.zero_grad()
    return {k: v.detach().numpy() for k, v in params.items()}


def compare(params: Any, wanted: dict[str, np.ndarray]) -> None:
    for k in NAMES:
        np.testing.assert_allclose(np.asarray(params[k]), wanted[k], atol=1e-6, err_msg=k)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("how", ["numpy", "same grads", "jax", "strided", "saved"])
def test_as_torch_does(name: str, how: str, tmp_path: Path) -> None:
    import jax.numpy as jnp

    opt, given = og.prebuilt(name), grads(16)
    params: dict[str, Any] = {k: np.ones(3, "f") for k in NAMES}
    if how == "strided":
        params = {k: np.ones((3, 2), "f")[:, 0] for k in NAMES}
    if how == "jax":
        params = {k: jnp.ones(3) for k in NAMES}
    state, kept = opt.init(params), {k: np.zeros(3, "f") for k in NAMES}
    for found in given:
        mine = dict(found)
        if how == "same grads":
            for k, g in found.items():
                if g is not None:
                    kept[k][:] = g
                    mine[k] = kept[k]
        params, state = opt.step(params, mine, state, lr=1e-2)
        if how == "saved":
            state = og.load_state(og.save_state(tmp_path / "s.npz", state))
    compare(params, torchs(name, given))
    assert state["step"] == 16
    assert state["leaf_step"]["c"] == sum(found["c"] is not None for found in given)


def test_the_count_is_one_number_while_no_grad_is_missing() -> None:
    opt, params = og.prebuilt("nadam"), {k: np.ones(3, "f") for k in NAMES}
    state = opt.init(params)
    for _ in range(3):
        opt.step(params, {k: np.ones(3, "f") for k in NAMES}, state, lr=0.1)
    assert set(state) == {"step", "m", "v", "mu_product"}


def test_bound_steps_leave_out_and_count_as_steps_do() -> None:
    opt, given = og.prebuilt("nadam"), grads(12)
    params = {k: np.ones(3, "f") for k in NAMES}
    state = opt.init(params)
    for i, found in enumerate(given):
        if i % 2:
            opt.bind(params, found, state).step(lr=1e-2)
        else:
            opt.step(params, found, state, lr=1e-2)
    compare(params, torchs("nadam", given))


def test_a_bound_step_goes_on_with_leaves_that_joined_late() -> None:
    opt, given = og.prebuilt("adam"), grads(9)
    params = {k: np.ones(3, "f") for k in NAMES}
    state = opt.init(params)
    for found in given:
        opt.step(params, found, state, lr=1e-2)
    more = [{k: np.full(3, 0.5 + i, "f") for k in NAMES} for i in range(4)]
    held = {k: np.zeros(3, "f") for k in NAMES}
    bound = opt.bind(params, held, state)
    for found in more:
        for k in NAMES:
            held[k][:] = found[k]
        bound.step(lr=1e-2)
    compare(params, torchs("adam", given + more))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_accumulated_grads_may_be_missing(name: str) -> None:
    opt, given = og.compile(og.chain(og.accumulate(3), name)), grads(15)
    params = {k: np.ones(3, "f") for k in NAMES}
    state = opt.init(params)
    for found in given:
        opt.step(params, found, state, lr=1e-2)
    compare(params, torchs(name, given, each=3))
    assert state["step"] == 5
    assert "unseen" not in state


def test_skipped_updates_are_nobodys_steps() -> None:
    opt = og.compile(og.chain(og.scale_by_loss(1024.0), "nadam"))
    theirs = {k: torch.nn.Parameter(torch.ones(3)) for k in NAMES}
    other, scaler = torch.optim.NAdam(list(theirs.values()), lr=1e-2), torch.amp.GradScaler("cpu", init_scale=1024.0)
    params = {k: np.ones(3, "f") for k in NAMES}
    state = opt.init(params)
    for i, found in enumerate(g for g in grads(20) if any(v is not None for v in g.values())):
        if i in (3, 9):
            found = {k: v if v is None else np.full(3, np.inf, "f") for k, v in found.items()}
        scale = scaler.get_scale()
        scaler.scale(torch.zeros(()))
        for k, g in found.items():
            theirs[k].grad = None if g is None else torch.tensor(g * scale)
        scaler.step(other)
        scaler.update()
        scaled = {k: None if g is None else g * np.float32(state["loss_scale"]) for k, g in found.items()}
        opt.step(params, scaled, state, lr=1e-2)
    compare(params, {k: v.detach().numpy() for k, v in theirs.items()})
    assert state["skipped"] == 2


def test_other_conventions_count_the_tree() -> None:
    opt = og.compile("adamax", convention="keras")
    params = {k: np.ones(3, "f") for k in NAMES}
    state = opt.init(params)
    opt.step(params, {"a": np.ones(3, "f")}, state, lr=0.1)
    assert "leaf_step" not in state


def test_counts_of_leaves_are_checked() -> None:
    opt, params = og.prebuilt("adam"), {"a": np.ones(3, "f")}
    for wrong, message in (
        ({"a": -1}, "whole number of steps"), ({"a": 0.5}, "whole number of steps"), ({"z": 1}, "must have paths of"),
    ):  # fmt: skip
        state = opt.init(params) | {"leaf_step": wrong}
        with pytest.raises(TreeError, match=message):
            opt.step(params, {"a": np.ones(3, "f")}, state, lr=0.1)
    assert params["a"].tolist() == [1, 1, 1]
