"""Running the probes of steps, functions and transformations: as they are used, twice, in memory that is guarded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optgen.artifact.base import AnyBundle
from optgen.artifact.function import FunctionBundle, restore
from optgen.artifact.manifest import LeafInfo
from optgen.artifact.step import StepBundle
from optgen.artifact.transform import TransformBundle
from optgen.dtypes import numpy_dtype, to_float64
from optgen.errors import BundleError
from optgen.probes.generate import filled, projection
from optgen.probes.info import Probe, ProbeResult
from optgen.runtime import memory
from optgen.runtime.device import Device
from optgen.runtime.function import CompiledFunction
from optgen.runtime.select import unfit
from optgen.runtime.step import TrainStep
from optgen.runtime.transform import TreeOptimizer
from optgen.runtime.tree import map_tree, walk
from optgen.runtime.verify import VerifyResult

#: Elements before and after each array that must stay as they are; an odd number, so that arrays do not start where
#: memory is best aligned.
_GUARD = 3

#: The smallest part of what a step changes, or of a result, that its tolerance must be for the probe to prove anything.
_TELLING = 0.25
#: A tolerance for a number that must be zero.
_NOTHING = 2.0**-100


def verify_programs(bundle: AnyBundle[Any], devices: Sequence[Device]) -> list[VerifyResult]:
    """Runs the probes of a step, a function or a transformation; see :func:`optgen.runtime.verify.verify_bundle`."""
    results: list[VerifyResult] = []
    for device in devices:
        for target, compute, in_place, alone in _each_module(bundle, device):
            program = _loaded(alone, device.uri)
            for probe in bundle.probed:
                if not probe.info.compute or probe.info.compute == compute:
                    results += _verify(program, device, target, probe, in_place)
    return results


def _each_module(bundle: AnyBundle[Any], device: Device) -> list[tuple[str, str, bool, AnyBundle[Any]]]:
    """For each target that may run on ``device``: its name, arithmetic, whether it is in place, and the bundle with
    nothing but its modules."""
    found = []
    manifest = bundle.manifest
    targets = dict.fromkeys(m.target for c in manifest.compiled for m in c.modules)
    for target in targets:
        own = [next((m for m in c.modules if m.target == target), None) for c in manifest.compiled]
        if any(m is None or unfit(m, device) for m in own):
            continue

        def only(compiled: Any, target: str = target) -> Any:
            kept = tuple(m for m in compiled.modules if m.target == target)
            return None if compiled is None else dataclasses.replace(compiled, modules=kept)

        if isinstance(bundle, TransformBundle):
            inner = bundle.manifest
            changed: Any = dataclasses.replace(
                inner,
                init=inner.init and only(inner.init),
                head=inner.head and only(inner.head),
                kernels=tuple(only(kernel) for kernel in inner.kernels),
            )
        else:
            changed = only(manifest)
        compute = next((str(getattr(m, "compute", "")) for m in own), "")
        in_place = all(m.in_place for m in own if m is not None)
        found.append((target, compute, in_place, dataclasses.replace(bundle, manifest=changed)))
    return found


@dataclass
class _Outcome:
    """What one result has shown so far."""

    error: float = 0.0
    problem: str = ""
    worst: str = ""
    proven: bool = False


@dataclass
class Ran:
    """What came of a probe's calls.

    Attributes:
        results: for each call, the results by name.
        before: for each call, what the results that replace arguments replaced.
        overwritten: for results' names, or '' for all, what a call had no business to write.
    """

    results: list[dict[str, np.ndarray]] = field(default_factory=list)
    before: list[dict[str, np.ndarray]] = field(default_factory=list)
    overwritten: str = ""


def _verify(program: _Program, device: Device, target: str, probe: Probe, in_place: bool) -> list[VerifyResult]:
    first, second = (_run(program, probe) for _ in range(2))
    outcomes: dict[str, _Outcome] = {}
    for call, expected in enumerate(probe.results):
        for index, result in enumerate(expected):
            outcome = outcomes.setdefault(result.leaf.path, _Outcome())
            got, again = (ran.results[call][result.leaf.path] for ran in (first, second))
            seed = probe.info.calls[call].seed
            _compare(outcome, result, got, first.before[call].get(result.leaf.path), (call, index, seed))
            if not outcome.problem and got.tobytes() != again.tobytes():
                outcome.problem = "differs from run to run"
                outcome.worst = _differing(result.leaf, got, again, call)
    problem = first.overwritten or second.overwritten
    return [
        VerifyResult(
            probe.info.entry, target, device.uri, name, o.error, 1.0, in_place,
            not (o.problem or problem), o.problem or problem, o.proven, o.worst,
        )
        for name, o in outcomes.items()
    ]  # fmt: skip


def _compare(
    outcome: _Outcome, result: ProbeResult, got: np.ndarray, before: np.ndarray | None, where: tuple[int, int, int]
) -> None:
    call, index, seed = where
    values = _numbers(got, result.leaf)
    if values.size != math.prod(result.leaf.shape):
        outcome.problem, outcome.error = f"has {values.size} elements", math.inf
        return
    found = values[result.positions]
    errors = _errors(found, result.expected, result.tolerance)
    if errors.size and (worst := int(errors.argmax())) >= 0:
        outcome.error = max(outcome.error, float(errors[worst]))
        if errors[worst] > 1 and not outcome.problem:
            at = np.unravel_index(int(result.positions[worst]), result.leaf.shape) if result.leaf.shape else ()
            place = f"element ({', '.join(str(int(i)) for i in at)})" if at else "it"
            outcome.problem = "wrong"
            outcome.worst = _worst(call, place, result.expected[worst], result.tolerance[worst], found[worst])
    sums = np.array([projection(values, seed, index, k) for k in range(len(result.projections))])
    errors = _errors(sums, result.projections, result.projection_tolerance)
    if errors.size:
        worst = int(errors.argmax())
        outcome.error = max(outcome.error, float(errors[worst]))
        if errors[worst] > 1 and not outcome.problem:
            outcome.problem = "wrong"
            outcome.worst = _worst(
                call, "the sum of all elements with random signs", result.projections[worst],
                result.projection_tolerance[worst], sums[worst],
            )  # fmt: skip
    old = None if before is None else _numbers(before, result.leaf)[result.positions]
    outcome.proven |= _tells(result, old)


def _numbers(array: np.ndarray, leaf: LeafInfo) -> np.ndarray:
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = leaf.dtype == "bf16" and flat.dtype.itemsize == 2
    return to_float64(flat.view(np.uint16), "bf16") if bits else flat.astype(np.float64)


def _errors(found: np.ndarray, expected: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    """How far off each number is, in tolerances."""
    with np.errstate(all="ignore"):
        errors = np.abs(found - expected) / tolerance
    same = (found == expected) | (np.isnan(found) & np.isnan(expected)) | np.isinf(tolerance)
    wrong = ~np.isfinite(errors) | (np.isfinite(found) != np.isfinite(expected))
    return np.where(same, np.where(np.isfinite(errors), errors, 0.0), np.where(wrong, np.inf, errors))


def _tells(result: ProbeResult, old: np.ndarray | None) -> bool:
    """Whether a tolerance is small beside what there is to be seen."""
    change = np.abs(result.expected if old is None else result.expected - old)
    if "i" in result.leaf.dtype:
        return bool((result.tolerance < 1).any())
    special = ~np.isfinite(result.expected)
    return bool(((result.tolerance <= _TELLING * change) | (result.tolerance < _NOTHING) | special).any())


def _worst(call: int, place: str, expected: float, tolerance: float, got: float) -> str:
    return f"in call {call + 1} {place} must be {expected:.9g}, within {tolerance:.2g} (got {got:.9g})"


def _differing(leaf: LeafInfo, one: np.ndarray, other: np.ndarray, call: int) -> str:
    a, b = _numbers(one, leaf), _numbers(other, leaf)
    at = int(np.argmax(~((a == b) | (np.isnan(a) & np.isnan(b)))))
    return f"in call {call + 1} element {at} of {a.size} is {a[at]:.9g}, then {b[at]:.9g} from the same inputs"


# Running.


class _Guarded:
    """Arrays between elements that nothing may touch."""

    def __init__(self) -> None:
        self._arrays: list[tuple[str, np.ndarray, slice, bytes]] = []

    def place(self, name: str, values: np.ndarray, dtype: str, *, read_only: bool = False) -> np.ndarray:
        """A copy of ``values``, as users have it."""
        whole = memory.empty((values.size + 2 * _GUARD,), dtype)
        whole.view(np.uint8)[:] = 0x5A
        span = slice(_GUARD, _GUARD + values.size)
        whole[span] = values.reshape(-1).view(whole.dtype)
        self._arrays.append((name, whole, span, whole[span].tobytes() if read_only else b""))
        own = whole[span].reshape(values.shape)
        return own.view(numpy_dtype("bf16")) if dtype == "bf16" else own

    def overwritten(self) -> str:
        """What has been written that must not be."""
        for name, whole, span, before in self._arrays:
            beside = np.concatenate([whole[: span.start], whole[span.stop :]]).view(np.uint8)
            if (beside != 0x5A).any():
                return f"memory beside '{name}' overwritten"
            if before and whole[span].tobytes() != before:
                return f"input '{name}' overwritten"
        return ""


_Program = TrainStep | TreeOptimizer | CompiledFunction


def _loaded(bundle: AnyBundle[Any], device: str) -> _Program:
    if isinstance(bundle, StepBundle):
        return TrainStep(bundle, device)
    if isinstance(bundle, TransformBundle):
        return TreeOptimizer(bundle, device)
    if isinstance(bundle, FunctionBundle):
        return CompiledFunction(bundle, device)
    raise BundleError(f"the bundle has no probes that can be run: it is a {type(bundle).__name__}")


def _run(program: _Program, probe: Probe) -> Ran:
    if isinstance(program, TrainStep):
        return _run_step(program, probe)
    if isinstance(program, TreeOptimizer):
        return _run_transform(program, probe)
    return _run_function(program, probe)


def _made(probe: Probe, leaves: Mapping[int, LeafInfo], seed: int) -> dict[str, np.ndarray]:
    """What arguments hold, by name; of those that are made from a seed.

    Raises:
        BundleError: if a probe does not say what one of them holds.
    """
    found = {}
    for index, leaf in leaves.items():
        fill = probe.info.fills.get(index)
        if fill is None or fill.kind not in ("float", "integer", "key"):
            raise BundleError(f"the bundle is damaged: its probe of '{probe.info.entry}' lacks '{leaf.path}'")
        found[leaf.path] = filled(fill, leaf.shape, leaf.dtype, seed, index)
    return found


def _tree(arrays: Mapping[str, Any], root: str) -> Any:
    """Arrays by path as nested dicts, without the tree's own name."""
    if root in arrays:
        return arrays[root]
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *folders, last = path.removeprefix(f"{root}/").split("/")
        at = tree
        for name in folders:
            at = at.setdefault(name, {})
        at[last] = array
    return tree


def _guard_state(guarded: _Guarded, state: Any, dtypes: Mapping[str, str]) -> Any:
    """A state whose arrays lie between guards."""

    def one(path: str, leaf: Any) -> Any:
        name = f"state/{path}".rstrip("/")
        if not isinstance(leaf, np.ndarray) or name not in dtypes:
            return leaf
        return guarded.place(name, leaf, dtypes[name])

    return map_tree(one, state)


def _run_step(step: TrainStep, probe: Probe) -> Ran:
    ran, guarded = Ran(), _Guarded()
    manifest, info = step.manifest, probe.info
    leaves = {i: LeafInfo(a.name, a.shape, a.dtype) for i, a in enumerate(manifest.arguments)}
    roles = {a.name: a.role for a in manifest.arguments}

    def of(*wanted: str) -> dict[int, LeafInfo]:
        return {i: leaf for i, leaf in leaves.items() if roles[leaf.path] in wanted}

    def placed(chosen: Mapping[int, LeafInfo], seed: int) -> dict[str, np.ndarray]:
        dtypes = {leaf.path: leaf.dtype for leaf in chosen.values()}
        return {
            name: guarded.place(name, array, dtypes[name], read_only=roles[name] != "param")
            for name, array in _made(probe, chosen, seed).items()
        }

    first = info.calls[0]
    params = _tree(placed(of("param", "frozen"), first.seed), "params")
    if info.entry in ("evaluate", "init"):
        if info.entry == "evaluate":
            batch = _tree(placed(of("eval_batch"), first.seed), "eval_batch")
            found = dict(walk(step.evaluate(params, batch), "result"))
        else:
            found = dict(walk(step.init(params, **first.hypers), "state"))
        ran.results.append({leaf.path: np.asarray(found[leaf.path]) for leaf in info.results})
        ran.before.append({})
        ran.overwritten = guarded.overwritten()
        return ran
    state = step.init(params, **first.hypers)
    state = _guard_state(guarded, state, {a.name: a.dtype for a in manifest.arguments if a.role == "state"})
    for call in info.calls:
        batch = _tree(placed(of("batch"), call.seed), "batch")
        key = next(iter(_made(probe, of("rng"), call.seed).values()), None)
        ran.before.append(_copies(params, state))
        read = {name: value for name, value in call.hypers.items() if name not in step.idle}
        loss, metrics = step.step(params, state, batch, rng=key, **read)
        found = {"loss": np.asarray(loss), **dict(walk(metrics, "metrics")), **_copies(params, state)}
        ran.results.append({leaf.path: np.asarray(found[leaf.path]) for leaf in info.results})
    ran.overwritten = guarded.overwritten()
    return ran


def _copies(params: Any, state: Any) -> dict[str, np.ndarray]:
    found = {**dict(walk(params, "params")), **dict(walk(state, "state"))}
    return {name: np.array(value) for name, value in found.items()}


def _run_transform(optimizer: TreeOptimizer, probe: Probe) -> Ran:
    ran, guarded = Ran(), _Guarded()
    manifest, info = optimizer.manifest, probe.info
    leaves = {i: LeafInfo(f"{a.tree}/{a.path}".rstrip("/"), a.shape, a.dtype) for i, a in enumerate(manifest.arguments)}
    trees = {leaf.path: manifest.arguments[i].tree for i, leaf in leaves.items()}

    def placed(tree: str, seed: int) -> Any:
        chosen = {i: leaf for i, leaf in leaves.items() if trees[leaf.path] == tree}
        dtypes = {leaf.path: leaf.dtype for leaf in chosen.values()}
        arrays = {
            name: guarded.place(name, array, dtypes[name], read_only=tree != "params")
            for name, array in _made(probe, chosen, seed).items()
        }
        return _tree(arrays, tree)

    params = placed("params", info.calls[0].seed)
    dtypes = {leaf.path: leaf.dtype for leaf in leaves.values() if trees[leaf.path] == "state"}
    state = _guard_state(guarded, optimizer.init(params), dtypes)
    for call in info.calls:
        grads = placed("grads", call.seed)
        extra = {name: placed(name, call.seed) for name in optimizer.extra_args}
        ran.before.append(_copies(params, state))
        params, state = optimizer.step(params, grads, state, **extra)
        found = _copies(params, state)
        ran.results.append({leaf.path: found[leaf.path] for leaf in info.results})
    ran.overwritten = guarded.overwritten()
    return ran


def _run_function(function: CompiledFunction, probe: Probe) -> Ran:
    ran, guarded = Ran(), _Guarded()
    manifest, info = function.manifest, probe.info
    leaves = dict(enumerate(manifest.inputs))
    for call in info.calls:
        made = _made(probe, leaves, call.seed)
        arrays = [guarded.place(leaf.path, made[leaf.path], leaf.dtype, read_only=True) for leaf in manifest.inputs]
        rest, trees = list(arrays), []
        for name, structure in zip(manifest.arguments, manifest.argument_trees, strict=True):
            count = sum(leaf.path == name or leaf.path.startswith(f"{name}/") for leaf in manifest.inputs)
            trees.append(restore(structure, rest[:count]))
            rest = rest[count:]
        found = dict(walk(function(*trees)))
        ran.results.append({leaf.path: np.asarray(found[leaf.path]) for leaf in info.results})
        ran.before.append({})
    ran.overwritten = guarded.overwritten()
    return ran
