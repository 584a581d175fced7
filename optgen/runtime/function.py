"""Compiled functions: loading and calling them with trees of arrays."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from optgen.artifact.function import FunctionBundle, FunctionManifest, restore
from optgen.dtypes import element_name, numpy_dtype, storage_dtype
from optgen.errors import LeafError, TreeError
from optgen.runtime import memory
from optgen.runtime.device import Device, get_device, tasks_pay
from optgen.runtime.module import LoadedModule, check_runtime
from optgen.runtime.select import choose
from optgen.runtime.tree import show, walk


class CompiledFunction:
    """A function of trees of arrays, compiled.

    Made by :func:`load_function`, or from what :func:`optgen.train.compile_function` returns. It reads its arguments
    and returns new arrays.

    Args:
        bundle: the artifact.
        device: ``local-sync``, ``local-task``, ``vulkan``, ``cuda``; ``cpu`` chooses between the first two by the
            size of the arguments. By default ``cpu`` if the bundle has a module for it, else whatever it has one for.

    Raises:
        DeviceError: if the device is not there, or the bundle has no module for it.
        BundleVersionError: if the installed runtime is too old.
    """

    def __init__(self, bundle: FunctionBundle, device: str | None = None) -> None:
        manifest = bundle.manifest
        check_runtime(manifest.min_runtime)
        self.bundle = bundle
        if device is None:
            backends = [m.backend for m in manifest.modules]
            device = "cpu" if "cpu" in backends or not backends else backends[0]
        self.device_name = device
        self._module: LoadedModule | None = None
        self._elements = sum(int(np.prod(leaf.shape)) for leaf in manifest.inputs)
        choose(manifest, self._device(), "function")  # fail now, not at the first call

    def __getstate__(self) -> dict[str, Any]:
        # What is loaded belongs to this process's devices: a copy loads for itself.
        return {**self.__dict__, "_module": None}

    @property
    def manifest(self) -> FunctionManifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    def save(self, path: str | os.PathLike[str]) -> Any:
        """Writes the bundle: one file if ``path`` ends in ``.optgen``, else a directory. Whole or not at all."""
        return self.bundle.save(path)

    def __call__(self, *trees: Any) -> Any:
        """Calls the function.

        Args:
            trees: as the examples it was compiled for: the same structure, shapes and dtypes. Arrays of numpy,
                torch, JAX or optgen.

        Returns:
            The result's tree, its leaves new numpy arrays.

        Raises:
            TreeError: if the number of arguments or the structure of one is wrong.
            LeafError: if a leaf has the wrong shape or dtype.
        """
        arrays = self._collect(trees)
        module = self._loaded()
        device, inputs, outputs = module.device, self.manifest.inputs, self.manifest.outputs
        bindings = [device.bind_program(a, leaf.dtype, leaf.shape) for a, leaf in zip(arrays, inputs, strict=True)]
        views = module.call(bindings, len(outputs))
        results = [np.empty(leaf.shape, storage_dtype(leaf.dtype)) for leaf in outputs]
        device.read_program(zip(views, results, (leaf.dtype for leaf in outputs), strict=True))
        typed = [r.view(numpy_dtype(o.dtype)) for r, o in zip(results, outputs, strict=True)]
        return restore(self.manifest.result_tree, typed)

    def _collect(self, trees: tuple[Any, ...]) -> list[np.ndarray]:
        """The leaves in the order of the module's arguments, checked."""
        manifest = self.manifest
        if len(trees) != len(manifest.arguments):
            raise TreeError(
                f"{manifest.name} takes {len(manifest.arguments)} arguments, {', '.join(manifest.arguments)} "
                f"(got {len(trees)})"
            )
        found = {p: v for name, tree in zip(manifest.arguments, trees, strict=True) for p, v in walk(tree, name)}
        expected = {leaf.path for leaf in manifest.inputs}
        if extra := next((path for path in found if path not in expected), None):
            raise TreeError(f"{manifest.name} has no leaf {show(extra)} in its arguments")
        arrays = []
        for leaf in manifest.inputs:
            if leaf.path not in found:
                raise TreeError(f"{manifest.name} needs the leaf {show(leaf.path)}, which is missing")
            value = found[leaf.path]
            if isinstance(value, np.generic):
                value = np.asarray(value)
            _, array = memory.array_of(value, leaf.path, manifest.name)
            try:
                dtype = element_name(value.dtype)
            except ValueError:
                dtype = str(value.dtype)
            if dtype != leaf.dtype or not array.dtype.isnative:
                given = dtype if array.dtype.isnative else f"{dtype} of foreign byte order"
                raise LeafError(f"{manifest.name} {show(leaf.path)} must have dtype {leaf.dtype} (got {given})")
            if array.shape != leaf.shape:
                raise LeafError(f"{manifest.name} {show(leaf.path)} must have shape {leaf.shape} (got {array.shape})")
            array = array.view(storage_dtype(dtype))
            arrays.append(memory.writable_alias(array if memory.usable(array) else array.copy()))
        return arrays

    def _device(self) -> Device:
        if self.device_name == "cpu":
            return get_device("local-task" if tasks_pay(self._elements) else "local-sync")
        return get_device(self.device_name)

    def _loaded(self) -> LoadedModule:
        if self._module is None or not self._module.usable:
            device = self._device()
            info = choose(self.manifest, device, "function")
            label = f"{self.manifest.name} for {info.target}"
            self._module = LoadedModule(device, self.bundle.module(info), label, "main")
        return self._module

    def __repr__(self) -> str:
        signature = ", ".join(self.manifest.arguments)
        return f"CompiledFunction({self.manifest.name}({signature}), device={self.device_name!r})"


def load_function(path: str | os.PathLike[str], device: str | None = None) -> CompiledFunction:
    """Loads and verifies a compiled function; needs numpy and iree.runtime alone.

    Args:
        path: a directory, or a file that ends in ``.optgen``.
        device: see :class:`CompiledFunction`.

    Raises:
        BundleNotFoundError, BundleError, BundleVersionError: if there is none, or it is damaged or too new.
        DeviceError: if the device is not there, or the bundle has no module for it.
    """
    return CompiledFunction(FunctionBundle.read(path), device)
