"""optax transformations as rules: every one of them against optax itself, and what surrounds them."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax_catalogue as catalogue
import pytest

import optgen as og
from optgen.artifact.transform import TransformBundle
from optgen.errors import (
    BundleError,
    HyperparameterError,
    LeafError,
    LoweringError,
    OverlapError,
    RuleError,
    TreeError,
    UnsupportedTargetError,
)
from optgen.lower.split import split_update
from optgen.runtime import TreeOptimizer

#: Of a param after any of 20 steps, relative to the larger of 1 and the param. Both compute in f32 and order sums
#: differently; the largest that was seen is 6.5e-7.
TOLERANCE = 2e-6
#: Of the state, likewise. Reciprocals of small moments are where most of it comes from.
STATE_TOLERANCE = 2e-5

WORKING = [e for e in catalogue.ENTRIES if not e.fails]
REFUSED = [e for e in catalogue.ENTRIES if e.fails]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@functools.cache
def bundle_of(entry: catalogue.Entry, target: str, **settings: Any) -> TransformBundle:
    optimizer: TreeOptimizer = og.compile(
        entry.make(),
        entry.wrap(catalogue.params()),
        target=target,
        extra_args=entry.extra,
        grads_like=catalogue.grads(0, entry.examples),
        **settings,
    )
    return optimizer.bundle


def compile_entry(
    entry: catalogue.Entry, target: str = "cpu", device: str | None = None, **settings: Any
) -> TreeOptimizer:
    return TreeOptimizer(bundle_of(entry, target, **settings), device)


def entry_of(name: str) -> catalogue.Entry:
    return next(e for e in catalogue.ENTRIES if e.name == name)


@pytest.mark.parametrize("entry", WORKING, ids=lambda e: e.name)
def test_twenty_steps_are_those_of_optax(entry: catalogue.Entry) -> None:
    optimizer = compile_entry(entry)
    found = catalogue.compare(entry, optimizer)
    assert found.deviation <= TOLERANCE
    assert found.state <= STATE_TOLERANCE
    assert found.moved > 0 or entry.name in ("set_to_zero()", "selective_transform(adam, freeze_mask=...)")
    for kernel in optimizer.manifest.kernels:
        assert all(module.in_place and module.copies == 0 for module in kernel.modules)


@pytest.mark.parametrize("entry", REFUSED, ids=lambda e: e.name)
def test_what_cannot_be_compiled_says_why(entry: catalogue.Entry) -> None:
    with pytest.raises((RuleError, LoweringError), match=entry.fails) as caught:
        compile_entry(entry, name="mine")
    assert str(caught.value).startswith("'mine'")
    assert "\n" not in str(caught.value)


# Which leaves are updated in place is a promise of its own.

IN_PLACE = ["adamw(1e-2)", "lamb(1e-2)", "chain(clip_by_global_norm(1.0), adamw(schedule))", "MultiSteps(adam, 3)",
            "apply_if_finite(adam, 3)", "partition({bias: sgd, rest: adamw})", "lookahead(sgd, 5, 0.5)",
            "inject_hyperparams(adamw)", "contrib.prodigy()", "adam(1e-2, mu_dtype=bfloat16)"]  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
def test_elementwise_updates_run_in_place(name: str) -> None:
    manifest = compile_entry(entry_of(name)).manifest
    assert manifest.out_of_place == {}
    assert {i for i in manifest.writes if manifest.arguments[i].shape} >= set(manifest.in_place)
    assert {i for i, a in enumerate(manifest.arguments) if a.tree == "params"} <= set(manifest.in_place)


@pytest.mark.parametrize(
    ("name", "outside"),
    [("contrib.muon(1e-2)", {"params/dense/w"}), ("centralize()", {"params/dense/w"})],
)
def test_only_leaves_that_need_it_are_out_of_place(name: str, outside: set[str]) -> None:
    manifest = compile_entry(entry_of(name)).manifest
    assert set(manifest.out_of_place) == outside
    assert all(manifest.out_of_place.values())


def test_the_head_reads_before_anything_is_written() -> None:
    # Every new leaf needs the old values of others: the swap and the norm are wrong if one is overwritten too early.
    def init(params: Any) -> Any:
        return {"other": jax.tree.map(jnp.zeros_like, params)}

    def update(updates: Any, state: Any, params: Any) -> Any:
        norm = jnp.sqrt(sum(jnp.sum(p * p) for p in jax.tree.leaves(params)))
        swapped = jax.tree.map(lambda p, o, u: o - p + u / norm, params, state["other"], updates)
        turned = jax.tree.map(lambda p: jnp.flip(p, 0) / norm, params)
        return swapped, {"other": turned}

    transformation = optax.GradientTransformation(init, update)
    entry = catalogue.Entry("swap", lambda: transformation, "")
    for settings in ({}, {"in_place": False}):
        optimizer = og.compile(transformation, catalogue.params(), **settings)
        found = catalogue.compare(entry, optimizer)
        assert found.deviation <= 1e-5
        assert found.state <= 1e-5
        assert bool(optimizer.manifest.in_place) == (settings == {})


def test_leaves_that_are_exchanged_are_exchanged() -> None:
    def update(updates: Any, state: Any, params: Any) -> Any:
        return {"a": params["b"] - params["a"], "b": params["a"] - params["b"]}, state

    params = {"a": np.arange(5, dtype=np.float32), "b": np.full(5, 7, np.float32)}
    grads = {"a": np.zeros(5, np.float32), "b": np.zeros(5, np.float32)}
    optimizer = og.compile(optax.GradientTransformation(lambda p: (), update), params)
    assert len(optimizer.manifest.in_place) == 2
    optimizer.step(params, grads, optimizer.init(params))
    assert params["a"].tolist() == [7] * 5
    assert params["b"].tolist() == [0, 1, 2, 3, 4]


def test_in_place_and_out_of_place_agree() -> None:
    entry = entry_of("chain(clip_by_global_norm(1.0), adamw(schedule))")
    inside, outside = compile_entry(entry), compile_entry(entry, in_place=False)
    assert not outside.manifest.kernels
    results = []
    for optimizer in (inside, outside):
        params = catalogue.params()
        state = optimizer.init(params)
        for step in range(5):
            params, state = optimizer.step(params, catalogue.grads(step), state)
        results.append(catalogue.by_path({"params": params, "state": state}))
    for path, value in results[0].items():
        np.testing.assert_allclose(value, results[1][path], rtol=1e-6, atol=1e-7, err_msg=path)


# The state.


def test_the_state_mirrors_that_of_optax() -> None:
    transformation = optax.chain(optax.clip(1.0), optax.adam(1e-2))
    optimizer = og.compile(transformation, catalogue.params())
    state = optimizer.init(catalogue.params())
    assert list(state[1][0]) == ["count", "mu", "nu"]
    assert state[1][0]["count"].dtype == np.int32
    assert state[1][0]["mu"]["dense"]["w"].shape == (8, 6)
    assert state[0] == {}
    expected = catalogue.by_path(transformation.init(catalogue.params()))
    assert catalogue.by_path(state).keys() == expected.keys()


def test_initial_state_that_depends_on_the_params_is_computed_from_them() -> None:
    def init(params: Any) -> Any:
        return {"copy": params, "norm": jax.tree.map(jnp.linalg.norm, params), "half": jax.tree.map(
            lambda p: p.astype(jnp.bfloat16), params), "key": jax.random.key(3), "line": jnp.arange(4.0)}  # fmt: skip

    transformation = optax.GradientTransformation(init, lambda u, s, p: (u, s))
    optimizer = og.compile(transformation, catalogue.params())
    kinds = {i.kind for i in optimizer.manifest.initial}
    assert kinds == {"copy", "computed", "stored"}
    params = jax.tree.map(lambda p: 3 * p, catalogue.params())
    state, expected = catalogue.by_path(optimizer.init(params)), catalogue.by_path(init(params))
    assert state.keys() == expected.keys()
    for path, value in expected.items():
        assert state[path].dtype == value.dtype
        np.testing.assert_allclose(state[path].astype(np.float64), value.astype(np.float64), rtol=1e-6, err_msg=path)
    assert not np.shares_memory(state["copy/scale"], params["scale"])


def test_injected_hyperparameters_are_set_in_the_state() -> None:
    transformation = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2, weight_decay=0.1)
    params = catalogue.params()
    optimizer, theirs = og.compile(transformation, params), catalogue.params()
    state, their_state = optimizer.init(params), transformation.init(params)
    step = jax.jit(lambda *args: catalogue.reference(transformation, *args))
    for index in range(20):
        rate = 1e-2 / (index + 1)
        state["hyperparams"]["learning_rate"] = rate if index % 2 else np.array(rate, np.float32)
        their_state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        params, state = optimizer.step(params, catalogue.grads(index), state)
        theirs, their_state = step(theirs, catalogue.grads(index), their_state)
    expected = catalogue.by_path(theirs)
    for path, value in catalogue.by_path(params).items():
        np.testing.assert_allclose(value, expected[path], rtol=TOLERANCE, atol=TOLERANCE)
    with pytest.raises(LeafError, match="'hyperparams/learning_rate' must have shape"):
        optimizer.step(params, catalogue.grads(0), {**state, "hyperparams": {
            **state["hyperparams"], "learning_rate": np.ones(2, np.float32)}})  # fmt: skip


def test_state_goes_through_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    entry = entry_of("apply_if_finite(adam, 3)")
    optimizer = compile_entry(entry)
    params = catalogue.params()
    state = optimizer.init(params)
    for index in range(3):
        optimizer.step(params, catalogue.grads(index), state)
    flat = catalogue.by_path({"params": params, "state": state})
    save_file(flat, tmp_path / "at3.safetensors")
    loaded = load_file(tmp_path / "at3.safetensors")
    resumed, resumed_state = catalogue.params(), optimizer.init(params)
    for tree, name in ((resumed, "params"), (resumed_state, "state")):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            leaf[...] = loaded["/".join([name, *(str(getattr(k, "key", getattr(k, "idx", ""))) for k in path)])]
    for index in range(3, 6):
        optimizer.step(params, catalogue.grads(index), state)
        optimizer.step(resumed, catalogue.grads(index), resumed_state)
    for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves((resumed, resumed_state)), strict=True):
        np.testing.assert_array_equal(a, b)


# Without JAX, optax and the compiler.

WITHOUT = """
    import sys

    class Refuse:
        def find_spec(self, name, *_):
            if name.partition(".")[0] in ("jax", "jaxlib", "optax", "jinja2") or name == "iree.compiler":
                raise ImportError(f"{name} is not to be imported here")

    sys.meta_path.insert(0, Refuse())
    import numpy as np
    import optgen

    folder = sys.argv[1]
    for name in ("mixed", "noise", "file.optgen"):
        optimizer = optgen.load(f"{folder}/{name}")
        data = np.load(f"{folder}/data.npz")
        params = {"dense": {"w": data["dense/w"], "b": data["dense/b"]}, "scale": data["scale"]}
        state = optimizer.init(params)
        for i in range(int(data["steps"])):
            grads = {"dense": {"w": data[f"{i}/dense/w"], "b": data[f"{i}/dense/b"]}, "scale": data[f"{i}/scale"]}
            params, state = optimizer.step(params, grads, state)
        name = name.partition(".")[0]
        np.savez(f"{folder}/{name}.npz", **{"dense/w": params["dense"]["w"], "dense/b": params["dense"]["b"],
                                            "scale": params["scale"]})
"""


def test_bundles_run_where_neither_jax_nor_optax_can_be_imported(tmp_path: Path) -> None:
    steps = 6
    names = {
        "mixed": "contrib.muon(1e-2)",
        "noise": "add_noise(0.1, 0.5, key)",
        "file.optgen": "contrib.schedule_free_adamw(1e-2)",
    }
    for file, name in names.items():
        compile_entry(entry_of(name)).save(tmp_path / file)
    grads = {f"{i}/{p}": v for i in range(steps) for p, v in catalogue.by_path(catalogue.grads(i)).items()}
    np.savez(tmp_path / "data.npz", steps=steps, **catalogue.by_path(catalogue.params()), **grads)
    subprocess.run([sys.executable, "-c", textwrap.dedent(WITHOUT), str(tmp_path)], check=True)
    for file, name in names.items():
        transformation = entry_of(name).make()
        theirs, state = catalogue.params(), transformation.init(catalogue.params())
        step = jax.jit(lambda *args, t=transformation: catalogue.reference(t, *args))
        for index in range(steps):
            theirs, state = step(theirs, catalogue.grads(index), state)
        expected = catalogue.by_path(theirs)
        with np.load(tmp_path / f"{file.partition('.')[0]}.npz") as found:
            for path in found.files:
                np.testing.assert_allclose(found[path], expected[path], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    optimizer = compile_entry(entry_of("adamw(1e-2)"))
    optimizer.save(tmp_path / "bundle")
    file = tmp_path / "bundle" / optimizer.manifest.kernels[0].modules[0].file
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="SHA-256"):
        og.load(tmp_path / "bundle")
    optimizer.save(tmp_path / "other")
    with pytest.raises(HyperparameterError, match="'lr' must not be given"):
        og.load(tmp_path / "other", lr=0.1)
    with pytest.raises(BundleError, match="an optax transformation, not an optimizer rule"):
        og.read_bundle(tmp_path / "other")
    assert og.load(tmp_path / "other").manifest == optimizer.manifest


def test_equal_compilations_are_equal_bundles(tmp_path: Path) -> None:
    for name in ("one.optgen", "two.optgen"):
        compile_entry(entry_of("contrib.muon(1e-2)")).save(tmp_path / name)
    assert (tmp_path / "one.optgen").read_bytes() == (tmp_path / "two.optgen").read_bytes()


# Devices, dtypes, kinds of array.

# All of the catalogue is in docs/optax.md; these have between them: a global norm, norms of leaves, branches that
# become selects and one that stays, counts, random bits, factors, products of matrices, leaves joined to one, 16-bit
# state, a schedule of powers and cosines, and state whose first values a module fills in that has no kernels.
ON_VULKAN = ["chain(clip_by_global_norm(1.0), adamw(schedule))", "lamb(1e-2)", "MultiSteps(adam, 3)",
             "apply_if_finite(noisy_sgd, 3)", "add_noise(0.1, 0.5, key)", "adafactor(1e-2, min_dim_size_to_factor=4)",
             "contrib.muon(1e-2)", "flatten(adam)", "adam(1e-2, mu_dtype=bfloat16)",
             "scale_by_schedule(cosine_onecycle)", "adagrad(1e-1)"]  # fmt: skip


@pytest.mark.parametrize("name", ON_VULKAN)
def test_on_vulkan(name: str, vulkan: str) -> None:
    entry = entry_of(name)
    optimizer = compile_entry(entry, vulkan, device=vulkan)
    found = catalogue.compare(entry, optimizer)
    assert found.deviation <= 1e-5
    assert found.state <= 1e-4


def test_one_bundle_for_several_targets(vulkan: str) -> None:
    entry = entry_of("clip_by_global_norm(1.0)")
    optimizer = og.compile(entry.make(), catalogue.params(), target=["cpu", vulkan])
    for device in ("local-sync", "local-task", vulkan):
        assert catalogue.compare(entry, TreeOptimizer(optimizer.bundle, device), 3).deviation <= TOLERANCE


def test_what_vulkan_lacks_is_refused() -> None:
    wide = np.ones(3, np.float64)
    with pytest.raises(UnsupportedTargetError, match="f64"):
        og.compile(optax.adam(1e-2), wide, target="vulkan")
    with pytest.raises(UnsupportedTargetError, match="must not reduce more than 21845"):
        og.compile(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), np.ones(70_000, np.float32),
                   target="vulkan")  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("bfloat16", 2e-2), ("float16", 3e-3)])
def test_other_dtypes(dtype: str, tolerance: float) -> None:
    # In f16 Adam's squares of grads underflow, in optax as here, and what is left is noise.
    last = optax.adamw(1e-2) if dtype == "float64" else optax.sgd(1e-2, momentum=0.9)
    transformation = optax.chain(optax.clip_by_global_norm(1.0), last)
    with jax.enable_x64(dtype == "float64"):
        params = {k: np.array(jnp.asarray(v, dtype)) for k, v in catalogue.params()["dense"].items()}
        optimizer = og.compile(transformation, params)
        theirs = jax.tree.map(jnp.asarray, params)
        state, their_state = optimizer.init(params), transformation.init(theirs)
        step = jax.jit(lambda *args: catalogue.reference(transformation, *args))
        for index in range(20):
            grads = {k: np.asarray(jnp.asarray(v, dtype)) for k, v in catalogue.grads(index)["dense"].items()}
            params, state = optimizer.step(params, grads, state)
            theirs, their_state = step(theirs, grads, their_state)
        for path, value in params.items():
            np.testing.assert_allclose(value.astype(np.float64), np.asarray(theirs[path], np.float64), atol=tolerance)
    assert optimizer.manifest.out_of_place == {}


def test_torch_jax_and_strided_arrays() -> None:
    torch = pytest.importorskip("torch")
    transformation = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    start, optimizer = catalogue.params(), og.compile(transformation, catalogue.params())
    wide = jax.tree.map(lambda p: np.repeat(p[..., None], 2, -1)[..., 0], start)
    kinds = {
        "numpy": jax.tree.map(np.copy, start),
        "torch": jax.tree.map(lambda p: torch.from_numpy(p.copy()), start),
        "jax": jax.tree.map(jnp.asarray, start),
        "strided": wide,
    }
    results = {}
    for kind, params in kinds.items():
        state = optimizer.init(params)
        kept, first = params, params
        for index in range(3):
            params, state = optimizer.step(params, catalogue.grads(index), state)
        results[kind] = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        assert (params is kept) == (kind != "jax")
        if kind == "jax":
            assert np.array_equal(first["scale"], start["scale"])
        if kind == "torch":
            assert params["scale"]._version > 0
    for kind in ("torch", "jax", "strided"):
        for a, b in zip(results[kind], results["numpy"], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_bound_step_is_a_step() -> None:
    for name in ("chain(clip_by_global_norm(1.0), adamw(schedule))", "apply_if_finite(adam, 3)", "contrib.muon(1e-2)"):
        optimizer = compile_entry(entry_of(name))
        trees = []
        for bound in (False, True):
            params, grads = catalogue.params(), catalogue.grads(0)
            state = optimizer.init(params)
            prepared = optimizer.bind(params, grads, state) if bound else None
            for index in range(4):
                for mine, new in zip(jax.tree.leaves(grads), jax.tree.leaves(catalogue.grads(index)), strict=True):
                    mine[...] = new
                if prepared:
                    prepared.step()
                else:
                    optimizer.step(params, grads, state)
            trees.append((params, state))
        for a, b in zip(jax.tree.leaves(trees[0]), jax.tree.leaves(trees[1]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_remembered_steps_do_not_keep_arrays_alive() -> None:
    import gc
    import weakref

    optimizer = compile_entry(entry_of("adamw(1e-2)"))
    params, grads = catalogue.params(), catalogue.grads(0)
    state = optimizer.init(params)
    for _ in range(3):
        optimizer.step(params, grads, state)
    references = [weakref.ref(leaf) for leaf in jax.tree.leaves((params, grads, state))]
    del params, grads, state
    gc.collect()
    assert all(reference() is None for reference in references)
    params = catalogue.params()
    optimizer.step(params, catalogue.grads(0), optimizer.init(params))
    assert not np.array_equal(params["scale"], catalogue.params()["scale"])


# What is wrong is said before anything is changed.


def test_wrong_trees_are_refused_and_nothing_is_changed() -> None:
    optimizer = compile_entry(entry_of("chain(clip_by_global_norm(1.0), adamw(schedule))"), name="mine")
    params, grads = catalogue.params(), catalogue.grads(0)
    state = optimizer.init(params)
    readonly = {**params, "scale": params["scale"].copy()}
    readonly["scale"].flags.writeable = False
    cases: list[tuple[Any, Any, Any, type[Exception], str]] = [
        ({**params, "more": params["scale"]}, grads, state, TreeError, "'params' of 'mine' must not have .*'more'"),
        (params, {"dense": grads["dense"]}, state, TreeError, "'grads' of 'mine' must have the leaf 'scale'"),
        (params, {**grads, "scale": grads["scale"][:3]}, state, LeafError, r"'scale' must have shape \(5,\)"),
        (params, {**grads, "scale": grads["scale"].astype(np.float64)}, state, LeafError, "must have dtype f32"),
        (readonly, grads, state, LeafError, "'scale' must be writable"),
        (params, {**grads, "scale": params["scale"]}, state, OverlapError, "share memory"),
        (params, grads, {}, TreeError, "'state' of 'mine' must have the leaf"),
    ]  # fmt: skip
    before = [leaf.copy() for leaf in jax.tree.leaves((params, state))]
    for *trees, error, words in cases:
        with pytest.raises(error, match=words):
            optimizer.step(*trees)
    with pytest.raises(TreeError, match="has no extra argument 'lr'"):
        optimizer.step(params, grads, state, lr=0.1)
    for a, b in zip(before, jax.tree.leaves((params, state)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_compile_says_what_is_wrong() -> None:
    with pytest.raises(LeafError, match="'like' must be given"):
        og.compile(optax.adam(1e-2))
    with pytest.raises(HyperparameterError, match="'lr' must not be given with an optax transformation"):
        og.compile(optax.adam(1e-2), catalogue.params(), lr=0.1)
    with pytest.raises(LeafError, match="'x' must be an array"):
        og.compile(optax.adam(1e-2), {"x": "text"})
    growing = optax.GradientTransformation(lambda p: jnp.ones(1), lambda u, s, p: (u, jnp.concatenate([s, s])))
    with pytest.raises(RuleError, match="must keep the shapes of its state"):
        og.compile(growing, catalogue.params())
    branching = optax.GradientTransformation(lambda p: (), lambda u, s, p: (u if p["scale"][0] > 0 else p, s))
    with pytest.raises(RuleError, match="'odd' cannot be traced by JAX in update: Attempted boolean conversion"):
        og.compile(branching, catalogue.params(), name="odd")


def test_extra_arguments_are_given_at_each_step() -> None:
    entry = entry_of("polyak_sgd(), extra_args value")
    optimizer = compile_entry(entry, name="polyak")
    assert optimizer.extra_args == ("value",)
    params = catalogue.params()
    with pytest.raises(TreeError, match="'value' must be given"):
        optimizer.step(params, catalogue.grads(0), optimizer.init(params))
    transformation = entry.make()
    theirs, state, their_state = catalogue.params(), optimizer.init(params), transformation.init(params)
    for index, loss in enumerate((2.0, np.float32(1.5), np.array(0.25, np.float32))):
        params, state = optimizer.step(params, catalogue.grads(index), state, value=loss)
        theirs, their_state = catalogue.reference(
            transformation, theirs, catalogue.grads(index), their_state, value=jnp.float32(loss)
        )
    for path, value in catalogue.by_path(theirs).items():
        np.testing.assert_allclose(catalogue.by_path(params)[path], value, rtol=TOLERANCE, atol=TOLERANCE)


def test_sums_of_large_leaves_are_exact() -> None:
    # In f32, one after the other, this sum is off by 4e-4.
    grads = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)
    params = np.zeros_like(grads)
    optimizer = og.compile(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), params)
    optimizer.step(params, grads, optimizer.init(params))
    exact = grads / np.linalg.norm(grads.astype(np.float64))
    np.testing.assert_allclose(-params, exact, rtol=5e-7)


def test_params_that_are_single_numbers() -> None:
    transformation = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    params = {"temperature": np.array(2, np.float32), "one": np.ones(1, np.float32), "w": np.ones((2, 1), np.float32)}
    optimizer, theirs = og.compile(transformation, params), jax.tree.map(jnp.asarray, params)
    state, their_state = optimizer.init(params), transformation.init(theirs)
    for index in range(5):
        grads = jax.tree.map(lambda p, i=index: np.full_like(p, i - 1.5), params)
        params, state = optimizer.step(params, grads, state)
        theirs, their_state = catalogue.reference(transformation, theirs, grads, their_state)
    for path, value in catalogue.by_path(theirs).items():
        np.testing.assert_allclose(catalogue.by_path(params)[path], value, rtol=TOLERANCE)


def test_leaves_with_the_same_arithmetic_share_a_kernel() -> None:
    params = {f"layer{i}": np.ones((i + 2, 3), np.float32) for i in range(30)}
    optimizer = og.compile(optax.adamw(1e-2), params)
    assert len(optimizer.manifest.kernels) == 1
    assert len(optimizer.manifest.calls) == 1
    assert len(optimizer.manifest.calls[0].leaves) == 30


def test_the_split_of_a_plain_update_has_no_head() -> None:
    text = """
    func.func public @main(%w: tensor<3xf32>, %g: tensor<3xf32>) -> tensor<3xf32> {
      %0 = stablehlo.subtract %w, %g : tensor<3xf32>
      return %0 : tensor<3xf32>
    }"""
    split = split_update(text, (0,))
    assert split.head is None
    assert split.bodies[0].tensors == (("f32", "param"), ("f32", "input"))
    assert split.uses[0].tensors == (0, 1)


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "optax.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "optax.md", "exec"), found)
    assert found["state"][1]["count"] == 1
    before = found["params"]["w"].copy()
    found["params"], found["state"] = found["opt"].step(found["params"], found["grads"], found["state"])
    assert 0 < np.abs(found["params"]["w"] - before).max() < 3e-4  # by the rate that was set


def test_the_docs_table_is_that_of_the_catalogue() -> None:
    text = (Path(__file__).parent.parent / "docs" / "optax.md").read_text()
    for entry in catalogue.ENTRIES:
        line = next((each for each in text.splitlines() if each.startswith(f"| `{entry.name}` |")), None)
        assert line is not None, f"run tests/optax_table.py: {entry.name} is not in docs/optax.md"
        on_vulkan = line.split("|")[4].strip()
        assert (on_vulkan == "refused") if entry.fails else (float(on_vulkan.split()[0]) <= 1e-5), entry.name
