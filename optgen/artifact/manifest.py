"""``manifest.json``: everything that a runtime needs to know of a bundle, as a frozen dataclass.

History of the format:

* 1 (2026-11): first. Readers refuse a bundle whose format is newer than theirs; unknown keys are ignored, so that a
  later optgen may add some without a new number.
* 2 (2026-11): modules by rows have an entry point for each stage of reductions, take fences, and rows with their
  leaf's number and size (``abi`` is ``stages``); kernels say which reductions their stages hold. Those of format 1
  (``rows``) are still called.
* 3 (2026-11): operands of 8 bits, and rounding at random, for which rows have two more columns. Bundles without such
  kernels are still written as format 2.
* 4 (2026-11): reductions and rounding at random elsewhere than on CPUs, by modules whose ``abi`` is ``leaves``; out of
  place, operands of another shape than their leaf's. Bundles without either are still written as format 2 or 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from optgen.artifact.base import AnyManifest
from optgen.hyper import Hyper, Scalar

if TYPE_CHECKING:
    from typing import Self

FORMAT = 4


@dataclass(frozen=True)
class OperandInfo:
    """One tensor argument: its name, element type, role (``param``, ``state`` or ``input``), rounding and shape.

    Attributes:
        rounding: ``nearest``, or ``stochastic`` where it is rounded at random.
        shape: its shape, where that is not its leaf's.
    """

    name: str
    dtype: str
    role: str
    rounding: str = "nearest"
    shape: tuple[int, ...] | None = None

    def shape_for(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape beside a leaf of the shape ``leaf``."""
        return leaf if self.shape is None else self.shape


@dataclass(frozen=True)
class ModuleInfo:
    """One compiled module.

    Attributes:
        target: the name that it was compiled for.
        backend: ``cpu``, ``vulkan`` or ``cuda``.
        file: its path in the bundle.
        in_place: whether the compiler kept the update in place; proven on its stream IR, which then holds no copy.
        copies: copies of leaves that the stream IR holds; 0 where in place.
        arch: for CPUs, the architecture, or ``any``.
        features: for CPUs, the extensions without which it must not run.
        abi: how it is called: ``list`` with lists of leaves, ``leaves`` with what kernels must know of them besides,
            ``stages`` with one view for each operand and a table, ``rows`` likewise in format 1.
        pairs: whether partial results of reductions are pairs of f32, because the device lacks f64.
        retried: the other ways in which it had to be compiled; see ``optgen.compiler.retry``. Manifests leave it out
            where there are none.
    """

    target: str
    backend: str
    file: str
    in_place: bool
    copies: int = 0
    arch: str = ""
    features: tuple[str, ...] = ()
    abi: str = "list"
    pairs: bool = False
    retried: tuple[str, ...] = ()


class Compiled(Protocol):
    """What has a module for each target: a kernel, a function, or a step."""

    @property
    def name(self) -> str:
        """What to call it in errors."""

    @property
    def modules(self) -> Sequence[ModuleInfo]:
        """One for each target."""


@dataclass(frozen=True)
class ReductionInfo:
    """One reduction: how partial results are combined, and whether over the whole tree or over each leaf.

    Attributes:
        op: ``add``, ``multiply``, ``maximum`` or ``minimum``.
        tree: whether over all leaves together.
    """

    op: str
    tree: bool

    @property
    def ufunc(self) -> np.ufunc:
        """numpy's function that combines two partial results."""
        found: np.ufunc = getattr(np, self.op)
        return found

    def total(self, partials: Sequence[float] | np.ndarray) -> float:
        """The combination of partial results, in an order that depends on their number alone."""
        return float(self.ufunc.reduce(np.asarray(partials, np.float64)))


@dataclass(frozen=True)
class ProbeCase:
    """One probe: hyperparameters for one call, and the number of elements of its leaf."""

    hypers: Mapping[str, float]
    size: int


@dataclass(frozen=True)
class KernelInfo:
    """One kernel: the rule for given dtypes.

    Attributes:
        name: of the dtypes, e.g. ``bf16``; for out-of-place kernels followed by the shape.
        dtypes: of ``param``, ``grad``, ``state`` and ``compute``.
        operands: the lists that ``apply`` takes, in order.
        scalars: the scalars that follow them.
        in_place: whether results are written over the operands that they replace.
        reason: why not, where not.
        shape: the one leaf shape that it is for; None for any.
        stablehlo: path of the traced rule in the bundle.
        probes: path of the probe vectors; inputs and, in float64, expected outputs and their largest terms.
        cases: one for each probe.
        modules: one for each target.
        stages: the reductions that come before the update, by stages: those of one need the totals of those before.
        leafwise: whether it must know where leaves begin and end, so that neighbours cannot be one.
        returned: the scalar state among the scalars; modules return it anew after their other results.
        indexed: whether it rounds at random: rows then say where in their leaf they start, and the leaf's number.
    """

    name: str
    dtypes: Mapping[str, str]
    operands: tuple[OperandInfo, ...]
    scalars: tuple[Scalar, ...]
    in_place: bool
    reason: str
    shape: tuple[int, ...] | None
    stablehlo: str
    probes: str
    cases: tuple[ProbeCase, ...]
    modules: tuple[ModuleInfo, ...]
    stages: tuple[tuple[ReductionInfo, ...], ...] = ()
    leafwise: bool = False
    returned: tuple[str, ...] = ()
    indexed: bool = False

    def operand(self, name: str) -> OperandInfo:
        """The operand of that name."""
        return next(o for o in self.operands if o.name == name)

    @property
    def shaped(self) -> tuple[OperandInfo, ...]:
        """The operands that have a shape of their own."""
        return tuple(o for o in self.operands if o.shape is not None)


@dataclass(frozen=True)
class MicroInfo:
    """Of a rule that accumulates grads, what a step does that does not update.

    Attributes:
        state: the state tensor that holds the mean of grads.
        count: the scalar state that holds their number.
        every: the hyperparameter that says which step updates.
        kernels: the update of that mean, their param, by a grad; their scalar state is the number.
    """

    state: str
    count: str
    every: str
    kernels: tuple[KernelInfo, ...]


@dataclass(frozen=True)
class LeafInfo:
    """One leaf of the tree that a bundle was compiled for."""

    path: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Manifest(AnyManifest):
    """What a bundle holds.

    Attributes:
        rule: name of the rule.
        convention: whose arithmetic it follows.
        variant: rule and structure in one word.
        source: paper or library.
        doc: formula.
        param: name of the param operand.
        inputs: names of the operands that are only read, the grad first.
        state: names of the state tensors.
        hypers: run-time hyperparameters, with the defaults of this bundle.
        per_element: those of them that are tensors.
        baked: hyperparameters folded in, with their values.
        structure: structural parameters.
        kernels: one for each combination of dtypes.
        layout: the leaves that it was compiled for, where given.
        fixed_layout: whether it updates only trees of exactly that layout.
        init: what state tensors hold at first where not zero: a number, the name of a hyperparameter, or ``param``.
        scalars: the scalar state, from each name to its number at first.
        common: the hyperparameters that scalar state depends on, which must be the same for all leaves.
        groups: hyperparameters by patterns of leaves' paths; see :mod:`optgen.runtime.groups`.
        micro: for rules that accumulate grads, the steps that do not update.
    """

    kind = "rule"
    newest = FORMAT

    rule: str
    convention: str
    variant: str
    source: str
    doc: str
    param: str
    inputs: tuple[str, ...]
    state: tuple[str, ...]
    hypers: tuple[Hyper, ...]
    per_element: tuple[str, ...]
    baked: Mapping[str, float]
    structure: Mapping[str, bool]
    kernels: tuple[KernelInfo, ...]
    layout: tuple[LeafInfo, ...] | None = None
    fixed_layout: bool = False
    format: int = field(default=FORMAT, kw_only=True)
    init: Mapping[str, float | str] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    common: tuple[str, ...] = ()
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    micro: MicroInfo | None = None

    @property
    def all_kernels(self) -> tuple[KernelInfo, ...]:
        """Those of updates, and those of steps that do not update."""
        return (*self.kernels, *(self.micro.kernels if self.micro else ()))

    @property
    def label(self) -> str:
        """Its variant."""
        return self.variant

    @property
    def compiled(self) -> Sequence[Compiled]:
        """Its kernels."""
        return self.all_kernels

    @property
    def named(self) -> set[str]:
        """As :attr:`AnyManifest.named`."""
        return super().named | {f for kernel in self.all_kernels for f in (kernel.stablehlo, kernel.probes)}

    @classmethod
    def _read(cls, data: Mapping[str, Any], **common: Any) -> Self:
        return cls(
            rule=data["rule"],
            convention=data["convention"],
            variant=data["variant"],
            source=data["source"],
            doc=data["doc"],
            param=data["param"],
            inputs=tuple(data["inputs"]),
            state=tuple(data["state"]),
            hypers=tuple(Hyper.from_json(h) for h in data["hypers"]),
            per_element=tuple(data["per_element"]),
            baked=dict(data["baked"]),
            structure=dict(data["structure"]),
            kernels=tuple(kernel_from_json(k) for k in data["kernels"]),
            layout=None if data["layout"] is None else leaves_from_json(data["layout"]),
            fixed_layout=data["fixed_layout"],
            init=dict(data.get("init", {})),
            scalars=dict(data.get("scalars", {})),
            # Where it is not said, scalar state may depend on all of them.
            common=tuple(data.get("common", [h["name"] for h in data["hypers"]] if data.get("scalars") else ())),
            groups={pattern: dict(numbers) for pattern, numbers in data.get("groups", {}).items()},
            micro=micro_from_json(data.get("micro")),
            **common,
        )


def modules_from_json(data: Iterable[Mapping[str, Any]]) -> tuple[ModuleInfo, ...]:
    """Modules, from the manifest's form."""
    return tuple(
        ModuleInfo(
            m["target"],
            m["backend"],
            m["file"],
            m["in_place"],
            m["copies"],
            m["arch"],
            tuple(m["features"]),
            m["abi"],
            m.get("pairs", False),
            tuple(m.get("retried", ())),
        )
        for m in data
    )


def leaves_from_json(data: Iterable[Mapping[str, Any]]) -> tuple[LeafInfo, ...]:
    """Leaves, from the manifest's form."""
    return tuple(LeafInfo(e["path"], tuple(e["shape"]), e["dtype"]) for e in data)


def micro_from_json(data: Mapping[str, Any] | None) -> MicroInfo | None:
    """The steps that do not update, from the manifest's form; None where all do."""
    if data is None:
        return None
    kernels = tuple(kernel_from_json(k) for k in data["kernels"])
    return MicroInfo(data["state"], data["count"], data["every"], kernels)


def kernel_from_json(data: Mapping[str, Any]) -> KernelInfo:
    """A kernel, from the manifest's form."""
    return KernelInfo(
        name=data["name"],
        dtypes=dict(data["dtypes"]),
        operands=tuple(
            OperandInfo(
                o["name"],
                o["dtype"],
                o["role"],
                o.get("rounding", "nearest"),
                None if o.get("shape") is None else tuple(o["shape"]),
            )
            for o in data["operands"]
        ),
        scalars=tuple(Scalar(s["hyper"], s["part"]) for s in data["scalars"]),
        in_place=data["in_place"],
        reason=data["reason"],
        shape=None if data["shape"] is None else tuple(data["shape"]),
        stablehlo=data["stablehlo"],
        probes=data["probes"],
        cases=tuple(ProbeCase(dict(c["hypers"]), c["size"]) for c in data["cases"]),
        modules=modules_from_json(data["modules"]),
        stages=tuple(tuple(ReductionInfo(r["op"], r["tree"]) for r in stage) for stage in data.get("stages", ())),
        leafwise=data.get("leafwise", False),
        returned=tuple(data.get("returned", ())),
        indexed=data.get("indexed", False),
    )
