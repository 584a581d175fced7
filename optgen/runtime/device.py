"""Devices: what modules run on, by IREE's names (``local-sync``, ``local-task``, ``vulkan``, ``cuda``)."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.dtypes import SIZES, storage_dtype
from optgen.errors import DeviceError

#: The kind of module that a driver runs.
BACKENDS = {"local-sync": "cpu", "local-task": "cpu", "vulkan": "vulkan", "cuda": "cuda", "hip": "rocm"}

# What Vulkan asks of host memory that it maps; no device asks for more than a page.
_PAGE = 4096


@dataclass
class Binding:
    """An array as a module sees it. Keeps array, buffer and view alive together: the view alone would not.

    Attributes:
        view: the buffer view.
        buffer: the buffer below it.
        array: the memory it stands for.
        staged: whether the buffer is a copy of the array, so that results must be copied back.
    """

    view: Any
    buffer: Any
    array: np.ndarray
    staged: bool


class Device:
    """A device that is there. Made by :func:`get_device`.

    Attributes:
        uri: the name it was asked for by.
        backend: ``cpu``, ``vulkan`` or ``cuda``: which modules it runs.
        description: the driver's name for it.
    """

    def __init__(self, uri: str, hal: Any, description: str) -> None:
        import iree.runtime as rt

        self.uri = uri
        self.backend = BACKENDS[uri.partition("://")[0]]
        self.description = description
        self.hal = hal
        self._rt = rt
        types = rt.HalElementType
        self._elements = {
            "f16": types.FLOAT_16, "bf16": types.BFLOAT_16, "f32": types.FLOAT_32, "f64": types.FLOAT_64,
        }  # fmt: skip
        memory, usage = rt.MemoryType, rt.BufferUsage
        self._host_memory = int(memory.HOST_LOCAL | memory.DEVICE_VISIBLE)
        self._device_memory = int(memory.DEVICE_LOCAL)
        self._usage = int(usage.DEFAULT)
        self._mapped_usage = int(usage.DEFAULT) | int(usage.MAPPING)
        self._staging_usage = int(usage.TRANSFER) | int(usage.MAPPING)

    def bind(self, array: np.ndarray, dtype: str) -> Binding:
        """``array``, writable and C-contiguous, as a one-dimensional operand: its own memory where the device can
        use that, else a copy on the device.
        """
        if self._can_import(array):
            try:
                buffer = self.hal.allocator.import_host_allocation(
                    array.reshape(-1).view(np.uint8), self._host_memory, self._mapped_usage
                )
                return Binding(self._view(buffer, array.size, dtype), buffer, array, False)
            except (RuntimeError, ValueError):
                if self.backend == "cpu":
                    raise
        buffer = self.hal.allocator.allocate_buffer_copy(
            memory_type=self._device_memory,
            allowed_usage=self._usage,
            device=self.hal,
            buffer=np.ascontiguousarray(array).reshape(-1).view(np.uint8),
        )
        return Binding(self._view(buffer, array.size, dtype), buffer, array, True)

    def _can_import(self, array: np.ndarray) -> bool:
        address = array.ctypes.data
        if self.backend == "cpu":
            return address % array.itemsize == 0
        return self.backend == "vulkan" and address % _PAGE == 0 and array.nbytes % _PAGE == 0

    def _view(self, buffer: Any, size: int, dtype: str) -> Any:
        return self._rt.HalBufferView(buffer, [size], self._elements[dtype])

    def read(self, view: Any, into: np.ndarray, dtype: str) -> None:
        """Copies what ``view`` holds into ``into``, which has as many elements."""
        buffer = view.get_buffer()
        if self.backend == "cpu":
            source = view.map().asarray((into.size,), storage_dtype(dtype))
            into.reshape(-1).view(source.dtype)[:] = source
            return
        # Device memory may not be mappable: through a buffer of our own that is.
        fence, hal = self._rt.HalFence, self.hal
        staging = hal.allocator.allocate_buffer(self._host_memory, self._staging_usage, buffer.byte_length())
        semaphore = hal.create_semaphore(0)
        hal.queue_copy(
            buffer,
            staging,
            wait_semaphores=fence.create_at(semaphore, 0),
            signal_semaphores=fence.create_at(semaphore, 1),
        )
        fence.create_at(semaphore, 1).wait()
        mapped = staging.map().asarray((buffer.byte_length() // SIZES[dtype],), storage_dtype(dtype))
        into.reshape(-1).view(mapped.dtype)[:] = mapped[: into.size]

    def address(self, view: Any) -> int | None:
        """Where ``view`` lies in this process's memory; None if not on the CPU."""
        if self.backend != "cpu":
            return None
        return int(view.map().asarray((1,), np.dtype(np.uint8)).ctypes.data)

    def __repr__(self) -> str:
        return f"Device({self.uri!r}, {self.description!r})"


_devices: dict[str, Device] = {}
_lock = threading.RLock()


def get_device(uri: str) -> Device:
    """The device of that name, e.g. ``local-task`` or ``vulkan``; the same object each time.

    Raises:
        DeviceError: if there is no such driver here, or no device for it.
    """
    with _lock:
        if uri in _devices:
            return _devices[uri]
        driver = uri.partition("://")[0]
        if driver not in BACKENDS:
            raise DeviceError(f"unknown device {uri!r}; the devices are {', '.join(BACKENDS)}")
        import iree.runtime as rt

        try:
            hal = rt.get_device(uri, cache=False)
        except (RuntimeError, ValueError, KeyError) as error:
            present = ", ".join(name for name, _ in list_devices())
            raise DeviceError(f"device {uri!r} is not there ({_reason(error)}); there are {present}") from error
        descriptions = dict(list_devices(driver))
        _devices[uri] = Device(uri, hal, descriptions.get(driver, driver))
        return _devices[uri]


def list_devices(driver: str | None = None) -> list[tuple[str, str]]:
    """The devices of this machine: pairs of driver and description. Drivers without a device are left out."""
    import iree.runtime as rt

    found = []
    for name in [driver] if driver else ["local-sync", "local-task", "vulkan", "cuda", "hip"]:
        try:
            for info in rt.get_driver(name).query_available_devices():
                label = info["name"] if info["name"] != "default" else "this machine's processor"
                found.append((name, str(label)))
        except (RuntimeError, ValueError):
            continue
    return found


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0]
    return text.split("; ", 1)[-1][:120]


def _forget_after_fork() -> None:
    # The worker threads of local-task do not survive a fork: a child that used its parent's would hang.
    _devices.clear()
    import sys

    if "iree.runtime" in sys.modules:
        sys.modules["iree.runtime"]._binding.clear_hal_driver_cache()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
