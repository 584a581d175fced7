"""Hyperparameters for leaves by patterns of their paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import optgen as og
from optgen.artifact import Manifest
from optgen.cli.app import app
from optgen.errors import HyperparameterError

GROUPS = {"*.bias": {"weight_decay": 0.0}, "head.*": {"lr": 0.5, "weight_decay": 0.3}, "*/slow*": {"lr_scale": 0.1}}


@pytest.fixture(scope="module")
def opt() -> og.Optimizer:
    return og.compile("adamw", groups=GROUPS, weight_decay=0.1)


def tree(rng: np.random.Generator) -> dict[str, Any]:
    def layer() -> dict[str, np.ndarray]:
        return {n: rng.standard_normal(5).astype(np.float32) for n in ("weight", "bias", "slow")}

    return {"body": layer(), "head": layer(), "bias": rng.standard_normal(3).astype(np.float32)}


#: What each leaf's lr and weight decay are when a step is given lr=0.1.
WANTED = {
    "body/weight": (0.1, 0.1), "body/bias": (0.1, 0.0), "body/slow": (0.01, 0.1), "head/weight": (0.5, 0.3),
    "head/bias": (0.5, 0.0), "head/slow": (0.05, 0.3), "bias": (0.1, 0.1),
}  # fmt: skip


def expected(params: Any, grads: Any) -> dict[str, Any]:
    """By an optimizer without groups, leaf by leaf."""
    plain = og.prebuilt("adamw")
    twin = {k: {n: v.copy() for n, v in x.items()} if isinstance(x, dict) else x.copy() for k, x in params.items()}
    state = plain.init(twin)
    by_leaf = [
        {k: {n: WANTED[f"{k}/{n}"][i] for n in x} if isinstance(x, dict) else WANTED[k][i] for k, x in params.items()}
        for i in (0, 1)
    ]
    for _ in range(3):
        plain.step(twin, grads, state, lr=by_leaf[0], weight_decay=by_leaf[1])
    return twin


def same(a: Any, b: Any) -> None:
    for k, x in a.items():
        for n in x if isinstance(x, dict) else [None]:
            np.testing.assert_array_equal(x if n is None else x[n], b[k] if n is None else b[k][n], err_msg=f"{k}/{n}")


@pytest.mark.parametrize("how", ["step", "bind", "loaded", "jax", "given"])
def test_groups(opt: og.Optimizer, how: str, rng: np.random.Generator, tmp_path: Path) -> None:
    params, grads = tree(rng), tree(rng)
    want = expected(params, grads)
    if how == "loaded":
        opt = og.load(opt.save(tmp_path / "g.optgen"))
    elif how == "given":
        opt = og.prebuilt("adamw", groups=GROUPS, weight_decay=0.1)
    if how == "jax":
        import jax

        params, grads = jax.tree.map(jax.numpy.asarray, (params, grads))
    state = opt.init(params)
    if how == "bind":
        bound = opt.bind(params, grads, state)
    for _ in range(3):
        if how == "bind":
            bound.step(lr=0.1)
        else:
            params, state = opt.step(params, grads, state, lr=0.1)
    same(params, want)


def test_steps_are_recalled(opt: og.Optimizer, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    params, grads = tree(rng), tree(rng)
    want = expected(params, grads)
    state = opt.init(params)
    opt.step(params, grads, state, lr=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(opt, "_collect", lambda trees: pytest.fail("collected again"))
        for _ in range(2):
            opt.step(params, grads, state, lr=0.1)
    same(params, want)


def test_trees_are_more_particular_than_groups(opt: og.Optimizer) -> None:
    params = {"head": {"w": np.ones(1, np.float32), "bias": np.ones(1, np.float32)}}
    grads = {"head": {k: np.ones(1, np.float32) for k in params["head"]}}
    opt.step(params, grads, opt.init(params), lr={"head": {"w": 0.0, "bias": 0.25}}, weight_decay=0.7)
    assert params["head"]["w"].tolist() == [1.0]  # no lr
    assert params["head"]["bias"].tolist() == pytest.approx([0.75])  # and no weight decay, which is the group's


def test_state_starts_as_groups_say() -> None:
    opt = og.compile("adagrad", convention="keras", groups={"b": {"initial_accumulator_value": 0.5}})
    params = {k: np.ones(2, np.float32) for k in "ab"}
    assert [float(opt.init(params)["s"][k][0]) for k in "ab"] == [pytest.approx(0.1), 0.5]
    assert [float(opt.init(params, initial_accumulator_value=0.2)["s"][k][0]) for k in "ab"] == [
        pytest.approx(0.2), 0.5,
    ]  # fmt: skip


def test_the_norm_is_that_of_all_groups(rng: np.random.Generator) -> None:
    opt = og.compile(og.chain(og.clip_by_global_norm(1.0), "sgd"), groups={"b": {"lr": 0.5}})
    params, grads = ({k: rng.standard_normal(9).astype(np.float32) for k in "abc"} for _ in "pg")
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads.values()))
    want = {k: v - (0.5 if k == "b" else 0.1) / norm * grads[k] for k, v in params.items()}
    opt.step(params, grads, opt.init(params), lr=0.1)
    for k, v in want.items():
        np.testing.assert_allclose(params[k], v, rtol=1e-6, atol=1e-7)


def test_manifest(opt: og.Optimizer, tmp_path: Path) -> None:
    import json

    manifest = Manifest.from_json(opt.manifest.to_json())
    assert manifest == opt.manifest
    assert list(manifest.groups) == list(GROUPS)
    assert "*.bias: weight_decay=0" in CliRunner().invoke(app, ["inspect", str(opt.save(tmp_path / "g.optgen"))]).output
    data = json.loads(opt.manifest.to_json())
    for name in ("groups", "common", "micro"):
        del data[name]
    old = Manifest.from_json(json.dumps(data))
    assert (old.groups, old.common, old.micro) == ({}, (), None)
    data["scalars"] = {"x": 1.0}
    assert "lr" in Manifest.from_json(json.dumps(data)).common


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ({"*": {"lr": -1}}, "'lr' must be at least 0"),
        ({"*": {"step": 1}}, r"'step' of group '\*' must not be given"),
        ({"*": {"beta": 1}}, "no hyperparameter 'beta'"),
        ({"*": 0.1}, "must map patterns of paths to dicts"),
        ({"*": {"lr_scale": "x"}}, "'lr_scale' must be a number"),
    ],
)
def test_wrong_groups(groups: Any, text: str) -> None:
    with pytest.raises(HyperparameterError, match=text):
        og.prebuilt("adamw", groups=groups)


def test_what_scalar_state_depends_on_is_the_same_for_all(rng: np.random.Generator) -> None:
    with pytest.raises(HyperparameterError, match="'beta1' of group 'b' must not be given: it must be one number"):
        og.compile("nadam", groups={"b": {"beta1": 0.5}})
    opt = og.compile("nadam", groups={"b": {"lr": 0.5}})
    params, grads = ({k: np.ones(2, np.float32) for k in "ab"} for _ in "pg")
    state = opt.init(params)
    opt.step(params, grads, state, lr=0.0)
    assert params["a"][0] == 1
    assert params["b"][0] < 0.9
    assert 0 < state["mu_product"] < 1


def test_transformations_have_groups_of_their_own() -> None:
    import optax

    with pytest.raises(HyperparameterError, match="'groups' must not be given with an optax transformation"):
        og.compile(optax.sgd(0.1), like=np.ones(2, np.float32), groups={"*": {"lr": 1}})
