"""What all kinds of bundles have in common: how a manifest ends, and files that are what it says."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from optgen.artifact import storage
from optgen.errors import BundleError, BundleVersionError
from optgen.probes.values import PROBES

if TYPE_CHECKING:
    from typing import Self

    from optgen.artifact.manifest import Compiled, ModuleInfo
    from optgen.probes.info import Probe, ProbeInfo

_KINDS = {
    "rule": "an optimizer rule", "function": "a function", "transform": "an optax transformation",
    "step": "a training step",
}  # fmt: skip

#: The file of state that begins as arrays, in bundles that have some.
INITIAL = "initial.npz"


@dataclass(frozen=True, kw_only=True)
class AnyManifest:
    """What the manifests of all kinds say.

    Attributes:
        versions: of optgen, compiler and JAX that made it.
        min_runtime: the oldest iree-base-runtime that can run it.
        files: SHA-256 of every other file, by path.
        format: version of its kind's layout.
    """

    kind: ClassVar[str]
    #: The newest format of the kind that this optgen reads.
    newest: ClassVar[int]

    versions: Mapping[str, str] = field(default_factory=dict)
    min_runtime: str = "3.12"
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = 1

    @property
    def label(self) -> str:
        """What to call it in errors."""
        raise NotImplementedError

    @property
    def compiled(self) -> Sequence[Compiled]:
        """All that has a module for each target."""
        raise NotImplementedError

    @property
    def probed(self) -> Sequence[ProbeInfo]:
        """The probes of kinds that have some for the whole of what they hold."""
        return ()

    @property
    def why_unprobed(self) -> str:
        """Why a kind that has probes has none here; empty where there are some, or it is too old for them."""
        return str(getattr(self, "unprobed", ""))

    @property
    def named(self) -> set[str]:
        """The files that it refers to: the modules, and what a kind has beside them."""
        found = {module.file for compiled in self.compiled for module in compiled.modules}
        return found | {PROBES} if self.probed else found

    def to_json(self) -> str:
        """The text of ``manifest.json``; the same manifest always gives the same bytes."""
        data = asdict(self)
        if self.probed:
            data["probes"] = [probe.as_json() for probe in self.probed]
        last = {name: data.pop(name) for name in ("versions", "min_runtime", "files")}
        data = {"format": data.pop("format"), "kind": self.kind, **data, **last}
        return json.dumps(data, indent=1, sort_keys=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads ``manifest.json``.

        Raises:
            BundleVersionError: if its format is newer than this optgen.
            BundleError: if it is no manifest, or one of something else.
        """
        data = _parse(text, cls.kind, cls.newest)
        try:
            return cls._read(
                data,
                versions=dict(data["versions"]),
                min_runtime=data["min_runtime"],
                files=dict(data["files"]),
                format=data["format"],
            )
        except BundleError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BundleError(f"manifest.json lacks {error}") from error

    @classmethod
    def _read(cls, data: Mapping[str, Any], **common: Any) -> Self:
        """From the manifest's form; ``common`` are the fields of all kinds."""
        raise NotImplementedError


M = TypeVar("M", bound=AnyManifest)


@dataclass(frozen=True)
class AnyBundle(Generic[M]):
    """An artifact in memory: what :meth:`save` writes and :meth:`read` loads."""

    manifest_type: ClassVar[type[AnyManifest]]

    manifest: M
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, manifest: M, files: Mapping[str, bytes]) -> Self:
        """A new bundle; the manifest gets the hashes of ``files``."""
        hashes = {name: storage.digest(data) for name, data in sorted(files.items())}
        return cls(dataclasses.replace(manifest, files=hashes), dict(files))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Loads and verifies a bundle of this kind.

        Raises:
            BundleNotFoundError: if there is none.
            BundleVersionError, BundleError: as :meth:`from_files`.
        """
        return cls.from_files(path, storage.read_files(path))

    @classmethod
    def from_files(cls, path: str | os.PathLike[str], files: Mapping[str, bytes]) -> Self:
        """The bundle that the ``files`` of ``path`` are, verified.

        Raises:
            BundleVersionError: if it is newer than this optgen.
            BundleError: if it is of another kind, a file is missing, or one is not what the manifest's hash says.
        """
        rest = dict(files)
        manifest = cls.manifest_type.from_json(rest.pop(storage.MANIFEST))
        return cls(manifest, storage.verify(path, rest, manifest.files, manifest.named))  # type: ignore[arg-type]

    def module(self, info: ModuleInfo) -> bytes:
        """The bytes of a compiled module."""
        return self.files[info.file]

    @cached_property
    def stored(self) -> dict[str, np.ndarray]:
        """The initial values that are no single number, by the number of the state's leaf; bf16 as uint16."""
        return read_arrays(self.files[INITIAL]) if INITIAL in self.files else {}

    @cached_property
    def probed(self) -> list[Probe]:
        """The probes of the whole, with their numbers; none in bundles of rules, whose kernels have their own.

        Raises:
            BundleError: if the file of numbers is not what the manifest says.
        """
        from optgen.probes.info import read_probes

        return read_probes(self.manifest.probed, self.files[PROBES]) if self.manifest.probed else []

    @cached_property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(len(data) for data in self.files.values())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes it, atomically: as one file if ``path`` ends in ``.optgen``, else as a directory."""
        return storage.write_files(path, {storage.MANIFEST: self.manifest.to_json().encode(), **self.files})


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file."""
    import io

    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def kind_of_bundle(text: str | bytes) -> str:
    """What a manifest describes, ``rule`` where it does not say; nothing else of it is checked."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BundleError(f"manifest.json is damaged: {error}") from error
    return str(data.get("kind", "rule")) if isinstance(data, dict) else "rule"


def _parse(text: str | bytes, kind: str, newest: int) -> dict[str, Any]:
    """The JSON of a manifest that must describe a ``kind``, in a format that is not newer than ``newest``.

    Raises:
        BundleVersionError: if it is newer.
        BundleError: if it is no manifest, or one of something else.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        number = data["format"]
    except KeyError as error:
        raise BundleError(
            "manifest.json names no format, so it is not that of a bundle (generated C has one, too, and is not read)"
        ) from error
    except (ValueError, TypeError) as error:
        raise BundleError(f"manifest.json is damaged: {error}") from error
    found = data.get("kind", "rule")
    if found != kind:
        raise BundleError(f"the bundle holds {_KINDS.get(found, repr(found))}, not {_KINDS[kind]}")
    if not isinstance(number, int) or number > newest:
        raise BundleVersionError(
            f"the bundle has format {number}, newer than this optgen reads (up to {newest}): update optgen"
        )
    return data
