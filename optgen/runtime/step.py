"""Compiled training steps: applied to the arrays of a training loop, in place; numpy and iree.runtime alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optgen.artifact.function import restore
from optgen.artifact.step import COMPUTE, EntryInfo, StepBundle, StepManifest, StepModule
from optgen.dtypes import numpy_dtype, storage_dtype
from optgen.errors import HyperparameterError, TreeError
from optgen.hyper import Hyper, part
from optgen.runtime import memory
from optgen.runtime.device import Binding, Device, get_device, tasks_pay
from optgen.runtime.idle import refuse_idle
from optgen.runtime.memory import Leaf
from optgen.runtime.module import LoadedModule, check_runtime
from optgen.runtime.select import choose
from optgen.runtime.step_leaves import Held, StepLeaves
from optgen.runtime.step_state import first_state


class TrainStep:
    """A training step, compiled: loss, gradient and update in one call of one module.

    Made by :func:`optgen.load`, or from what :func:`optgen.train.compile_step` returns.

    Args:
        bundle: the artifact.
        device: ``local-sync``, ``local-task``, ``vulkan``, ``cuda``; ``cpu`` chooses between the first two by the
            size of params and batch. By default ``cpu`` if the bundle has a module for it, else whatever it has one
            for.
        defaults: hyperparameters for steps that do not give them.

    Raises:
        DeviceError: if the device is not there, or the bundle has no module for it.
        BundleVersionError: if the installed runtime is too old.
        HyperparameterError: if a default is unknown or out of range.
    """

    def __init__(
        self, bundle: StepBundle, device: str | None = None, defaults: Mapping[str, Any] | None = None
    ) -> None:
        manifest = bundle.manifest
        check_runtime(manifest.min_runtime)
        self.bundle = bundle
        if device is None:
            backends = [m.backend for m in manifest.modules]
            device = "cpu" if "cpu" in backends or not backends else backends[0]
        self.device_name = device
        self._hypers = {h.name: h for h in manifest.hypers}
        self._defaults = {h.name: h.default for h in manifest.hypers if h.default is not None}
        for name, value in (defaults or {}).items():
            self._defaults[name] = self._hyper(name).check(value)
        self._elements = sum(int(np.prod(a.shape)) for a in manifest.arguments if a.role not in ("state", "eval_batch"))
        taken = {i for entry in manifest.entries for i in entry.takes}
        read = {a.hyper.hyper for i, a in enumerate(manifest.arguments) if a.hyper is not None and i in taken}
        self.idle = frozenset(self._hypers) - read - {manifest.every}
        self._starts = {a.path: a.initial.path for a in manifest.arguments if a.initial and a.initial.kind == "hyper"}
        self._module: LoadedModule | None = None
        self._leaves = StepLeaves(manifest)
        self._held: Held | None = None
        self._numbers: tuple[Any, dict[int, Binding]] | None = None
        self._info: StepModule = choose(manifest, self._device(), "step")  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        # What is loaded belongs to this process's devices: a copy loads for itself.
        return {**self.__dict__, "_module": None, "_held": None, "_numbers": None}

    @property
    def manifest(self) -> StepManifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def info(self) -> StepModule:
        """The module that it runs."""
        return self._info

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the bundle: one file if ``path`` ends in ``.optgen``, else a directory. Whole or not at all."""
        return self.bundle.save(path)

    def init(self, params: Any, **hypers: Any) -> Any:
        """The state before the first step: ``{"step": 0, "m": tree like the trained params, ...}``.

        For an optax transformation, nested dicts and lists of arrays that mirror optax's state; truth values are i32.

        Args:
            params: the tree.
            hypers: those that some state starts with, where they are not to be the defaults.

        Raises:
            TreeError, LeafError: if ``params`` are not what the step was compiled for.
            HyperparameterError: if a hyperparameter is unknown, out of range, or needed and has no default.
        """
        given = {**self._defaults, **{n: self._hyper(n).check(v) for n, v in hypers.items()}}
        found = self._leaves.params(params, written=False)
        computed: list[np.ndarray] = []
        if (entry := self.manifest.entry("init")) is not None:
            computed = self._results(entry, self._bindings(entry, found))
        return first_state(self.bundle, found, given, computed)

    def step(
        self, params: Any, state: Any, batch: Any, lr: float | None = None, rng: Any = None, **hypers: Any
    ) -> tuple[float, dict[str, Any]]:
        """One step, in the user's own arrays.

        Args:
            params: the tree; its trained leaves are overwritten.
            state: from :meth:`init`, or as a step left it; it is overwritten.
            batch: of exactly the shapes that the step was compiled for.
            lr: the learning rate, where the optimizer has one and it is not compiled in.
            rng: for a loss that takes a key: a whole number, the seed of ``jax.random.key``, or the key's two words as
                uint32. Give another one to each step.
            hypers: others, where they are not to be the defaults.

        Returns:
            The loss before the update, and the metrics.

        Raises:
            TreeError: if a tree does not have the leaves that the step was compiled for.
            LeafError: if a leaf has the wrong shape or dtype, or cannot be written.
            OverlapError: if a leaf that is written shares memory with another.
            HyperparameterError: if one is unknown, missing or out of range, or a key is missing.

            Nothing has been changed when one of these is raised.
        """
        given = {**hypers, **({} if lr is None else {"lr": lr})}
        values = self._resolve(given)
        if self.idle:
            refuse_idle(self.idle, given, self._starts, self.manifest.optimizer)
        key = self._leaves.key(rng)
        module = self._loaded()
        held = self._hold(params, state)
        fresh = self._leaves.batch(batch, "batch")
        memory.check_overlap([*held.spans, *((leaf, "batch", False) for leaf in fresh.values())])
        numbers = self._leaves.counts(state)
        entry = self.manifest.entry("step")
        if self.manifest.every and numbers[self.manifest.count] + 1 < values[self.manifest.every]:
            entry = self.manifest.entry("micro")
        assert entry is not None
        device = module.device
        bindings = dict(held.bound(device))
        bindings |= self._scalars(device, values)
        for index, leaf in fresh.items():
            bindings[index] = _bind(device, leaf.array, leaf.dtype, leaf.array.shape)
        for index, argument in self._leaves.number_arguments:
            number = np.array(numbers[argument.path], storage_dtype(self._dtype(argument.dtype)))
            bindings[index] = _bind(device, number, self._dtype(argument.dtype), ())
        if key is not None:
            bindings[self._leaves.rng] = _bind(device, key, "ui32", (2,))
        results = self._results(entry, bindings, held)
        held.wrote()
        loss, metrics = 0.0, []
        for give, made, result in zip(entry.gives, entry.results, results, strict=True):
            if give >= 0:
                argument = self.manifest.arguments[give]
                if argument.role in ("count", "scalar"):
                    state[argument.path] = int(result) if argument.role == "count" else float(result)
            elif made.path == "loss":
                loss = float(_typed(result, made.dtype))
            else:
                metrics.append(_plain(_typed(result, made.dtype)))
        return loss, restore(self.manifest.metrics, metrics)

    def evaluate(self, params: Any, batch: Any) -> Any:
        """What ``eval_fn`` gives for ``params`` and ``batch``; single numbers as Python's, others as new arrays.

        Raises:
            TreeError, LeafError: as :meth:`step`; TreeError also if the step was compiled without ``eval_fn``.
        """
        entry = self.manifest.entry("evaluate")
        if entry is None:
            raise TreeError(f"'{self.manifest.name}' was compiled without 'eval_fn': there is nothing to evaluate")
        found = self._leaves.params(params, written=False) | self._leaves.batch(batch, "eval_batch")
        results = self._results(entry, self._bindings(entry, found))
        typed = [_plain(_typed(r, leaf.dtype)) for r, leaf in zip(results, entry.results, strict=True)]
        return restore(self.manifest.evaluation, typed)

    # Running.

    def _hold(self, params: Any, state: Any) -> Held:
        """The arrays of params and state: what is known of them, if they are those of the step before."""
        held = self._held
        if held is None or not held.matches(params, state):
            held = self._held = self._leaves.hold(params, state)
        return held

    def _bindings(self, entry: EntryInfo, leaves: Mapping[int, Leaf]) -> dict[int, Binding]:
        device = self._loaded().device
        return {i: _bind(device, leaves[i].array, leaves[i].dtype, leaves[i].array.shape) for i in entry.takes}

    def _scalars(self, device: Device, values: Mapping[str, float]) -> dict[int, Binding]:
        """The hyperparameters as the module takes them; made anew where one has changed."""
        key = (id(device), tuple(values.items()))
        if self._numbers is None or self._numbers[0] != key:
            kind = storage_dtype(self._info.compute)
            made = {
                i: _bind(device, np.array(part(values[s.hyper], s.part), kind), self._info.compute, ())
                for i, s in self._leaves.hypers
            }
            self._numbers = (key, made)
        return self._numbers[1]

    def _results(self, entry: EntryInfo, bindings: Mapping[int, Binding], held: Held | None = None) -> list[np.ndarray]:
        """Calls a program. Arrays that it replaces are written, numbers and new arrays returned.

        Returns:
            An array for each result; of what has been written, the array that holds it.
        """
        module = self._loaded()
        device, arguments = module.device, self.manifest.arguments
        views = module.call([bindings[i] for i in entry.takes], len(entry.results), entry.name)
        results: list[np.ndarray] = []
        pending: list[tuple[Any, np.ndarray, str]] = []
        for view, give, leaf in zip(views, entry.gives, entry.results, strict=True):
            if held is not None and give >= 0 and arguments[give].role in ("param", "state"):
                binding = bindings[give]
                target = held.arrays[give]
                if binding.staged or give in self._info.apart or self._moved(device, view, binding):
                    pending.append((view, target, arguments[give].dtype))
                results.append(target)
            else:
                dtype = leaf.dtype if leaf.dtype != COMPUTE else self._info.compute
                results.append(np.empty(leaf.shape, storage_dtype(dtype)))
                pending.append((view, results[-1], dtype))
        if device.backend == "cpu" and len(pending) > 1:
            # A result may be the memory of an argument that another result replaces.
            copies = [np.empty_like(target) for _, target, _ in pending]
            device.read_all(zip((view for view, _, _ in pending), copies, strict=True))
            for (_, target, _), copy in zip(pending, copies, strict=True):
                target[...] = copy
        else:
            device.read_program(pending)
        return results

    @staticmethod
    def _moved(device: Device, view: Any, binding: Binding) -> bool:
        address = device.address(view)
        return address is not None and address != binding.array.ctypes.data

    def _device(self) -> Device:
        if self.device_name == "cpu":
            return get_device("local-task" if tasks_pay(self._elements) else "local-sync")
        return get_device(self.device_name)

    def _loaded(self) -> LoadedModule:
        if self._module is None or not self._module.usable:
            device = self._device()
            label = f"{self.manifest.name} for {self._info.target}"
            self._module = LoadedModule(device, self.bundle.module(self._info), label, "step")
            self._held, self._numbers = None, None
        return self._module

    # Hyperparameters.

    def _dtype(self, dtype: str) -> str:
        return self._info.compute if dtype == COMPUTE else dtype

    def _resolve(self, given: Mapping[str, Any]) -> dict[str, float]:
        values = dict(self._defaults)
        for name, value in given.items():
            values[name] = self._hyper(name).check(value)
        for name in self._hypers:
            if name not in values:
                raise HyperparameterError(
                    f"'{name}' must be given: optimizer '{self.manifest.optimizer}' has no default for it"
                )
        return {name: values[name] for name in self._hypers}

    def _hyper(self, name: str) -> Hyper:
        if name in self._hypers:
            return self._hypers[name]
        known = ", ".join(self._hypers) or "none"
        raise HyperparameterError(
            f"'{self.manifest.optimizer}' of this step has no hyperparameter '{name}' (it has {known}); others are "
            "compiled in"
        )

    def __repr__(self) -> str:
        return f"TrainStep({self.manifest.name!r}, {self.manifest.optimizer!r}, device={self.device_name!r})"


def _bind(device: Device, array: np.ndarray, dtype: str, shape: Sequence[int]) -> Binding:
    usable = array if memory.usable(array) else memory.aligned_copy(array, dtype)
    return device.bind_program(memory.writable_alias(usable), dtype, list(shape))


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.view(numpy_dtype(dtype)) if dtype == "bf16" else array


def _plain(array: np.ndarray) -> Any:
    return array if array.shape else array.item()
