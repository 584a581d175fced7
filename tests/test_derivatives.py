"""Derivatives through updates against hand-written ones, in torch and JAX; none where they are stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import optgen
from optgen import Container
from optgen.errors import HyperparameterError, LeafError

HYPERS = {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-5}

# By hand.


def adam_step(g: Any, m: Any, v: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.999, epsilon: Any = 1e-7) -> Any:
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    alpha = (1 - beta2**step) ** 0.5 / (1 - beta1**step + epsilon)
    return alpha * m / (v**0.5 + epsilon), m, v


def adam(w: Any, g: Any, lr: Any, m: Any, v: Any, step: Any, **hypers: Any) -> Any:
    delta, m, v = adam_step(g, m, v, step, **hypers)
    return w - lr * delta, m, v


SHAPES = {
    "plain": ((3, 4),) * 5,
    "scalar lr": ((3, 4), (3, 4), (), (3, 4), (3, 4)),
    "broadcast": ((3, 4), (4,), (3, 1), (1,), ()),
    "broadcast state": ((2, 1), (4,), (1,), (2, 4), (1, 1)),
    "weights broadcast": ((4,), (3, 1, 4), (1, 3, 1), (3, 1, 1), (4,)),
    "empty weights": ((0, 3), (3,), (), (3,), (3,)),
    "empty average": ((0, 3), (3,), (3,), (0, 1), (1,)),
    "empty": ((0,), (0,), (), (0,), (1,)),
}


def draw(shapes: tuple[tuple[int, ...], ...], dtype: Any = np.float64) -> list[np.ndarray]:
    """w, g, lr, m, v."""
    rng = np.random.default_rng(3)
    w, g, lr, m, v = (np.asarray(rng.standard_normal(s)) for s in shapes)
    return [np.asarray(x, dtype) for x in (w, g, 0.1 * np.abs(lr), m, 0.1 + np.abs(v))]


def torch_tensors(arrays: list[np.ndarray], *, requires_grad: bool = True) -> list[torch.Tensor]:
    return [torch.tensor(a, requires_grad=requires_grad) for a in arrays]


def weighted(results: Any, numpy: Any) -> Any:
    """A scalar in which each element of each result has a weight of its own."""
    total = 0.0
    for k, result in enumerate(results):
        total = (
            total
            + (
                result
                * numpy.cos(numpy.arange(result.numel() if numpy is torch else result.size) + k).reshape(result.shape)
            ).sum()
        )
    return total


# torch.


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("step", [1, 7])
def test_torch_adam_against_autograd_by_hand(shapes: Any, step: int) -> None:
    ours, theirs = torch_tensors(draw(shapes)), torch_tensors(draw(shapes))
    results = optgen.adam_update(*ours, step, **HYPERS, stop_gradients=False)
    expected = adam(*theirs, step, **HYPERS)
    for one, other in zip(results, expected, strict=True):
        assert one.requires_grad
        torch.testing.assert_close(one, other.expand(one.shape) if other.shape != one.shape else other)
    weighted(results, torch).backward()
    weighted(expected, torch).backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert one.grad.dtype == one.dtype
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shapes", [SHAPES["plain"], SHAPES["broadcast"]], ids=["plain", "broadcast"])
def test_torch_adam_step(shapes: Any) -> None:
    ours, theirs = (torch_tensors([a for i, a in enumerate(draw(shapes)) if i not in (0, 2)]) for _ in range(2))
    weighted(optgen.adam_step(*ours, 3, **HYPERS), torch).backward()
    weighted(adam_step(*theirs, 3, **HYPERS), torch).backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_torch_gradient_descent(shapes: Any) -> None:
    ours, theirs = torch_tensors(draw(shapes)[:3]), torch_tensors(draw(shapes)[:3])
    weighted([optgen.optimizer_update(*ours, stop_gradients=False)], torch).backward()
    w, g, lr = theirs
    weighted([w - lr * g], torch).backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_torch_gradcheck() -> None:
    w, g, lr, m, v = torch_tensors(draw(((2, 3), (3,), (), (2, 1), (2, 3))))

    def update(*tensors: Any) -> Any:
        return optgen.adam_update(*tensors, 2, **HYPERS, stop_gradients=False)

    assert torch.autograd.gradcheck(update, (w, g, lr, m, v))
    assert torch.autograd.gradcheck(lambda *t: optgen.adam_step(*t, 2, **HYPERS), (g, m, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_dtypes(dtype: Any) -> None:
    arrays = draw(SHAPES["broadcast"])
    state = torch.float32
    ours = [
        torch.tensor(a, dtype=d, requires_grad=True)
        for a, d in zip(arrays, (dtype, dtype, state, state, state), strict=True)
    ]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    weighted([r.float() for r in optgen.adam_update(*ours, 3, **HYPERS, stop_gradients=False)], torch).backward()
    w, g, lr, m, v = theirs
    new_w, new_m, new_v = adam(w.float(), g.float(), lr, m, v, 3, **HYPERS)
    weighted([new_w.to(dtype).float(), new_m, new_v], torch).backward()
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad.dtype == one.dtype
        torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=tolerance)


def test_torch_only_what_requires_grad_gets_one() -> None:
    w, g, lr, m, v = torch_tensors(draw(SHAPES["plain"]), requires_grad=False)
    lr.requires_grad_()
    new_w, *_ = optgen.adam_update(w, g, lr, m, v, 1, stop_gradients=False)
    new_w.sum().backward()
    expected = -adam_step(g, m, v, 1)[0]
    torch.testing.assert_close(lr.grad, expected)
    assert w.grad is None
    assert not optgen.adam_update(w, g, lr.detach(), m, v, 1, stop_gradients=False)[0].requires_grad


def test_torch_stopped() -> None:
    tensors = torch_tensors(draw(SHAPES["plain"]))
    for result in optgen.adam_update(*tensors, 1):
        assert not result.requires_grad
    assert not optgen.optimizer_update(*tensors[:3]).requires_grad
    with torch.no_grad():
        assert not optgen.adam_update(*tensors, 1, stop_gradients=False)[0].requires_grad
    # Through a constant the derivative of a sum with something else is that of the something else.
    (optgen.optimizer_update(*tensors[:3]) + tensors[0]).sum().backward()
    torch.testing.assert_close(tensors[0].grad, torch.ones_like(tensors[0]))
    assert tensors[1].grad is None


def test_torch_unrolled_updates() -> None:
    """The derivative by lr of a loss after three steps, each from the grad that the steps before led to."""

    def unrolled(update: Callable[..., Any], lr: Any) -> Any:
        w, m, v = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), *torch.zeros(2, 3, dtype=torch.float64)
        for step in (1, 2, 3):
            w, m, v = update(w, torch.sin(w) + 0.1 * w, lr, m, v, step)
        return (w * w).sum()

    ours, theirs = (torch.tensor(0.1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    unrolled(lambda *a: optgen.adam_update(*a, stop_gradients=False), ours).backward()
    unrolled(adam, theirs).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=0)


def test_torch_twice_is_refused() -> None:
    w, g = torch_tensors(draw(SHAPES["plain"])[:2])
    new = optgen.optimizer_update(w, g, 0.1, stop_gradients=False)
    (grad,) = torch.autograd.grad((new**2).sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable"):
        grad.sum().backward()


def test_torch_notices_what_has_changed_since() -> None:
    w, g, lr, m, v = torch_tensors(draw(SHAPES["plain"]))
    m = m.detach()
    new = optgen.adam_update(w, g, lr, m, v, 1, stop_gradients=False)
    m.add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        new[0].sum().backward()


def test_torch_updates_in_place_are_noticed() -> None:
    w, g = torch_tensors(draw(SHAPES["plain"])[:2])
    square = (w * w).sum()
    with torch.no_grad():
        assert optgen.optimizer_update(w, g, 0.1, out=w) is w
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        square.backward()


def test_arrays_that_are_no_tensors_are_constants() -> None:
    arrays = draw(SHAPES["plain"])
    g = torch.tensor(arrays[1], requires_grad=True)
    w, m, v = (torch.tensor(arrays[i]) for i in (0, 3, 4))
    lr = arrays[2].copy()
    new = optgen.adam_update(w, g, lr, m, v, 2, stop_gradients=False)
    lr[...] = 99  # a later change is not a change of the past
    new[0].sum().backward()
    other = torch.tensor(arrays[1], requires_grad=True)
    adam(w, other, torch.tensor(arrays[2]), m, v, 2)[0].sum().backward()
    torch.testing.assert_close(g.grad, other.grad)


def test_torch_where_a_derivative_would_be_lost() -> None:
    w, g, lr, m, v = torch_tensors(draw(SHAPES["plain"]))
    with pytest.raises(LeafError, match=r"w must be a torch tensor.*derivative by 'effective_grad'.*got ndarray"):
        optgen.optimizer_update(w.detach().numpy(), g, 0.1, stop_gradients=False)
    with pytest.raises(LeafError, match=r"mw_tm1 'a' must be a torch tensor.*derivative by 'w'"):
        optgen.adam_update(
            {"a": w}, g.detach(), 0.1, m.detach().numpy(), v.detach(), 1, stop_gradients=False
        )  # fmt: skip
    with pytest.raises(LeafError, match=r"out must be None where a derivative is wanted"):
        optgen.optimizer_update(w, g, 0.1, stop_gradients=False, out=torch.zeros_like(w))
    beta = torch.tensor(0.9, requires_grad=True)
    with pytest.raises(HyperparameterError, match=r"beta1 must not require grad"):
        optgen.adam_update(w, g, lr, m, v, 1, beta1=beta, stop_gradients=False)
    assert not optgen.adam_update(w, g, lr, m, v, 1, beta1=beta)[0].requires_grad
    assert isinstance(optgen.optimizer_update(w.detach().numpy(), g, 0.1), np.ndarray)


def test_torch_containers_with_derivatives_for_some_leaves() -> None:
    w = Container(a=torch.ones(2, requires_grad=True), b=torch.ones(2, requires_grad=True))
    g = torch.tensor([0.5, 1.0], requires_grad=True)
    new = optgen.optimizer_update(w, g, 0.1, stop_gradients=Container(a=False, b=True))
    assert new.a.requires_grad
    assert not new.b.requires_grad
    new.a.sum().backward()
    torch.testing.assert_close(g.grad, torch.full((2,), -0.1))
    _, m, _ = optgen.adam_update(w, g, 0.1, 0.0, 0.0, 1, stop_gradients=False)
    g.grad = None
    m.sum().backward()  # the state is shared by the leaves, and counts once
    torch.testing.assert_close(g.grad, torch.full((2,), 0.1))


# JAX.


@pytest.fixture(params=["f32", "f64"])
def precision(request: pytest.FixtureRequest) -> Any:
    with jax.enable_x64(request.param == "f64"):
        yield {"f32": (np.float32, 2e-5), "f64": (np.float64, 1e-10)}[request.param]


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_jax_adam(shapes: Any, precision: Any) -> None:
    dtype, tolerance = precision
    arrays = [jnp.asarray(a) for a in draw(shapes, dtype)]

    def grads(update: Callable[..., Any]) -> Any:
        return jax.jit(jax.grad(lambda *a: weighted(update(*a, 3, **HYPERS), jnp), tuple(range(5))))(*arrays)

    ours, theirs = grads(functools.partial(optgen.adam_update, stop_gradients=False)), grads(adam)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_jax_others(precision: Any) -> None:
    dtype, tolerance = precision
    w, g, lr, m, v = (jnp.asarray(a) for a in draw(SHAPES["broadcast"], dtype))
    ours = jax.grad(lambda *a: weighted(optgen.adam_step(*a, 3, **HYPERS), jnp), (0, 1, 2))(g, m, v)
    theirs = jax.grad(lambda *a: weighted(adam_step(*a, 3, **HYPERS), jnp), (0, 1, 2))(g, m, v)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    ours = jax.grad(lambda *a: weighted([optgen.optimizer_update(*a, stop_gradients=False)], jnp), (0, 1, 2))(w, g, lr)
    theirs = jax.grad(lambda w, g, lr: weighted([w - lr * g], jnp), (0, 1, 2))(w, g, lr)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_jax_stopped(precision: Any) -> None:
    arrays = [jnp.asarray(a) for a in draw(SHAPES["plain"], precision[0])]
    for grad in jax.grad(lambda *a: weighted(optgen.adam_update(*a, 3), jnp), tuple(range(5)))(*arrays):
        assert not grad.any()
    assert not jax.grad(lambda w: optgen.optimizer_update(w, 1.0, 0.1).sum())(arrays[0]).any()


def test_jax_by_hyperparameters() -> None:
    w, g, lr, m, v = (jnp.asarray(a) for a in draw(SHAPES["plain"], np.float32))
    start = (0.9, 0.99, 1e-4)

    def ours(beta1: Any, beta2: Any, epsilon: Any) -> Any:
        return weighted(
            optgen.adam_update(w, g, lr, m, v, 3, beta1=beta1, beta2=beta2, epsilon=epsilon, stop_gradients=False), jnp
        )

    def theirs(beta1: Any, beta2: Any, epsilon: Any) -> Any:
        return weighted(adam(w, g, lr, m, v, 3, beta1=beta1, beta2=beta2, epsilon=epsilon), jnp)

    for one, other in zip(jax.grad(ours, (0, 1, 2))(*start), jax.grad(theirs, (0, 1, 2))(*start), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3)


def test_jax_second_derivatives() -> None:
    w, g, lr, m, v = (jnp.asarray(a) for a in draw(((), (), (), (), ()), np.float32))
    ours = jax.grad(jax.grad(lambda g: optgen.adam_update(w, g, lr, m, v, 2, stop_gradients=False)[0]))(g)
    theirs = jax.grad(jax.grad(lambda g: adam(w, g, lr, m, v, 2)[0]))(g)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_jax_jit_and_vmap_are_the_module() -> None:
    arrays = [jnp.asarray(a) for a in draw(((5, 3),) * 5, np.float32)]
    plain = optgen.adam_update(*arrays, 4)
    jitted = jax.jit(optgen.adam_update, static_argnums=5)(*arrays, 4)
    counted = jax.jit(optgen.adam_update)(*arrays, 4)  # the step is traced too
    mapped = jax.vmap(lambda *a: optgen.adam_update(*a, 4))(*arrays)
    for results in (jitted, counted, mapped):
        for one, other in zip(results, plain, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)


def test_jax_constants_of_other_kinds_and_dtypes() -> None:
    w, g, lr, m, v = draw(SHAPES["plain"], np.float32)
    plain = optgen.adam_update(w, g, lr, m, v, 2)
    given = optgen.array(m), torch.from_numpy(v), lr.tolist()

    def update(w: Any) -> Any:
        return optgen.adam_update(w, g, given[2], given[0], given[1], 2)

    for one, other in zip(jax.jit(update)(w), plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)
    half = w.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
    new = jax.jit(optgen.adam_update)(*half, lr, m, v, 2)
    assert [x.dtype for x in new] == [jnp.bfloat16, np.float32, np.float32]
    np.testing.assert_array_equal(
        np.asarray(new[0], np.float32), np.asarray(optgen.adam_update(*half, lr, m, v, 2)[0], np.float32)
    )


def test_jax_containers_are_pytrees() -> None:
    w = Container(b=jnp.ones(2), a={"c": jnp.zeros(3)})
    grads = jax.grad(
        lambda w: sum(x.sum() for x in jax.tree.leaves(optgen.optimizer_update(w, 1.0, 0.1, stop_gradients=False)))
    )(w)
    assert isinstance(grads, Container)
    assert grads.a.c.tolist() == [1, 1, 1]
    assert list(jax.tree.map(lambda x: x, w)) == ["a", "b"]
    jitted = jax.jit(lambda w: optgen.optimizer_update(w, 1.0, 0.5))(w)
    assert jitted.b.tolist() == [0.5, 0.5]


def test_jax_refusals() -> None:
    w = jnp.ones(3)
    with pytest.raises(LeafError, match=r"out must be None in a function that JAX transforms"):
        jax.jit(lambda w: optgen.optimizer_update(w, w, 0.1, out=np.zeros(3, np.float32)))(w)
    with pytest.raises(LeafError, match=r"dcdw must have dtype f32.*got f64"):
        jax.jit(lambda w: optgen.gradient_descent_update(w, np.zeros(3), 0.1))(w)
    with pytest.raises(LeafError, match=r"w must have dtype f32, f64, bf16 or f16 .got int32"):
        jax.jit(lambda w: optgen.gradient_descent_update(w, 0.0, 0.1))(jnp.arange(3))
    with pytest.raises(LeafError, match=r"must have a shape that broadcasts"):
        jax.jit(lambda w: optgen.gradient_descent_update(w, np.zeros(2, np.float32), 0.1))(w)
    with pytest.raises(HyperparameterError, match=r"step must be one number"):
        jax.jit(lambda s: optgen.adam_update(w, w, 0.1, 0.0, 0.0, s))(w)


def test_jax_arrays_outside_of_transformations_go_through_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optgen.arrays.tracing.traced_update", lambda work: pytest.fail("traced"))
    w = jnp.ones(3)
    new = optgen.optimizer_update(w, w, 0.5, stop_gradients=False)
    assert isinstance(new, jax.Array)
    assert new.tolist() == [0.5] * 3
