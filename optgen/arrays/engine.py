"""Running the prebuilt modules of the functional API.

This does what :meth:`optgen.Optimizer.apply` does, less its checks: the callers here have made them, and most of the
memory is theirs. That halves the time of a call on a small array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.hyper import part
from optgen.runtime.device import Device, device_for
from optgen.runtime.execute import prepare
from optgen.runtime.loading import prebuilt_bundle
from optgen.runtime.module import LoadedModule
from optgen.runtime.optimizer import Optimizer


@dataclass(slots=True)
class _Loaded:
    """A kernel's module on a device."""

    kernel: KernelInfo
    device: Device
    info: ModuleInfo
    module: LoadedModule


_loaded: dict[tuple[str, str, str], _Loaded] = {}


@lru_cache(maxsize=32)
def _optimizer(bundle: str) -> Optimizer:
    return Optimizer(prebuilt_bundle(bundle), "cpu")


@lru_cache(maxsize=128)
def kernel_of(bundle: str, dtype: str) -> KernelInfo:
    """The kernel of a prebuilt bundle for params and grads of ``dtype``."""
    kernels = _optimizer(bundle).manifest.kernels
    return next(k for k in kernels if k.dtypes["param"] == dtype and k.dtypes["grad"] == dtype)


def scalars_of(kernel: KernelInfo, values: Mapping[str, float]) -> tuple[float, ...]:
    """The scalars of ``kernel`` for checked hyperparameters."""
    return tuple([part(values[s.hyper], s.part) for s in kernel.scalars])


def run(bundle: str, dtype: str, leaves: Sequence[Sequence[np.ndarray]], scalars: tuple[float, ...]) -> None:
    """Updates leaves with one call.

    Args:
        bundle: name of the prebuilt bundle.
        dtype: of the params.
        leaves: for each leaf an array for each operand, in order, all of the leaf's shape and usable by a kernel.
            Those that the rule replaces are writable, share no memory with others, and hold the results afterwards.
        scalars: of the kernel.

    Raises:
        DeviceError: if the bundle has no module for this machine.
    """
    leaves = [leaf for leaf in leaves if leaf[0].size]
    if not leaves:
        return
    loaded = _load(bundle, dtype, device_for("cpu", sum(leaf[0].size for leaf in leaves)))
    prepare(loaded.device, loaded.info, loaded.module, loaded.kernel, leaves).run(scalars)


def _load(bundle: str, dtype: str, device: Device) -> _Loaded:
    key = (bundle, dtype, device.uri)
    found = _loaded.get(key)
    if found is None or not found.module.usable:
        kernel = kernel_of(bundle, dtype)
        found = _loaded[key] = _Loaded(kernel, device, *_optimizer(bundle).module(kernel, device))
    return found
