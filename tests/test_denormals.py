"""Denormal numbers on CPUs: kernels keep them, and a thread's float mode is afterwards what it was."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import optgen
from optgen import host
from optgen.compiler.build import flags_for
from optgen.compiler.driver import dump_assembly
from optgen.dsl import Variant, rule
from optgen.lower import lower
from optgen.rules import get_rule
from optgen.targets import TARGETS, get_target

DTYPES = {"f64": np.float64, "f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}
CPU_TARGETS = [
    "cpu", *(n for n, t in TARGETS.items() if t.arch == host.architecture() and {*t.features} <= host.features())
]  # fmt: skip
SYNC_AND_TASK = pytest.mark.parametrize("device", ["local-sync", "local-task"])


@rule()
def transposed(w: Any, g: Any, *, lr: Any) -> Any:
    return w - lr * g.T


def denormals(dtype: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """All magnitudes below the smallest normal number, of both signs, zeros among them."""
    kind = DTYPES[dtype]
    smallest = float(ml_dtypes.finfo(kind).smallest_subnormal)
    digits = ml_dtypes.finfo(kind).nmant
    whole = np.floor(2 ** rng.uniform(0, digits, count)) * rng.choice([-1, 0, 1], count)
    return (whole * smallest).astype(kind)


@pytest.mark.parametrize("target", CPU_TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_denormals_are_exact(target: str, dtype: str, rng: np.random.Generator) -> None:
    """``w - g`` of denormals is a multiple of the smallest one, which every dtype holds exactly up to twice its range;
    the last elements of a row are handled by other code than its pieces of 16."""
    opt = optgen.compile("sgd", target=target, dtypes=[dtype])
    w, g = denormals(dtype, 999, rng), denormals(dtype, 999, rng)
    expected = (w.astype(np.longdouble) - g.astype(np.longdouble)).astype(w.dtype)
    assert np.count_nonzero(expected) > 500
    opt.step(w, g, opt.init(w), lr=1.0)
    np.testing.assert_array_equal(w, expected)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_denormal_decides_by_its_sign(dtype: str, rng: np.random.Generator) -> None:
    """Grads alone are denormal: Lion steps by their signs, and not where they are zero."""
    opt = optgen.compile("lion", target="cpu", dtypes=[dtype])
    g = denormals(dtype, 333, rng)
    w = np.zeros_like(g)
    state = opt.init(w)
    opt.step(w, g, state, lr=1.0, weight_decay=0.0)
    np.testing.assert_array_equal(w.astype(np.float32), -np.sign(g.astype(np.float32)))
    np.testing.assert_array_equal(state["m"], ((1 - 0.99) * g.astype(np.float64)).astype(np.float32))


def test_norms_of_denormals() -> None:
    """A stage's kernel keeps them as well: LAMB scales by the norm of a leaf of denormals."""
    opt = optgen.compile("lamb", target="cpu")
    w = np.full(5000, 1e-42, np.float32)
    before = w.astype(np.float64)
    opt.step(w, np.ones_like(w), opt.init(w), lr=1.0, weight_decay=0.0, eps=0.0)
    assert w[0] != before[0]  # by the norm's share: the update is 1 throughout
    np.testing.assert_array_equal(w, 0)


@SYNC_AND_TASK
def test_threads_keep_their_mode(device: str) -> None:
    """What IREE forms by itself takes denormals for zero, before an update on the same threads as after it; the
    caller's thread does not."""
    tiny = np.full((512, 512), 1e-40, np.float32)
    theirs = optgen.compile(transposed, tiny, target="cpu", device=device)
    ours = optgen.compile("sgd", target="cpu", device=device)

    def kept(opt: Any) -> int:
        w = tiny.copy()
        opt.step(w, np.zeros_like(w), opt.init(w), lr=1.0)
        return int(np.count_nonzero(w))

    assert [kept(theirs), kept(ours), kept(theirs), kept(ours)] == [0, tiny.size, 0, tiny.size]
    assert np.count_nonzero(tiny * np.float32(0.5)) == tiny.size


def test_each_kernel_sets_and_resets_the_mode() -> None:
    """Once each at its beginning and its end, before anything is read and after all is written."""
    for rule_, kernels in (("adamw", 1), ("lamb", 2)):
        variant = Variant.of(get_rule(rule_))
        (kernel,) = lower(variant.kernel(variant.dtypes("f32")))
        for name, pattern in (
            ("cpu:x86-64-v2", r"stmxcsr|ldmxcsr"), ("cpu:x86-64-v4", r"vstmxcsr|vldmxcsr"),
            ("cpu:aarch64", r"mrs\s+x\d+, FPCR|msr\s+FPCR"), ("cpu:riscv64", r"frcsr|fscsr|fsrm"),
        ):  # fmt: skip
            target = get_target(name)
            found = re.findall(pattern, dump_assembly(kernel.mlir(target.style), flags_for(kernel, target)))
            assert len(found) == (0 if "riscv" in name else 3 * kernels), name
