"""Functions of static shapes as C: names, memory and results."""

from __future__ import annotations

from pathlib import Path

import native_mlp as mlp
import numpy as np
import pytest
from native_machine import MACHINES

from optgen.errors import HazardError, LoweringError
from optgen.native import CBundle, compile_c_function


def test_names_of_a_training_step() -> None:
    header = mlp.compile_mlp("cpu:x86-64").files["mlp_step.h"].decode()
    assert "float *param_w1; /* f32[64, 32], read and written */" in header
    assert "const int32_t *y; /* i32[16], read */" in header
    assert "float *loss; /* one f32, written */" in header


_SWAP = """
module @any {
  func.func public @main(%a: tensor<3xf32>, %b: tensor<3xf32>, %k: tensor<i32>)
      -> (tensor<3xf32>, tensor<3xf32>, tensor<3xi1>) {
    %c = stablehlo.constant dense<2.0> : tensor<3xf32>
    %s = stablehlo.add %a, %b : tensor<3xf32>
    %d = stablehlo.multiply %b, %c : tensor<3xf32>
    %f = stablehlo.convert %k : (tensor<i32>) -> tensor<f32>
    %e = stablehlo.broadcast_in_dim %f, dims = [] : (tensor<f32>) -> tensor<3xf32>
    %g = stablehlo.compare GT, %s, %e : (tensor<3xf32>, tensor<3xf32>) -> tensor<3xi1>
    return %s, %d, %g : tensor<3xf32>, tensor<3xf32>, tensor<3xi1>
  }
}
"""


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:cortex-m4"])
def test_results_that_are_not_aliased(target: str, tmp_path: Path) -> None:
    """One is called like an argument and replaces it; the others have pointers of their own."""
    machine = MACHINES[target]
    machine.need()
    bundle = compile_c_function(_SWAP, target, name="f", arguments=["a", "b/x", "k"], results=["sum", "b/x", "large"])
    main = """
#include "f.h"
int main(void)
{
    float a[3] = {1, 2, 3}, b[3] = {10, 20, 30}, sum[3];
    int32_t k = 20;
    int8_t large[3];
    static unsigned char workspace[F_WORKSPACE_BYTES] __attribute__((aligned(64)));
    f_args args = {a, b, &k, sum, large};
    if (f(&args, workspace, sizeof workspace, NULL))
        return 1;
    args.sum = a;
    if (f(&args, workspace, sizeof workspace, NULL) != F_ERROR_OVERLAP)
        return 2;
    return a[2] != 3 || b[0] != 20 || b[2] != 60 || sum[1] != 22 || large[0] != 0 || large[1] != 1 || large[2] != 1;
}
"""
    machine.build(tmp_path, [bundle], main)
    machine.run(tmp_path)


def compiled(arguments: list[str], results: list[str]) -> CBundle:
    return compile_c_function(_SWAP, "cpu:x86-64", name="f", arguments=arguments, results=results)


def test_names_that_do_not_fit() -> None:
    with pytest.raises(LoweringError, match="are called 'x_y' in C"):
        compiled(["a", "b", "k"], ["x/y", "x_y", "large"])
    with pytest.raises(LoweringError, match="result 'k' must have the dtype and shape"):
        compiled(["a", "b", "k"], ["a", "b", "k"])
    with pytest.raises(LoweringError, match="begin with a module"):
        compile_c_function("func.func @f()", "cpu:x86-64", name="f")


def test_donated_to_another() -> None:
    """JAX gives a donated argument's memory to any result of its shape; which then reads what is overwritten."""
    import jax

    text = jax.jit(lambda a, b: (b + 1, a * 2), donate_argnums=(0, 1)).lower(np.zeros(3, "f4"), np.ones(3, "f4"))
    with pytest.raises(HazardError, match="a would be overwritten while still in use"):
        compile_c_function(text.as_text(), "cpu:x86-64", name="f", arguments=["a", "b"], results=["b", "a"])


def test_dynamic_shapes() -> None:
    text = """module @m { func.func public @main(%a: tensor<?xf32>) -> tensor<?xf32> {
      %0 = stablehlo.add %a, %a : tensor<?xf32>
      return %0 : tensor<?xf32>
    } }"""
    with pytest.raises(LoweringError, match="known"):
        compile_c_function(text, "cpu:x86-64", name="f")


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:cortex-m4"])
def test_tables_and_fills(target: str, tmp_path: Path) -> None:
    """Arrays that the function holds, a scatter into zeros, and a running sum, against JAX."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    table, matrix = rng.standard_normal(300, np.float32), rng.standard_normal((16, 16), np.float32)

    def f(i: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.asarray(table)[i], x @ matrix, jnp.zeros(64).at[i].add(2.0), jnp.cumsum(x, 1)

    i, x = np.array([0, 299, 7, 7, 3], np.int32), rng.standard_normal((3, 16), np.float32)
    bundle = compile_c_function(
        jax.jit(f).lower(i, x).as_text(), target, name="f", arguments=["i", "x"], results=["a", "b", "c", "d"]
    )
    main = """
#include "f.h"
#include "io.h"
static int32_t i[5];
static float x[48], out[5 + 48 + 64 + 48];
static unsigned char workspace[F_WORKSPACE_BYTES] __attribute__((aligned(64)));
int main(void)
{
    f_args args = {i, x, out, out + 5, out + 53, out + 117};
    int status;
    load("i", i, sizeof i);
    load("x", x, sizeof x);
    status = f(&args, workspace, sizeof workspace, NULL);
    store("out", out, sizeof out);
    return status;
}
"""
    i.tofile(tmp_path / "i")
    x.tofile(tmp_path / "x")
    machine = MACHINES[target]
    machine.build(tmp_path, [bundle], main)
    machine.run(tmp_path)
    wanted = np.concatenate([np.asarray(y).ravel() for y in f(i, x)])
    np.testing.assert_allclose(np.fromfile(tmp_path / "out", np.float32), wanted, rtol=1e-5, atol=2e-6)


def test_nothing_to_compute() -> None:
    text = "module @m { func.func public @main(%a: tensor<4xf32>) -> tensor<4xf32> { return %a : tensor<4xf32> } }"
    with pytest.raises(LoweringError, match="computes nothing"):
        compile_c_function(text, "cpu:x86-64", name="f")


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:cortex-m4"])
def test_a_step_of_optgen(target: str, tmp_path: Path) -> None:
    """What :func:`lower_step` makes of a loss and a rule, as C: three steps are JAX's gradient and torch's SGD."""
    import jax
    import torch

    from optgen.native import get_native_target
    from optgen.train import lower_step

    def loss(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
        return ((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2).mean()

    rng = np.random.default_rng(1)
    w, b = rng.standard_normal((5, 2), np.float32), np.zeros(2, np.float32)
    x, y = rng.standard_normal((8, 5), np.float32), rng.standard_normal((8, 2), np.float32)
    step = lower_step(
        loss, {"w": w, "b": b}, {"x": x, "y": y}, "sgd", momentum=0.9,
        bake={"momentum": 0.9, "weight_decay": 0.0, "lr": 0.1}, compute_dtype="f32",
    )  # fmt: skip
    assert step.hazards(get_native_target(target).flags) == []
    bundle = compile_c_function(
        step.mlir, target, name="sgd_step", arguments=[a.name for a in step.arguments],
        results=[r.path for r in step.results],
    )  # fmt: skip
    main = """
#include "sgd_step.h"
#include "io.h"
static float p[12], m[12], x[40], y[16], losses[3];
static unsigned char workspace[SGD_STEP_WORKSPACE_BYTES] __attribute__((aligned(64)));
int main(void)
{
    int32_t count = 0;
    int i, status = 0;
    sgd_step_args args = {p, p + 10, m, m + 10, &count, x, y, NULL};
    load("p", p, sizeof p);
    load("x", x, sizeof x);
    load("y", y, sizeof y);
    for (i = 0; i < 3 && !status; ++i) {
        args.loss = &losses[i];
        status = sgd_step(&args, workspace, sizeof workspace, NULL);
    }
    store("p", p, sizeof p);
    store("losses", losses, sizeof losses);
    return status ? status : count != 3;
}
"""
    for name, array in (("p", np.concatenate([w.ravel(), b])), ("x", x), ("y", y)):
        array.tofile(tmp_path / name)
    machine = MACHINES[target]
    machine.build(tmp_path, [bundle], main)
    machine.run(tmp_path)
    params = {"w": torch.nn.Parameter(torch.tensor(w)), "b": torch.nn.Parameter(torch.tensor(b))}
    sgd, losses = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9), []
    for _ in range(3):
        value, grads = jax.value_and_grad(loss)({n: p.detach().numpy() for n, p in params.items()}, {"x": x, "y": y})
        losses.append(float(value))
        for name, param in params.items():
            param.grad = torch.tensor(np.asarray(grads[name]))
        sgd.step()
    wanted = np.concatenate([params["w"].detach().numpy().ravel(), params["b"].detach().numpy()])
    np.testing.assert_allclose(np.fromfile(tmp_path / "p", np.float32), wanted, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.fromfile(tmp_path / "losses", np.float32), losses, rtol=2e-6)
