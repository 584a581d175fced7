"""The state of a training step before its first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optgen.artifact.step import StepArgument, StepBundle
from optgen.dtypes import from_float64, numpy_dtype, to_float64
from optgen.errors import HyperparameterError
from optgen.hyper import Hyper
from optgen.runtime import memory
from optgen.runtime.groups import Groups
from optgen.runtime.memory import Leaf
from optgen.runtime.tree import nest


def first_state(
    bundle: StepBundle, params: Mapping[int, Leaf], hypers: Mapping[str, float], computed: Sequence[np.ndarray]
) -> Any:
    """The state: counters, then a tree for each of the optimizer's tensors.

    Args:
        bundle: of the step.
        params: their leaves, by the position of their argument.
        hypers: the hyperparameters that are known.
        computed: what the program ``init`` gives.

    Raises:
        HyperparameterError: if one that some state starts with is not among ``hypers``.
    """
    manifest = bundle.manifest
    declared = {h.name: h for h in manifest.hypers}
    groups = Groups(manifest.groups, lambda name: declared.get(name, Hyper(name, signed=True)), {})
    by_path = {leaf.path: leaf for leaf in params.values()}
    leaves = []
    for number, argument in enumerate(a for a in manifest.arguments if a.role == "state"):
        initial = argument.initial
        assert initial is not None
        array = memory.empty(argument.shape, argument.dtype)
        if initial.kind == "copy":
            source = by_path[initial.path]
            array[...] = from_float64(to_float64(source.array, source.dtype), argument.dtype)
        elif initial.kind == "computed":
            array[...] = computed[int(initial.number)]
        elif initial.kind == "stored":
            array[...] = bundle.stored[str(number)].reshape(argument.shape)
        else:
            value = initial.number if initial.kind == "fill" else _given(argument, groups, hypers, manifest.optimizer)
            array[...] = from_float64(np.array(float(value)), argument.dtype)
        leaves.append((argument.keys, array.view(numpy_dtype("bf16")) if argument.dtype == "bf16" else array))
    tree = nest(leaves) if leaves else {}
    numbers = [(a.path, 0 if a.role == "count" else manifest.scalars[a.path]) for a in manifest.arguments
               if a.role in ("count", "scalar")]  # fmt: skip
    return {**dict(numbers), **tree} if numbers else tree


def _given(argument: StepArgument, groups: Groups, hypers: Mapping[str, float], optimizer: str) -> float:
    """The hyperparameter that a leaf of the state starts with."""
    assert argument.initial is not None
    name = argument.initial.path
    group = groups.of(argument.path.partition("/")[2])
    if name not in group.numbers and name not in hypers:
        raise HyperparameterError(f"'{name}' must be given to init: the state of '{optimizer}' starts with it")
    return float(group.value(name, hypers.get(name)))
