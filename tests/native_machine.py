"""Building generated C with each target's compiler, and running it: on this machine, or emulated."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from optgen.native import CBundle, get_native_target

HERE = Path(__file__).resolve().parent / "native"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")


@dataclass(frozen=True)
class Machine:
    """Where programs for a target run.

    Attributes:
        target: the target.
        emulator: the command, before the program.
        fma: results of f64 arithmetic are the same bits as those of other machines that agree in this.
        ram: for boards without an operating system, where memory begins and its bytes.
        flags: for the compiler, besides the target's.
    """

    target: str
    emulator: tuple[str, ...] = ()
    fma: bool = True
    ram: tuple[int, int] | None = None
    flags: tuple[str, ...] = ()

    @property
    def bare(self) -> bool:
        """Whether there is no operating system."""
        return self.ram is not None

    def need(self) -> None:
        """Skips the test where a compiler or an emulator is not installed, or this processor is too old."""
        from optgen import host

        level = self.target.removeprefix("cpu:")
        if level.startswith("x86-64"):
            if host.architecture() != "x86_64" or not set(host.x86_requirements(level)) <= host.features():
                pytest.skip(f"this processor is no {level}")
        for tool in (get_native_target(self.target).compiler, *self.emulator[:1]):
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not installed")

    def build(self, folder: Path, bundles: Sequence[CBundle], main: str, *flags: str) -> Path:
        """Compiles and links ``main`` with some bundles."""
        self.need()
        target = get_native_target(self.target)
        for bundle in bundles:
            bundle.save(folder / bundle.name)
        (folder / "main.c").write_text(main)
        options = [*target.options, "-O2", "-ffp-contract=off", "-ffunction-sections", *self.flags, *flags]
        includes = [f"-I{HERE}", *(f"-I{folder / bundle.name}" for bundle in bundles)]
        sources = [*(f"{b.name}/{b.name}.c" for b in bundles), "main.c"]
        sources.append(str(HERE / ("bare_metal.c" if self.bare else "hosted.c")))
        self._call(folder, [target.compiler, *WARNINGS, *options, *includes, "-c", *sources])
        objects = [f"{Path(source).stem}.o" for source in sources]
        command = [target.compiler, *options, *objects, *(f"{b.name}/{b.name}_kernels.o" for b in bundles)]
        command += ["-Wl,--gc-sections", "-Wl,-Map=program.map"]
        if self.ram is not None:
            values = {"flash_bytes": 0x80000, "ram_start": self.ram[0], "ram_bytes": self.ram[1]}
            command += ["-nostartfiles", f"-T{HERE / 'cortex-m.ld'}"]
            command += [f"-Wl,--defsym={name}={value}" for name, value in values.items()]
        else:
            command += ["-static"]
        self._call(folder, [*command, "-lm", "-o", "program"])
        return folder / "program"

    @staticmethod
    def _call(folder: Path, command: Sequence[str]) -> None:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    def run(self, folder: Path) -> str:
        """Runs the program there and returns what it says; it must end well."""
        tail = ("program",) if self.bare or self.emulator else ("./program",)
        result = subprocess.run(
            [*self.emulator, *tail], cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        assert result.returncode == 0, (result.returncode, result.stdout, result.stderr)
        return result.stdout + (result.stderr if self.bare else "")


def _board(name: str, *more: str) -> tuple[str, ...]:
    return ("qemu-system-arm", "-M", name, *more, "-display", "none", "-monitor", "none", "-serial", "none",
            "-semihosting-config", "enable=on,target=native", "-kernel")  # fmt: skip


MACHINES = {
    machine.target: machine
    for machine in (
        Machine("cpu:x86-64", fma=False),
        Machine("cpu:x86-64-v2", fma=False),
        Machine("cpu:x86-64-v3"),
        Machine("cpu:x86-64-v4"),
        Machine("cpu:aarch64", ("qemu-aarch64-static",)),
        Machine("cpu:armv7", ("qemu-arm-static",), fma=False),
        Machine("cpu:riscv64", ("qemu-riscv64-static",)),
        Machine("cpu:riscv64-v", ("qemu-riscv64-static", "-cpu", "rv64,v=true,vext_spec=v1.0")),
        Machine("cpu:cortex-m4", _board("mps2-an386"), fma=False, ram=(0x20000000, 0x400000)),
        Machine("cpu:cortex-m7", _board("mps2-an500"), ram=(0x20000000, 0x400000)),
        Machine("cpu:cortex-m55", _board("mps3-an547"), ram=(0x01000000, 0x200000)),
    )
}
