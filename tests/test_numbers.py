"""Casts, powers and half precision as JAX has them, on every kind of target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_targets import TARGETS, run

import optgen as og
from optgen.errors import LoweringError
from optgen.lower.kept_halves import from_half, to_half, without_halves
from optgen.lower.repair import stablehlo_of

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
#: Inside and outside of all of them, and beside their ends.
FLOATS = np.array(
    [0, -0.0, 0.9, -0.9, 1, -1, 127.9, 128, -128.9, -129, 255.9, 256, 300, -300, 32767.5, 32768, -32769, 65535.5,
     65536, -40000, 2147483520, 2147483648, -2147483648, -2147483904, 3e9, 4294967040, 4294967296, 1e10, -1e10,
     5e18, -5e18, 1e20, -1e20, np.inf, -np.inf, np.nan],
    np.float32,
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_casts_to_integers(target: str, tmp_path: Path, request: Any) -> None:
    """The nearest integer of the type, and 0 for NaN."""
    import jax.numpy as jnp

    def cast(x: Any) -> Any:  # halves of words, all of which f32 has
        found = [x.astype(dtype) for dtype in INTEGERS]
        return jnp.concatenate(
            [(v.astype(jnp.uint32) >> n & 0xFFFF).astype(jnp.float32) for v in found for n in (0, 16)]
        )

    words = run(target, cast, {"x": FLOATS}, tmp_path, request).reshape(len(INTEGERS), 2, -1).astype(np.uint32)
    for dtype, (low, high) in zip(INTEGERS, words, strict=True):
        info = np.iinfo(dtype)
        exact = [0 if np.isnan(v) else max(info.min, min(info.max, int(np.clip(v, -1e15, 1e15)))) for v in FLOATS]
        found = (low | high << 16).astype(np.int64) if info.min == 0 else (low | high << 16).view(np.int32)
        assert found.tolist() == exact, dtype


@pytest.mark.parametrize("target", TARGETS)
def test_powers(target: str, tmp_path: Path, request: Any) -> None:
    """Of negative numbers, zeros, ones and infinities, as C's pow (which numpy calls) has them."""
    import jax.numpy as jnp

    bases = [0, -0.0, 1, -1, 2, -2, 0.5, -2.5, 11, np.inf, -np.inf, np.nan]
    exponents = [0, -0.0, 1, -1, 2, 3, -3, 0.5, -0.5, 2.5, 101, np.inf, -np.inf, np.nan]
    x, y = (a.ravel().astype(np.float32) for a in np.meshgrid(bases, exponents))
    found = run(target, lambda x, y: jnp.power(x, y), {"x": x, "y": y}, tmp_path, request)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(found, exact, rtol=3e-5)
    np.testing.assert_array_equal(np.signbit(found[exact == exact]), np.signbit(exact[exact == exact]))


def test_powers_of_a_known_base_are_left_alone() -> None:
    """As decays of averages are, in every step."""
    import jax

    assert "repair" not in stablehlo_of(jax.jit(lambda n: 0.9**n).trace(np.float32(2)))
    assert "repair" in stablehlo_of(jax.jit(lambda n: (-0.9) ** n).trace(np.float32(2)))


def test_halves_by_integer_arithmetic() -> None:
    """All that there are, and what lies between two of them."""
    import jax

    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    wide = halves.astype(np.float32)
    np.testing.assert_array_equal(jax.jit(from_half)(halves), wide)
    some = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        between = wide[:-1] / 2 + wide[1:] / 2
        beside = [np.nextafter(v, np.float32(to)) for v in (wide, between) for to in (-1e9, 1e9)]
        x = np.concatenate([some, wide, between, *beside])
        exact = x.astype(np.float16)
    np.testing.assert_array_equal(jax.jit(to_half)(x), exact)


@pytest.mark.parametrize("target", ["c", "c:cpu:armv7", "c:cpu:riscv64", "wasm"])
def test_half_precision(target: str, tmp_path: Path, request: Any) -> None:
    """Arithmetic of f16 is rounded to f16 each time; a product of matrices once."""
    import jax
    import jax.numpy as jnp

    def halves(x: Any, y: Any) -> Any:
        a, b = x.astype(jnp.float16), y.astype(jnp.float16)
        made = [a + b, a * b, a - b, jnp.maximum(a, b), -a, jnp.where(a > b, a, b), a[::-1], jnp.sqrt(abs(a))]
        return jnp.concatenate([*(v.astype(jnp.float32) for v in made), (a @ b).astype(jnp.float32)[None]])

    rng = np.random.default_rng(3)
    given = {"x": rng.standard_normal(19).astype(np.float32), "y": rng.standard_normal(19).astype(np.float32)}
    np.testing.assert_allclose(
        run(target, halves, given, tmp_path, request), jax.jit(halves)(*given.values()), rtol=2e-3
    )


def test_a_step_on_half_precision_in_webassembly() -> None:
    """Its batch was read by a library function of other types: the module was none."""
    params, batch = {"w": np.ones(7, np.float32)}, {"x": np.ones((2, 7), np.float16)}
    package = og.train.compile_step_wasm(lambda p, b: (b["x"] * p["w"]).mean(), params, batch, "sgd", name="m")
    assert package.proven


def test_sums_of_halves_are_refused_on_32_bit_targets() -> None:
    import jax
    from jax import lax

    def sums(x: Any) -> Any:
        return lax.reduce(x, np.float16(0), lax.add, (0,))

    text = stablehlo_of(jax.jit(sums).trace(np.ones(5, np.float16)))
    with pytest.raises(LoweringError, match="reduce in f16 cannot be written for 32-bit targets: cast its operand"):
        without_halves(text)
    plain = stablehlo_of(jax.jit(lambda x: x + 1).trace(np.ones(5, np.float32)))
    assert without_halves(plain) is plain


@pytest.mark.parametrize("name", ["eigh", "svd", "qr"])
def test_what_only_libraries_compute_is_refused_with_its_line(name: str) -> None:
    import jax.numpy as jnp

    def loss(params: Any, batch: Any) -> Any:
        return jnp.concatenate([jnp.ravel(v) for v in getattr(jnp.linalg, name)(params["w"])]).sum() + batch["x"].sum()

    params, batch = {"w": np.eye(3, dtype=np.float32)}, {"x": np.ones(1, np.float32)}
    with pytest.raises(LoweringError, match=rf"test_numbers\.py:\d+ \({name}\): .* library for linear algebra"):
        og.train.compile_step(loss, params, batch, "sgd")
