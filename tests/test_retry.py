"""What the compiler refuses is compiled in another known way, which the manifest names, and is right."""

from __future__ import annotations

from typing import Any

import numpy as np
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
