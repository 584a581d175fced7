"""What the compiler refuses is compiled in another known way, which the manifest names, and is right."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import optax
import pytest

import optgen as og
from optgen.compiler.retry import WAYS, in_known_ways
from optgen.errors import CompileError
from optgen.train import compile_function


@og.rule(state=("old",))
def turns(w: Any, g: Any, old: Any, *, lr: Any) -> Any:
    """SGD that remembers the last params back to front. IREE cannot cut that into tiles."""
    return w - lr * g, w[::-1] + 0 * old


def test_a_kernel_that_cannot_be_dealt_out() -> None:
    rng = np.random.default_rng(0)
    w, g = (rng.standard_normal((20, 32)).astype(np.float32) for _ in range(2))
    optimizer = og.compile(turns, like={"w": w})
    (module,) = optimizer.manifest.kernels[0].modules
    assert module.retried == ("undistributed",)
    again = type(optimizer.manifest).from_json(optimizer.manifest.to_json())
    assert again.kernels[0].modules[0].retried == ("undistributed",)
    params = {"w": w.copy()}
    state = optimizer.init(params)
    optimizer.step(params, {"w": g}, state, lr=0.1)
    np.testing.assert_allclose(params["w"], w - 0.1 * g, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(state["old"]["w"], w[::-1])


def test_manifests_are_silent_where_nothing_was_retried() -> None:
    bundle = compile_function(lambda x: 2 * x, np.ones(3, np.float32), name="double", targets="cpu")
    assert bundle.manifest.modules[0].retried == ()
    assert "retried" not in bundle.manifest.to_json()


def test_the_first_refusal_is_what_is_said() -> None:
    seen: list[tuple[str, ...]] = []

    def attempt(flags: tuple[str, ...]) -> None:
        seen.append(flags)
        raise CompileError(f"refusal {len(seen)}")

    with pytest.raises(CompileError, match="refusal 1"):
        in_known_ways(attempt, "cpu")
    assert seen == [(), *(way.flags for way in WAYS if "cpu" in way.backends)]
    seen.clear()
    with pytest.raises(CompileError, match="refusal 1"):
        in_known_ways(attempt, "metal")
    assert seen == [()]


def test_heads_and_packages_record_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that takes nothing without the flags of the first way."""
    import jax

    from optgen.compiler import driver
    from optgen.native import compile_c_function, get_native_target, step_package

    run_in = driver.run_in

    def refusing(folder: Any, mlir: str, flags: Any, *more: Any) -> bytes:
        if not set(WAYS[0].flags) <= set(flags):
            raise CompileError("iree-compile refused the module")
        return run_in(folder, mlir, flags, *more)

    monkeypatch.setattr(driver, "run_in", refusing)
    x = np.ones(5, np.float32)
    text = jax.jit(lambda x: 2 * x).lower(x).as_text()
    told = {"name": "f", "arguments": ["x"], "results": ["y"], "use_cache": False}
    bundle = compile_c_function(text, "cpu:x86-64", **told)
    assert json.loads(bundle.files["manifest.json"])["retried"] == ["undistributed"]
    package = step_package(text, get_native_target("wasm"), **told)
    assert json.loads(package.files["optgen.json"])["retried"] == ["undistributed"]
    optimizer = og.compile(optax.sgd(0.1), like={"w": x}, in_place=False, use_cache=False, check=False)
    assert optimizer.manifest.head is not None
    again = type(optimizer.manifest).from_json(optimizer.manifest.to_json())
    assert [module.retried for module in again.head.modules] == [("undistributed",)]
