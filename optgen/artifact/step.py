"""Step bundles: whole training steps, compiled, in the same storage as the rules.

History of the format:

* 1 (2026-11): first. The rules of :mod:`optgen.artifact.manifest` hold here too: a newer format is refused, unknown
  keys are ignored.
* 2 (2026-11-27): probes: ``probes`` in the manifest and the file ``probes.bin``; ``unprobed`` says why there are none.
  Bundles of format 1 have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optgen.artifact.base import INITIAL, AnyBundle, AnyManifest
from optgen.artifact.function import Structure
from optgen.artifact.manifest import Compiled, LeafInfo, ModuleInfo, leaves_from_json
from optgen.artifact.transform import InitialInfo
from optgen.errors import BundleError
from optgen.hyper import Hyper, Scalar
from optgen.probes.info import ProbeInfo

if TYPE_CHECKING:
    from typing import Self

FORMAT = 2

#: The element type of scalars whose type is that of a module's arithmetic.
COMPUTE = "compute"


@dataclass(frozen=True)
class StepArgument:
    """An argument of a step's programs.

    Attributes:
        name: ``params/encoder/w``, ``state/m/encoder/w``, ``state/step``, ``batch/x``, ``rng``, ``lr``,
            ``beta1/complement``.
        role: ``param`` (trained), ``frozen``, ``state``, ``count`` (the number of updates), ``scalar`` (scalar state),
            ``batch``, ``rng``, ``hyper``, ``eval_batch``.
        shape: of the array; ``()`` for numbers.
        dtype: of its elements; in manifests ``compute`` for numbers of the type of the module's arithmetic.
        keys: for state, its path as keys: names in dicts, numbers in lists.
        hyper: for ``hyper``, which part of which hyperparameter.
        initial: for state, what it holds before the first step.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    keys: tuple[str | int, ...] = ()
    hyper: Scalar | None = None
    initial: InitialInfo | None = None

    @property
    def path(self) -> str:
        """Where it is in its tree."""
        return self.name.partition("/")[2]


@dataclass(frozen=True)
class EntryInfo:
    """A program of a step's modules.

    Attributes:
        name: of the function: ``step``, ``micro`` (adds to a mean of grads, updates nothing), ``evaluate``, ``init``.
        takes: the positions of its arguments.
        gives: for each result the position of the argument that it replaces, or -1.
        results: name, shape and dtype of each result.
    """

    name: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    results: tuple[LeafInfo, ...]


@dataclass(frozen=True)
class StepModule(ModuleInfo):
    """A module of all programs for one target.

    Attributes:
        compute: the arithmetic of the update, and the type of its numbers.
        apart: the arguments that are replaced by way of new memory and copied back, because writing them in place
            would overwrite what is still read.
        reason: the first of those hazards.
    """

    compute: str = "f32"
    apart: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class StepManifest(AnyManifest):
    """What a step bundle holds.

    Attributes:
        name: of the loss function.
        doc: first line of its docstring.
        optimizer: its name.
        arguments: of all programs.
        entries: the programs.
        hypers: run-time hyperparameters, with the defaults of this bundle.
        groups: hyperparameters that were compiled in, by patterns of leaves' paths.
        every: for an optimizer that accumulates grads, the hyperparameter that says over how many steps.
        count: and the scalar state that counts them.
        scalars: the scalar state, from each name to its number at first.
        metrics: the structure of the metrics.
        evaluation: the structure of what ``evaluate`` gives.
        modules: one for each target.
        stablehlo: paths of the traced parts in the bundle, by name.
        probes: of each program, for each arithmetic.
        unprobed: why there are none, where there are none.
    """

    kind = "step"
    newest = FORMAT

    name: str
    doc: str
    optimizer: str
    arguments: tuple[StepArgument, ...]
    entries: tuple[EntryInfo, ...]
    hypers: tuple[Hyper, ...]
    groups: Mapping[str, Mapping[str, float]]
    every: str
    count: str
    scalars: Mapping[str, float]
    metrics: Structure
    evaluation: Structure
    modules: tuple[StepModule, ...]
    stablehlo: Mapping[str, str]
    probes: tuple[ProbeInfo, ...] = ()
    unprobed: str = ""
    format: int = field(default=FORMAT, kw_only=True)

    @property
    def probed(self) -> Sequence[ProbeInfo]:
        """As :attr:`AnyManifest.probed`."""
        return self.probes

    def entry(self, name: str) -> EntryInfo | None:
        """The program of that name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    @property
    def compiled(self) -> Sequence[Compiled]:
        """Itself."""
        return (self,)

    @property
    def named(self) -> set[str]:
        """As :attr:`AnyManifest.named`."""
        found = super().named | set(self.stablehlo.values())
        stored = any(a.initial is not None and a.initial.kind == "stored" for a in self.arguments)
        return found | {INITIAL} if stored else found

    @classmethod
    def _read(cls, data: Mapping[str, Any], **common: Any) -> Self:
        return cls(
            name=data["name"],
            doc=data["doc"],
            optimizer=data["optimizer"],
            arguments=tuple(_argument(a) for a in data["arguments"]),
            entries=tuple(
                EntryInfo(e["name"], tuple(e["takes"]), tuple(e["gives"]), leaves_from_json(e["results"]))
                for e in data["entries"]
            ),
            hypers=tuple(Hyper.from_json(h) for h in data["hypers"]),
            groups={pattern: dict(numbers) for pattern, numbers in data["groups"].items()},
            every=data["every"],
            count=data["count"],
            scalars=dict(data["scalars"]),
            metrics=data["metrics"],
            evaluation=data["evaluation"],
            modules=tuple(_module(m) for m in data["modules"]),
            stablehlo=dict(data["stablehlo"]),
            probes=tuple(ProbeInfo.from_json(p, _results(data, p["entry"])) for p in data.get("probes", ())),
            unprobed=data.get("unprobed", ""),
            **common,
        )


def hyper_name(scalar: Scalar) -> str:
    """What an argument that is part of a hyperparameter is called: ``lr``, ``beta1``, ``beta1/complement``."""
    return scalar.hyper if scalar.part == "value" else f"{scalar.hyper}/{scalar.part}"


def _results(data: Mapping[str, Any], entry: str) -> tuple[LeafInfo, ...]:
    found = [e["results"] for e in data["entries"] if e["name"] == entry]
    if not found:
        raise BundleError(f"the bundle is damaged: it has probes of '{entry}', which it lacks")
    return leaves_from_json(found[0])


def _argument(data: Mapping[str, Any]) -> StepArgument:
    hyper, initial = data["hyper"], data["initial"]
    return StepArgument(
        data["name"],
        data["role"],
        tuple(data["shape"]),
        data["dtype"],
        tuple(data["keys"]),
        None if hyper is None else Scalar(hyper["hyper"], hyper["part"]),
        None if initial is None else InitialInfo(initial["kind"], initial["number"], initial["path"]),
    )


def _module(data: Mapping[str, Any]) -> StepModule:
    return StepModule(
        data["target"], data["backend"], data["file"], data["in_place"], data["copies"], data["arch"],
        tuple(data["features"]), data["abi"],
        compute=data["compute"], apart=tuple(data["apart"]), reason=data["reason"],
    )  # fmt: skip


@dataclass(frozen=True)
class StepBundle(AnyBundle[StepManifest]):
    """A compiled step in memory."""

    manifest_type = StepManifest
