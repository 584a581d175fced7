"""The functional API: kinds, shapes, dtypes, memory, numbers and refusals."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optgen
from optgen import Array, Container
from optgen.arrays import engine
from optgen.dtypes import to_float64, ulp
from optgen.errors import HyperparameterError, LeafError, OverlapError, TreeError

MAKE: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": lambda a: a.copy(),
    "torch": lambda a: torch.from_numpy(a.copy()),
    "jax": jnp.asarray,
    "array": optgen.array,
    "container": lambda a: Container(a=optgen.array(a), b={"c": optgen.array(a)}),
    "dict": lambda a: {"a": a.copy(), "b": {"c": torch.from_numpy(a.copy())}},
}
TYPES = {
    "numpy": np.ndarray, "torch": torch.Tensor, "jax": jax.Array, "array": Array, "container": Container, "dict": dict,
}  # fmt: skip

NUMPY_DTYPES = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def values(x: Any) -> np.ndarray:
    """An array of any kind as float64."""
    if isinstance(x, torch.Tensor):
        return x.detach().to(torch.float64).numpy()
    return np.asarray(x).astype(np.float64)


def first(x: Any) -> Any:
    return x["a"] if isinstance(x, dict) else x


def last(x: Any) -> Any:
    return x["b"]["c"] if isinstance(x, dict) else x


def tensors(rng: np.random.Generator, shape: tuple[int, ...] = (3, 5), dtype: Any = np.float32) -> list[np.ndarray]:
    w, g, m, v = (rng.standard_normal(shape) for _ in range(4))
    state = np.float64 if dtype == np.float64 else np.float32
    return [w.astype(dtype), g.astype(dtype), (0.1 * m).astype(state), (0.01 * v * v).astype(state)]


def expected_adam(arrays: Any, lr: Any, step: int, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-7):  # type: ignore[no-untyped-def]
    """Value and largest term of w, m and v, in float64."""
    wide = np.broadcast_arrays(*[np.asarray(a).astype(np.float64) for a in arrays])
    found = reference.adam(*wide, lr=lr, step=step, beta1=beta1, beta2=beta2, eps=epsilon, ivy=True)
    return [found[n] for n in ("w", "m", "v")]


def check(result: Any, expected: Any, dtype: str = "f32", ulps: float = 2.0) -> None:
    value, term = expected
    got = values(result)
    shape = got.shape
    index = tuple(slice(None) if a == b else slice(0, 1) for a, b in zip(value.shape[value.ndim - len(shape) :], shape))  # noqa: B905
    value, term = (x[(0,) * (x.ndim - len(shape))][index] for x in (value, term))
    error = np.abs(got - value) / ulp(np.maximum(np.abs(term), np.abs(value)), dtype)
    assert np.max(error, initial=0.0) <= ulps, f"{np.max(error)} ulp"


# Kinds.


@pytest.mark.parametrize("kind", MAKE)
def test_the_kind_that_comes_in_comes_out(kind: str, rng: np.random.Generator) -> None:
    arrays = tensors(rng)
    w, g, m, v = (MAKE[kind](a) for a in arrays)
    new = optgen.adam_update(w, g, 0.1, m, v, 3)
    for result, expected in zip(new, expected_adam(arrays, 0.1, 3), strict=True):
        assert isinstance(result, TYPES[kind])
        check(first(result), expected)
        check(last(result), expected)
    if kind == "dict":
        assert isinstance(new[0]["a"], np.ndarray)
        assert isinstance(new[0]["b"]["c"], torch.Tensor)
    stepped = optgen.adam_step(g, m, v, 3)
    assert all(isinstance(result, TYPES[kind]) for result in stepped)
    moved = optgen.optimizer_update(w, stepped[0], 0.1)
    assert isinstance(moved, TYPES[kind])
    np.testing.assert_allclose(values(last(moved)), values(last(new[0])), rtol=1e-6, atol=1e-7)
    for untouched, array in zip((w, g, m, v), arrays, strict=True):
        np.testing.assert_array_equal(values(last(untouched)), array.astype(np.float64))


def test_each_result_has_the_kind_of_what_it_replaces(rng: np.random.Generator) -> None:
    w, g, m, v = tensors(rng)
    new = optgen.adam_update(torch.from_numpy(w), jnp.asarray(g), 0.1, m, optgen.array(v), 1)
    assert [type(x) for x in new] == [torch.Tensor, np.ndarray, Array]
    delta, *_ = optgen.adam_step(jnp.asarray(g), m, v, 1)
    assert isinstance(delta, jax.Array)


def test_numbers_and_lists_take_the_dtype_that_is_needed() -> None:
    w = np.array([1.0, 2.0])
    new = optgen.adam_update(w, [0.5, 0.25], 0.1, 0.0, [0.0, 0.0], 1)
    assert [x.dtype for x in new] == [np.float64] * 3
    assert all(isinstance(x, np.ndarray) for x in new)
    assert isinstance(optgen.optimizer_update([1.0, 2.0], 1.0, 0.5), Array)
    assert optgen.optimizer_update([1.0, 2.0], 1.0, 0.5).tolist() == [0.5, 1.5]
    assert optgen.optimizer_update(np.float32(1.0), 1.0, 0.5) == 0.5


@pytest.mark.parametrize("function", ["adam_update", "adam_step", "optimizer_update", "gradient_descent_update"])
@pytest.mark.parametrize("make", [optgen.array, lambda a: Container(a=optgen.array(a))])
def test_methods_are_the_functions(function: str, make: Any, rng: np.random.Generator) -> None:
    w, g, m, v = (make(a) for a in tensors(rng))
    arguments = {
        "adam_update": (w, g, 0.1, m, v, 2), "adam_step": (g, m, v, 2),
        "optimizer_update": (w, g, 0.1), "gradient_descent_update": (w, g, 0.1),
    }[function]  # fmt: skip
    method = getattr(arguments[0], function)(*arguments[1:])
    direct = getattr(optgen, function)(*arguments)
    assert repr(method) == repr(direct)


# Dtypes.


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
@pytest.mark.parametrize("kind", ["numpy", "torch", "jax", "array"])
def test_dtypes(dtype: str, kind: str, rng: np.random.Generator) -> None:
    arrays = tensors(rng, (7,), NUMPY_DTYPES[dtype])

    def make(a: np.ndarray) -> Any:
        if kind == "torch" and a.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        return MAKE[kind](a)

    with jax.enable_x64(dtype == "f64"):
        given = [make(a) for a in arrays]
        new = optgen.adam_update(*given[:2], 0.1, *given[2:], 2)
        assert [x.dtype for x in new] == [x.dtype for x in (given[0], given[2], given[3])]
        assert all(isinstance(x, TYPES[kind]) for x in new)
        for result, expected, name in zip(new, expected_adam(arrays, 0.1, 2), "wmv", strict=True):
            check(result, expected, dtype if name == "w" else "f64" if dtype == "f64" else "f32")
        delta = optgen.adam_step(*given[1:], 2)[0]
        assert delta.dtype == given[1].dtype


# Shapes.


@pytest.mark.parametrize(
    ("w", "g", "m", "v", "lr"),
    [
        ((3,), (3,), (3,), (1,), ()),
        ((2, 3), (3,), (1,), (), ()),
        ((2, 3), (2, 3), (3,), (2, 1), (3,)),
        ((3,), (2, 1), (3,), (1,), ()),
        ((), (), (), (), (1,)),
        ((), (), (), (), (4,)),
        ((1,), (1,), (1,), (1,), (1, 1)),
        ((4, 1, 3), (2, 1), (1, 1), (3,), (1, 2, 1)),
        ((0, 3), (3,), (1,), (3,), ()),
        ((0,), (0,), (0,), (0,), ()),
        ((0, 3), (0, 3), (0, 3), (3,), (3,)),
        ((2, 0), (1, 0), (1,), (), ()),
        ((), (), (), (), ()),
    ],
)
def test_broadcasting(w: Any, g: Any, m: Any, v: Any, lr: Any, rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal(s).astype(np.float32) for s in (w, g, m)]
    arrays = [np.asarray(a) for a in (*arrays, np.abs(rng.standard_normal(v)).astype(np.float32))]
    rate = np.asarray(rng.uniform(0, 0.1, lr), np.float32)
    new = optgen.adam_update(*arrays[:2], rate, *arrays[2:], 2)
    full = np.broadcast_shapes(w, g, m, v, lr)
    assert [x.shape for x in new] == [full, np.broadcast_shapes(g, m), np.broadcast_shapes(g, v)]
    wide = [np.broadcast_to(a.astype(np.float64), full) for a in arrays]
    check(new[0], expected_adam(wide, np.broadcast_to(rate, full).astype(np.float64), 2)[0])
    for result, old, beta, power in ((new[1], arrays[2], 0.9, 1), (new[2], arrays[3], 0.999, 2)):
        np.testing.assert_allclose(
            result, beta * old + (1 - beta) * arrays[1] ** power, rtol=1e-6, atol=2e-7
        )  # fmt: skip
    delta, *state = optgen.adam_step(*arrays[1:], 2)
    assert delta.shape == np.broadcast_shapes(g, m, v)
    for one, other in zip(state, new[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    moved = optgen.optimizer_update(arrays[0], delta, rate)
    assert moved.shape == full
    np.testing.assert_allclose(moved, new[0], rtol=1e-5, atol=1e-6)
    assert all(np.asarray(x).flags.c_contiguous for x in new)


@pytest.mark.parametrize("lr", [[0.5, 0.25], np.array([0.5, 0.25]), np.array([[1, 2]]), torch.tensor([1, 2])])
def test_lr_may_hold_numbers_of_any_type(lr: Any) -> None:
    w = np.ones(2, np.float32)
    result = optgen.optimizer_update(w, w, lr)
    np.testing.assert_array_equal(result, w - np.asarray(lr))


@pytest.mark.parametrize(
    "lr", [1, np.float64(1.0), np.float32(1), torch.tensor(1.0), optgen.array([1.0]), np.ones((1, 1)), True]
)
def test_lr_of_one_element(lr: Any) -> None:
    w = np.ones((1, 2), np.float32)
    assert optgen.optimizer_update(w, 0.5, lr).tolist() == [[0.5, 0.5]]


# Trees.


def test_a_result_is_a_container_only_if_something_it_depends_on_is(rng: np.random.Generator) -> None:
    w, g, m, v = (optgen.array(a) for a in tensors(rng))
    tree = Container(a=w, b=w)
    kinds = lambda results: [type(r) for r in results]  # noqa: E731
    both, one = [Container] * 3, [Container, Array, Array]
    assert kinds(optgen.adam_update(tree, g, 0.1, m, v, 1)) == one
    assert kinds(optgen.adam_update(w, g, Container(a=0.1, b=0.2), m, v, 1)) == one
    assert kinds(optgen.adam_update(w, tree, 0.1, m, v, 1)) == both
    assert kinds(optgen.adam_update(w, g, 0.1, m, Container(a=v, b=v), 1)) == both
    assert kinds(optgen.adam_update(w, g, 0.1, m, v, Container(a=1, b=2))) == both
    assert kinds(optgen.adam_update(w, g, 0.1, m, v, 1, beta2=Container(a=0.1, b=0.2))) == both
    assert kinds(optgen.adam_update(w, g, 0.1, m, v, 1, stop_gradients=Container(a=True, b=False))) == both
    assert kinds(optgen.adam_step(g, m, v, Container(a=1, b=2))) == both
    assert kinds(optgen.adam_step(g, m, v, 1)) == [Array] * 3


def test_hyperparameters_for_each_leaf(rng: np.random.Generator) -> None:
    arrays = tensors(rng)
    w, g, m, v = (Container(a=optgen.array(x), b=optgen.array(x)) for x in arrays)
    new = optgen.adam_update(
        w, g, Container(a=0.1, b=optgen.array([[0.01], [0.02], [0.03]])), m, v, Container(a=1, b=5),
        beta1=Container(a=0.9, b=0.8), beta2=Container(a=0.999, b=0.9), epsilon=Container(a=1e-7, b=1e-3),
        stop_gradients=Container(a=True, b=False),
    )  # fmt: skip
    a = expected_adam(arrays, 0.1, 1)
    b = expected_adam(arrays, np.float32([[0.01], [0.02], [0.03]]).astype(float), 5, beta1=0.8, beta2=0.9, epsilon=1e-3)
    for result, one, other in zip(new, a, b, strict=True):
        check(result.a, one)
        check(result.b, other)


def test_empty_trees_still_update_what_is_no_tree(rng: np.random.Generator) -> None:
    w, g, m, v = tensors(rng)
    new = optgen.adam_update(Container(), g, 0.1, m, v, 1)
    assert new[0] == {}
    for result, expected in zip(new[1:], expected_adam((w, g, m, v), 0.1, 1)[1:], strict=True):
        check(result, expected)
    assert optgen.adam_update({}, {}, 0.1, {}, {}, 1) == ({}, {}, {})
    assert optgen.optimizer_update({"a": None, "b": w}, {"b": g}, 0.1)["a"] is None


# Where results go.


@pytest.mark.parametrize("kind", ["numpy", "torch", "array"])
def test_out_of_each_kind(kind: str, rng: np.random.Generator) -> None:
    arrays = tensors(rng)
    w, g, m, v = (MAKE[kind](a) for a in arrays)
    outs = tuple(MAKE[kind](np.zeros((3, 5), np.float32)) for _ in range(3))
    expected = expected_adam(arrays, 0.1, 1)
    assert optgen.adam_update(w, g, 0.1, m, v, 1, out=outs[0])[0] is outs[0]
    check(outs[0], expected[0])
    new = optgen.adam_update(w, g, 0.1, m, v, 1, out=(None, outs[1], outs[2]))
    assert new[0] is not w
    assert new[1] is outs[1]
    assert new[2] is outs[2]
    for result, wanted in zip(new, expected, strict=True):
        check(result, wanted)
    np.testing.assert_array_equal(values(w), arrays[0].astype(np.float64))
    new = optgen.adam_update(w, g, 0.1, m, v, 1, out=(w, m, v))
    for result, wanted, own in zip(new, expected, (w, m, v), strict=True):
        assert result is own
        check(result, wanted)


def test_out_in_place_is_not_copied(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    w, g, m, v = tensors(rng)
    seen: list[np.ndarray] = []
    real = engine.run
    monkeypatch.setattr(
        "optgen.arrays.update.run", lambda b, d, leaves, s: (seen.extend(leaves[0]), real(b, d, leaves, s))
    )
    optgen.adam_update(w, g, 0.1, m, v, 1, out=(w, m, v))
    assert [a.ctypes.data for a in seen] == [a.ctypes.data for a in (w, g, m, v)]


@pytest.mark.parametrize("case", ["grad", "shifted", "reversed", "strided", "unaligned"])
def test_out_that_overlaps_inputs_or_is_no_plain_array(case: str, rng: np.random.Generator) -> None:
    memory = rng.standard_normal(40).astype(np.float32)
    w, g = memory[:10], memory[20:30]
    if case == "unaligned":
        out = np.zeros(41, np.uint8)[1:].view(np.float32)
    else:
        out = {"grad": g, "shifted": memory[5:15], "reversed": memory[9::-1], "strided": memory[:20:2]}[case]
    expected = w.astype(np.float64) - 0.5 * g.astype(np.float64)
    assert optgen.optimizer_update(w, g, 0.5, out=out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


def test_out_of_a_state_that_all_leaves_share(rng: np.random.Generator) -> None:
    arrays = tensors(rng)
    w, g, m, v = (optgen.array(a) for a in arrays)
    tree = Container(a=w.copy(), b=w.copy())
    new = optgen.adam_update(tree, g, 0.1, m, v, 1, out=(tree, m, v))
    assert new[0] is tree
    assert new[1] is m
    for result, wanted in zip((tree.a, m, v), expected_adam(arrays, 0.1, 1), strict=True):
        check(result, wanted)
    check(tree.b, expected_adam(arrays, 0.1, 1)[0])


def test_out_tells_autograd_that_the_tensor_has_changed(rng: np.random.Generator) -> None:
    w = torch.from_numpy(tensors(rng)[0])
    before = w._version
    optgen.optimizer_update(w, w.clone(), 0.1, out=w)
    assert w._version == before + 1


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros(4, np.float32), LeafError, r"out must have shape \(3,\)"),
        (np.zeros((1, 3), np.float32), LeafError, r"out must have shape \(3,\).*got \(1, 3\)"),
        (np.zeros(3), LeafError, "out must have dtype f32, that of the result .got f64"),
        (jnp.zeros(3), LeafError, "out must be writable .JAX"),
        (np.broadcast_to(np.float32(0), (3,)), LeafError, "out must be writable .it is read-only"),
        (np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (3,), (0,)), LeafError, "memory of its own"),
        ([0.0, 0.0, 0.0], LeafError, "out must be a numpy, torch, JAX or optgen array .got list"),
        (Container(a=np.zeros(3, np.float32)), TreeError, "'out' must be an array"),
        ((None, None), TreeError, "tuple of 1"),
    ],
)
def test_out_that_does_not_fit(out: Any, error: type[Exception], message: str) -> None:
    w = np.ones(3, np.float32)
    with pytest.raises(error, match=message):
        optgen.optimizer_update(w, w.copy(), 0.1, out=out)
    assert w.tolist() == [1, 1, 1]


def test_outs_of_trees_that_do_not_fit() -> None:
    w = Container(a=optgen.zeros(3), b=optgen.zeros(2))
    with pytest.raises(TreeError, match=r"'out' must have the leaves of 'w': it lacks 'b'"):
        optgen.optimizer_update(w, w, 0.1, out={"a": w.a})
    with pytest.raises(TreeError, match=r"'out' must have the leaves of 'w' \(got Array\)"):
        optgen.optimizer_update(w, w, 0.1, out=w.a)
    with pytest.raises(LeafError, match=r"out 'b' must have shape \(2,\)"):
        optgen.optimizer_update(w, w, 0.1, out={"a": optgen.zeros(3), "b": optgen.zeros(3)})
    same = optgen.zeros(3)
    with pytest.raises(OverlapError, match=r"out '.' and out '.' share memory"):
        optgen.optimizer_update(Container(a=same, b=same), 1.0, 0.1, out=Container(a=same, b=same))
    with pytest.raises(LeafError, match=r"out of m must have dtype f32"):
        optgen.adam_update(w.a, 1.0, 0.1, 0.0, 0.0, 1, out=(None, np.zeros(3), None))
    assert w.a.tolist() == [0, 0, 0]


# Memory.


def test_results_share_no_memory_with_inputs(rng: np.random.Generator) -> None:
    w, g, m, v = tensors(rng)
    new = optgen.adam_update(w, g, 0.0, m, v, 0, beta1=1.0, beta2=1.0)
    for result in new:
        assert result.flags.c_contiguous
        assert not any(np.shares_memory(result, a) for a in (w, g, m, v))


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed", "unaligned", "misaligned", "read-only"])
@pytest.mark.parametrize("kind", ["numpy", "array", "torch"])
def test_inputs_of_any_layout(layout: str, kind: str, rng: np.random.Generator) -> None:
    if kind == "torch" and layout in ("reversed", "misaligned", "read-only"):
        pytest.skip("torch has no such tensors")
    arrays = tensors(rng, (4, 6))

    def laid_out(a: np.ndarray) -> Any:
        if layout == "transposed":
            a = np.ascontiguousarray(a.T).T
        elif layout == "strided":
            a = np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3]
        elif layout == "reversed":
            a = np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1]
        elif layout == "unaligned":
            a = np.concatenate([a.reshape(-1)[:1], a.reshape(-1)])[1:].reshape(a.shape)
        elif layout == "misaligned":
            a = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(np.float32).reshape(a.shape)
        else:
            a = a.copy()
            a.flags.writeable = False
        return {"numpy": lambda x: x, "array": Array, "torch": torch.from_numpy}[kind](a)

    given = [laid_out(a) for a in arrays]
    new = optgen.adam_update(*given[:2], 0.1, *given[2:], 2)
    for result, expected in zip(new, expected_adam(arrays, 0.1, 2), strict=True):
        check(result, expected)
    for untouched, a in zip(given, arrays, strict=True):
        np.testing.assert_array_equal(values(untouched), a.astype(np.float64))


# Numbers.


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_numbers_of_any_shape_dtype_and_hyperparameters(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["f32", "f64", "f16", "bf16"]))
    full = tuple(data.draw(st.lists(st.integers(1, 5), max_size=3)))

    def part() -> tuple[int, ...]:
        kept = [data.draw(st.sampled_from([n, 1])) for n in full]
        return tuple(kept[data.draw(st.integers(0, len(kept))) :])

    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    wide = np.float64 if dtype == "f64" else np.float32
    arrays = [
        np.asarray(rng.standard_normal(full) * 10.0 ** rng.integers(-3, 3)).astype(NUMPY_DTYPES[dtype]),
        np.asarray(rng.standard_normal(part()) * 10.0 ** rng.integers(-2, 2)).astype(NUMPY_DTYPES[dtype]),
        np.asarray(rng.standard_normal(part())).astype(wide),
        np.asarray(rng.standard_normal(part()) ** 2).astype(wide),
    ]
    copies = [a.copy() for a in arrays]
    lr = data.draw(st.floats(-1, 1))
    lr = float(np.float32(lr))
    step = data.draw(st.sampled_from([1, 2, 3, 10, 1000, 10**6]))
    hypers = {
        "beta1": data.draw(st.sampled_from([0.0, 0.5, 0.9, 0.99])),
        "beta2": data.draw(st.sampled_from([0.0, 0.9, 0.999, 0.9999])),
        "epsilon": data.draw(st.sampled_from([1e-7, 1e-8, 1e-3])),
    }
    w, m, v = optgen.adam_update(arrays[0], arrays[1], lr, arrays[2], arrays[3], step, **hypers)
    expected = expected_adam(arrays, lr, step, **hypers)
    wide_name = "f64" if dtype == "f64" else "f32"
    check(m, expected[1], wide_name)
    check(v, expected[2], wide_name)
    # w moves by a quotient that comes out of some ten roundings of its own, each of up to an ulp of the quotient.
    value, term = expected[0]
    moved = expected_adam([np.zeros(full), *arrays[1:]], lr, step, **hypers)[0][1]
    assert w.dtype == arrays[0].dtype
    assert w.shape == full
    assert (np.abs(values(w) - value) <= 2 * ulp(term, dtype) + 10 * ulp(moved, wide_name)).all()
    for untouched, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(untouched, copy)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 6), max_size=3),
    lr=st.floats(-10, 10),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["f32", "f64", "f16", "bf16"]),
)
def test_gradient_descent_of_any_shape(shape: list[int], lr: float, seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    w, g = (np.asarray(rng.standard_normal(shape)).astype(NUMPY_DTYPES[dtype]) for _ in range(2))
    copies = w.copy(), g.copy()
    result = optgen.gradient_descent_update(w, g, lr)
    lr = lr if dtype == "f64" else float(np.float32(lr))
    wide_w, wide_g = to_float64(w, dtype), to_float64(g, dtype)
    check(result, (wide_w - lr * wide_g, np.maximum(np.abs(wide_w), np.abs(lr * wide_g))), dtype)
    np.testing.assert_array_equal(w, copies[0])
    np.testing.assert_array_equal(g, copies[1])


@pytest.mark.parametrize("beta1", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beta2", [0.0, 0.999, 1.0])
@pytest.mark.parametrize("step", [1, 2, 1000, 10**6])
def test_betas_at_the_ends(beta1: float, beta2: float, step: int, rng: np.random.Generator) -> None:
    arrays = tensors(rng)
    lr = 1e-8 if beta1 == 1 else 0.1  # the bias correction is then epsilon alone
    new = optgen.adam_update(arrays[0], arrays[1], lr, *arrays[2:], step, beta1=beta1, beta2=beta2)
    expected = expected_adam(arrays, lr, step, beta1=beta1, beta2=beta2)
    for result, wanted in zip(new, expected, strict=True):
        check(result, wanted, ulps=2 if result is not new[0] else 4)
    if beta1 == 1:
        np.testing.assert_array_equal(new[1], arrays[2])
    if beta1 == 0:
        np.testing.assert_array_equal(new[1], arrays[1])


def test_step_may_be_anything_that_is_one_whole_number(rng: np.random.Generator) -> None:
    w, g, m, v = tensors(rng)
    expected = optgen.adam_update(w, g, 0.1, m, v, 7)
    for step in (7.0, np.int64(7), np.float32(7), optgen.array([7.0]), torch.tensor(7), jnp.asarray(7)):
        for one, other in zip(optgen.adam_update(w, g, 0.1, m, v, step), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(optgen.adam_update(w, g, 0.1, m, v, 0)[0], w)  # no correction at all is 0


# Refusals.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"g": np.zeros(3)}, LeafError, "dcdw must have dtype f32.*got f64"),
        ({"g": np.zeros(3, np.float16)}, LeafError, "dcdw must have dtype f32.*got f16"),
        ({"m": np.zeros(3)}, LeafError, "mw_tm1 must have dtype f32.*got f64"),
        ({"v": torch.zeros(3, dtype=torch.bfloat16)}, LeafError, "vw_tm1 must have dtype f32.*got bf16"),
        ({"w": np.arange(3)}, LeafError, "w must have dtype f32, f64, bf16 or f16 .got int64"),
        ({"g": np.arange(3)}, LeafError, "dcdw must have dtype f32, f64, bf16 or f16 .got int64"),
        ({"g": np.zeros(3, np.complex64)}, LeafError, "dcdw must have dtype .*got complex64"),
        ({"w": np.zeros(3, ">f4")}, LeafError, "w must have native byte order"),
        ({"g": np.zeros(4, np.float32)}, LeafError, r"dcdw must have a shape that broadcasts with \(3,\).*got \(4,\)"),
        ({"v": np.zeros((2, 2), np.float32)}, LeafError, r"vw_tm1 must have a shape .*got \(2, 2\)"),
        ({"lr": np.zeros(2)}, LeafError, r"lr must have a shape .*got \(2,\)"),
        ({"g": None}, LeafError, "dcdw must be .*got NoneType"),
        ({"g": "abc"}, LeafError, "dcdw must be .*got str"),
        ({"g": ["a"]}, LeafError, "dcdw must be .*got list"),
        ({"w": object()}, LeafError, "w must be .*got object"),
        ({"m": torch.zeros(3).to_sparse()}, LeafError, "mw_tm1 must be dense"),
        ({"m": torch.zeros(3, device="meta")}, LeafError, "mw_tm1 must be on the CPU"),
        ({"lr": math.nan}, HyperparameterError, "'lr' must be finite .got nan"),
        ({"lr": np.array([1, math.inf, 1])}, HyperparameterError, "lr must be finite .got inf"),
        ({"lr": None}, HyperparameterError, "'lr' must be a number"),
        ({"beta1": math.nan}, HyperparameterError, "'beta1' must be finite"),
        ({"beta2": 1.5}, HyperparameterError, r"'beta2' must be in \[0, 1\]"),
        ({"beta1": -0.1}, HyperparameterError, r"'beta1' must be in \[0, 1\]"),
        ({"beta1": np.array([0.1, 0.2])}, HyperparameterError, r"beta1 must be one number .got shape \(2,\)"),
        ({"epsilon": -1.0}, HyperparameterError, "'epsilon' must be at least 0"),
        ({"epsilon": "x"}, HyperparameterError, "'epsilon' must be a number"),
        ({"step": -1}, HyperparameterError, "'step' must be a whole number"),
        ({"step": 1.5}, HyperparameterError, "'step' must be a whole number"),
        ({"stop_gradients": 1}, HyperparameterError, "stop_gradients must be True or False .got 1"),
        ({"stop_gradients": None}, HyperparameterError, "stop_gradients must be True or False"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {n: np.ones(3, np.float32) for n in "wgmv"} | {"lr": 0.1, "step": 1} | change
    names = ("beta1", "beta2", "epsilon", "stop_gradients")
    out = tuple(np.full(3, 7, np.float32) for _ in range(3))
    with pytest.raises(error, match=message):
        optgen.adam_update(
            *(arguments[n] for n in ("w", "g", "lr", "m", "v", "step")),
            **{n: arguments[n] for n in names if n in arguments}, out=out,
        )  # fmt: skip
    assert all((a == 7).all() for a in out)
    for name in "wgmv":
        if name not in change:
            assert (arguments[name] == 1).all()


def test_refusals_name_the_leaf() -> None:
    w = Container(enc={"a": optgen.zeros(3), "b": optgen.zeros(3)})
    untouched = w.copy()
    bad = Container(enc={"a": optgen.zeros(3), "b": np.zeros(3)})
    with pytest.raises(LeafError, match=r"dcdw 'enc/b' must have dtype f32.*got f64"):
        optgen.adam_update(w, bad, 0.1, 0.0, 0.0, 1, out=w)
    with pytest.raises(LeafError, match=r"effective_grad 'enc/b' must have dtype f32.*got f64"):
        optgen.optimizer_update(w, bad, 0.1, out=w)
    with pytest.raises(TreeError, match=r"'dcdw' must have the leaves of 'w': it lacks 'enc/b'"):
        optgen.adam_update(w, {"enc": {"a": w.enc.a}}, 0.1, 0.0, 0.0, 1, out=w)
    with pytest.raises(TreeError, match=r"'beta1' must have the leaves of 'w', which lacks 'x'"):
        optgen.adam_update(w, 0.0, 0.1, 0.0, 0.0, 1, beta1={"enc": {"a": 0.9, "b": 0.9}, "x": 0.9})
    with pytest.raises(TreeError, match=r"'epsilon' must have the leaves of 'w': it lacks 'enc/a'"):
        optgen.adam_update(w, 0.0, 0.1, 0.0, 0.0, 1, epsilon={})
    with pytest.raises(HyperparameterError, match=r"'beta1' must be finite.* at leaf 'enc/b'"):
        optgen.adam_update(w, 0.0, 0.1, 0.0, 0.0, 1, beta1={"enc": {"a": 0.9, "b": math.nan}})
    with pytest.raises(HyperparameterError, match=r"'lr' must be finite"):
        optgen.adam_update(w, 0.0, {"enc": {"a": 0.9, "b": math.nan}}, 0.0, 0.0, 1)
    assert repr(w) == repr(untouched)


def test_sixteen_bit_state_is_refused() -> None:
    w = np.ones(3, np.float16)
    with pytest.raises(LeafError, match=r"mw_tm1 must have dtype f32, that of the state for f16, .*got f16"):
        optgen.adam_update(w, w, 0.1, w, w, 1)


def test_tensors_that_torch_transforms_are_refused() -> None:
    w = torch.ones(3)
    with pytest.raises(LeafError, match="w must be a tensor with memory of its own"):
        torch.func.grad(lambda g: optgen.optimizer_update(w, g, 0.1).sum())(w)
    with pytest.raises(LeafError, match="w must be a tensor with memory of its own"):
        optgen.optimizer_update(w._neg_view(), w, 0.1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_updates_in_a_forked_process() -> None:
    code = (
        "import os, numpy as np, optgen\n"
        "w = np.ones(100_000, np.float32)\n"
        "sizes = (w, w[:5])\n"
        "[optgen.optimizer_update(x, x, 0.5) for x in sizes]\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(int(sum(optgen.optimizer_update(x, x, 0.5)[-1] for x in sizes)))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "1"


def test_importing_the_arrays_imports_neither_jax_nor_torch() -> None:
    code = (
        "import sys, optgen\n"
        "optgen.adam_update(optgen.array([1.0]), [1.0], 0.1, 0.0, 0.0, 1, stop_gradients=False)\n"
        "print([m for m in ('jax', 'torch', 'iree.compiler') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
