"""The analysis of aliasing: what is wrong when it runs must be found, and what is plainly right must not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from optgen.compiler.driver import compile_and_print
from optgen.lower.hazard import find_hazards
from optgen.runtime.device import get_device
from optgen.runtime.module import LoadedModule
from optgen.targets import get_target

N = 96


def _jnp() -> Any:
    import jax.numpy

    return jax.numpy


def adam(w: Any, m: Any, g: Any) -> Any:
    m = 0.9 * m + 0.1 * g
    return w - 0.1 * m / (abs(m) + 1), m


def scan(w: Any, m: Any, g: Any) -> Any:
    import jax

    last, _ = jax.lax.scan(lambda c, x: (_jnp().tanh(c @ w + x), None), g[0], g)
    return w - 0.1 * m, m + last.sum() * 0


#: Updates of w and m, both donated, and whether they are plainly right. Of the others all but `centred` go wrong with
#: IREE 3.13.
FUNCTIONS: dict[str, tuple[Callable[..., Any], bool]] = {
    "adam": (adam, True),
    "sgd": (lambda w, m, g: (w - 0.1 * g, 0.9 * m), True),
    "crossed": (lambda w, m, g: (w + m, m + 2 * w), False),
    "swap": (lambda w, m, g: (m + g, w + g), False),
    "old": (lambda w, m, g: (w - g, w), False),
    "reverse": (lambda w, m, g: (w[::-1] - g, m + g), False),
    "transpose": (lambda w, m, g: (w.T - g, m + g), False),
    "matmul": (lambda w, m, g: (w @ w - g, m + g), False),
    "centred": (lambda w, m, g: (w - w.mean(0), m + g), False),
    "norm": (lambda w, m, g: (w - g, m * _jnp().sqrt((w * w).sum())), False),
    "backward": (lambda w, m, g: (w - 0.1 * (g @ m.T), m - 0.1 * (w.T @ g)), False),
    "scan": (scan, True),
}


def compiled(name: str) -> tuple[bytes, str]:
    import jax

    struct = jax.ShapeDtypeStruct((N, N), "float32")
    traced = jax.jit(FUNCTIONS[name][0], donate_argnums=(0, 1), keep_unused=True).trace(struct, struct, struct)
    made = compile_and_print(traced.lower(lowering_platforms=("cpu",)).as_text(), get_target("cpu").flags)
    return made.module, made.printed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_wrong_is_found(name: str) -> None:
    function, safe = FUNCTIONS[name]
    module, printed = compiled(name)
    hazards = find_hazards(printed)
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal((N, N)) / 10).astype(np.float32) for _ in range(3)]
    expected = [np.asarray(e) for e in function(*(_jnp().asarray(a) for a in arrays))]
    device = get_device("local-sync")
    aligned = [np.empty(N * N + 16, np.float32) for _ in arrays]
    views = [a[-a.ctypes.data % 64 // 4 :][: N * N].reshape(N, N) for a in aligned]
    for view, array in zip(views, arrays, strict=True):
        view[...] = array
    bindings = [device.bind(view, "f32", (N, N)) for view in views]
    results = [np.empty((N, N), np.float32) for _ in expected]
    device.read_all(zip(LoadedModule(device, module, name, "main").call(bindings, 2), results, strict=True))
    wrong = max(float(np.abs(r - e).max()) for r, e in zip(results, expected, strict=True)) > 1e-4
    assert bool(hazards) != safe
    assert not (safe and wrong)
    if name in ("swap", "matmul", "backward"):
        assert wrong, "else this test proves nothing"
    for hazard in hazards:
        assert hazard.function == "main"
        assert hazard.argument in (0, 1)
        assert str(hazard.argument) in str(hazard)


def test_warnings_behind_the_ir_are_left_alone() -> None:
    printed = compiled("transpose")[1]
    assert find_hazards(printed + "\nmodule.mlir:1:1: warning: {} of a later pass\n}\n") == find_hazards(printed) != []


def test_text_without_ir_is_refused() -> None:
    with pytest.raises(ValueError, match="print-ir-before"):
        find_hazards("module {}")
