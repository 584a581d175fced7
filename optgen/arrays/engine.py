"""Running the prebuilt modules of the functional API.

This does what :meth:`optgen.Optimizer.apply` does, less its checks: the callers here have made them, and most of the
memory is theirs. That halves the time of a call on a small array.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.hyper import part
from optgen.runtime import memory
from optgen.runtime.device import Device, get_device
from optgen.runtime.execute import Call, prepare
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
    loaded = _load(bundle, dtype, get_device("cpu"))
    prepare(loaded.device, loaded.info, loaded.module, loaded.kernel, leaves).run(scalars)


#: Elements up to which copying a leaf to memory that is bound already is cheaper than binding its own.
SMALL = 8192
_prepared = threading.local()  # a prepared call is not for two threads at once


def run_small(
    bundle: str, dtype: str, operands: Sequence[np.ndarray | None], values: Mapping[str, float]
) -> list[np.ndarray]:
    """An update of one small leaf out of place.

    Args:
        bundle: name of the prebuilt bundle.
        dtype: of the params.
        operands: an array of the leaf's shape and of the operand's dtype for each, at most SMALL elements, in any
            memory; None for one that is not read.
        values: checked hyperparameters.

    Returns:
        New arrays for what the rule replaces.
    """
    shape = next(array.shape for array in operands if array is not None)
    calls: dict[Any, tuple[Call, list[np.ndarray]]] = _prepared.__dict__
    key = f"{bundle} {dtype} {shape}"
    loaded = _load(bundle, dtype, get_device("cpu"))
    found = calls.get(key)
    if found is None or found[0].module is not loaded.module:
        if len(calls) >= 64:
            del calls[next(iter(calls))]
        arrays = [memory.empty(shape, o.dtype) for o in loaded.kernel.operands]
        found = prepare(loaded.device, loaded.info, loaded.module, loaded.kernel, [arrays]), arrays
        calls[key] = found
    call, arrays = found
    for array, given in zip(arrays, operands, strict=True):
        if given is not None:
            np.copyto(array, given)
    call.run(scalars_of(loaded.kernel, values))
    return [arrays[i].copy() for i in call.results]


def _load(bundle: str, dtype: str, device: Device) -> _Loaded:
    key = (bundle, dtype, device.uri)
    found = _loaded.get(key)
    if found is None or not found.module.usable:
        kernel = kernel_of(bundle, dtype)
        found = _loaded[key] = _Loaded(kernel, device, *_optimizer(bundle).module(kernel, device))
    return found
