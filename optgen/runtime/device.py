"""Devices: what modules run on, by IREE's names (``local-sync``, ``local-task``, ``vulkan``, ``cuda``)."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.artifact import KernelInfo
from optgen.dtypes import SIZES
from optgen.errors import DeviceError

#: The kind of module that a driver runs.
BACKENDS = {"local-sync": "cpu", "local-task": "cpu", "vulkan": "vulkan", "cuda": "cuda", "hip": "rocm"}

#: Elements in one call from which the worker threads of local-task repay their start. They sleep between calls, and
#: waking two of them and then the caller takes 100 to 200 us on a virtual machine: AdamW on 1M elements in f32
#: arithmetic takes 180 us on one thread, and on two anything from 120 to 560.
THREADS_FROM = 1_500_000

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
            "bits16": types.INT_16,
            "i1": types.BOOL_8, "i8": types.SINT_8, "i16": types.SINT_16, "i32": types.SINT_32, "i64": types.SINT_64,
            "ui8": types.UINT_8, "ui16": types.UINT_16, "ui32": types.UINT_32, "ui64": types.UINT_64,
        }  # fmt: skip
        memory, usage = rt.MemoryType, rt.BufferUsage
        self._host_memory = int(memory.HOST_LOCAL | memory.DEVICE_VISIBLE)
        self._device_memory = int(memory.DEVICE_LOCAL)
        self._usage = int(usage.DEFAULT)
        self._mapped_usage = int(usage.DEFAULT) | int(usage.MAPPING)
        self._staging_usage = int(usage.TRANSFER) | int(usage.MAPPING)

    def bind_leaf(self, kernel: KernelInfo, arrays: Sequence[np.ndarray]) -> list[Binding]:
        """The arrays of one leaf, one for each operand of ``kernel``, as :meth:`bind` does it."""
        # Vulkan devices without 16-bit storage see two elements as one word: the last one needs a neighbour.
        pad = self.backend == "vulkan" and kernel.shape is None and any(SIZES[o.dtype] == 2 for o in kernel.operands)
        padding = arrays[0].size % 2 if pad else 0
        return [
            self.bind(array, memory_type(operand.dtype), kernel.shape, padding)
            for array, operand in zip(arrays, kernel.operands, strict=True)
        ]

    def bind(self, array: np.ndarray, dtype: str, shape: Sequence[int] | None = None, padding: int = 0) -> Binding:
        """``array``, writable and C-contiguous, as an operand: its own memory where the device can use that, else a
        copy on the device.

        Args:
            array: the memory.
            dtype: its element type.
            shape: of the operand; one-dimensional by default.
            padding: zeros that follow the elements of a one-dimensional operand.
        """
        shape = [array.size + padding] if shape is None else list(shape)
        if padding:
            padded = np.zeros(array.size + padding, array.dtype)
            padded[: array.size] = array.reshape(-1)
            array = padded
        if self._can_import(array):
            try:
                buffer = self.hal.allocator.import_host_allocation(
                    array.reshape(-1).view(np.uint8), self._host_memory, self._mapped_usage
                )
                return Binding(self._view(buffer, shape, dtype), buffer, array, bool(padding))
            except (RuntimeError, ValueError):
                if self.backend == "cpu":
                    raise
        buffer = self.hal.allocator.allocate_buffer_copy(
            memory_type=self._device_memory,
            allowed_usage=self._usage,
            device=self.hal,
            buffer=np.ascontiguousarray(array).reshape(-1).view(np.uint8),
        )
        return Binding(self._view(buffer, shape, dtype), buffer, array, True)

    def span(self, memory: memoryview, count: int, dtype: str) -> tuple[Any, Any]:
        """A view of ``count`` elements over ``memory`` of this process, for CPUs, and the buffer that it needs."""
        buffer = self.hal.allocator.import_host_allocation(memory, self._host_memory, self._mapped_usage)
        return self._view(buffer, [count], dtype), buffer

    def _can_import(self, array: np.ndarray) -> bool:
        address = array.ctypes.data
        if self.backend == "cpu":
            return address % array.itemsize == 0
        return self.backend == "vulkan" and address % _PAGE == 0 and array.nbytes % _PAGE == 0

    def _view(self, buffer: Any, shape: Sequence[int], dtype: str) -> Any:
        return self._rt.HalBufferView(buffer, list(shape), self._elements[dtype])

    def read(self, view: Any, into: np.ndarray) -> None:
        """Copies what ``view`` holds into ``into``, C-contiguous, which has as many elements of the same size."""
        self.read_all([(view, into)])

    def read_all(self, pairs: Iterable[tuple[Any, np.ndarray]]) -> None:
        """As :meth:`read` for each view and array; waits for the device once and not for each."""
        rt, hal = self._rt, self.hal
        pending: list[tuple[np.ndarray, Any]] = []
        semaphore = None if self.backend == "cpu" else hal.create_semaphore(0)
        for view, into in pairs:
            flat = into.reshape(-1).view(f"u{into.itemsize}")  # bits: not every element type is one of numpy's
            if semaphore is None:
                flat[:] = view.map().asarray(flat.shape, flat.dtype)
                continue
            # Device memory may not be mappable: through a buffer of our own that is.
            buffer, count = view.get_buffer(), len(pending)
            staging = hal.allocator.allocate_buffer(self._host_memory, self._staging_usage, buffer.byte_length())
            hal.queue_copy(
                buffer,
                staging,
                wait_semaphores=rt.HalFence.create_at(semaphore, count),
                signal_semaphores=rt.HalFence.create_at(semaphore, count + 1),
            )
            pending.append((flat, staging))
        if pending:
            rt.HalFence.create_at(semaphore, len(pending)).wait()
        for flat, staging in pending:
            flat[:] = staging.map().asarray((staging.byte_length() // flat.itemsize,), flat.dtype)[: flat.size]

    def address(self, view: Any) -> int | None:
        """Where ``view`` lies in this process's memory; None if not on the CPU."""
        if self.backend != "cpu":
            return None
        return int(view.map().asarray((1,), np.dtype(np.uint8)).ctypes.data)

    def __repr__(self) -> str:
        return f"Device({self.uri!r}, {self.description!r})"


def memory_type(dtype: str) -> str:
    """What the kernels of rules see of elements of type ``dtype``: f16 as its bits."""
    return "bits16" if dtype == "f16" else dtype


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


def device_for(name: str, elements: int) -> Device:
    """The device of that name, where ``cpu`` means one thread or all of them, by the number of elements of a call."""
    if name == "cpu":
        name = "local-task" if elements >= THREADS_FROM and (os.cpu_count() or 1) > 1 else "local-sync"
    return get_device(name)


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
    # The worker threads of local-task do not survive a fork: a child that used its parent's devices would hang, and
    # so it would if it released them, at its exit or with the last module that is loaded on them.
    for device in _devices.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(device.hal))
    _devices.clear()
    if "iree.runtime" in sys.modules:
        sys.modules["iree.runtime"]._binding.clear_hal_driver_cache()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
