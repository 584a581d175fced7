"""Targets: a name for what a module is compiled for, and the compiler flags that this means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from optgen import host
from optgen.dtypes import CODES, FLOATS, SIZES
from optgen.errors import UnknownTargetError, UnsupportedTargetError
from optgen.lower.style import Style


@dataclass(frozen=True)
class Target:
    """Something to compile for.

    Attributes:
        name: ``cpu``, ``cpu:x86-64-v3``, ``vulkan:adreno``, ``cuda:sm_89``...
        backend: ``cpu``, ``vulkan`` or ``cuda``: the kind of device that can run the modules.
        flags: for iree-compile.
        arch: for CPUs, the architecture in Python's spelling.
        features: for CPUs, the extensions that must be there, in the Linux kernel's names.
        dtypes: element types that the kernels may use.
        style: how kernels are written for it.
        note: one line for ``optgen targets``.
    """

    name: str
    backend: str
    flags: tuple[str, ...]
    arch: str = ""
    features: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = FLOATS
    style: Style = field(default_factory=Style)
    note: str = ""

    def check(
        self,
        dtypes: Iterable[str],
        *,
        reduces: bool = False,
        elementwise: bool = True,
        over_tree: bool = False,
        random: bool = False,
    ) -> None:
        """Refuses kernels that would not compile for the target, or would be wrong on it.

        Args:
            dtypes: element types of the operands.
            reduces: whether the kernel reduces whole leaves.
            elementwise: whether it treats each element by itself otherwise.
            over_tree: whether it reduces all leaves of the tree together.
            random: whether it rounds at random.

        Raises:
            UnsupportedTargetError: naming what the target lacks.
        """
        if random and self.backend != "cpu":
            raise UnsupportedTargetError(f"target '{self.name}' cannot round at random, nor keep 8-bit state: CPUs can")
        for dtype in dtypes:
            if dtype not in self.dtypes:
                raise UnsupportedTargetError(
                    f"target '{self.name}' cannot compute in {dtype}: many of its devices lack it. "
                    f"It has {', '.join(self.dtypes)}"
                )
            if self.backend == "vulkan" and SIZES[dtype] == 2 and not elementwise:
                raise UnsupportedTargetError(
                    f"target '{self.name}' cannot run this rule on {dtype} leaves: devices without 16-bit storage "
                    "need leaves padded to an even size, which only elementwise rules allow. Use f32 params"
                )
        if over_tree and self.style.vector is None:
            raise UnsupportedTargetError(
                f"target '{self.name}' cannot run rules that reduce the whole tree (global norms, skipped updates): "
                "its modules take leaf by leaf, and would reduce each for itself. Compile for cpu"
            )
        if self.backend == "vulkan" and reduces:
            raise UnsupportedTargetError(
                f"target '{self.name}' cannot run rules that reduce whole leaves (norms, means): Mesa's software "
                "driver leaves a loop after 65,535 rounds and says nothing, so sums of large leaves would be wrong"
            )


# Without these two flags f64 would silently be computed in f32, and scalars of the VM could not be f64.
_COMMON = ("--iree-input-demote-f64-to-f32=false", "--iree-vm-target-extension-f64")


def _cpu(name: str, triple: str, cpu: str, arch: str, features: tuple[str, ...] = (), *, extra: tuple[str, ...] = (),
         halves: bool = False, note: str = "") -> Target:  # fmt: skip
    return Target(
        name,
        "cpu",
        (
            "--iree-hal-target-device=local",
            "--iree-hal-local-target-device-backends=llvm-cpu",
            *((f"--iree-llvmcpu-target-triple={triple}",) if triple else ()),
            f"--iree-llvmcpu-target-cpu={cpu}",
            *extra,
            *_COMMON,
        ),
        arch,
        features,
        dtypes=(*FLOATS, *CODES),
        # 16 at once: within noise of the best width at every level and dtype (benchmarks/sweep.py).
        style=Style(vector=16, halves=halves, float_mode=arch if arch in ("x86_64", "aarch64") else ""),
        note=note,
    )


def _vulkan(name: str, chip: str, note: str = "") -> Target:
    flags = ("--iree-hal-target-device=vulkan", *((f"--iree-vulkan-target={chip}",) if chip else ()), *_COMMON)
    # f64 is missing on most devices; the compiler cannot lower its storage either.
    style = Style(accumulator="f32", pairs=True, halves=True)
    return Target(name, "vulkan", flags, dtypes=("f16", "bf16", "f32"), style=style, note=note)


def _cuda(name: str, chip: str, note: str = "") -> Target:
    flags = ("--iree-hal-target-device=cuda", f"--iree-cuda-target={chip}", *_COMMON)
    # A single f64 reduction does not compile ("failed to distribute").
    return Target(name, "cuda", flags, style=Style(accumulator="f32"), note=note)


_AARCH64 = ("asimd",)
_TARGETS: tuple[Target, ...] = (
    *(
        _cpu(f"cpu:{level}", "x86_64-linux-gnu", level, "x86_64", host.x86_requirements(level),
             halves=level in ("x86-64", "x86-64-v2"), note=note)
        for level, note in (
            ("x86-64", "every 64-bit PC"),
            ("x86-64-v2", "SSE4.2, since 2008"),
            ("x86-64-v3", "AVX2 and FMA, since 2013"),
            ("x86-64-v4", "AVX-512"),
        )
    ),
    _cpu("cpu:aarch64", "aarch64-linux-gnu", "generic", "aarch64", _AARCH64, note="every 64-bit Arm"),
    *(
        _cpu(f"cpu:{chip}", "aarch64-linux-gnu", chip, "aarch64", features, note=note)
        for chip, features, note in (
            ("cortex-a53", _AARCH64, "Raspberry Pi 3"),
            ("cortex-a72", _AARCH64, "Raspberry Pi 4"),
            ("cortex-a76", (*_AARCH64, "asimddp", "asimdhp"), "Raspberry Pi 5"),
            ("neoverse-n1", (*_AARCH64, "asimddp", "asimdhp"), "Graviton 2"),
            ("neoverse-v1", (*_AARCH64, "asimddp", "asimdhp", "sve"), "Graviton 3"),
        )
    ),
    _cpu(
        "cpu:riscv64", "riscv64-linux-gnu", "generic-rv64", "riscv64",
        extra=("--iree-llvmcpu-target-cpu-features=+m,+a,+f,+d,+c", "--iree-llvmcpu-target-abi=lp64d"),
        halves=True, note="RV64GC",
    ),
    _vulkan("vulkan", "", "any Vulkan 1.1 device"),
    *(
        _vulkan(f"vulkan:{chip}", chip, note)
        for chip, note in (
            ("adreno", "Qualcomm"), ("valhall", "Arm Mali"), ("rdna1", "AMD"), ("rdna2", "AMD"), ("rdna3", "AMD"),
            ("rdna4", "AMD"), ("turing", "NVIDIA"), ("ampere", "NVIDIA"), ("ada", "NVIDIA"),
        )
    ),
    _cuda("cuda", "sm_80", "PTX for compute capability 8.0; newer drivers compile it forward"),
    *(_cuda(f"cuda:{chip}", chip) for chip in ("sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_120")),
)  # fmt: skip

TARGETS: dict[str, Target] = {target.name: target for target in _TARGETS}

#: What the prebuilt bundles are compiled for.
PREBUILT_TARGETS = (
    "cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:aarch64", "vulkan", "cuda",
)  # fmt: skip


def host_target() -> Target:
    """The target ``cpu``: this machine's processor with all its extensions. Its modules may run nowhere else."""
    prefixes = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "abm", "movbe", "popcnt", "cx16", "amx", "asimd", "sve")
    needed = tuple(sorted(f for f in host.features() if f.startswith(prefixes)))
    return _cpu("cpu", "", "host", host.architecture(), needed, note="this machine's processor, and no other")


def get_target(name: str | Target) -> Target:
    """The target of that name.

    Raises:
        UnknownTargetError: if there is none; the message lists those there are.
    """
    if isinstance(name, Target):
        return name
    if name == "cpu":
        return host_target()
    if name in TARGETS:
        return TARGETS[name]
    close = difflib.get_close_matches(name, TARGETS, 1, 0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UnknownTargetError(f"unknown target {name!r}{hint} The targets are cpu, {', '.join(TARGETS)}")


def all_targets() -> list[Target]:
    """Every target, the host's first."""
    return [host_target(), *TARGETS.values()]
