"""What the lowering decides from a graph: prologue, reductions, payload, and whether in place is safe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import optgen
from optgen.compiler.build import compile_kernel, count_copies, flags_for
from optgen.compiler.driver import compile_mlir
from optgen.dsl import Variant, norm, rule, sqrt, where
from optgen.errors import HyperparameterError, LoweringError, RuleError, UnsupportedTargetError
from optgen.lower import lower
from optgen.rules import get_rule
from optgen.targets import get_target


def kernel(rule_: Any, dtype: str = "f32", shapes: Any = None, **structure: Any) -> Any:
    variant = Variant.of(rule_, structure=structure)
    return lower(variant.kernel(variant.dtypes(dtype)), shapes)


@rule(state=("m", "v"), decays=("beta1", "beta2"), source="You et al., Large Batch Optimization (2020)")
def lamb(
    w: Any, g: Any, m: Any, v: Any, *, lr: Any, step: Any, beta1: Any = 0.9, beta2: Any = 0.999, eps: Any = 1e-6,
    weight_decay: Any = 0.01,
) -> Any:  # fmt: skip
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    u = (m / (1 - beta1**step)) / (sqrt(v / (1 - beta2**step)) + eps) + weight_decay * w
    wn, un = norm(w), norm(u)
    ratio = where((wn > 0) & (un > 0), wn / un, 1.0)
    return w - lr * ratio * u, m, v


def lamb_reference(w: Any, g: Any, m: Any, v: Any, lr: float, step: int) -> tuple[Any, Any, Any]:
    w, g, m, v = (np.asarray(x, np.float64) for x in (w, g, m, v))
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    u = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6) + 0.01 * w
    return w - lr * np.linalg.norm(w) / np.linalg.norm(u) * u, m, v


@rule()
def centered(w: Any, g: Any, *, lr: Any) -> Any:
    return w - lr * (g - g.mean())


@rule()
def in_two_steps(w: Any, g: Any, *, lr: Any) -> Any:
    """A reduction of something that needs a reduction."""
    c = g - g.mean()
    return w - lr * c / norm(c)


@rule()
def mirrored(w: Any, g: Any, *, lr: Any) -> Any:
    return w - lr * g[::-1]


@rule()
def by_rank(w: Any, g: Any, *, lr: Any) -> Any:
    """Elementwise, but not the same for vectors and matrices."""
    return w - lr * (g if w.ndim == 1 else 2 * g)


@rule()
def of_unit_norm(w: Any, g: Any, *, lr: Any) -> Any:
    return w - lr * g.T / norm(g)


@rule()
def product(w: Any, g: Any, *, lr: Any) -> Any:
    return w - lr * (w @ w.T @ g)


@rule(state=("m",))
def swapped(w: Any, g: Any, m: Any, *, lr: Any) -> Any:
    """Purely elementwise, and wrong in place as soon as two dispatches are made of it."""
    return w + m, m + 2 * w


def test_adamw_is_a_prologue_and_one_pass() -> None:
    (adamw,) = kernel(get_rule("adamw"))
    assert adamw.in_place
    assert adamw.shape is None
    assert not adamw.plan.reductions
    # Nothing that does not depend on the element is left in the loop.
    assert {n.op for n in adamw.plan.prologue} >= {"exponential_minus_one", "divide", "sqrt"}
    assert [n.op for n in adamw.plan.update.body].count("divide") == 1
    assert not adamw.plan.update.entry
    assert len(adamw.plan.update.leaves) == 4


def test_the_kernel_is_one_tied_dispatch() -> None:
    (adamw,) = kernel(get_rule("adamw"))
    by_rows, by_list = (adamw.mlir(get_target(name).style) for name in ("cpu", "vulkan"))
    for text in (by_rows, by_list):
        assert text.count("flow.dispatch.workgroups") == 1
        assert text.count(" consume %") == 3
    assert "-> (%x_w_t{ %x_w_n }, %x_m_t{ %x_m_n }, %x_v_t{ %x_v_n })" in by_rows
    assert "-> (%x_w_t{ %n }, %x_m_t{ %n }, %x_v_t{ %n })" in by_list


@pytest.mark.parametrize("target", ["cpu", "vulkan", "cuda"])
@pytest.mark.parametrize("rule_", [get_rule("sgd"), get_rule("adamw"), swapped, lamb, centered], ids=lambda r: r.name)
def test_stream_holds_no_copy(target: str, rule_: Any) -> None:
    (lowered,) = kernel(rule_)
    _, copies = compile_kernel(lowered, get_target(target))
    assert copies == 0
    found = get_target(target)
    stream = compile_mlir(lowered.mlir(found.style), [*flags_for(lowered, found), "--compile-to=stream"]).decode()
    assert "stream.cmd.dispatch" in stream


def test_copies_are_counted() -> None:
    """The check can fail: where the old param is wanted after the update, the compiler must copy it first."""
    (sgd,) = kernel(get_rule("sgd"), momentum=True)
    target = get_target("cuda")
    reader = """%empty = tensor.empty(%n) : tensor<?xf32>
  %old = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]}
    ins(%x_w_t : tensor<?xf32>) outs(%empty : tensor<?xf32>) {
  ^bb0(%a: f32, %b: f32):
    %c = arith.negf %a : f32
    linalg.yield %c : f32
  } -> tensor<?xf32>
  %view1 = hal.tensor.export %old "x_m\""""
    mlir = sgd.mlir(target.style).replace('%view1 = hal.tensor.export %done#1 "x_m"', reader)
    stream = compile_mlir(mlir, [*flags_for(sgd, target), "--compile-to=stream"]).decode()
    assert count_copies(stream) >= 1


def test_swap_is_right_in_place(device: str, rng: np.random.Generator) -> None:
    opt = optgen.compile(swapped, target=["cpu", "vulkan"], device=device)
    w, m = (rng.standard_normal(10_001).astype(np.float32) for _ in range(2))
    expected = w + m, m + 2 * w
    opt.step(w, np.zeros_like(w), {"step": 0, "m": m}, lr=0.0)
    np.testing.assert_array_equal(w, expected[0])
    np.testing.assert_allclose(m, expected[1], rtol=1e-6)


@pytest.mark.parametrize("device", ["local-sync", "local-task"])
def test_reductions_then_the_tied_pass(device: str, rng: np.random.Generator) -> None:
    (lowered,) = kernel(lamb)
    assert lowered.in_place
    assert len(lowered.plan.reductions) == 1
    assert len(lowered.plan.reductions[0].nodes) == 2
    opt = optgen.compile(lamb, device=device)
    assert all(m.in_place for m in opt.manifest.kernels[0].modules)
    for size in (1, 7, 1000, 100_003):
        tensors = [rng.standard_normal(size).astype(np.float32) for _ in range(4)]
        tensors[3] = np.abs(tensors[3])
        expected = lamb_reference(*tensors, lr=0.1, step=3)
        address = tensors[0].ctypes.data
        w, state = opt.step(tensors[0], tensors[1], {"step": 2, "m": tensors[2], "v": tensors[3]}, lr=0.1)
        assert w.ctypes.data == address
        np.testing.assert_allclose(w, expected[0], rtol=2e-7, atol=2e-7)
        np.testing.assert_allclose(state["v"], expected[2], rtol=1e-6)


@pytest.mark.parametrize("device", ["local-sync", "local-task"])
@pytest.mark.parametrize("rule_", [centered, in_two_steps], ids=lambda r: r.name)
def test_the_number_of_elements_is_taken_at_run_time(device: str, rule_: Any, rng: np.random.Generator) -> None:
    opt = optgen.compile(rule_, device=device)
    for shape in ((3,), (30, 5), (4097,)):
        w, g = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        c = g.astype(np.float64) - g.astype(np.float64).mean()
        expected = w - 0.5 * (c / np.linalg.norm(c) if rule_ is in_two_steps else c)
        opt.step(w, g, opt.init(w), lr=0.5)
        np.testing.assert_allclose(w, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("rule_", "words"),
    [(mirrored, "reverse"), (by_rank, "leaves of another shape"), (product, "relates elements")],
    ids=lambda x: getattr(x, "name", ""),
)
def test_cross_element_rules_are_refused_without_shapes(rule_: Any, words: str) -> None:
    with pytest.raises(LoweringError, match="cannot run in place") as caught:
        kernel(rule_)
    assert words in str(caught.value) or rule_ is product  # JAX itself refuses the product of vectors
    assert "like=params" in str(caught.value)


def test_the_error_names_the_line() -> None:
    with pytest.raises(LoweringError, match=r"test_lowering\.py, line \d+"):
        kernel(mirrored)


def test_out_of_place_is_right_and_said(device: str, rng: np.random.Generator) -> None:
    params = {"a": rng.standard_normal((4, 4)).astype(np.float32), "b": rng.standard_normal((3, 3)).astype(np.float32)}
    grads = {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in params.items()}
    expected = {k: w - 0.1 * (w @ w.T @ grads[k]) for k, w in params.items()}
    opt = optgen.compile(product, params, target=["cpu", "vulkan"], device=device)
    assert opt.manifest.fixed_layout
    assert [k.in_place for k in opt.manifest.kernels] == [False, False]
    assert not any(m.in_place for k in opt.manifest.kernels for m in k.modules)
    assert all(k.reason for k in opt.manifest.kernels)
    before = {k: v.ctypes.data for k, v in params.items()}
    new, _ = opt.step(params, grads, opt.init(params), lr=0.1)
    assert new is params
    for key in params:
        assert params[key].ctypes.data == before[key]
        np.testing.assert_allclose(params[key], expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_out_of_place_in_other_dtypes(dtype: str, rng: np.random.Generator) -> None:
    w, g = (rng.standard_normal((3, 3)).astype(dtype) for _ in range(2))
    expected = w - 0.1 * (w @ w.T @ g)
    opt = optgen.compile(product, w)
    opt.step(w, g, opt.init(w), lr=0.1)
    np.testing.assert_allclose(w, expected, rtol=2e-2 if dtype == "float16" else 1e-12, atol=1e-2)


def test_f64_reduction_is_accurate(rng: np.random.Generator) -> None:
    """f32 sums of a million elements are off by 4e-4 in the compiler's own reductions."""
    opt = optgen.compile(centered, device="local-task")
    g = (rng.standard_normal(1_000_003) + 3).astype(np.float32)
    w = np.zeros_like(g)
    opt.step(w, g, opt.init(w), lr=1.0)
    np.testing.assert_allclose(w, -(g - g.mean(dtype=np.float64)), atol=2e-7)


def test_baked_hyperparameters_are_constants() -> None:
    opt = optgen.compile("adamw", bake={"beta1": 0.8, "weight_decay": 0.0})
    assert opt.manifest.baked == {"beta1": 0.8, "weight_decay": 0.0}
    assert not [s for s in opt.manifest.kernels[0].scalars if s.hyper in ("beta1", "weight_decay")]
    w, g = np.ones(5, np.float32), np.full(5, 0.5, np.float32)
    plain, w2 = optgen.prebuilt("adamw"), np.ones(5, np.float32)
    opt.step(w, g, opt.init(w), lr=0.1)
    plain.step(w2, g, plain.init(w2), lr=0.1, beta1=0.8, weight_decay=0.0)
    np.testing.assert_array_equal(w, w2)
    with pytest.raises(HyperparameterError, match="baked"):
        opt.step(w, g, opt.init(w), lr=0.1, beta1=0.9)


def test_malformed_rules_are_refused() -> None:
    with pytest.raises(RuleError, match="its param, its grad and then its state"):

        @rule(state=("m",))
        def no_state(w: Any, g: Any) -> Any:
            return w

    with pytest.raises(RuleError, match="must name its keyword parameters"):

        @rule(decays=("beta",))
        def no_beta(w: Any, g: Any, *, lr: Any) -> Any:
            return w

    @rule(state=("m",))
    def forgets(w: Any, g: Any, m: Any, *, lr: Any) -> Any:
        return w - lr * g

    with pytest.raises(RuleError, match="must return 2 tensors"):
        kernel(forgets)

    @rule()
    def shrinks(w: Any, g: Any, *, lr: Any) -> Any:
        return (w - lr * g).sum()

    with pytest.raises(RuleError, match="must have its leaf's shape"):
        kernel(shrinks)


def test_sums_out_of_place_are_accumulated_in_f64(rng: np.random.Generator) -> None:
    """As those of rules in place: in f32 the norm of a million elements has three or four digits."""
    g = rng.standard_normal((1024, 1024)).astype(np.float32) + 3
    w = np.zeros_like(g)
    opt = optgen.compile(of_unit_norm, w, target="cpu")
    opt.step(w, g, opt.init(w), lr=1.0)
    exact = -g.T.astype(np.float64) / np.linalg.norm(g.astype(np.float64))
    assert np.abs(w / exact - 1).max() <= 2e-7
    (single,) = kernel(of_unit_norm, shapes=[(6, 6)])
    assert "xf64>" in single.mlir(get_target("cpu").style)
    assert "f64" not in single.mlir(get_target("vulkan").style)


@pytest.mark.parametrize("rule_", ["muon", "adafactor"])
def test_what_vulkan_would_sum_wrongly_is_refused(rule_: str) -> None:
    """Mesa's driver ends loops too early, and says nothing."""
    with pytest.raises(UnsupportedTargetError, match=r"on a leaf of shape \(200, 200\) .* \(40000\)"):
        optgen.compile(rule_, np.ones((200, 200), np.float32), target="vulkan")


def test_sums_out_of_place_on_vulkan(vulkan: str, rng: np.random.Generator) -> None:
    """As many elements as are allowed to be summed and then divided by the sum, in one kernel."""
    g = rng.standard_normal((147, 147)).astype(np.float32)
    w = np.zeros_like(g)
    opt = optgen.compile(of_unit_norm, w, target=vulkan, device=vulkan)
    opt.step(w, g, opt.init(w), lr=1.0)
    np.testing.assert_allclose(w, -g.T / np.linalg.norm(g.astype(np.float64)), rtol=1e-5)
