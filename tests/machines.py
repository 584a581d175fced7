"""Processors that this machine is not: ``iree-run-module`` under qemu-user, and what it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import iree.runtime as rt
import numpy as np
import pytest
from filelock import FileLock

from optgen import host
from optgen.compiler.driver import cache_folder
from optgen.compiler.plain import PlainModule

TOOLS = Path(rt.__file__).parent.parent / "_runtime_libs"


@dataclass(frozen=True)
class Machine:
    """A processor: how programs are run on it, and the variant of ``cpu:any`` that is its best.

    Attributes:
        name: for tests' names.
        best: ``x86-64-v3``...
        emulator: the command that a program's follows.
        needs: what the emulator must be able to emulate, by ``iree-cpuinfo``.
    """

    name: str
    best: str
    emulator: tuple[str, ...] = ()
    needs: str = ""

    def prefix(self) -> list[str]:
        """The command that ``iree-run-module``'s options follow; skips the test where it cannot be had."""
        if self.emulator[:1] == ("qemu-aarch64-static",):
            program = aarch64_runtime()
        elif host.architecture() != "x86_64":
            pytest.skip(f"this processor is no x86-64 ({host.architecture()})")
        else:
            program = TOOLS / "iree-run-module"
        if self.emulator and shutil.which(self.emulator[0]) is None:
            pytest.skip(f"{self.emulator[0]} is not installed (on Debian: apt-get install qemu-user-static)")
        if self.needs and self.needs not in _features(self.emulator):
            pytest.skip(f"{self.emulator[0]} cannot emulate {self.needs} (QEMU 7.2 can)")
        return ["timeout", "60", *self.emulator, str(program)]

    def update(
        self, folder: Path, module: PlainModule, arrays: dict[str, np.ndarray], **numbers: float
    ) -> subprocess.CompletedProcess[str]:
        """One update by the documented command: tensors go through ``.npy`` files in ``folder``, and back."""
        for name in module.operands:
            np.save(folder / f"{name}.npy", arrays[name])
        (folder / "module.vmfb").write_bytes(module.data)
        command = self.prefix() + module.command("module.vmfb", **numbers)[1:]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@cache
def _features(emulator: tuple[str, ...]) -> frozenset[str]:
    command = ["timeout", "60", *emulator, str(TOOLS / "iree-cpuinfo")]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return frozenset(line.split()[0] for line in lines if line.split()[-1:] == ["1"])


def _x86(name: str, best: str, cpu: str, needs: str = "") -> Machine:
    return Machine(name, best, ("qemu-x86_64-static", "-cpu", cpu), needs)


_LEVELS = [f"x86-64-v{n}" for n in (4, 3, 2)]
NATIVE = Machine("native", next((n for n in _LEVELS if set(host.x86_requirements(n)) <= host.features()), "vmvx"))
HASWELL = _x86("haswell", "x86-64-v3", "Haswell", "avx2")
NEHALEM = _x86("nehalem", "x86-64-v2", "Nehalem")
CORE2 = _x86("core2duo", "vmvx", "core2duo")
CORTEX = Machine("cortex-a53", "aarch64", ("qemu-aarch64-static", "-cpu", "cortex-a53"))
ARM_MAX = Machine("aarch64-max", "aarch64", ("qemu-aarch64-static", "-cpu", "max"))


@cache
def aarch64_runtime() -> Path:
    """``iree-run-module`` for aarch64, of the installed version, from its wheel; downloaded once."""
    if not Path("/lib/ld-linux-aarch64.so.1").exists():
        pytest.skip("the C library of arm64 is not installed (on Debian: dpkg --add-architecture arm64 && apt-get "
                    "install libc6:arm64 libstdc++6:arm64 libgcc-s1:arm64)")  # fmt: skip
    wanted = version("iree-base-runtime")
    folder = cache_folder() / f"aarch64-runtime-{wanted}"
    program = folder / "iree-run-module"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not program.exists():
            command = [
                sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--platform", "manylinux_2_28_aarch64",
                "--python-version", "3.11", "--only-binary=:all:", "-d", str(folder), f"iree-base-runtime=={wanted}",
            ]  # fmt: skip
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=120)
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"the aarch64 wheel of iree-base-runtime {wanted} cannot be downloaded ({error})")
            (wheel,) = folder.glob("*.whl")
            partial = folder / "partial"
            partial.write_bytes(zipfile.ZipFile(wheel).read("iree/_runtime_libs/iree-run-module"))
            partial.chmod(0o755)
            partial.replace(program)
            wheel.unlink()
    return program
