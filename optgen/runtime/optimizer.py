"""The optimizer: a bundle bound to a device, applied to trees of arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optgen.artifact import Bundle, KernelInfo, Manifest, ModuleInfo, write_bundle
from optgen.dtypes import dtype_name, from_float64, stored_as, to_float64
from optgen.errors import HyperparameterError, LeafError, TreeError
from optgen.hyper import Hyper, part
from optgen.runtime import memory
from optgen.runtime.bound import BoundStep
from optgen.runtime.counts import LEAF_STEP, LeafCounts, Own, count_of, number_of
from optgen.runtime.device import Device, get_device
from optgen.runtime.execute import prepare, run_together, scalar_state
from optgen.runtime.groups import Groups
from optgen.runtime.idle import idle_hypers, refuse_idle
from optgen.runtime.memory import Leaf
from optgen.runtime.micro import UNSEEN, MicroStep, window
from optgen.runtime.module import LoadedModule, check_runtime
from optgen.runtime.recall import Recalled
from optgen.runtime.select import choose
from optgen.runtime.torch_grads import fetch_grad, home_of
from optgen.runtime.tree import is_tree, leaves_of, map_tree, match, show


@dataclass
class Work:
    """One leaf of an update: for each operand of the kernel, the user's leaf and the memory that the kernel uses.

    Its number is its place in the tree of params.
    """

    path: str
    leaves: list[Leaf]
    arrays: list[np.ndarray]
    kernel: KernelInfo
    number: int
    scalars: tuple[float, ...] = ()


class Optimizer:
    """An update rule, compiled.

    Made by :func:`optgen.compile`, :func:`optgen.load` or :func:`optgen.prebuilt`.

    Args:
        bundle: the artifact.
        device: ``local-sync``, ``local-task``, ``vulkan``, ``cuda``; ``cpu`` chooses between the first two by the
            amount of work. By default ``cpu`` if the bundle has a module for it, else whatever it has one for.
        defaults: hyperparameters for steps that do not give them.
        compute_dtype: the arithmetic to use where the bundle has a choice: ``f32`` for speed in cache, ``f64``, the
            default, for exact results.
        groups: hyperparameters for the leaves whose paths match a pattern, instead of those in the bundle; see
            :class:`optgen.runtime.groups.Groups`.

    Raises:
        DeviceError: if the device is not there, or the bundle has no module for it.
        BundleVersionError: if the installed runtime is too old.
        HyperparameterError: if a default is unknown or out of range, or there is no such arithmetic.

    Example:
        >>> import numpy as np, optgen
        >>> opt = optgen.prebuilt("sgd")
        >>> params = {"w": np.array([1.0, 2.0], np.float32)}
        >>> state = opt.init(params)
        >>> params, state = opt.step(params, {"w": np.array([1.0, 0.0], np.float32)}, state, lr=0.5)
        >>> params["w"].tolist(), state["step"]
        ([0.5, 2.0], 1)
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        *,
        compute_dtype: Any = None,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.bundle = bundle
        # Of several kernels for the same dtypes the first is used: the one with the arithmetic that is asked for.
        wanted = None if compute_dtype is None else dtype_name(compute_dtype)
        self._kernels = sorted(bundle.manifest.kernels, key=lambda k: wanted not in (None, k.dtypes["compute"]))
        if wanted is not None and all(k.dtypes["compute"] != wanted for k in self._kernels):
            have = ", ".join(dict.fromkeys(k.dtypes["compute"] for k in self._kernels))
            raise HyperparameterError(
                f"'compute_dtype' must be one that the bundle has, {have} (got {compute_dtype!r})"
            )
        self._modules: dict[tuple[str, str], LoadedModule] = {}
        #: Kernels that are known to work in the arrays' own memory.
        self.trusted: set[str] = set()
        self._recalled: Recalled | None = None
        self.counts = LeafCounts(bundle.manifest)
        self._shaped = {o.name for kernel in self._kernels for o in kernel.shaped}
        self._hypers = {h.name: h for h in bundle.manifest.hypers}
        self._defaults = {h.name: h.default for h in bundle.manifest.hypers if h.default is not None}
        for name, value in (defaults or {}).items():
            self._defaults[name] = self._hyper(name).check(value)
        starts = set(bundle.manifest.init.values())
        if unread := [n for n in defaults or {} if n not in starts and n in self.idle]:
            self.check_given(unread)
        tensors = dict.fromkeys(bundle.manifest.per_element, "it is a tensor of each leaf's shape")
        self.groups = Groups(
            bundle.manifest.groups if groups is None else groups, self._hyper, {**_common(bundle.manifest), **tensors}
        )
        check_runtime(bundle.manifest.min_runtime)
        if device is None:
            backends = [m.backend for k in bundle.manifest.kernels for m in k.modules]
            device = "cpu" if "cpu" in backends or not backends else backends[0]
            self.device_name = device
            return
        self.device_name = device
        choose(self._kernels[0], self.device)  # a device asked for by name: fail now, not at a step

    def __getstate__(self) -> dict[str, Any]:
        # What is loaded belongs to this process's devices: a copy loads for itself.
        return {**self.__dict__, "_modules": {}, "_recalled": None, "trusted": set(self.trusted)}

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def defaults(self) -> dict[str, float]:
        """Hyperparameters for steps that do not give them."""
        return dict(self._defaults)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the bundle: one file if ``path`` ends in ``.optgen``, else a directory. Whole or not at all."""
        return write_bundle(self.bundle, path)

    def init(self, params: Any, **hypers: Any) -> dict[str, Any]:
        """The state before the first step: ``{"step": 0, "m": tree like params, ...}``.

        Arrays are zero unless the rule says otherwise, of the params' kind (numpy, torch, JAX, Array), of their shapes
        unless the rule has others (Adafactor's factors), and of the kernel's state dtype: f32 for 16-bit params. Scalar
        state, where the rule has some, is a float.

        Args:
            params: a tree.
            hypers: those that some state starts with (such as Adagrad's ``initial_accumulator_value``), where they
                are not to be the defaults. Each a number, or a tree of numbers with one for each leaf.

        Raises:
            HyperparameterError: if one is unknown, out of its range, or needed and has no default.
            LeafError: if a leaf is no array of a dtype that the bundle has a kernel for.
            TreeError: if the bundle was compiled for another layout.
        """
        leaves = {path: memory.as_leaf(value, path, "params") for path, value in leaves_of(params).items()}
        self._check_layout(leaves)
        self.groups.check(leaves)
        kernels = {path: self._kernel_for(leaf, None, None) for path, leaf in leaves.items()}
        first = self._first_values(hypers, leaves)
        state: dict[str, Any] = {"step": 0, **self.manifest.scalars}
        for name in self.manifest.state:
            own = {path: kernel.operand(name) for path, kernel in kernels.items()}
            dtypes = {path: operand.dtype for path, operand in own.items()}
            slots = memory.packed({p: (own[p].shape_for(leaf.array.shape), dtypes[p]) for p, leaf in leaves.items()})
            for path, value in first(name):
                slots[path][...] = from_float64(value, dtypes[path])
            arrays = {path: memory.to_kind(slots[path], dtypes[path], leaf.kind) for path, leaf in leaves.items()}
            state[name] = _replace(params, arrays)
        return state

    def _first_values(
        self, hypers: Mapping[str, Any], leaves: Mapping[str, Leaf]
    ) -> Callable[[str], Iterator[tuple[str, np.ndarray]]]:
        """A function from a state tensor to what each leaf of it starts with, where that is not zero."""
        given = {name: (self._hyper(name), value) for name, value in {**self._defaults, **hypers}.items()}
        values = {}
        for name, (hyper, value) in given.items():
            if is_tree(value):
                found = match(leaves, value, name)
            else:
                found = {path: self.groups.of(path).value(name, value) for path in leaves}
            if name in hypers or name in self.manifest.init.values():
                values[name] = {path: hyper.check(_number(v)) for path, v in found.items()}
        for start in self.manifest.init.values():
            if isinstance(start, str) and start != "param" and start not in values:
                raise HyperparameterError(
                    f"'{start}' must be given to init: the state of '{self.manifest.rule}' starts with it"
                )

        def first(name: str) -> Iterator[tuple[str, np.ndarray]]:
            start = self.manifest.init.get(name, 0.0)
            for path, leaf in leaves.items() if start else ():
                if start == "param":
                    yield path, to_float64(leaf.array, leaf.dtype)
                else:
                    yield path, np.array(values[start][path] if isinstance(start, str) else start, np.float64)

        return first

    def scalar(self, state: Mapping[str, Any], name: str) -> float:
        """The number ``name`` of scalar state.

        Raises:
            TreeError: if the state lacks it, or it is no finite number.
        """
        return number_of(state, name)

    def bind(self, params: Any, grads: Any, state: MutableMapping[str, Any]) -> BoundStep:
        """A prepared step on these very arrays: ``bound.step(lr=...)`` does nothing but call the module.

        Args:
            params: the tree to update, of numpy, torch or optgen arrays in contiguous memory.
            grads: as for :meth:`step`. Fill the same arrays anew before each step.
            state: from :meth:`init`, or as a step left it.

        Raises:
            TreeError, LeafError, OverlapError: as :meth:`step`, and if a leaf's memory cannot be used as it is.
        """

        def collect(state: MutableMapping[str, Any]) -> tuple[list[Work], list[str]]:
            lacking: list[str] = []
            return self._collect(self._trees(params, grads, state, {}), lacking, follow=False), lacking

        return BoundStep(self, *collect(state), state, collect)

    def _trees(self, params: Any, grads: Any, state: Any, hypers: Mapping[str, Any]) -> dict[str, Any]:
        """A tree for each operand."""
        manifest = self.manifest
        if not isinstance(state, Mapping) or "step" not in state:
            raise TreeError("'state' must be what init or the last step returned: a dict with 'step'")
        count_of(state["step"])
        if missing := [n for n in (*manifest.state, *manifest.scalars) if n not in state]:
            raise TreeError(f"'state' must have '{missing[0]}' (it has {', '.join(map(repr, state))})")
        inputs = dict.fromkeys(manifest.inputs, grads)
        if len(inputs) != 1:
            if not isinstance(grads, Mapping) or grads.keys() != inputs.keys():
                raise TreeError(
                    f"'grads' must be a dict with a tree for each input of rule '{manifest.rule}', {', '.join(inputs)}"
                )
            inputs = {name: grads[name] for name in inputs}
        if missing := [n for n in manifest.per_element if n not in hypers]:
            raise HyperparameterError(f"'{missing[0]}' must be given as a tree of arrays like the params")
        trees = {manifest.param: params, **inputs, **{n: state[n] for n in manifest.state}}
        return trees | {n: hypers[n] for n in manifest.per_element}

    def step(self, params: Any, grads: Any, state: Any, **hypers: Any) -> tuple[Any, Any]:
        """One update, in place: the same buffers come back, JAX arrays excepted, which are new.

        Args:
            params: the tree to update. Leaves must be writable.
            grads: a tree of the same structure. Leaves that are missing or None leave their param as it is. For a
                rule with several inputs a dict, with a tree for each of them by name.
            state: from :meth:`init` or the step before. Its ``step`` is the number of updates made so far.
            hypers: hyperparameters, each a number, or a tree of numbers with one for each leaf.

        Returns:
            The params and the state, the very objects that were given unless they hold JAX arrays.

        Raises:
            TreeError: if the trees differ, or are not those that the bundle was compiled for.
            LeafError: if a leaf has the wrong shape or dtype, or cannot be written.
            OverlapError: if two leaves share memory.
            HyperparameterError: if one is unknown, missing, NaN or out of its range.

            Nothing has been changed when one of these is raised.
        """
        if "step" in hypers:
            raise HyperparameterError("'step' is counted in the state: set state['step'] instead")
        trees = self._trees(params, grads, state, hypers)
        manifest = self.manifest
        simple = type(state) is dict and not manifest.per_element and not any(is_tree(v) for v in hypers.values())
        if simple and self._step_again(list(trees.values()), state, hypers):
            return params, state
        if hypers:
            self.check_given(hypers)
        lacking: list[str] = []
        works = self._collect(trees, lacking)
        unseen = frozenset[str]()
        if manifest.micro is not None and (lacking or UNSEEN in state):
            simple, unseen = False, window(state, manifest.micro, lacking)
            if fed := [path for path in lacking if path not in unseen]:
                trees = self._with_zeros(trees, fed)
                works = self._collect(trees)
                lacking = [path for path in lacking if path in unseen]
        own = self.counts.behind(state, self.counts.of(state), lacking)
        if unknown := own.keys() - leaves_of(params).keys():
            raise TreeError(f"state '{LEAF_STEP}' must have paths of the params (got {min(unknown)!r})")
        if simple and works and all(a is x.array for w in works for a, x in zip(w.arrays, w.leaves, strict=True)):
            bound = BoundStep(self, works, lacking, state)
            bound.step(**hypers)
            bound.state = {}
            written = [name not in manifest.inputs for name in trees]
            self._recalled = Recalled(list(trees.values()), written, bound) if bound.release() else None
            return params, state
        count = count_of(state["step"]) + 1
        numbers = {n: v for n, v in hypers.items() if n not in manifest.per_element}
        if manifest.micro is not None:
            micro = MicroStep(self, works)
            given = {**numbers, **({"step": count} if self.counts_steps else {})}
            micro.set(self._resolve(given, leaves_of(params))(None))
            if not micro.due(state):
                new_state = {**state, UNSEEN: dict.fromkeys(sorted(unseen), 1)}
                if not unseen:
                    del new_state[UNSEEN]
                micro.run(new_state)
                new_state[manifest.micro.state] = self._write_back(works, trees, [manifest.micro.state])[
                    manifest.micro.state
                ]
                return params, new_state
        numbers |= {n: self.scalar(state, n) for n in manifest.scalars}
        new: dict[str, tuple[float, ...]] = {}
        given = {**numbers, **({"step": count} if self.counts_steps else {})}
        results = self._apply(works, trees, given, own, new)
        if manifest.micro is not None and not works:
            results[manifest.micro.count] = 0.0
        if isinstance(state, dict) and all(results[n] is state[n] for n in manifest.state):
            new_state = state
        else:
            new_state = {**state, **{n: results[n] for n in manifest.state}}
        scalars = {n: results[n] for n in manifest.scalars}
        behind = self.counts.after(own, new, lacking, self.counts.grown(state, scalars))
        new_state.update({"step": count, **scalars, **behind})
        new_state.pop(UNSEEN, None)
        return results[self.manifest.param], new_state

    def _step_again(self, trees: list[Any], state: dict[str, Any], hypers: Mapping[str, Any]) -> bool:
        """The step on the very arrays of the one before, if they are those."""
        recalled = self._recalled
        if recalled is None or (leaves := recalled.matches(trees)) is None or not recalled.bound.usable:
            return False
        if not recalled.bound.fits(state):
            return False
        bound = recalled.bound
        bound.state = state
        try:
            bound.step(**hypers)
        finally:
            bound.state = {}
        if recalled.tensors:
            mean = bound.mean_only
            memory.bump_versions(
                [leaves[i] for i, tree in zip(recalled.tensors, recalled.owners, strict=True) if mean in (None, tree)]
            )
        return True

    def apply(self, trees: Mapping[str, Any], hypers: Mapping[str, Any]) -> dict[str, Any]:
        """The update with everything explicit: a tree for each operand by name, and all hyperparameters.

        Scalar state is given among the hyperparameters; it is as before the first step where it is not given.

        Returns:
            The trees of the operands that the rule replaces: those given, except where they hold JAX arrays. Beside
            them the new scalar state.
        """
        return self._apply(self._collect(trees), trees, hypers)

    def _with_zeros(self, trees: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
        """``trees`` with grads of zero for the leaves ``paths``, which have none."""
        found, params = dict(trees), leaves_of(trees[self.manifest.param])
        leaves = {path: memory.as_leaf(params[path], path, "params") for path in paths}
        for name in self.manifest.inputs:
            grads = dict(leaves_of(trees[name]))
            for path, leaf in leaves.items():
                dtype = self._kernel_for(leaf, None, None).operand(name).dtype
                zeros = memory.packed({path: (leaf.array.shape, dtype)})[path]
                grads[path] = memory.to_kind(zeros, dtype, "numpy")
            found[name] = grads
        return found

    def _apply(
        self,
        works: list[Work],
        trees: Mapping[str, Any],
        hypers: Mapping[str, Any],
        own: Mapping[str, Own] | None = None,
        new: dict[str, tuple[float, ...]] | None = None,
    ) -> dict[str, Any]:
        """:meth:`apply` on leaves that have been collected from ``trees``.

        Args:
            works, trees, hypers: what is to be done.
            own: the counts and scalar state of leaves that have their own.
            new: gets what their scalar state is then.
        """
        scalars = {n: self.scalar(hypers, n) if n in hypers else v for n, v in self.manifest.scalars.items()}
        hypers = {n: v for n, v in hypers.items() if n not in scalars}
        common = _common(self.manifest)
        if scalars and (each := next((n for n, v in hypers.items() if is_tree(v) and n in common), None)):
            raise HyperparameterError(
                f"'{each}' must be one number for all leaves: '{self.manifest.rule}' keeps '{next(iter(scalars))}', "
                "which is one number for the whole tree"
            )
        resolve = self._resolve(hypers, leaves_of(trees[self.manifest.param]))
        for work in works:
            values = {**resolve(work.path), **scalars}
            if own and (mine := own.get(work.path)) is not None:
                values |= {"step": mine[0] + 1, **dict(zip(self.counts.scalars, mine[1:], strict=True))}
            work.scalars = tuple(part(values[s.hyper], s.part) for s in work.kernel.scalars)
        names = [o.name for o in self.manifest.kernels[0].operands if o.role != "input"]
        if works:
            scalars |= self._run(works, own or {}, {} if new is None else new)
        return {**self._write_back(works, trees, names), **scalars}

    def _write_back(self, works: list[Work], trees: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """The trees of the operands ``names``, after the kernels have written the memory that they use."""
        fresh: dict[str, dict[str, Any]] = {n: {} for n in names}
        for work in works:
            for leaf, array, operand in zip(work.leaves, work.arrays, work.kernel.operands, strict=True):
                if operand.name not in names:
                    continue
                if leaf.kind == "jax":
                    fresh[operand.name][leaf.path] = memory.to_kind(array, leaf.dtype, "jax")
                elif array is not leaf.array:
                    leaf.array[...] = array
                if leaf.kind == "torch":
                    memory.bump_versions([leaf.owner])
        return {n: _replace(trees[n], fresh[n]) if fresh[n] else trees[n] for n in names}

    # Collecting and checking: nothing is written before all of it has passed.

    def _collect(
        self, trees: Mapping[str, Any], lacking: list[str] | None = None, *, follow: bool = True
    ) -> list[Work]:
        """The leaves of an update, checked.

        Args:
            trees: a tree for each operand.
            lacking: gets the paths of the params that have no grad.
            follow: whether to look where the grads of packed torch parameters are now.
        """
        manifest = self.manifest
        raw = leaves_of(trees[manifest.param])
        others = {
            name: match(raw, tree, self._tree_name(name), optional=name in manifest.inputs)
            for name, tree in trees.items()
            if name != manifest.param
        }
        if follow and manifest.inputs:
            first = manifest.inputs[0]
            homes = {path: home for path, home in others[first].items() if home_of(raw[path]) is home}
            gone = {path for path, home in homes.items() if not fetch_grad(raw[path], home, path)}
            others[first] = {path: grad for path, grad in others[first].items() if path not in gone}
        skipped = {p for p in raw for n in manifest.inputs if p not in others.get(n, raw)}
        if lacking is not None:
            lacking += [path for path in raw if path in skipped]
        params = {p: memory.as_leaf(v, p, "params") for p, v in raw.items()}
        self._check_layout(params)
        self.groups.check(params)
        works, spans = [], []
        names = {name: self._tree_name(name) for name in trees}
        as_leaf = memory.as_leaf
        kernels: dict[tuple[str, ...], KernelInfo] = {}
        for number, (path, param) in enumerate(params.items()):
            if path in skipped or param.array.size == 0:
                continue
            leaves = {manifest.param: param}
            shape = param.array.shape
            for name, found in others.items():
                leaf = leaves[name] = as_leaf(found[path], path, names[name], codes=name in manifest.state)
                if leaf.array.shape != shape and name not in self._shaped:
                    raise LeafError(
                        f"{names[name]} {show(path)} must have the shape of its param, {shape} (got {leaf.array.shape})"
                    )
            key = tuple([leaf.dtype for leaf in leaves.values()])
            kernel = kernels.get(key)
            if kernel is None:
                kernel = self._kernel_for(param, leaves.get(manifest.inputs[0]) if manifest.inputs else None, leaves)
                if kernel.shape is None:
                    kernels[key] = kernel
            ordered = []
            for operand in kernel.operands:
                leaf = leaves[operand.name]
                if operand.shape is not None and leaf.array.shape != operand.shape:
                    raise LeafError(
                        f"{names[operand.name]} {show(path)} must have the shape {operand.shape} beside a param of "
                        f"shape {shape} (got {leaf.array.shape})"
                    )
                written = operand.role != "input" and leaf.kind != "jax"
                if written:
                    _check_writable(leaf, names[operand.name])
                ordered.append(leaf)
                spans.append((leaf, names[operand.name], written))
            works.append(Work(path, ordered, [], kernel, number))
        memory.check_overlap(spans)
        for work in works:
            work.arrays = [
                _kernel_memory(leaf, o.role != "input")
                for leaf, o in zip(work.leaves, work.kernel.operands, strict=True)
            ]
        return works

    def _kernel_for(self, param: Leaf, grad: Leaf | None, leaves: Mapping[str, Leaf] | None) -> KernelInfo:
        """The kernel for a leaf's dtypes and shape."""
        first = None
        for kernel in self._kernels:
            if kernel.dtypes["param"] != param.dtype:
                continue
            if kernel.shape is not None and kernel.shape != param.array.shape:
                continue
            if grad is not None and kernel.dtypes["grad"] != grad.dtype:
                first = first or (grad, kernel.dtypes["grad"], "grads")
                continue
            if leaves is not None:
                wrong = next((o for o in kernel.operands if leaves[o.name].dtype != stored_as(o.dtype)), None)
                if wrong is not None:
                    first = first or (leaves[wrong.name], stored_as(wrong.dtype), self._tree_name(wrong.name))
                    continue
            return kernel
        if first is not None:
            leaf, expected, what = first
            raise LeafError(f"{what} {show(leaf.path)} must have dtype {expected} (got {leaf.dtype})")
        have = ", ".join(dict.fromkeys(k.name for k in self.manifest.kernels))
        raise LeafError(
            f"params {show(param.path)} has dtype {param.dtype} and shape {param.array.shape}, for which this bundle "
            f"has no kernel (it has {have})"
        )

    def _check_layout(self, leaves: Mapping[str, Leaf]) -> None:
        manifest = self.manifest
        if not manifest.fixed_layout or manifest.layout is None:
            return
        expected = {leaf.path: leaf for leaf in manifest.layout}
        for path in dict.fromkeys([*expected, *leaves]):
            want, got = expected.get(path), leaves.get(path)
            wanted = f"{want.dtype} of shape {want.shape}" if want else "no such leaf"
            given = f"{got.dtype} of shape {got.array.shape}" if got else "no such leaf"
            if wanted != given:
                raise TreeError(
                    f"this bundle was compiled for a fixed layout: at {show(path)} it expects {wanted} (got {given})"
                )

    @cached_property
    def idle(self) -> frozenset[str]:
        """The hyperparameters that no step reads."""
        return idle_hypers(self.bundle)

    def check_given(self, hypers: Iterable[str]) -> None:
        """Refuses hyperparameters, of a step, that would have no effect.

        Raises:
            HyperparameterError: naming the first.
        """
        refuse_idle(self.idle, dict.fromkeys(hypers), self.manifest.init, self.manifest.rule)

    def _hyper(self, name: str) -> Hyper:
        if name in self._hypers:
            return self._hypers[name]
        manifest = self.manifest
        if name in manifest.baked:
            raise HyperparameterError(f"'{name}' is baked into this bundle as {manifest.baked[name]}")
        if name in manifest.structure:
            raise HyperparameterError(
                f"'{name}' is structure, compiled in as {manifest.structure[name]}: load or compile another bundle"
            )
        known = ", ".join(n for n, h in self._hypers.items() if h.kind != "step")
        raise HyperparameterError(f"'{manifest.rule}' has no hyperparameter '{name}' (it has {known})")

    @property
    def counts_steps(self) -> bool:
        """Whether the rule uses the number of the step."""
        return "step" in self._hypers

    def resolve(self, hypers: Mapping[str, Any]) -> dict[str, float]:
        """All hyperparameters as numbers, those given or the defaults, of leaves that have none of their own.

        Raises:
            HyperparameterError: if one is unknown, missing or out of its range.
        """
        values: dict[str, float] = self._resolve(hypers, {})(None)
        return values

    def _resolve(self, hypers: Mapping[str, Any], paths: Mapping[str, Any]) -> Any:
        """A function from a leaf's path, or None for what they have in common, to hyperparameters, checked now."""
        common: dict[str, float] = {}
        single: dict[str, dict[str, float]] = {}
        for name, value in {**self._defaults, **hypers}.items():
            hyper = self._hyper(name)
            if name in self.manifest.per_element:
                continue
            if is_tree(value):
                found = match(paths, value, name)
                single[name] = {path: hyper.check(_number(v)) for path, v in found.items()}
            else:
                common[name] = hyper.check(_number(value))
        for name in self._hypers:
            if name not in common and name not in single and name not in self.manifest.per_element:
                raise HyperparameterError(f"'{name}' must be given: rule '{self.manifest.rule}' has no default for it")

        def values(path: str | None) -> dict[str, float]:
            if path is None:
                return common
            group = self.groups.of(path)
            found = common if group.index == 0 else group.values(common)
            return {**found, **{name: numbers[path] for name, numbers in single.items()}} if single else found

        return values

    def _tree_name(self, operand: str) -> str:
        if operand == self.manifest.param:
            return "params"
        if operand in self.manifest.inputs:
            return "grads"
        return f"state '{operand}'" if operand in self.manifest.state else operand

    # Running.

    def _run(
        self, works: Sequence[Work], own: Mapping[str, Own], new: dict[str, tuple[float, ...]]
    ) -> dict[str, float]:
        """Updates the leaves. Returns the new scalar state of the tree; ``new`` gets that of leaves with their own."""
        device = self.device
        groups: dict[tuple[str, int, tuple[float, ...]], list[Work]] = {}
        for work in works:
            groups.setdefault((work.kernel.name, self.groups.of(work.path).index, work.scalars), []).append(work)
        calls = []
        for group in groups.values():
            kernel = group[0].kernel
            arrays, numbers = [work.arrays for work in group], [work.number for work in group]
            calls.append(prepare(device, *self.module(kernel, device), kernel, arrays, numbers))
        run_together(calls, [scalars for _, _, scalars in groups])
        mains = []
        for call, group in zip(calls, groups.values(), strict=True):
            mine = [work.path for work in group if work.path in own]
            made = scalar_state([call]) if mine else {}
            new.update(dict.fromkeys(mine, tuple(made[name] for name in self.counts.scalars if made)))
            if len(mine) < len(group):
                mains.append(call)
        found = scalar_state(mains or calls)
        return found if mains else {n: v for n, v in found.items() if n not in self.counts.scalars}

    @property
    def device(self) -> Device:
        """What it runs on."""
        return get_device(self.device_name)

    def module(self, kernel: KernelInfo, device: Device) -> tuple[ModuleInfo, LoadedModule]:
        """The module of ``kernel`` for ``device``, loaded."""
        info = choose(kernel, device)
        key = (info.file, device.uri)
        module = self._modules.get(key)
        if module is None or not module.usable:
            label = f"{self.manifest.variant} {kernel.name} for {info.target}"
            module = self._modules[key] = LoadedModule(device, self.bundle.module(info), label)
        return info, module

    def __repr__(self) -> str:
        kernels = ", ".join(k.name for k in self.manifest.kernels)
        return f"Optimizer({self.manifest.variant!r}, device={self.device_name!r}, kernels=[{kernels}])"


def _common(manifest: Manifest) -> dict[str, str]:
    """The hyperparameters that must be the same for all leaves, each with the reason."""
    numbers = ", ".join(f"'{name}'" for name in manifest.scalars)
    why = f"it must be one number for all leaves, since {numbers} of '{manifest.rule}' is one for the whole tree"
    found = dict.fromkeys(manifest.common, why)
    if manifest.micro is not None:
        found[manifest.micro.every] = "it must be one number for all leaves, which are updated together"
    return found


def _replace(tree: Any, leaves: Mapping[str, Any]) -> Any:
    return map_tree(lambda path, leaf: leaves.get(path, leaf), tree)


def _check_writable(leaf: Leaf, tree: str) -> None:
    flags = leaf.array.flags
    if not flags.writeable:
        raise LeafError(f"{tree} {show(leaf.path)} must be writable (it is read-only)")
    if not flags.c_contiguous:
        memory.check_own_memory(leaf.array, f"{tree} {show(leaf.path)}")


def _kernel_memory(leaf: Leaf, written: bool) -> np.ndarray:
    """The leaf's own memory where a kernel can use it, else a copy."""
    usable = leaf.array.flags.c_contiguous and leaf.address % leaf.array.itemsize == 0
    if (written and leaf.kind == "jax") or not usable:
        return memory.aligned_copy(leaf.array, leaf.dtype)
    return leaf.array


def _number(value: Any) -> Any:
    """A hyperparameter that came as an array with one element, as that element."""
    if memory.kind_of(value):
        if int(np.prod(value.shape)) != 1:
            raise HyperparameterError(
                f"a hyperparameter must be one number, or a tree with one a leaf (got shape {tuple(value.shape)})"
            )
        return value.data.reshape(-1)[0] if memory.kind_of(value) == "array" else value.reshape(-1)[0]
    return value
