"""Bundles: a manifest and the files that it names, verified."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from optgen.artifact import storage
from optgen.artifact.manifest import KernelInfo, Manifest, ModuleInfo


@dataclass(frozen=True)
class Bundle:
    """An artifact in memory: what :func:`write_bundle` saves and :func:`read_bundle` loads."""

    manifest: Manifest
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
        """A new bundle; the manifest gets the hashes of ``files``."""
        hashes = {name: storage.digest(data) for name, data in sorted(files.items())}
        return cls(dataclasses.replace(manifest, files=hashes), dict(files))

    def module(self, info: ModuleInfo) -> bytes:
        """The bytes of a compiled module."""
        return self.files[info.file]

    def stablehlo(self, kernel: KernelInfo) -> str:
        """The traced rule of a kernel."""
        return self.files[kernel.stablehlo].decode()

    def probes(self, kernel: KernelInfo) -> dict[str, np.ndarray]:
        """The probe vectors of a kernel: ``0.in.w``, ``0.out.w``, ``0.term.w``..."""
        import io

        with np.load(io.BytesIO(self.files[kernel.probes]), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    @cached_property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(len(data) for data in self.files.values())


def write_bundle(bundle: Bundle, path: str | os.PathLike[str]) -> Path:
    """Saves ``bundle``, atomically: as one file if ``path`` ends in ``.optgen``, else as a directory."""
    return storage.write_files(path, {storage.MANIFEST: bundle.manifest.to_json().encode(), **bundle.files})


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Loads and verifies a bundle.

    Raises:
        BundleNotFoundError: if there is none.
        BundleVersionError: if it is newer than this optgen.
        BundleError: if a file is missing, or is not what the manifest's hash says.
    """
    files = storage.read_files(path)
    manifest = Manifest.from_json(files.pop(storage.MANIFEST))
    named = {f for k in manifest.all_kernels for f in (k.stablehlo, k.probes, *(m.file for m in k.modules))}
    return Bundle(manifest, storage.verify(path, files, manifest.files, named))
