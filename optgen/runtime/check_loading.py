"""Loading the modules of bundles that carry no probes: what can be checked of them without knowing answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optgen.artifact.base import AnyBundle
from optgen.artifact.manifest import Compiled, KernelInfo
from optgen.artifact.step import StepManifest
from optgen.runtime.device import get_device, list_devices
from optgen.runtime.module import LoadedModule, check_runtime
from optgen.runtime.select import unfit


@dataclass(frozen=True)
class LoadResult:
    """A module that a device has loaded.

    Attributes:
        name: of what was compiled.
        target: what the module was compiled for.
        device: what has loaded it.
        programs: the entry points that it has, and must have.
    """

    name: str
    target: str
    device: str
    programs: tuple[str, ...]


def load_modules(bundle: AnyBundle[Any], devices: Iterable[str] | None = None) -> list[LoadResult]:
    """Loads every module on every device that it may run on, and finds its entry points; runs none.

    Args:
        bundle: of any kind; reading it has checked the hashes.
        devices: names as ``local-task`` or ``vulkan``; by default all that are present.

    Returns:
        A result for each module and device; none at all where no module can run.

    Raises:
        DeviceError: if a device is not there.
        BundleVersionError: if the installed runtime is too old.
        BundleError: if a module cannot be loaded, or lacks an entry point.
    """
    manifest = bundle.manifest
    check_runtime(manifest.min_runtime)
    names = dict.fromkeys(devices if devices is not None else (name for name, _ in list_devices()))
    present = [get_device(name) for name in names]
    results = []
    for compiled in manifest.compiled:
        programs = _programs(compiled)
        for device in present:
            for info in compiled.modules:
                if not unfit(info, device):
                    module = LoadedModule(
                        device, bundle.module(info), f"{compiled.name} for {info.target}", programs[0]
                    )
                    for program in programs[1:]:
                        module.require(program)
                    results.append(LoadResult(compiled.name, info.target, device.uri, programs))
    return results


def _programs(compiled: Compiled) -> tuple[str, ...]:
    """The entry points that its modules must have."""
    if isinstance(compiled, StepManifest):
        return tuple(entry.name for entry in compiled.entries)
    if isinstance(compiled, KernelInfo):
        return ("apply", *(f"stage{i}" for i in range(len(compiled.stages))))
    return ("main",)
