"""Sorts: equal elements keep their order, and what is sorted beside them is not written over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_targets import TARGETS, flat, run

from optgen.compiler.driver import compile_and_print
from optgen.errors import HazardError
from optgen.lower.hazard import OWN, Hazard, check_own_memory, find_hazards
from optgen.lower.repair import REPAIRS, stablehlo_of
from optgen.targets import get_target


def everything(x: Any, few: Any, second: Any) -> Any:
    import jax
    import jax.numpy as jnp

    rows = jax.random.permutation(jax.random.wrap_key_data(jnp.abs(few[:2]).astype(jnp.uint32)), x)
    return flat([
        jnp.argsort(few), jnp.argsort(few, descending=True), jnp.argsort(few.astype(jnp.float32)), jnp.argsort(few > 2),
        jnp.lexsort((second, few)), jnp.sort(few), jnp.argsort(x, axis=0), jax.lax.top_k(few.astype(jnp.float32), 5)[1],
        jnp.sort(x, axis=1), *jax.lax.sort((few, jnp.sin(second * 1.0), second), num_keys=1), jnp.argmax(few),
        jnp.argsort(jnp.where(few == 2, jnp.nan, jnp.where(few == 3, -0.0, (few == 4) * 1.0))),
        # The rows' positions are read again after they have been sorted.
        jnp.take_along_axis(rows, second[:, None] % 3, 1), x[jnp.argsort(few)] * jnp.arange(20)[:, None],
        jax.grad(lambda x: (x[jnp.argsort(few)] ** 3)[jnp.arange(20), second % 3].sum())(x),
    ])  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_sorts(target: str, tmp_path: Path, request: Any) -> None:
    rng = np.random.default_rng(5)
    arguments = {
        "x": rng.standard_normal((20, 3)).astype(np.float32), "few": rng.integers(0, 6, 20).astype(np.int32),
        "second": rng.integers(0, 4, 20).astype(np.int32),
    }  # fmt: skip
    found = run(target, everything, arguments, tmp_path, request)
    np.testing.assert_allclose(found, everything(**arguments), rtol=1e-5, atol=1e-6)


def test_a_constant_that_is_sorted_in_place_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler does with it is found, in the program's own memory; and what is compiled has none of it."""
    import jax
    import jax.numpy as jnp

    def picked(x: Any, few: Any) -> Any:
        return (jnp.take_along_axis(x[jnp.argsort(few)], (few % 3)[:, None], 1) ** 2).sum()

    structs = jax.ShapeDtypeStruct((20, 3), "float32"), jax.ShapeDtypeStruct((20,), "int32")
    traced = jax.jit(jax.grad(picked)).trace(*structs)
    # As C is compiled: the constants of other modules are computed once, and lie in memory of their own.
    flags = (*get_target("cpu").flags, "--iree-opt-const-eval=false", "--iree-opt-const-expr-hoisting=false")

    def hazards() -> list[Hazard]:
        return find_hazards(compile_and_print(stablehlo_of(traced), flags).printed)

    assert hazards() == []
    monkeypatch.delitem(REPAIRS, "stablehlo.sort")
    (found,) = hazards()
    assert (found.argument, found.kind) == (OWN, "after")
    assert "value of the program's own" in str(found)
    with pytest.raises(HazardError, match="made of constants alone"):
        check_own_memory([found])
