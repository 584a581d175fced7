"""Choosing the module of a kernel that suits a device best."""

from __future__ import annotations

from optgen import host
from optgen.artifact import ModuleInfo
from optgen.artifact.manifest import Compiled
from optgen.errors import DeviceError, MissingFeaturesError
from optgen.runtime.device import Device

#: Substrings of device names, lower case, for which a Vulkan module of a vendor's target is meant. Modules for
#: another vendor load and then compute NaN.
_VENDORS = {
    "adreno": ("adreno", "qualcomm"), "valhall": ("mali",), "rdna": ("amd", "radeon"),
    "turing": ("nvidia", "geforce", "quadro", "tesla"), "ampere": ("nvidia", "geforce", "rtx"),
    "ada": ("nvidia", "geforce", "rtx"),
}  # fmt: skip


#: The subgroups that modules for a chip are compiled for: their kernels combine the numbers of so many invocations.
_SUBGROUPS = {"adreno": 64, "valhall": 16, "rdna": 32, "turing": 32, "ampere": 32, "ada": 32}


def _unfit_subgroups(chip: str, device: Device) -> str:
    """Why the device's subgroups are not those that a module for ``chip`` counts on; empty if they are."""
    wanted = next((size for key, size in _SUBGROUPS.items() if chip.startswith(key)), None)
    if (found := device.subgroup_size()) == wanted and found is not None:
        return ""
    has = "the driver does not say what the device has" if found is None else f"the device has {found}"
    return f"needs subgroups of {wanted} ({has}; target 'vulkan' is right for all)"


def unfit(module: ModuleInfo, device: Device) -> str:
    """Why ``module`` must not run on ``device``; empty if it may."""
    if module.backend != device.backend:
        return f"is for {module.backend}"
    if module.backend == "cpu":
        if module.arch not in ("any", host.architecture()):
            return f"is for {module.arch}"
        missing = lacking(module)
        return f"needs {', '.join(missing)}" if missing else ""
    chip = module.target.partition(":")[2]
    if module.backend == "vulkan" and chip:
        words = next((w for key, w in _VENDORS.items() if chip.startswith(key)), ())
        if not any(word in device.description.lower() for word in words):
            return f"is for {chip}"
        return _unfit_subgroups(chip, device)
    return ""


def lacking(module: ModuleInfo) -> list[str]:
    """The extensions that a CPU module needs and this machine's processor lacks."""
    return sorted(set(module.features) - host.features())


def _rank(module: ModuleInfo) -> tuple[int, ...]:
    """What is specific comes before what is general."""
    general = module.arch == "any", module.target == "cpu:vmvx"
    named = ":" in module.target and module.backend != "cuda"
    return len(module.features), *(not each for each in general), named


def choose(compiled: Compiled, device: Device, what: str = "kernel") -> ModuleInfo:
    """The module of ``compiled`` for ``device``: among those that may run there, the most specific.

    Raises:
        MissingFeaturesError: if there is none because this machine's processor lacks what they need.
        DeviceError: if there is none for another reason; the message says why not for each.
    """
    reasons = {m.target: unfit(m, device) for m in compiled.modules}
    fit = [m for m in compiled.modules if not reasons[m.target]]
    if fit:
        return max(fit, key=_rank)
    listed = "; ".join(f"{target} {reason}" for target, reason in reasons.items()) or "it holds no module at all"
    message = f"no module of {what} {compiled.name} can run on {device.uri} ({device.description}): {listed}"
    near = [m for m in compiled.modules if m.backend == device.backend == "cpu" and m.arch == host.architecture()]
    if not near:
        raise DeviceError(message)
    least = min((lacking(m) for m in near), key=len)
    raise MissingFeaturesError(
        f"{message}. This processor lacks {', '.join(least)}: compile for it (target cpu, on this machine), or for all "
        "(target cpu:any)",
        tuple(least),
    )
