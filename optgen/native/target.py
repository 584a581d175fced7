"""Targets of code without a runtime: what the compiler is told, and how the code is linked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from optgen.errors import UnknownTargetError


@dataclass(frozen=True)
class NativeTarget:
    """A processor to make object files for.

    Attributes:
        name: ``cpu:aarch64``, ``cpu:cortex-m4``, ``wasm``...
        triple: LLVM's.
        cpu: LLVM's name of the processor.
        features: that LLVM may use besides what ``cpu`` implies, ``+simd128``.
        abi: LLVM's name of the calling convention, where a triple leaves it open.
        compiler: the C compiler of the link line, as Debian calls it.
        options: for the C compiler, without which the object does not link or run.
        fma: whether multiplications and additions are fused: results are the same bits among processors that agree.
        compute: of f32 params, unless asked for: f32 where f64 would be computed in software.
        halves: whether f16 is converted by integer arithmetic.
        bits: of a pointer.
        note: one line for ``optgen targets``.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    abi: str = ""
    compiler: str = "cc"
    options: tuple[str, ...] = ()
    fma: bool = True
    compute: str = "f64"
    halves: bool = True
    bits: int = 64
    note: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """For iree-compile."""
        return (
            "--iree-hal-target-device=local",
            "--iree-hal-local-target-device-backends=llvm-cpu",
            f"--iree-llvmcpu-target-triple={self.triple}",
            f"--iree-llvmcpu-target-cpu={self.cpu}",
            *((f"--iree-llvmcpu-target-cpu-features={','.join(self.features)}",) if self.features else ()),
            *((f"--iree-llvmcpu-target-abi={self.abi}",) if self.abi else ()),
            "--iree-input-demote-f64-to-f32=false",
            "--iree-vm-target-extension-f64",
        )


# All four parts: of a triple with three, LLVM takes the environment for the system, and on Arm calls the arithmetic of
# f64 by names whose functions expect their arguments elsewhere.
_X86, _ARM, _RISCV = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "riscv64-unknown-linux-gnu"
_GCC = {_ARM: "aarch64-linux-gnu-gcc", _RISCV: "riscv64-linux-gnu-gcc"}
_RV64 = ("+m", "+a", "+f", "+d", "+c")

_TARGETS = (
    NativeTarget("cpu:x86-64", _X86, "x86-64", fma=False, note="every 64-bit PC"),
    NativeTarget("cpu:x86-64-v2", _X86, "x86-64-v2", fma=False, note="SSE4.2, since 2008"),
    NativeTarget("cpu:x86-64-v3", _X86, "x86-64-v3", halves=False, note="AVX2 and FMA, since 2013"),
    NativeTarget("cpu:x86-64-v4", _X86, "x86-64-v4", halves=False, note="AVX-512"),
    NativeTarget("cpu:aarch64", _ARM, "generic", compiler=_GCC[_ARM], halves=False, note="every 64-bit Arm"),
    NativeTarget("cpu:armv7", "armv7-unknown-linux-gnueabihf", "generic", ("+vfp3d16",),
                 compiler="arm-linux-gnueabihf-gcc", fma=False, bits=32, note="32-bit Arm, hard float"),
    NativeTarget("cpu:riscv64", _RISCV, "generic-rv64", _RV64, "lp64d", compiler=_GCC[_RISCV], note="RV64GC"),
    NativeTarget("cpu:riscv64-v", _RISCV, "generic-rv64", (*_RV64, "+v"), "lp64d", compiler=_GCC[_RISCV],
                 note="RV64GCV"),
    NativeTarget("cpu:cortex-m4", "thumbv7em-unknown-none-eabihf", "cortex-m4", compiler="arm-none-eabi-gcc",
                 options=("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), fma=False,
                 compute="f32", bits=32, note="STM32F4, nRF52: f32 in hardware, no f64"),
    NativeTarget("cpu:cortex-m7", "thumbv7em-unknown-none-eabihf", "cortex-m7", compiler="arm-none-eabi-gcc",
                 options=("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-d16"), bits=32,
                 note="STM32F7, H7, i.MX RT: f64 in hardware"),
    NativeTarget("cpu:cortex-m55", "thumbv8.1m.main-unknown-none-eabihf", "cortex-m55", compiler="arm-none-eabi-gcc",
                 options=("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"), compute="f32", bits=32,
                 note="Armv8.1-M with Helium"),
    NativeTarget("wasm", "wasm32-unknown-emscripten", "generic", ("+bulk-memory", "+simd128"), fma=False, bits=32,
                 note="browsers and Node.js, with SIMD"),
    NativeTarget("wasm:threads", "wasm32-unknown-emscripten", "generic",
                 ("+atomics", "+bulk-memory", "+mutable-globals", "+simd128"), fma=False, bits=32,
                 note="with SIMD and threads, where memory may be shared"),
    NativeTarget("wasm:scalar", "wasm32-unknown-emscripten", "generic", fma=False, bits=32,
                 note="browsers without SIMD"),
)  # fmt: skip

NATIVE_TARGETS: dict[str, NativeTarget] = {target.name: target for target in _TARGETS}


def get_native_target(name: str) -> NativeTarget:
    """The target of that name.

    Raises:
        UnknownTargetError: if there is none; the message lists those there are.
    """
    if name in NATIVE_TARGETS:
        return NATIVE_TARGETS[name]
    close = difflib.get_close_matches(name, NATIVE_TARGETS, 1, 0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UnknownTargetError(
        f"no code without a runtime is made for {name!r}{hint} The targets are {', '.join(NATIVE_TARGETS)}"
    )
