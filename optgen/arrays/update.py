"""An update of arrays or trees: arguments apart into leaves, leaves through the modules, results back together."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from optgen.arrays.direct import direct
from optgen.arrays.engine import run
from optgen.arrays.leaf import Work, is_tracer, prepare, where
from optgen.arrays.ndarray import Array
from optgen.arrays.operation import ADAM_STEP, Operation
from optgen.arrays.output import Targets, in_place, target_of, written
from optgen.arrays.trees import Path, flatten, matched, path_text, rebuild
from optgen.errors import HyperparameterError, LeafError, TreeError
from optgen.hyper import Hyper
from optgen.runtime import memory

_NO_TREE: tuple[Path, ...] = ((),)


def update(
    operation: Operation, given: tuple[Any, ...], lr: Any, hypers: Mapping[str, Any], stop_gradients: Any, out: Any
) -> tuple[Any, ...]:
    """The results of an operation.

    Args:
        operation: which.
        given: the tensors, or trees of them, in the order of ``operation.inputs``.
        lr: number, tensor, or a tree of these; None where the operation has none.
        hypers: the other hyperparameters by the rule's names: numbers or trees of them.
        stop_gradients: bool or a tree of them.
        out: for each result where to put it, or None; or where to put the first.

    Raises:
        LeafError, HyperparameterError, TreeError, OverlapError: before anything has been written.
    """
    if out is None and (stop_gradients is True or stop_gradients is False):
        if (quick := direct(operation, given, lr, hypers)) is not None:
            return quick
    outs = _outs(operation, out)
    arguments = dict(zip(operation.labels, given, strict=True))
    arguments |= {"lr": lr, **hypers, "stop_gradients": stop_gradients}
    trees = {name: value for name, value in arguments.items() if isinstance(value, Mapping)}
    if not trees:
        works = [_work(operation, (), arguments)]
        results = _results(operation, works, outs, frozenset(operation.results))
        return tuple(results[name][0] for name in operation.results)

    shown = {name: hyper.name for name, hyper in operation.hypers.items()}
    first, structure = next(iter(trees.items()))
    first, leaves = shown.get(first, first), flatten(structure)
    found = {name: matched(tree, shown.get(name, name), leaves, first) for name, tree in trees.items()}
    # Everything goes into the weights, all but the weights and lr into the state and the effective grad.
    alone = {operation.labels[0], "lr"} if operation.results[0] == "w" else set()
    shapes = {name: _structure(trees, alone if name in ("m", "v") else set()) for name in operation.results}
    shared = frozenset(name for name, tree in shapes.items() if tree is None)
    targets = {name: _spread(outs[name], shapes[name], leaves, first) for name in outs}
    works = [
        _work(operation, path, {**arguments, **{name: values[path] for name, values in found.items()}})
        for path in leaves
    ]
    if not works and shared:  # no weights at all, but the state is there
        state = update(ADAM_STEP, given[1:], None, hypers, stop_gradients, (None, outs.get("m"), outs.get("v")))
        return (outs.get("w", rebuild(structure, {})), *state[1:])
    results = _results(operation, works, targets, shared)
    return tuple(
        results[name][0]
        if (tree := shapes[name]) is None
        else outs.get(name, rebuild(tree, dict(zip(leaves, results[name], strict=True))))
        for name in operation.results
    )


def _work(operation: Operation, path: Path, arguments: Mapping[str, Any]) -> Work:
    """One leaf, with its arguments checked."""
    text = path_text(path)
    stop = arguments["stop_gradients"]
    if stop is not True and stop is not False:
        raise HyperparameterError(f"{where('stop_gradients', text)} must be True or False (got {stop!r})")
    values = {
        name: _number(arguments[name], hyper, text, stop)
        for name, hyper in operation.hypers.items()
        if name != "lr"
    }  # fmt: skip
    given = tuple([arguments[label] for label in operation.labels])
    return prepare(operation, text, given, arguments["lr"], values, stop)


def _number(value: Any, hyper: Hyper, path: str, stop: bool) -> Any:
    """A hyperparameter, checked; a JAX tracer as it is."""
    if type(value) is not float and type(value) is not int:
        if is_tracer(value):
            if value.ndim:
                raise HyperparameterError(f"{where(hyper.name, path)} must be one number (got shape {value.shape})")
            return value
        if getattr(value, "requires_grad", False) and not stop:
            raise HyperparameterError(
                f"{where(hyper.name, path)} must not require grad: there is no derivative by it (detach it)"
            )
        if memory.kind_of(value):
            if int(np.prod(value.shape)) != 1:
                raise HyperparameterError(
                    f"{where(hyper.name, path)} must be one number (got shape {tuple(value.shape)})"
                )
            value = value.item()
    try:
        return hyper.check(value)
    except HyperparameterError as error:
        raise HyperparameterError(f"{error}, at leaf {path!r}") from None if path else error


def _results(
    operation: Operation, works: list[Work], outs: Mapping[str, Any], shared: frozenset[str]
) -> dict[str, list[Any]]:
    """For each result its array for each leaf.

    Args:
        operation: which.
        works: the leaves.
        outs: for results that have a place to go: for one that is shared an array, for others one for each leaf.
        shared: results that are one array whatever the leaf; that of the first leaf is the one that counts.
    """
    names = operation.results
    if any(_is_traced(work) for work in works):
        return _traced(works, outs)
    targets = _targets(works, outs, shared)
    recorded = [_is_recorded(work) for work in works]
    if outs and any(recorded):
        raise LeafError("out must be None where a derivative is wanted: set stop_gradients=True, or detach the inputs")
    places = in_place(works, targets, shared) if outs else [{} for _ in works]
    arrays = [work.operands(place) for work, place in zip(works, places, strict=True)]
    groups: dict[tuple[Any, ...], list[list[np.ndarray]]] = {}
    for work, operands in zip(works, arrays, strict=True):
        groups.setdefault((work.bundle, work.dtype, work.scalars()), []).append(operands)
    for call, group in groups.items():
        bundle, dtype, scalars = call
        run(bundle, dtype, group, scalars)
    results: dict[str, list[Any]] = {name: [] for name in names}
    for work, operands, target, record in zip(works, arrays, targets, recorded, strict=True):
        fresh = [_finished(work, i, operands, target) for i in range(len(names))]
        if record:
            from optgen.arrays.autograd import attach

            fresh = attach(work, fresh)
        for name, value in zip(names, fresh, strict=True):
            results[name].append(value)
    return results


def _finished(work: Work, position: int, operands: list[np.ndarray], targets: Mapping[str, Any]) -> Any:
    """A result in its target, or as an array of the kind of what it replaces."""
    name = work.operation.results[position]
    # Kernels have the param first, then the grad, then the state.
    array = work.result(name, operands[0] if position == 0 else operands[position + 1])
    target = targets.get(name)
    if target is not None:
        return written(target, array)
    kind, dtype = work.leaves[work.operation.like[position]].kind, work.result_dtype(name)
    if dtype != "bf16":
        if kind == "numpy":
            return array
        if kind == "array":
            return Array(array)
    return memory.to_kind(array, dtype, kind)


def _traced(works: list[Work], outs: Mapping[str, Any]) -> dict[str, list[Any]]:
    from optgen.arrays.tracing import traced_update

    if outs:
        raise LeafError("out must be None in a function that JAX transforms: nothing can be written there")
    results = [traced_update(work) for work in works]
    names = works[0].operation.results
    return {name: [found[i] for found in results] for i, name in enumerate(names)}


def _is_traced(work: Work) -> bool:
    if "jax" not in sys.modules:
        return False
    owners = [leaf.owner for leaf in work.leaves if leaf.kind == "jax"]
    return any(is_tracer(value) for value in (*owners, work.rate_owner, *work.values.values()))


def _is_recorded(work: Work) -> bool:
    """Whether torch's autograd records this update."""
    if work.stop or "torch" not in sys.modules:
        return False
    from optgen.arrays.autograd import wants_derivative

    return wants_derivative(work)


# Where results go.


def _outs(operation: Operation, out: Any) -> dict[str, Any]:
    """The places that were given, by result."""
    if out is None:
        return {}
    names = operation.results
    if isinstance(out, tuple):
        if len(out) != len(names):
            raise TreeError(f"'out' must be one array or tree, or a tuple of {len(names)} of them (got {len(out)})")
        return {name: place for name, place in zip(names, out, strict=True) if place is not None}
    return {names[0]: out}


def _targets(works: list[Work], outs: Mapping[str, Any], shared: frozenset[str]) -> Targets:
    if not outs or not works:
        return [{} for _ in works]
    several = len(works[0].operation.results) > 1
    targets: Targets = []
    for index, work in enumerate(works):
        targets.append({})
        for name, place in outs.items():
            if name in shared and index:
                continue
            label = f"out of {name}" if several else "out"
            value = place if name in shared else place[index]
            if isinstance(value, Mapping):
                raise TreeError(f"'{label}' must be an array, as the result is one (got {type(value).__name__})")
            targets[-1][name] = target_of(value, work, name, label)
    return targets


def _structure(trees: Mapping[str, Any], without: set[str]) -> Any:
    """The first tree among the arguments that a result depends on; None if they are all single."""
    return next((tree for name, tree in trees.items() if name not in without), None)


def _spread(out: Any, structure: Any, leaves: Mapping[Path, Any], first: str) -> Any:
    """The leaves of an out, for a result of that structure."""
    if structure is None:
        return out
    if not isinstance(out, Mapping):
        raise TreeError(f"'out' must have the leaves of '{first}' (got {type(out).__name__})")
    found = matched(out, "out", leaves, first)
    return [found[path] for path in leaves]
