"""A compiled optax transformation, applied to the tree that it was compiled for; numpy and iree.runtime alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optgen.artifact.manifest import Compiled, LeafInfo
from optgen.artifact.transform import FunctionInfo, TensorInfo, TransformBundle, TransformManifest
from optgen.dtypes import INTEGERS, element_name, from_float64, numpy_dtype, storage_dtype, to_float64
from optgen.errors import DeviceError, LeafError, TreeError
from optgen.runtime import memory
from optgen.runtime.device import Binding, Device, get_device, tasks_pay
from optgen.runtime.execute import Call, prepare
from optgen.runtime.memory import Leaf
from optgen.runtime.module import LoadedModule, check_runtime
from optgen.runtime.recall import Recalled
from optgen.runtime.select import choose
from optgen.runtime.tree import leaves_of, map_tree, nest, show


class TreeOptimizer:
    """An optax transformation, compiled for one tree.

    Made by :func:`optgen.compile` and :func:`optgen.load`. Every ``step`` changes the user's own arrays: those leaves
    that ``manifest.in_place`` lists without a copy of them being made, the others by way of new buffers.

    Args:
        bundle: the artifact.
        device: ``local-sync``, ``local-task``, ``vulkan``, ``cuda``; ``cpu`` chooses between the first two by the
            amount of work. By default ``cpu`` if the bundle has a module for it, else whatever it has one for.

    Raises:
        DeviceError: if the device is not there, or the bundle has no module for it.
        BundleVersionError: if the installed runtime is too old.
    """

    def __init__(self, bundle: TransformBundle, device: str | None = None) -> None:
        manifest = bundle.manifest
        check_runtime(manifest.min_runtime)
        self.bundle = bundle
        self._compiled: list[Compiled] = [
            *(f for f in (manifest.head, manifest.init) if f is not None),
            *manifest.kernels,
        ]
        if device is None:
            backends = [m.backend for c in self._compiled for m in c.modules]
            device = "cpu" if "cpu" in backends or not backends else backends[0]
        self.device_name = device
        self._modules: dict[tuple[str, str], LoadedModule] = {}
        self._recalled: Recalled | None = None
        self._by_tree: dict[str, dict[str, int]] = {"params": {}, "grads": {}, "state": {}}
        for index, argument in enumerate(manifest.arguments):
            self._by_tree.setdefault(argument.tree, {})[argument.path] = index
        self._elements = sum(int(np.prod(a.shape)) for a in manifest.arguments if a.tree == "params")
        for compiled in self._compiled:
            choose(compiled, self.device(), "module")  # fail now, not at the first step

    def __getstate__(self) -> dict[str, Any]:
        # What is loaded belongs to this process's devices: a copy loads for itself.
        return {**self.__dict__, "_modules": {}, "_recalled": None}

    @property
    def manifest(self) -> TransformManifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def extra_args(self) -> tuple[str, ...]:
        """The further arguments that ``step`` takes, by name."""
        return tuple(tree for tree in self._by_tree if tree not in ("params", "grads", "state"))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the bundle: one file if ``path`` ends in ``.optgen``, else a directory. Whole or not at all."""
        return self.bundle.save(path)

    def init(self, params: Any) -> Any:
        """The state before the first step, as the transformation's own ``init`` gives it.

        Returns:
            Nested dicts and lists of numpy arrays that mirror optax's state: the fields of its named tuples are the
            keys of dicts, its tuples are lists. States without arrays are empty dicts.

        Raises:
            TreeError, LeafError: if ``params`` are not of the layout that the bundle was compiled for.
        """
        leaves = self._leaves("params", params, written=False)
        manifest = self.manifest
        computed: list[np.ndarray] = []
        if manifest.init is not None:
            computed = _Function(self, manifest.init, [self._usable(leaf) for leaf in leaves]).run()
        state = [a for a in manifest.arguments if a.tree == "state"]
        arrays = []
        for index, (tensor, initial) in enumerate(zip(state, manifest.initial, strict=True)):
            array = memory.empty(tensor.shape, tensor.dtype)
            if initial.kind == "fill":
                bf16 = tensor.dtype == "bf16"
                array[...] = from_float64(np.array(initial.number), "bf16") if bf16 else initial.number
            elif initial.kind == "stored":
                array[...] = self.bundle.stored[str(index)]
            elif initial.kind == "copy":
                source = leaves[self._by_tree["params"][initial.path]]
                if source.dtype == tensor.dtype:
                    array[...] = source.array
                else:
                    array[...] = from_float64(to_float64(source.array, source.dtype), tensor.dtype)
            else:
                array[...] = computed[int(initial.number)]
            arrays.append(array.view(numpy_dtype(tensor.dtype)) if tensor.dtype == "bf16" else array)
        return nest([(tensor.keys, array) for tensor, array in zip(state, arrays, strict=True)])

    def step(self, params: Any, grads: Any, state: Any, **extra: Any) -> tuple[Any, Any]:
        """One update, in the user's own arrays; JAX arrays are replaced.

        Args:
            params: the tree to update. Leaves must be writable.
            grads: a tree of the same structure.
            state: from :meth:`init` or the step before. Hyperparameters that optax keeps in the state
                (``optax.inject_hyperparams``) may be set in it, to numbers or arrays.
            extra: the extra arguments that it was compiled with.

        Returns:
            The params and the state: the very trees that were given, unless they hold JAX arrays or plain numbers.

        Raises:
            TreeError: if a tree does not have the leaves that it was compiled for.
            LeafError: if a leaf has the wrong shape or dtype, or cannot be written.
            OverlapError: if a leaf that is written shares memory with another.

            Nothing has been changed when one of these is raised.
        """
        self._check_extra(extra)
        trees = {"params": params, "grads": grads, "state": state, **extra}
        if (recalled := self._recalled) is not None and recalled.bound.usable:
            found = recalled.matches(list(trees.values()))
            if found is not None:
                recalled.bound.step()
                if recalled.tensors:
                    memory.bump_versions([found[i] for i in recalled.tensors])
                return params, state
        leaves = self._collect(trees)
        bound = BoundTree(self, leaves)
        bound.step()
        fresh: dict[str, dict[str, Any]] = {tree: {} for tree in trees}
        for index in self.manifest.writes:
            leaf, argument = leaves[index], self.manifest.arguments[index]
            if leaf.kind == "jax":
                fresh[argument.tree][leaf.path] = memory.to_kind(bound.arrays[index], leaf.dtype, "jax")
            elif leaf.kind == "number":
                fresh[argument.tree][leaf.path] = bound.arrays[index]
        if any(fresh.values()):
            params, state = _replace(params, fresh["params"]), _replace(state, fresh["state"])
        elif bound.direct and all(leaf.kind != "number" for leaf in leaves):
            written = [name in ("params", "state") for name in trees]
            bound.release()
            self._recalled = Recalled(list(trees.values()), written, bound)  # type: ignore[arg-type]
        return params, state

    def bind(self, params: Any, grads: Any, state: Any, **extra: Any) -> BoundTree:
        """A prepared step on these very arrays: ``bound.step()`` only calls the modules.

        Args:
            params, grads, state, extra: as for :meth:`step`, all of them arrays in contiguous memory. Fill the same
                grads anew before each step.

        Raises:
            TreeError, LeafError, OverlapError: as :meth:`step`, and if a leaf's memory cannot be used as it is.
        """
        self._check_extra(extra)
        leaves = self._collect({"params": params, "grads": grads, "state": state, **extra})
        bound = BoundTree(self, leaves)
        for leaf, array in zip(leaves, bound.arrays, strict=True):
            if leaf.kind in ("jax", "number") or array.ctypes.data != leaf.address:
                why = "its memory cannot be used: it is a number, a JAX array, or not contiguous"
                raise LeafError(f"leaf {show(leaf.path)} cannot be bound, because {why}")
        return bound

    def _check_extra(self, extra: Mapping[str, Any]) -> None:
        if missing := [n for n in self.extra_args if n not in extra]:
            raise TreeError(f"'{missing[0]}' must be given: '{self.manifest.name}' was compiled with it")
        if unknown := [n for n in extra if n not in self.extra_args]:
            have = ", ".join(map(repr, self.extra_args)) or "none"
            raise TreeError(
                f"'{self.manifest.name}' has no extra argument '{unknown[0]}' (it has {have}); hyperparameters are "
                "compiled in, or in the state (optax.inject_hyperparams)"
            )

    # Collecting and checking: nothing is written before all of it has passed.

    def _collect(self, trees: Mapping[str, Any]) -> list[Leaf]:
        found: list[Leaf] = []
        for tree in self._by_tree:
            found += self._leaves(tree, trees[tree], written=tree in ("params", "state"))
        writes = set(self.manifest.writes)
        memory.check_overlap(
            [
                (leaf, argument.tree, i in writes and leaf.kind != "jax")
                for i, (leaf, argument) in enumerate(zip(found, self.manifest.arguments, strict=True))
            ]
        )
        return found

    def _leaves(self, tree: str, given: Any, *, written: bool) -> list[Leaf]:
        """The leaves of one tree in the order of the arguments, checked."""
        expected, found = self._by_tree[tree], leaves_of(given)
        name = self.manifest.name
        for path in found:
            if path not in expected:
                raise TreeError(f"'{tree}' of '{name}' must not have the leaf {show(path)}: it was compiled without it")
        leaves = []
        for path, index in expected.items():
            if path not in found:
                raise TreeError(f"'{tree}' of '{name}' must have the leaf {show(path)} (it is missing)")
            leaves.append(_leaf(found[path], self.manifest.arguments[index], written))
        return leaves

    def _usable(self, leaf: Leaf) -> np.ndarray:
        return leaf.array if memory.usable(leaf.array) else memory.aligned_copy(leaf.array, leaf.dtype)

    # Modules.

    def device(self, *, shared: bool = True) -> Device:
        """What the modules run on: for the head, whose work the caller cannot share, all threads if they pay."""
        if self.device_name == "cpu" and not shared and tasks_pay(self._elements):
            return get_device("local-task")
        return get_device(self.device_name)

    def module(self, compiled: Compiled, device: Device, entry: str) -> tuple[Any, LoadedModule]:
        """The module of a kernel or function for ``device``, loaded."""
        info = choose(compiled, device, "module")
        key = (info.file, device.uri)
        module = self._modules.get(key)
        if module is None or not module.usable:
            label = f"{self.manifest.name} {compiled.name} for {info.target}"
            module = self._modules[key] = LoadedModule(device, self.bundle.module(info), label, entry)
        return info, module

    def __repr__(self) -> str:
        n = len(self._by_tree["params"])
        return f"TreeOptimizer({self.manifest.name!r}, {n} leaves, device={self.device_name!r})"


class _Function:
    """A function that only reads, bound to the arrays that it reads."""

    def __init__(self, optimizer: TreeOptimizer, info: FunctionInfo, arrays: Sequence[np.ndarray]) -> None:
        self.info = info
        self.device = optimizer.device(shared=False)
        _, self.module = optimizer.module(info, self.device, "main")
        arguments = optimizer.manifest.arguments
        self.arrays = [(arrays[i], arguments[i]) for i in info.reads]
        self.bindings: list[Binding | None] = [None] * len(self.arrays)

    def run(self) -> list[np.ndarray]:
        """New arrays with its results."""
        for i, (array, argument) in enumerate(self.arrays):
            known = self.bindings[i]
            if known is None or known.staged or argument.dtype == "i1":
                given = array.astype(np.int32) if argument.dtype == "i1" else memory.writable_alias(array)
                self.bindings[i] = self.device.bind_program(given, argument.passed, argument.shape)
        views = self.module.call([b for b in self.bindings if b is not None], len(self.info.outputs))
        results = [_empty(output) for output in self.info.outputs]
        self.device.read_program(zip(views, results, (output.dtype for output in self.info.outputs), strict=True))
        return results


class BoundTree:
    """A step bound to the memory of its leaves. Made by :meth:`TreeOptimizer.bind`.

    Attributes:
        arrays: for each argument, the memory that the modules use.
        direct: whether that is the leaves' own for all of them.
    """

    def __init__(self, optimizer: TreeOptimizer, leaves: Sequence[Leaf]) -> None:
        manifest = optimizer.manifest
        self.manifest = manifest
        writes = set(manifest.writes)
        self.arrays: list[np.ndarray] = []
        self.direct = True
        self._leaves: list[Leaf] = list(leaves)
        self._tensors = [leaves[i].owner for i in manifest.writes if leaves[i].kind == "torch"]
        self._back: list[tuple[int, Leaf]] = []
        for index, leaf in enumerate(leaves):
            own = memory.usable(leaf.array) and (leaf.kind != "jax" or index not in writes)
            # Views that do not keep the leaves alive: a step that is only remembered must not.
            array = memory.alias(leaf.array) if own else memory.aligned_copy(leaf.array, leaf.dtype)
            if not own:
                self.direct = False
                if index in writes and leaf.kind != "jax":
                    self._back.append((index, leaf))
            self.arrays.append(array)
            if leaf.kind == "jax":
                self.direct = False
        device = optimizer.device()
        self._head = None if manifest.head is None else _Function(optimizer, manifest.head, self.arrays)
        self._calls: list[tuple[Call, tuple[int, ...]]] = []
        for call in manifest.calls:
            kernel = manifest.kernels[call.kernel]
            info, module = optimizer.module(kernel, device, "apply")
            operands = [[self.arrays[i] for i in leaf] for leaf in call.leaves]
            self._calls.append((prepare(device, info, module, kernel, operands), call.scalars))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise DeviceError(
            "a bound step cannot be copied or pickled, since it works in the memory of this process: copy the "
            "optimizer, params and state, and bind again"
        )

    @property
    def usable(self) -> bool:
        """False in a process that was forked from the one that made it."""
        modules = [call.module for call, _ in self._calls]
        return all(m.usable for m in (modules if self._head is None else [*modules, self._head.module]))

    def step(self) -> None:
        """One update.

        Raises:
            DeviceError: in a process that was forked from the one that bound it.
        """
        if not self.usable:
            raise DeviceError("a bound step does not survive a fork: bind again in the child")
        scalars: list[float] = []
        fresh: list[np.ndarray] = []
        if self._head is not None:
            # All that reads an old value does so now, before anything is written.
            results = self._head.run()
            scalars = [float(r) for r in results[: self.manifest.head_scalars]]
            fresh = results[self.manifest.head_scalars :]
        for call, wanted in self._calls:
            call.run([scalars[i] for i in wanted])
        for index, result in zip(self.manifest.head_writes, fresh, strict=True):
            self.arrays[index][...] = result  # of truth values, too: they come as 0 and 1
        for index, leaf in self._back:
            leaf.array[...] = self.arrays[index]
        if self._tensors:
            memory.bump_versions(self._tensors)

    def release(self) -> None:
        """Lets go of the leaves, whose owner then sees to it that they live while steps are made."""
        self._leaves, self._tensors = [], []


def _replace(tree: Any, leaves: Mapping[str, Any]) -> Any:
    return map_tree(lambda path, leaf: leaves.get(path, leaf), tree) if leaves else tree


def _leaf(value: Any, argument: TensorInfo, written: bool) -> Leaf:
    """``value`` as the leaf that ``argument`` describes, sharing its memory."""
    what = f"{argument.tree} {show(argument.path)}" if argument.path else argument.tree
    if not argument.shape and isinstance(value, bool | int | float | np.generic):
        return Leaf(argument.path, _number(value, argument, what), argument.dtype, "number", value)
    kind, array = memory.array_of(value, argument.path, argument.tree)
    try:
        dtype = element_name(value.dtype)
    except ValueError:
        dtype = str(value.dtype)
    if dtype != argument.dtype or not array.dtype.isnative:
        given = dtype if array.dtype.isnative else f"{dtype} of foreign byte order"
        raise LeafError(f"{what} must have dtype {argument.dtype} (got {given})")
    if tuple(array.shape) != argument.shape:
        raise LeafError(f"{what} must have shape {argument.shape} (got {tuple(array.shape)})")
    if dtype == "bf16":
        array = array.view(np.uint16)
    if written and kind != "jax":
        if not array.flags.writeable:
            raise LeafError(f"{what} must be writable (it is read-only)")
        memory.check_own_memory(array, what)
    return Leaf(argument.path, array, dtype, kind, value)


def _number(value: Any, argument: TensorInfo, what: str) -> np.ndarray:
    if argument.dtype in INTEGERS:
        if value != int(value):
            raise LeafError(f"{what} must be a whole number, of dtype {argument.dtype} (got {value!r})")
        return np.array(int(value), storage_dtype(argument.dtype))
    return np.asarray(from_float64(np.array(float(value)), argument.dtype))


def _empty(output: LeafInfo) -> np.ndarray:
    return np.empty(output.shape, storage_dtype(output.dtype))
