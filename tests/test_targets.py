"""Targets: each name compiles, and means what it says."""

from __future__ import annotations

import re

import pytest

from optgen.artifact import ModuleInfo
from optgen.compiler.build import compile_kernel, flags_for
from optgen.compiler.driver import dump_assembly
from optgen.dsl import Variant
from optgen.errors import UnsupportedTargetError
from optgen.lower import Kernel, lower
from optgen.rules import get_rule
from optgen.targets import PREBUILT_TARGETS, TARGETS, all_targets, get_target


def adamw(dtype: str = "f32") -> Kernel:
    variant = Variant.of(get_rule("adamw"))
    (kernel,) = lower(variant.kernel(variant.dtypes(dtype)))
    return kernel


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_compiles(name: str) -> None:
    """The whole list, for one rule and dtype: a name that is listed works."""
    module, copies = compile_kernel(adamw(), get_target(name))
    assert copies == 0
    assert 5_000 < len(module) < (40_960 if name == "cpu:any" else 30_000)


def test_names() -> None:
    assert set(PREBUILT_TARGETS) <= set(TARGETS)
    assert get_target("cpu").name == "cpu"
    assert len({t.name for t in all_targets()}) == len(all_targets())
    assert get_target("cuda").flags == get_target("cuda:sm_80").flags


def test_ptx() -> None:
    """CUDA is compiled here, not run: its PTX is for the architecture named, in place, and has no call in its loop."""
    kernel, target = adamw(), get_target("cuda")
    ptx = dump_assembly(kernel.mlir(target.style), flags_for(kernel, target))
    assert ".target sm_80" in ptx
    assert len(re.findall(r"\.visible \.entry", ptx)) == 1
    assert "sqrt.rn.f64" in ptx
    assert "div.rn.f64" in ptx
    assert len(re.findall(r"ld\.global\S*\.f32|ld\.global\S*\.b32", ptx)) >= 4
    assert len(re.findall(r"st\.global\S*\.f32|st\.global\S*\.b32", ptx)) >= 3
    assert "call" not in ptx
    ampere = get_target("cuda:sm_89")
    assert ".target sm_89" in dump_assembly(kernel.mlir(ampere.style), flags_for(kernel, ampere))


def test_rocm_and_metal() -> None:
    """Compiled and inspected, never run here: in place, f64 by hardware on AMD's and as pairs of f32 on Apple's."""
    kernel, target = adamw(), get_target("rocm:gfx942")
    gcn = dump_assembly(kernel.mlir(target.style), flags_for(kernel, target))
    assert 'amdgcn_target "amdgpu9.42-amd-amdhsa-unknown-gfx942"' in gcn
    assert len(re.findall(r"global_load_dword\b", gcn)) >= 4
    assert len(re.findall(r"global_store_dword\b", gcn)) >= 3
    assert "v_mul_f64" in gcn
    assert "s_swappc" not in gcn  # no call in the loop
    target = get_target("metal")
    metal = dump_assembly(kernel.mlir(target.style), flags_for(kernel, target))
    assert len(re.findall(r"^kernel void", metal, re.MULTILINE)) == 1
    assert "double" not in metal
    assert "^ _push_constant_var_" in metal  # what keeps fast mathematics from folding pairs
    with pytest.raises(UnsupportedTargetError, match="'metal' cannot compute in f64"):
        target.check(["f64"])


def test_cpu_levels_use_their_registers() -> None:
    kernel = adamw()
    found = {}
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        target = get_target(f"cpu:{level}")
        found[level] = dump_assembly(kernel.mlir(target.style), flags_for(kernel, target))
    assert "sqrtpd" in found["x86-64-v2"]
    assert "ymm" not in found["x86-64-v2"]
    assert "vsqrtpd\t%ymm" in found["x86-64-v3"]
    assert "zmm" in found["x86-64-v4"]
    aarch64 = get_target("cpu:aarch64")
    assert "fsqrt\tv" in dump_assembly(kernel.mlir(aarch64.style), flags_for(kernel, aarch64))


def test_module_info_of_a_target_says_what_it_needs() -> None:
    needs = get_target("cpu:x86-64-v3").features
    assert {"avx2", "fma", "f16c"} <= set(needs)
    info = ModuleInfo("cpu:x86-64-v3", "cpu", "m.vmfb", True, 0, "x86_64", needs)
    assert info.features == needs
