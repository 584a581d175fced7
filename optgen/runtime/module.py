"""A compiled module on a device, and calling it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from optgen.errors import BundleError
from optgen.runtime.device import Binding, Device

_instance: Any = None


def _vm_instance() -> Any:
    global _instance
    if _instance is None:
        import iree.runtime as rt

        _instance = rt.VmInstance()
    return _instance


class LoadedModule:
    """One module, ready to run.

    Args:
        device: where.
        data: the compiled module.
        label: what to call it in errors.

    Raises:
        BundleError: if the runtime cannot load it.
    """

    def __init__(self, device: Device, data: bytes, label: str) -> None:
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
            raise BundleError(
                f"{label} cannot be loaded by iree-base-runtime {rt.version.VERSION}: {str(error).splitlines()[0][:200]}"
            ) from error
        function = module.lookup_function("apply")
        if function is None:
            raise BundleError(f"{label} has no entry point 'apply'")
        self._function = function

    @property
    def usable(self) -> bool:
        """False in a process that was forked from the one that loaded it."""
        return self._process == os.getpid()

    def apply(
        self, operands: Sequence[Sequence[Binding]], scalars: Sequence[float], results: Sequence[int]
    ) -> list[list[Any]]:
        """Updates leaves.

        Args:
            operands: for each operand of the kernel its leaves.
            scalars: the kernel's scalars.
            results: positions of the operands that the update replaces.

        Returns:
            For each of ``results``, the views of the new leaves; where the update is in place, of the old memory.
        """
        rt = self._rt
        arguments = rt.VmVariantList(len(operands) + len(scalars))
        lists = []
        for bindings in operands:
            views = rt.VmVariantList(len(bindings))
            for binding in bindings:
                views.push_ref(binding.view)
            arguments.push_list(views)
            lists.append(views)
        for number in scalars:
            arguments.push_float(number)
        with self._lock:
            self._context.invoke(self._function, arguments, rt.VmVariantList(1))
        return [
            [lists[i].get_as_object(j, rt.HalBufferView) for j in range(len(operands[i]))]
            for i in results
        ]
