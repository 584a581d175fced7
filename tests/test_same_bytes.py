"""What is written into an artifact does not depend on the processor that it is made on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from same_bytes import bundles, elsewhere, operations

from optgen.lower import rounded

FUNCTIONS = ("exp", "expm1", "log", "log1p", "tanh", "cbrt", "sin", "cos", "power", "arctan2")


def test_operations_give_the_same_bits_on_another_processor() -> None:
    here, there = operations(), elsewhere("operations")
    control = here.pop("control") != there.pop("control")
    assert {name for name in here if here[name] != there[name]} == set()
    if not control:
        pytest.skip("this processor has no features that could be switched off")


def test_bundles_are_the_same_bytes_on_another_processor() -> None:
    here, there = bundles(), elsewhere("bundles")
    assert len(here) > 20
    assert {name for name in here if here[name] != there[name]} == set()


def _arguments(name: str, rng: np.random.Generator, size: int) -> list[tuple[Any, ...]]:
    """Arguments of every size that matter to a function."""
    x = rng.standard_normal(size)
    small, large = x * 10.0 ** rng.uniform(-25, 0, size), x * 200
    wide = np.exp(rng.uniform(-600, 600, size))
    if name == "log":
        return [(np.abs(x),), (wide,), (1 + small * 1e-3,)]
    if name == "log1p":
        return [(np.maximum(x, -0.99),), (small * 0.2,), (wide,)]
    if name == "power":
        return [(np.abs(x), large * 0.1), (np.rint(x * 5), np.abs(np.rint(large * 0.1))), (1 - 1e-9 * np.abs(x), large)]
    if name == "arctan2":
        return [(x, rng.standard_normal(size)), (small, x), (x, small)]
    if name in ("sin", "cos"):
        return [(x,), (small,), (large * 1e4,), (wide[: size // 10],)]
    return [(x,), (small,), (large,)]


def _exact(name: str) -> Callable[..., Any]:
    special = {"cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)), "arctan2": mpmath.atan2}
    return special.get(name) or getattr(mpmath, name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_correctly_rounded(name: str, rng: np.random.Generator) -> None:
    """Against arithmetic of 1,300 bits, which reduces angles of 1e260 as well."""
    with mpmath.workprec(1300 if name in ("sin", "cos") else 200):
        for arguments in _arguments(name, rng, 200):
            wanted = [float(_exact(name)(*map(mpmath.mpf, each))) for each in zip(*arguments, strict=True)]
            np.testing.assert_array_equal(getattr(rounded, name)(*arguments), wanted)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_numpys_to_a_few_units(name: str, rng: np.random.Generator) -> None:
    for arguments in _arguments(name, rng, 200):
        with np.errstate(all="ignore"):
            wanted = getattr(np, name)(*arguments)
        np.testing.assert_allclose(getattr(rounded, name)(*arguments), wanted, rtol=1e-15, atol=1e-300)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_edges_are_numpys(name: str) -> None:
    """Zeros and their signs, infinities, NaN, overflow."""
    edges = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 0.5, 2, 3, -3, 1e308, -1e308])
    arguments = (edges[:, None], edges[None]) if name in ("power", "arctan2") else (edges,)
    with np.errstate(all="ignore"):
        wanted, found = getattr(np, name)(*arguments), getattr(rounded, name)(*arguments)
    np.testing.assert_allclose(found, wanted, rtol=1e-14)
    known = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found)[known], np.signbit(wanted)[known])
