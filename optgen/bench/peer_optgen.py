"""optgen in four forms: as trees go in, bound once, bound in f32 arithmetic, and packed into one buffer."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np

import optgen
from optgen.bench.data import Data
from optgen.bench.peers import AbsentError, Peer
from optgen.bench.work import AVERAGE, BETA1, BETA2, EPS, LR, MAX_NORM, MOMENTUM, Case, Rule
from optgen.errors import CompilerNotFoundError

_compiled: dict[tuple[str, str, bool, int], Any] = {}


class Step(Peer):
    """``opt.step(params, grads, state, lr=...)``, with all that it checks each time."""

    def __init__(self, data: Data, threads: int) -> None:
        self._data = data
        optimizer = optimizer_for(data.case, threads, fast=False)
        params, grads = _tree(data.params, data.case.dtype), _tree(data.grads, data.case.dtype)
        self._run = self._stepper(optimizer, params, grads, self._state(optimizer))

    def _state(self, optimizer: Any) -> dict[str, Any]:
        slots = dict(zip(optimizer.manifest.state, self._data.state.values(), strict=True))
        return {"step": 0, **{name: _tree(leaves, "f32") for name, leaves in slots.items()}}

    def _stepper(self, optimizer: Any, params: Any, grads: Any, state: Any) -> Callable[[], object]:
        return lambda: optimizer.step(params, grads, state, lr=LR)

    def step(self) -> None:
        """One update."""
        self._run()

    def params(self) -> list[np.ndarray]:
        """The shared ones."""
        return self._data.params


class Bound(Step):
    """``opt.bind(params, grads, state).step(lr=...)``."""

    def _stepper(self, optimizer: Any, params: Any, grads: Any, state: Any) -> Callable[[], object]:
        return _bound(optimizer, params, grads, state)


class Fast(Step):
    """Bound, compiled with ``compute_dtype="f32"``."""

    def __init__(self, data: Data, threads: int) -> None:
        if data.case.dtype != "f32":
            raise AbsentError("16-bit params are computed in f32 anyway")
        self._data = data
        optimizer = optimizer_for(data.case, threads, fast=True)
        trees = _tree(data.params, "f32"), _tree(data.grads, "f32")
        self._run = _bound(optimizer, *trees, self._state(optimizer))


class Packed(Step):
    """Bound, with each tree's leaves in one buffer, which is no shared one."""

    def __init__(self, data: Data, threads: int) -> None:
        if not hasattr(optgen.Container, "pack"):
            raise AbsentError("this optgen cannot pack Containers")
        self._data, dtype = data, data.case.dtype
        optimizer = optimizer_for(data.case, threads, fast=False)
        self._params = optgen.Container(_tree(data.params, dtype)).pack()
        grads = optgen.Container(_tree(data.grads, dtype)).pack()
        slots = dict(zip(optimizer.manifest.state, data.state.values(), strict=True))
        state = {n: optgen.Container(_tree(leaves, "f32")).pack() for n, leaves in slots.items()}
        self._run = _bound(optimizer, self._params, grads, {"step": 0, **state})

    def params(self) -> list[np.ndarray]:
        """The packed ones."""
        found = [np.asarray(leaf) for leaf in self._params.values()]
        return [leaf.view(np.uint16) for leaf in found] if self._data.case.dtype == "bf16" else found


def optimizer_for(case: Case, threads: int, *, fast: bool) -> Any:
    """The optimizer for a case, compiled for this processor; prebuilt where there is no compiler.

    Raises:
        AbsentError: if f32 arithmetic is wanted and there is no compiler.
    """
    key = (case.rule.name, case.dtype, fast, threads)
    if key not in _compiled:
        _compiled[key] = _compile(case, "local-sync" if threads == 1 else "cpu", fast)
    return _compiled[key]


def forget() -> None:
    """Lets go of all optimizers."""
    _compiled.clear()
    gc.collect()


def _compile(case: Case, device: str, fast: bool) -> Any:
    rule = case.rule
    name = "sgd" if rule.name == "momentum" else rule.like or rule.name
    settings: dict[str, Any] = {"momentum": MOMENTUM} if rule.name == "momentum" else {}
    if "m" in rule.slots and rule.name != "momentum":
        settings = {"beta1": BETA1, "beta2": BETA2, "weight_decay": rule.decay}
    if "v" in rule.slots:
        settings["eps"] = EPS
    compute = "f32" if fast else None
    whole = _composed(rule) if rule.like else name
    try:
        return optgen.compile(whole, dtypes=[case.dtype], device=device, compute_dtype=compute, **settings)
    except CompilerNotFoundError:
        if fast or rule.like:
            raise AbsentError("it is not among the prebuilt bundles, and there is no compiler") from None
        return optgen.prebuilt(name, device=device, **settings)


def _composed(rule: Rule) -> Any:
    parts: list[Any] = [rule.like]
    if rule.clips:
        parts.insert(0, optgen.clip_by_global_norm(MAX_NORM))
    if rule.averages:
        parts.append(optgen.ema(AVERAGE))
    return optgen.chain(*parts)


def _bound(optimizer: Any, params: Any, grads: Any, state: Any) -> Callable[[], object]:
    if not hasattr(optimizer, "bind"):
        raise AbsentError("this optgen cannot bind trees")
    bound = optimizer.bind(params, grads, state)
    return lambda: bound.step(lr=LR)


def _tree(leaves: list[np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    if dtype == "bf16":
        from optgen.dtypes import numpy_dtype

        leaves = [leaf.view(numpy_dtype("bf16")) for leaf in leaves]
    return {f"leaf{index}": leaf for index, leaf in enumerate(leaves)}
