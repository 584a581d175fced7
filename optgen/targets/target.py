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
        backend: ``cpu``, ``vulkan``, ``cuda``, ``rocm`` or ``metal``: the kind of device that can run the modules.
        flags: for iree-compile.
        arch: for CPUs, the architecture in Python's spelling, or ``any``.
        features: for CPUs, the extensions that must be there, in the Linux kernel's names.
        dtypes: element types that the kernels may use.
        style: how kernels are written for it.
        variants: for modules that hold code for several processors, their targets, the first choice first.
        guarded: whether the module itself refuses processors that it cannot run on; see ``compiler.guard``.
        note: one line for ``optgen targets``.
    """

    name: str
    backend: str
    flags: tuple[str, ...]
    arch: str = ""
    features: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = FLOATS
    style: Style = field(default_factory=Style)
    variants: tuple[str, ...] = ()
    guarded: bool = False
    note: str = ""

    def check(self, dtypes: Iterable[str], *, elementwise: bool = True, reduces: bool = False) -> None:
        """Refuses kernels that would not compile for the target, or would be wrong on it.

        Args:
            dtypes: element types of the operands.
            elementwise: whether it runs in place: each element by itself, whole leaves reduced excepted.
            reduces: whether it reduces leaves, or the tree.

        Raises:
            UnsupportedTargetError: naming what the target lacks.
        """
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
        if reduces and self.guarded:
            raise UnsupportedTargetError(
                f"target '{self.name}' cannot run rules that reduce leaves (norms, means): IREE does not compile "
                "them to bytecode. Compile for cpu:x86-64-v2, cpu:x86-64-v3, cpu:aarch64..., all in one bundle"
            )


_COMMON = (
    # Without these two f64 would silently be computed in f32, and scalars of the VM could not be f64.
    "--iree-input-demote-f64-to-f32=false",
    "--iree-vm-target-extension-f64",
    # Modules are a fifth smaller without what only debuggers and unzip read.
    "--iree-vm-bytecode-module-strip-source-map",
    "--iree-vm-emit-polyglot-zip=false",
)
_NO_SYMBOLS = "--iree-llvmcpu-debug-symbols=false"


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
            _NO_SYMBOLS,
            *_COMMON,
        ),
        arch,
        features,
        dtypes=(*FLOATS, *CODES),
        # 16 at once: within noise of the best width at every level and dtype (benchmarks/sweep.py).
        style=Style(vector=16, halves=halves, float_mode=arch if arch in ("x86_64", "aarch64") else ""),
        note=note,
    )


def _any_cpu(name: str, variants: tuple[str, ...], flags: tuple[str, ...] = (), *, note: str) -> Target:
    # 8 at once: 16 make the file larger by a third.
    style = Style(vector=8, halves=True)
    return Target(name, "cpu", (*flags, _NO_SYMBOLS, *_COMMON), "any", style=style, variants=variants, guarded=True,
                  note=note)  # fmt: skip


def _vulkan(name: str, chip: str, note: str = "") -> Target:
    flags = ("--iree-hal-target-device=vulkan", *((f"--iree-vulkan-target={chip}",) if chip else ()), *_COMMON)
    # f64 is missing on most devices; the compiler cannot lower its storage either.
    style = Style(pairs=True, halves=True)
    return Target(name, "vulkan", flags, dtypes=("f16", "bf16", "f32", *CODES), style=style, note=note)


def _cuda(name: str, chip: str, note: str = "") -> Target:
    flags = ("--iree-hal-target-device=cuda", f"--iree-cuda-target={chip}", *_COMMON)
    return Target(name, "cuda", flags, dtypes=(*FLOATS, *CODES), note=note)


def _rocm(chip: str, note: str) -> Target:
    flags = ("--iree-hal-target-device=hip", f"--iree-rocm-target={chip}", *_COMMON)
    return Target(f"rocm:{chip}", "rocm", flags, dtypes=(*FLOATS, *CODES), note=note)


def _metal(note: str) -> Target:
    # Apple's GPUs have no f64 at all.
    style = Style(pairs=True, halves=True)
    return Target("metal", "metal", ("--iree-hal-target-device=metal", *_COMMON), dtypes=("f16", "bf16", "f32", *CODES),
                  style=style, note=note)  # fmt: skip


_AARCH64 = ("asimd",)
_ARMV82 = (*_AARCH64, "asimddp", "asimdhp", "atomics")
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
            ("cortex-a76", _ARMV82, "Raspberry Pi 5"),
            ("neoverse-n1", _ARMV82, "Graviton 2"),
            ("neoverse-v1", (*_ARMV82, "asimdfhm", "bf16", "i8mm", "sha3", "sve"), "Graviton 3"),
        )
    ),
    _cpu(
        "cpu:riscv64", "riscv64-linux-gnu", "generic-rv64", "riscv64",
        extra=("--iree-llvmcpu-target-cpu-features=+m,+a,+f,+d,+c", "--iree-llvmcpu-target-abi=lp64d"),
        halves=True, note="RV64GC",
    ),
    _any_cpu(
        "cpu:vmvx", (), ("--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=vmvx"),
        note="bytecode for every processor that the runtime runs on; slow",
    ),
    _any_cpu(
        "cpu:any",
        ("cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64-v2", "cpu:aarch64", "cpu:riscv64", "cpu:vmvx"),
        # Where it links several kernels into one executable, IREE leaves out the bytecode.
        ("--iree-hal-link-executables=false",),
        note="all of x86-64-v2 to v4, aarch64, riscv64 and vmvx in one module, which chooses",
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
    *(
        _rocm(chip, note)
        for chip, note in (
            ("gfx90a", "AMD MI200"), ("gfx942", "AMD MI300"), ("gfx950", "AMD MI350"), ("gfx1100", "Radeon RX 7900"),
            ("gfx1101", "Radeon RX 7800"), ("gfx1151", "Radeon 8060S"), ("gfx1201", "Radeon RX 9070"),
        )
    ),
    _metal("Apple GPUs; compiled to Metal's language"),
)  # fmt: skip

TARGETS: dict[str, Target] = {target.name: target for target in _TARGETS}

#: What the prebuilt bundles are compiled for.
PREBUILT_TARGETS = (
    "cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:aarch64", "vulkan", "cuda",
)  # fmt: skip


def host_target() -> Target:
    """The target ``cpu``: this machine's processor with all its extensions. Its modules may run nowhere else."""
    prefixes = (
        "sse", "ssse", "avx", "fma", "f16c", "bmi", "abm", "movbe", "popcnt", "cx16", "gfni", "amx",
        "asimd", "atomics", "bf16", "i8mm", "sha3", "sve",
    )  # fmt: skip
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
