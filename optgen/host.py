"""What this machine's processor is, as far as choosing a module needs it."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

#: What each x86-64 level adds to the one before, in the kernel's names for CPU flags.
X86_LEVELS: dict[str, tuple[str, ...]] = {
    "x86-64": (),
    "x86-64-v2": ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"),
    "x86-64-v3": ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"),
    "x86-64-v4": ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"),
}

# numpy's names, for systems without /proc/cpuinfo. It does not list bmi1, bmi2, abm and movbe, which every
# processor with AVX2 and FMA has.
_NUMPY_NAMES = {
    "POPCNT": ("popcnt", "cx16", "lahf_lm"), "SSSE3": ("ssse3",), "SSE41": ("sse4_1",), "SSE42": ("sse4_2",),
    "AVX": ("avx", "xsave"), "AVX2": ("avx2", "abm", "bmi1", "bmi2", "movbe"), "F16C": ("f16c",), "FMA3": ("fma",),
    "AVX512F": ("avx512f",), "AVX512CD": ("avx512cd",), "AVX512_SKX": ("avx512bw", "avx512dq", "avx512vl"),
    "ASIMD": ("asimd",), "FPHP": ("fphp",), "ASIMDHP": ("asimdhp",), "ASIMDDP": ("asimddp",), "SVE": ("sve",),
}  # fmt: skip


def architecture() -> str:
    """``x86_64``, ``aarch64``, ``riscv64`` or whatever else Python calls it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def configured_threads() -> int | None:
    """The number in ``$OPTGEN_THREADS``, if there is one."""
    text = os.environ.get("OPTGEN_THREADS", "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def threads() -> int:
    """How many threads updates may use, the caller's included: ``$OPTGEN_THREADS``, or as many as there are cores for
    this process."""
    if configured := configured_threads():
        return configured
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def features() -> frozenset[str]:
    """The processor's instruction set extensions, in the Linux kernel's names."""
    try:
        for line in CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.split())
    except OSError:
        pass
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as known  # type: ignore[import-not-found]
    except ImportError:
        return frozenset()
    return frozenset(name for key, names in _NUMPY_NAMES.items() if known.get(key) for name in names)


def x86_requirements(level: str) -> tuple[str, ...]:
    """Everything that ``level`` needs, that of the levels below it included."""
    needed: list[str] = []
    for name, added in X86_LEVELS.items():
        needed += added
        if name == level:
            return tuple(sorted(needed))
    raise ValueError(f"'level' must be one of {', '.join(X86_LEVELS)} (got {level!r})")
