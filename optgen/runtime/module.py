"""A compiled module on a device, and calling it."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from typing import Any

from optgen.errors import BundleError, BundleVersionError
from optgen.runtime.device import Binding, Device, device_error

_instance: Any = None


def _vm_instance() -> Any:
    global _instance
    if _instance is None:
        import iree.runtime as rt

        _instance = rt.VmInstance()
    return _instance


@atexit.register
def _release() -> None:
    global _instance
    _instance = None


class LoadedModule:
    """One module, ready to run.

    Args:
        device: where.
        data: the compiled module.
        label: what to call it in errors.
        entry: the function that it exports.

    Raises:
        BundleError: if the runtime cannot load it.
    """

    def __init__(self, device: Device, data: bytes, label: str, entry: str = "apply") -> None:
        import iree.runtime as rt

        self.device = device
        self.label = label
        self._rt = rt
        self._lock = threading.Lock()  # a context is not for concurrent use
        self._process = os.getpid()
        instance = _vm_instance()
        try:
            module = rt.VmModule.copy_buffer(instance, data)
            hal = rt.create_hal_module(instance, device.hal)
            self._context = rt.VmContext(instance, [hal, module])
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise BundleError(f"{label} cannot be loaded by iree-base-runtime {_installed()}: {reason}") from error
        self._module, self._data, self._entry = module, data, entry
        self._functions: dict[str, Any] = {}
        self._elsewhere: dict[str, LoadedModule] = {}
        self._function(entry)

    def require(self, entry: str) -> None:
        """Finds an entry point.

        Raises:
            BundleError: if there is none of that name.
        """
        self._function(entry)

    def _function(self, entry: str) -> Any:
        function = self._functions.get(entry)
        if function is None:
            function = self._functions[entry] = self._module.lookup_function(entry)
        if function is None:
            raise BundleError(f"{self.label} has no entry point '{entry}'")
        return function

    def on(self, device: Device) -> LoadedModule:
        """The same module on another device of the same kind."""
        if device is self.device:
            return self
        found = self._elsewhere.get(device.uri)
        if found is None or found.device is not device:
            found = self._elsewhere[device.uri] = LoadedModule(device, self._data, self.label, self._entry)
        return found

    @property
    def usable(self) -> bool:
        """False in a process that was forked from the one that loaded it."""
        return self._process == os.getpid()

    @property
    def runtime(self) -> Any:
        """The ``iree.runtime`` package."""
        return self._rt

    def invoke(self, arguments: Any, outputs: Any, entry: str = "") -> None:
        """Calls an entry point.

        Args:
            arguments: a VmVariantList of what it takes.
            outputs: an empty one, which gets what it returns.
            entry: its name; by default the one that it was loaded for.

        Raises:
            DeviceError: if the device fails, as one that is lost.
        """
        function = self._functions.get(entry) or self._function(entry or self._entry)
        self._lock.acquire()  # not `with`, which takes half as long again
        try:
            self._context.invoke(function, arguments, outputs)
        except (RuntimeError, ValueError) as error:
            raise device_error(self.device.uri, error) from error
        finally:
            self._lock.release()

    def call(self, arguments: Sequence[Binding], results: int, entry: str = "") -> list[Any]:
        """Calls a function of tensors.

        Args:
            arguments: its tensors.
            results: how many it returns.
            entry: its name; by default the one that the module was loaded for.

        Returns:
            The views of its results.
        """
        rt = self._rt
        inputs, outputs = rt.VmVariantList(len(arguments)), rt.VmVariantList(results)
        for binding in arguments:
            inputs.push_ref(binding.view)
        self.invoke(inputs, outputs, entry)
        return [outputs.get_as_object(i, rt.HalBufferView) for i in range(results)]


def _installed() -> str:
    from importlib.metadata import version

    return version("iree-base-runtime")


def check_runtime(needed: str) -> None:
    """Refuses a bundle for a newer runtime than the installed one.

    Raises:
        BundleVersionError: naming both versions.
    """
    installed = _installed()
    if _numbers(installed) < _numbers(needed):
        raise BundleVersionError(f"the bundle needs iree-base-runtime {needed} or newer (got {installed}): update it")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int("".join(c for c in field if c.isdigit()) or 0) for field in text.split(".")[:3])
