"""Array, Container, making them, printing them."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import optgen
from optgen import Array, Container
from optgen.errors import LeafError
from optgen.runtime.tree import leaves_of, map_tree

# Making arrays.


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ([1.0, 2, 3], np.float32), (1.5, np.float32), ([1, 2], np.int32), ([True], np.bool_), ([], np.float32),
        (np.arange(3.0), np.float64), (np.arange(3), np.int64), (np.float64(1), np.float64),
        (np.ones(2, ml_dtypes.bfloat16), ml_dtypes.bfloat16), (torch.ones(2, dtype=torch.float64), np.float64),
        (torch.ones(2, dtype=torch.bfloat16), ml_dtypes.bfloat16), (torch.arange(2), np.int64),
        (jnp.ones(2), np.float32), (jnp.ones(2, jnp.bfloat16), ml_dtypes.bfloat16),
    ],
)  # fmt: skip
def test_array_dtype(given: Any, dtype: Any) -> None:
    made = optgen.array(given)
    assert made.dtype == dtype
    assert made.data.ctypes.data % 64 == 0 or not made.size
    assert optgen.array(made).dtype == dtype
    assert optgen.array(given, dtype="f64").dtype == np.float64


@pytest.mark.parametrize("dtype", ["f16", "float16", np.float16, torch.float16, jnp.float16, np.dtype("f2")])
def test_array_dtype_by_any_name(dtype: Any) -> None:
    assert optgen.array([1.0], dtype).dtype == np.float16
    assert optgen.zeros(3, dtype).dtype == np.float16


def test_array_of_other_types() -> None:
    assert optgen.array([1.7], "int32").tolist() == [1]
    assert optgen.array([1.0], torch.int64).dtype == np.int64
    with pytest.raises(ValueError, match="'dtype' must be a type of numbers"):
        optgen.array([1.0], "float99")
    with pytest.raises(ValueError, match="'obj' must hold numbers"):
        optgen.array("abc")
    with pytest.raises(ValueError, match="'obj' must hold numbers"):
        optgen.array([None])
    with pytest.raises(ValueError, match="inhomogeneous"):
        optgen.array([[1.0], [1.0, 2.0]])
    with pytest.raises(LeafError, match="must be on the CPU"):
        optgen.array(torch.zeros(1, device="meta"))
    with pytest.raises(TypeError, match="'data' must be a numpy array"):
        Array([1.0])  # type: ignore[arg-type]


def test_array_copies_unless_told() -> None:
    memory = np.ones(3, np.float32)
    assert not np.shares_memory(optgen.array(memory).data, memory)
    assert optgen.array(memory, copy=False).data is memory
    assert not np.shares_memory(optgen.array(memory, "f64", copy=False).data, memory)
    tensor = torch.ones(3)
    optgen.array(tensor, copy=False)[0] = 5
    assert tensor[0] == 5
    made = optgen.array(memory)
    assert not np.shares_memory(made.copy().data, made.data)


def test_zeros() -> None:
    for shape, wanted in ((3, (3,)), ((2, 0), (2, 0)), ((), ()), ([2, 1], (2, 1)), (np.int64(2), (2,))):
        made = optgen.zeros(shape)
        assert made.shape == wanted
        assert made.dtype == np.float32
        assert not made.data.any()
    with pytest.raises(ValueError, match="'shape' must not have negative extents"):
        optgen.zeros(-1)


def test_zeros_like() -> None:
    tree = Container(
        a=optgen.array([1.0]), b={"n": np.ones(2), "t": torch.ones(3, dtype=torch.bfloat16), "j": jnp.ones(4)}, x=1.5
    )
    made = optgen.zeros_like(tree)
    assert [type(x) for x in (made, made.a, made.b.n, made.b.t, made.x)] == [
        Container, Array, np.ndarray, torch.Tensor, Array,
    ]  # fmt: skip
    assert isinstance(made.b.j, jax.Array)
    assert made.b.n.dtype == np.float64
    assert made.b.t.dtype == torch.bfloat16
    assert all(not np.asarray(x, np.float32).any() for x in (made.a, made.b.n, made.b.t.float(), made.b.j))
    assert type(optgen.zeros_like({"a": np.ones(1)})) is dict
    with pytest.raises(LeafError, match="'x' must be an array"):
        optgen.zeros_like("abc")


# Array.


def test_array_is_an_array() -> None:
    x = optgen.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert (x.shape, x.ndim, x.size, len(x), x.dtype) == ((2, 3), 2, 6, 2, np.float32)
    assert x[1, 2].item() == 6
    assert float(x[0, 0]) == 1.0
    assert int(x[0, 1]) == 2
    assert [row.tolist() for row in x] == x.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert x.to_numpy() is x.data
    row = x[0]
    row[1:] = optgen.array([8.0, 9.0])
    x[1] = 0
    assert x.tolist() == [[1, 8, 9], [0, 0, 0]]
    assert x[x == 8].tolist() == [8]
    assert x[optgen.array([0, 1]), optgen.array([0, 0])].tolist() == [1, 0]
    with pytest.raises(ValueError, match="size 1"):
        x.item()
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)
    with pytest.raises(AttributeError):
        x.name = 1  # type: ignore[attr-defined]


def test_array_arithmetic() -> None:
    x, y = optgen.array([1.0, 2.0, 4.0]), optgen.array([[2.0], [1.0]])
    for result, wanted in (
        (x + y, [[3, 4, 6], [2, 3, 5]]), (x - 1, [0, 1, 3]), (1 - x, [0, -1, -3]), (x * y, [[2, 4, 8], [1, 2, 4]]),
        (2 * x, [2, 4, 8]), (x / 2, [0.5, 1, 2]), (4 / x, [4, 2, 1]), (x**2, [1, 4, 16]), (2**x, [2, 4, 16]),
        (-x, [-1, -2, -4]), (x == 2, [False, True, False]), (x != 2, [True, False, True]), (1 + x, [2, 3, 5]),
        (np.ones(3, np.float32) + x, [2, 3, 5]), (x - np.ones(3, np.float32), [0, 1, 3]),
        (np.float32(1) * x, [1, 2, 4]), (x * torch.ones(3), [1, 2, 4]),
    ):  # fmt: skip
        assert isinstance(result, Array)
        assert result.tolist() == wanted
    assert (x * 1.5).dtype == np.float32
    assert bool((x == x)[0])
    with pytest.raises(TypeError):
        x + "a"
    with pytest.raises(ValueError, match="broadcast"):
        x + optgen.zeros(2)


def test_array_is_shared_with_other_libraries() -> None:
    x = optgen.array([1.0, 2.0])
    tensor = torch.from_dlpack(x)
    tensor[0] = 7
    assert x.tolist() == [7, 2]
    assert np.asarray(x) is x.data
    assert np.array(x) is not x.data
    assert np.asarray(x, np.float64).dtype == np.float64
    assert np.from_dlpack(x).tolist() == [7, 2]
    assert jnp.asarray(x).tolist() == [7, 2]
    assert jnp.from_dlpack(x).tolist() == [7, 2]
    assert np.sqrt(x * 0).tolist() == [0, 0]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_arrays_and_containers_survive_pickling(again: Any) -> None:
    c = again(Container(a=optgen.array([1.0]), b={"c": optgen.zeros(2)}))
    assert isinstance(c, Container)
    assert isinstance(c.b, Container)
    assert c.a.tolist() == [1]
    assert again(optgen.array([1.0, 2.0])).tolist() == [1, 2]


# Container.


def test_container_is_a_dict_with_attributes() -> None:
    c = Container({"a": 1, "b": {"c": 2}}, d=3)
    assert c == {"a": 1, "b": {"c": 2}, "d": 3}
    assert isinstance(c, dict)
    assert isinstance(c.b, Container)
    c.b.e = 4
    c["f"] = {"g": 5}
    assert c.b["e"] == c.b.e == 4
    assert c.f.g == 5
    del c.f
    assert "f" not in c
    c.update({"h": {"i": 6}}, j=7)
    c |= {"k": {"l": 8}}
    assert isinstance(c, Container)
    assert c.h.i + c.k.l == 14
    assert isinstance(c | {"m": {}}, Container)
    assert c.setdefault("n", {"o": 1}).o == 1
    assert c.setdefault("n", 5) == {"o": 1}
    assert list(Container([("x", 1), ("y", 2)])) == ["x", "y"]
    assert "a" in dir(c)
    with pytest.raises(AttributeError, match=r"Container has no key 'zz' .it has 'a', 'b'"):
        _ = c.zz
    with pytest.raises(AttributeError, match="no key 'zz'"):
        del c.zz
    with pytest.raises(KeyError):
        c["zz"]


def test_container_to_and_from_dicts() -> None:
    c = Container(a=1.0, b={"c": 2.0})
    plain = c.to_dict()
    assert type(plain) is dict
    assert type(plain["b"]) is dict
    assert plain == c
    doubled = c.map(lambda x: 2 * x)
    assert doubled == {"a": 2, "b": {"c": 4}}
    assert isinstance(doubled.b, Container)


def test_container_copies_are_independent() -> None:
    c = Container(a=optgen.zeros(2), b={"n": np.zeros(2), "t": torch.zeros(2), "j": jnp.zeros(2), "x": 1.0})
    other = c.copy()
    other.a[0], other.b.n[0], other.b.t[0], other.b.y = 1, 1, 1, 2
    assert not c.a.data.any()
    assert not c.b.n.any()
    assert not c.b.t.any()
    assert "y" not in c.b


def test_container_is_a_tree_of_the_runtime() -> None:
    c = Container(a=1, b={"c": 2})
    assert leaves_of(c) == {"a": 1, "b/c": 2}
    mapped = map_tree(lambda path, leaf: f"{path}={leaf}", c)
    assert isinstance(mapped, Container)
    assert mapped.b.c == "b/c=2"
    opt = optgen.prebuilt("sgd")
    params = Container(w=optgen.array([1.0, 2.0]))
    new, _ = opt.step(params, Container(w=optgen.array([1.0, 1.0])), opt.init(params), lr=0.5)
    assert new is params
    assert params.w.tolist() == [0.5, 1.5]


# Printing.


def test_printing_of_other_leaves_and_types() -> None:
    c = Container(n=np.eye(2), t=torch.ones(1), x=0.5, e={}, i=optgen.array([1, 2]), b=optgen.array([True]))
    assert repr(c) == (
        "{\n    n: array([[1., 0.],\n              [0., 1.]]),\n    t: tensor([1.]),\n    x: 0.5,\n    e: {},\n"
        "    i: ivy.array([1, 2]),\n    b: ivy.array([ True])\n}"
    )
    assert repr(optgen.array(1.5)) == "ivy.array(1.5)"
    assert repr(optgen.zeros((0, 3))) == "ivy.array([])"
    assert repr(optgen.array([np.nan, -np.inf, 0.0])) == "ivy.array([ nan, -inf,   0.])"
    assert repr(optgen.array([0.1], "bf16")) == "ivy.array([0.10009766])"
    assert repr(optgen.array([1e-300, 1e300], "f64")) == "ivy.array([1.e-300, 1.e+300])"


@pytest.mark.parametrize("shape", [(1001,), (1500,), (2, 1000), (50, 50), (3, 1, 400), (7, 7, 50), (1001, 1)])
def test_long_arrays_are_shortened_as_numpy_does(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 1000, shape).astype(np.float64) / 8
    expected = np.array2string(values, separator=", ", prefix="ivy.array(")
    assert repr(optgen.array(values)) == f"ivy.array({expected})"


@pytest.fixture
def digits() -> Any:
    yield
    optgen.set_array_significant_figures(10)
    optgen.set_array_decimal_values(8)


@pytest.mark.usefixtures("digits")
def test_digits() -> None:
    x = optgen.array([0.123456789, 1.98765], "f64")
    assert repr(x) == "ivy.array([0.12345679, 1.98765   ])"
    optgen.set_array_significant_figures(3)
    assert repr(x) == "ivy.array([0.123, 1.99 ])"
    optgen.set_array_decimal_values(1)
    assert repr(x) == "ivy.array([0.1, 2. ])"
    assert x.tolist() == [0.123456789, 1.98765]
    for bad in (0, -1, 1.5, True, "3", None):
        with pytest.raises(ValueError, match="'figures' must be a whole number of at least 1"):
            optgen.set_array_significant_figures(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'decimals' must be a whole number of at least 0"):
        optgen.set_array_decimal_values(-1)


# Several threads.


def test_updates_from_several_threads() -> None:
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for size in range(1, 60):
            w, g = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
            new = optgen.optimizer_update(w, g, 0.5)
            if not np.array_equal(new, w - np.float32(0.5) * g):
                wrong.append(size)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
