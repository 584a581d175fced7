"""The second half of a step: the update of all params by an optimizer, traced as one function of the whole tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optgen.artifact.manifest import LeafInfo
from optgen.artifact.transform import InitialInfo
from optgen.hyper import Hyper
from optgen.train.parts import Part

COUNT = "state/step"


@dataclass(frozen=True)
class StateLeaf:
    """A leaf of the state.

    Attributes:
        leaf: its name (``state/m/w``), shape and dtype.
        keys: its path in the state, as keys: names in dicts, numbers in lists.
        initial: what it holds before the first step.
    """

    leaf: LeafInfo
    keys: tuple[str | int, ...]
    initial: InitialInfo


@dataclass(frozen=True)
class Update:
    """An optimizer over a tree, ready to be traced in some arithmetic.

    Attributes:
        name: of the optimizer.
        state: its state's leaves.
        hypers: its run-time hyperparameters.
        scalars: its scalar state, from each name to its number before the first step.
        every: for an optimizer that accumulates grads, the hyperparameter that says over how many steps.
        stored: arrays that some state starts with, by the number of its leaf.
        init: for optax, what computes state from the params, and its results.
        counts: whether the step counts updates in ``state/step``.
        loss_scales: names of numbers among the arguments that the loss is to be multiplied by, since the update divides
            grads by them.
        loss_scale: a constant that it is to be multiplied by besides.
    """

    name: str
    state: tuple[StateLeaf, ...]
    hypers: tuple[Hyper, ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    every: str = ""
    count: str = ""
    stored: Mapping[str, Any] = field(default_factory=dict)
    init: Part | None = None
    counts: bool = True
    loss_scales: tuple[str, ...] = ()
    loss_scale: float = 1.0

    def compute(self, asked: str | None) -> str:
        """The arithmetic that is used where ``asked`` was asked for; by default the exact one."""
        raise NotImplementedError

    def trace(self, compute: str) -> Part:
        """The update: takes ``params/...``, ``grads/...``, ``state/...`` and hyperparameters, returns what is new."""
        raise NotImplementedError

    def trace_micro(self, compute: str) -> Part:
        """Of an optimizer that accumulates grads, what steps do that do not update."""
        raise NotImplementedError


@dataclass(frozen=True)
class OptaxUpdate(Update):
    """The update of an optax transformation, in the arithmetic that it is written in.

    Attributes:
        part: the update, traced.
    """

    part: Part | None = None

    def compute(self, asked: str | None) -> str:
        """As :meth:`Update.compute`: there is nothing to choose."""
        return "f32"

    def trace(self, compute: str) -> Part:
        """As :meth:`Update.trace`."""
        assert self.part is not None
        return self.part


def optax_update(transformation: Any, params: Any) -> OptaxUpdate:
    """The update of ``params``, a tree of what has shapes and dtypes, by a transformation.

    Raises:
        RuleError: if JAX cannot trace it.
    """
    from optgen.interop.optax import trace_transformation

    traced = trace_transformation(transformation, params)
    leaves = [LeafInfo(f"{a.tree}/{a.path}".rstrip("/"), a.shape, a.passed) for a in traced.arguments]
    arguments = [(a, leaf) for a, leaf in zip(traced.arguments, leaves, strict=True) if a.tree == "state"]
    state, computed, stored = [], [], {}
    for index, ((argument, leaf), value) in enumerate(zip(arguments, traced.initial, strict=True)):
        if value.computed is not None:
            initial = InitialInfo("computed", value.computed)
            computed.append(leaf)
        elif value.copy is not None:
            initial = InitialInfo("copy", path=value.copy)
        elif value.fill is not None:
            initial = InitialInfo("fill", float(value.fill))
        else:
            initial = InitialInfo("stored")
            stored[str(index)] = value.array
        state.append(StateLeaf(leaf, argument.keys, initial))
    outputs = tuple(leaves[i] for i in traced.results)
    init = None
    if traced.init is not None:
        taken = tuple(leaf for a, leaf in zip(traced.arguments, leaves, strict=True) if a.tree == "params")
        init = Part(traced.init, taken, tuple(computed), traced.init_jaxpr)
    return OptaxUpdate(
        traced.name,
        tuple(state),
        stored=stored,
        init=init,
        counts=False,
        part=Part(traced.stablehlo, tuple(leaves), outputs, traced.jaxpr),
    )
