"""Devices: what modules run on, by IREE's names (``local-sync``, ``local-task``, ``vulkan``, ``cuda``)."""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from optgen import host
from optgen.artifact import KernelInfo
from optgen.dtypes import CODES, SIZES, WORDS, storage_dtype
from optgen.errors import DeviceError
from optgen.runtime.workers import Aside

#: The kind of module that a driver runs. ``cpu`` is the calling thread and, where there is much to do, a pool of
#: workers beside it; ``cpu-workers`` is that pool.
BACKENDS = {
    "local-sync": "cpu", "local-task": "cpu", "vulkan": "vulkan", "cuda": "cuda", "hip": "rocm",
    "metal": "metal", "cpu": "cpu", "cpu-workers": "cpu",
}  # fmt: skip

#: Elements in one call from which it is shared with the workers of ``cpu``, by the arithmetic: f64 takes longer. They
#: begin within 50 us of the call where they sleep, and at once where the last call is not long ago.
SHARED_FROM = {"f32": 400_000, "f64": 150_000}

#: Elements in one call from which the worker threads of local-task repay their start, for modules that cannot be
#: shared. Waking two of them and then the caller takes 100 to 200 us on a virtual machine.
TASKS_FROM = 1_500_000

#: Microseconds for which workers look for the next call before they sleep, as OpenMP's do.
_SPIN = 200

#: Copies from a device that are on their way at once.
_COPIES = 256

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
        backend: ``cpu``, ``vulkan``, ``cuda``, ``rocm`` or ``metal``: which modules it runs.
        description: the driver's name for it.
        threads: for a pool of workers, how many.
        aside: for a pool of workers, what keeps them off the caller's core.
        inline: whether a call's work is done when the call returns.
    """

    def __init__(self, uri: str, hal: Any, description: str, threads: int = 0) -> None:
        import iree.runtime as rt

        self.uri = uri
        self.threads = threads
        self.aside: Aside | None = None
        self.inline = uri in ("cpu", "local-sync")
        self.backend = BACKENDS[uri.partition("://")[0]]
        self.description = description
        self.hal = hal
        self._rt = rt
        types = rt.HalElementType
        self._elements = {
            "f16": types.FLOAT_16, "bf16": types.BFLOAT_16, "f32": types.FLOAT_32, "f64": types.FLOAT_64,
            "bits16": types.INT_16, "bits8": types.INT_8,
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
        smallest = min(SIZES[o.dtype] for o in kernel.operands)
        pad = self.backend == "vulkan" and kernel.shape is None and smallest < 4
        padding = -arrays[0].size % (4 // smallest) if pad else 0
        return [
            self.bind(
                array, memory_type(operand.dtype), kernel.shape if operand.shape is None else operand.shape, padding
            )
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
        try:
            buffer = self.hal.allocator.allocate_buffer_copy(
                memory_type=self._device_memory,
                allowed_usage=self._usage,
                device=self.hal,
                buffer=np.ascontiguousarray(array).reshape(-1).view(np.uint8),
            )
        except RuntimeError as error:
            if self.backend == "cpu":
                raise
            raise device_error(self.uri, error) from error
        return Binding(self._view(buffer, shape, dtype), buffer, array, True)

    def taken(self, dtype: str) -> str:
        """The element type that programs take and give for ``dtype``: words for other integers on Vulkan, see
        :func:`optgen.train.limits.for_vulkan`."""
        return WORDS.get(dtype, dtype) if self.backend == "vulkan" else dtype

    def bind_program(self, array: np.ndarray, dtype: str, shape: Sequence[int]) -> Binding:
        """``array`` as an argument of a program (a step, a function), as :meth:`bind` does it. Integers of another type
        than the program takes are converted: of 64 bits the lower half remains, as JAX makes them."""
        if (taken := self.taken(dtype)) == dtype:
            return self.bind(array, dtype, shape)
        binding = self.bind(array.astype(storage_dtype(taken)), taken, shape)
        return Binding(binding.view, binding.buffer, binding.array, True)

    def read_program(self, results: Iterable[tuple[Any, np.ndarray, str]]) -> None:
        """What a program has given: for each view an array to read it into, and its element type.

        Raises:
            DeviceError: if the device fails.
        """
        direct: list[tuple[Any, np.ndarray]] = []
        converted: list[tuple[np.ndarray, np.ndarray]] = []
        for view, into, dtype in results:
            if (taken := self.taken(dtype)) != dtype:
                converted.append((into, np.empty(into.shape, storage_dtype(taken))))
            direct.append((view, into if taken == dtype else converted[-1][1]))
        self.read_all(direct)
        for into, words in converted:
            into[...] = words

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """A view of memory on the device that nothing has been written to."""
        count = int(np.prod(shape)) * SIZES[dtype]
        buffer = self.hal.allocator.allocate_buffer(self._device_memory, self._usage, count)
        return self._view(buffer, shape, dtype)

    def span(self, memory: memoryview, shape: Sequence[int], dtype: str) -> tuple[Any, Any]:
        """A view over ``memory`` of this process, for CPUs, and the buffer that it needs."""
        buffer = self.hal.allocator.import_host_allocation(memory, self._host_memory, self._mapped_usage)
        return self._view(buffer, shape, dtype), buffer

    def subgroup_size(self) -> int | None:
        """The size of a Vulkan device's subgroups, for kernels that ask for none; None if the driver does not say."""
        if self.backend != "vulkan":
            return None
        driver = self._rt.get_driver(self.uri.partition("://")[0])
        try:
            known = driver.query_available_devices()
            mine = next((d for d in known if d["path"] and self.uri.endswith(d["path"])), known[0])
            found = re.search(r"^subgroup: size=(\d+)", driver.dump_device_info(mine["device_id"]), re.MULTILINE)
        except (RuntimeError, ValueError, IndexError):
            return None
        return int(found[1]) if found else None

    def workers(self, elements: int, compute: str) -> Device | None:
        """The pool of threads to share a call on so many elements with, where there is one and it pays."""
        if self.uri != "cpu" or elements < SHARED_FROM[compute] or host.threads() < 2:
            return None
        return get_device("cpu-workers")

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
        """As :meth:`read` for each view and array; waits for the device once for many of them.

        Raises:
            DeviceError: if the device fails.
        """
        if self.backend == "cpu":
            for view, into in pairs:
                flat = into.reshape(-1).view(f"u{into.itemsize}")  # bits: not every element type is one of numpy's
                flat[:] = view.map().asarray(flat.shape, flat.dtype)
            return
        waiting = iter(pairs)
        while some := list(islice(waiting, _COPIES)):
            try:
                self._read_some(some)
            except RuntimeError as error:
                raise device_error(self.uri, error) from error

    def _read_some(self, pairs: Sequence[tuple[Any, np.ndarray]]) -> None:
        # Device memory may not be mappable: through buffers of our own that are.
        rt, hal = self._rt, self.hal
        pending: list[tuple[np.ndarray, Any, Any]] = []
        for view, into in pairs:
            buffer = view.get_buffer()
            staging = hal.allocator.allocate_buffer(self._host_memory, self._staging_usage, buffer.byte_length())
            # Each with a semaphore of its own. Hundreds of copies on one timeline lost the device: IREE's Vulkan driver
            # signals values from more than one thread, and where one comes after a larger one Mesa gives the device up.
            done = rt.HalFence.create_at(hal.create_semaphore(0), 1)
            hal.queue_copy(buffer, staging, wait_semaphores=rt.HalFence(0), signal_semaphores=done)
            pending.append((into.reshape(-1).view(f"u{into.itemsize}"), staging, done))
        for flat, staging, done in pending:
            done.wait()
            flat[:] = staging.map().asarray((staging.byte_length() // flat.itemsize,), flat.dtype)[: flat.size]

    def address(self, view: Any) -> int | None:
        """Where ``view`` lies in this process's memory; None if not on the CPU."""
        if self.backend != "cpu":
            return None
        return int(view.map().asarray((1,), np.dtype(np.uint8)).ctypes.data)

    def __repr__(self) -> str:
        return f"Device({self.uri!r}, {self.description!r})"


def device_error(uri: str, error: Exception) -> DeviceError:
    """What a device's driver raised, as an error of optgen's."""
    if "DEVICE_LOST" in str(error):
        return DeviceError(f"device '{uri}' was lost ({_reason(error)}): start a new process, and load again there")
    return DeviceError(f"device '{uri}' failed: {_reason(error)}")


def memory_type(dtype: str) -> str:
    """What the kernels of rules see of elements of type ``dtype``: f16 and 8-bit codes as their bits."""
    return "bits16" if dtype == "f16" else "bits8" if dtype in CODES else dtype


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
            known = ", ".join(name for name in BACKENDS if name != "cpu-workers")
            raise DeviceError(f"unknown device {uri!r}; the devices are {known}")
        import iree.runtime as rt

        if uri in ("cpu", "cpu-workers"):
            _devices[uri] = _make_cpu(uri)
            return _devices[uri]
        try:
            hal = rt.get_device(uri, cache=False)
        except (RuntimeError, ValueError, KeyError) as error:
            present = ", ".join(name for name, _ in list_devices())
            raise DeviceError(f"device {uri!r} is not there ({_reason(error)}); there are {present}") from error
        descriptions = dict(list_devices(driver))
        _devices[uri] = Device(uri, hal, descriptions.get(driver, driver))
        return _devices[uri]


def _make_cpu(uri: str) -> Device:
    import iree.runtime as rt

    if uri == "cpu":
        return Device(uri, rt.get_device("local-sync", cache=False), "this machine's processor")
    count = host.threads() - 1
    # The driver reads its flags when it is made, and is then kept: one of our own, between two clearings. What was
    # set before cannot be read, so the flags go back to what local-task takes by default.
    rt._binding.clear_hal_driver_cache()
    rt.flags.parse_flags(f"--task_topology_group_count={count}", f"--task_worker_spin_us={_SPIN}")
    try:
        aside = Aside()
        hal = aside.watch(lambda: rt.get_device("local-task", cache=False))
        device = Device(uri, hal, "worker threads", count)
        device.aside = aside
        return device
    finally:
        rt._binding.clear_hal_driver_cache()
        configured = host.configured_threads() or 0
        rt.flags.parse_flags(f"--task_topology_group_count={configured}", "--task_worker_spin_us=0")


def tasks_pay(elements: int) -> bool:
    """Whether a call on so many elements that cannot be shared is better made on local-task."""
    return elements >= TASKS_FROM and host.threads() > 1


def list_devices(driver: str | None = None) -> list[tuple[str, str]]:
    """The devices of this machine: pairs of driver and description. Drivers without a device are left out."""
    import iree.runtime as rt

    found = []
    for name in [driver] if driver else ["local-sync", "local-task", "vulkan", "cuda", "hip", "metal"]:
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


@atexit.register
def _release() -> None:
    # Some packages (torch's compiler) keep the interpreter from taking modules down, and then nanobind says at length
    # that what they hold has leaked.
    _devices.clear()
    if "iree.runtime" in sys.modules:
        sys.modules["iree.runtime"]._binding.clear_hal_driver_cache()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
