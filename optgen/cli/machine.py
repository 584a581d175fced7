"""``optgen targets`` and ``optgen devices``."""

from __future__ import annotations

from optgen.cli.output import console, table


def targets_command() -> None:
    """List what bundles can be compiled for, and what code without a runtime can."""
    from optgen.native.target import NATIVE_TARGETS
    from optgen.targets import PREBUILT_TARGETS, all_targets

    rows = table("target", "backend", "dtypes", "prebuilt", "note")
    for target in all_targets():
        prebuilt = "yes" if target.name in PREBUILT_TARGETS else ""
        rows.add_row(target.name, target.backend, " ".join(target.dtypes), prebuilt, target.note)
    native = table("without a runtime", "arithmetic", "compiler", "note")
    for name, each in NATIVE_TARGETS.items():
        native.add_row(name, each.compute, "-" if name.startswith("wasm") else each.compiler, each.note)
    out = console()
    out.print(rows)
    out.print()
    out.print(native)


def devices_command() -> None:
    """List the devices of this machine, and which modules of the prebuilt bundles they run."""
    from optgen import host
    from optgen.errors import DeviceError
    from optgen.runtime.device import get_device, list_devices
    from optgen.runtime.loading import prebuilt_bundle, prebuilt_names
    from optgen.runtime.select import choose

    names = prebuilt_names()
    kernel = prebuilt_bundle(names[0]).manifest.kernels[0] if names else None
    rows = table("device", "name", "prebuilt target")
    for uri, description in list_devices():
        try:
            device = get_device(uri)
            chosen = "-" if kernel is None else choose(kernel, device).target
        except DeviceError as error:
            chosen = f"none: {error}"
        rows.add_row(uri, description, chosen)
    out = console()
    out.print(rows)
    level = "".join(f", level {name}" for name in _x86_level())
    out.print(f"processor: {host.architecture()}{level}, {len(host.features())} features")


def _x86_level() -> list[str]:
    """The highest x86-64 level that this processor has all of; empty on others."""
    from optgen import host

    if host.architecture() != "x86_64":
        return []
    return [n for n in host.X86_LEVELS if set(host.x86_requirements(n)) <= host.features()][-1:]
