"""Step bundles: whole training steps, compiled, in the same storage as the rules.

History of the format:

* 1 (2026-11): first. The rules of :mod:`optgen.artifact.manifest` hold here too: a newer format is refused, unknown
  keys are ignored.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optgen.artifact import storage
from optgen.artifact.function import Structure
from optgen.artifact.manifest import LeafInfo, ModuleInfo, leaves_from_json, parse
from optgen.artifact.transform import InitialInfo
from optgen.errors import BundleError
from optgen.hyper import Hyper, Scalar

FORMAT = 1

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
class StepManifest:
    """What a step bundle holds.

    Attributes:
        format: version of this layout.
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
        versions: of optgen, compiler and JAX that made it.
        min_runtime: the oldest iree-base-runtime that can run it.
        files: SHA-256 of every other file, by path.
    """

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
    versions: Mapping[str, str] = field(default_factory=dict)
    min_runtime: str = "3.12"
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def entry(self, name: str) -> EntryInfo | None:
        """The program of that name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def to_json(self) -> str:
        """The text of ``manifest.json``; the same manifest always gives the same bytes."""
        data = asdict(self)
        return json.dumps({"format": data.pop("format"), "kind": "step", **data}, indent=1, sort_keys=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> StepManifest:
        """Reads ``manifest.json``.

        Raises:
            BundleVersionError: if its format is newer than this optgen.
            BundleError: if it is not the manifest of a training step.
        """
        data = parse(text, "step", FORMAT)
        try:
            return cls(
                format=data["format"],
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
                versions=dict(data["versions"]),
                min_runtime=data["min_runtime"],
                files=dict(data["files"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"manifest.json lacks {error}") from error


def hyper_name(scalar: Scalar) -> str:
    """What an argument that is part of a hyperparameter is called: ``lr``, ``beta1``, ``beta1/complement``."""
    return scalar.hyper if scalar.part == "value" else f"{scalar.hyper}/{scalar.part}"


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
class StepBundle:
    """A compiled step in memory: what :func:`write_step` saves and :func:`read_step` loads."""

    manifest: StepManifest
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, manifest: StepManifest, files: Mapping[str, bytes]) -> StepBundle:
        """A new bundle; the manifest gets the hashes of ``files``."""
        hashes = {name: storage.digest(data) for name, data in sorted(files.items())}
        return cls(dataclasses.replace(manifest, files=hashes), dict(files))

    def module(self, info: ModuleInfo) -> bytes:
        """The bytes of a compiled module."""
        return self.files[info.file]

    @cached_property
    def stored(self) -> dict[str, np.ndarray]:
        """The initial values that are no single number, by the number of the state's leaf; bf16 as uint16."""
        import io

        if "initial.npz" not in self.files:
            return {}
        with np.load(io.BytesIO(self.files["initial.npz"]), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    @cached_property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(len(data) for data in self.files.values())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """As :func:`write_step`."""
        return write_step(self, path)


def write_step(bundle: StepBundle, path: str | os.PathLike[str]) -> Path:
    """Saves ``bundle``, atomically: as one file if ``path`` ends in ``.optgen``, else as a directory."""
    return storage.write_files(path, {storage.MANIFEST: bundle.manifest.to_json().encode(), **bundle.files})


def step_of(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> StepBundle:
    """The step bundle that the ``files`` of ``path`` are, verified.

    Raises:
        BundleVersionError: if it is newer than this optgen.
        BundleError: if it is something else, a file is missing, or one is not what the manifest's hash says.
    """
    rest = dict(files)
    manifest = StepManifest.from_json(rest.pop(storage.MANIFEST))
    named = [*manifest.stablehlo.values(), *(m.file for m in manifest.modules)]
    if any(a.initial is not None and a.initial.kind == "stored" for a in manifest.arguments):
        named.append("initial.npz")
    return StepBundle(manifest, storage.verify(path, rest, manifest.files, named))


def read_step(path: str | os.PathLike[str]) -> StepBundle:
    """Loads and verifies a step bundle.

    Raises:
        BundleNotFoundError: if there is none.
        BundleVersionError, BundleError: as :func:`step_of`.
    """
    return step_of(path, storage.read_files(path))
