"""Bundles of rules."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optgen.artifact.base import AnyBundle, read_arrays
from optgen.artifact.manifest import KernelInfo, Manifest


@dataclass(frozen=True)
class Bundle(AnyBundle[Manifest]):
    """A compiled rule in memory."""

    manifest_type = Manifest

    def stablehlo(self, kernel: KernelInfo) -> str:
        """The traced rule of a kernel."""
        return self.files[kernel.stablehlo].decode()

    def probes(self, kernel: KernelInfo) -> dict[str, np.ndarray]:
        """The probe vectors of a kernel: ``0.in.w``, ``0.out.w``, ``0.term.w``..."""
        return read_arrays(self.files[kernel.probes])


def write_bundle(bundle: Bundle, path: str | os.PathLike[str]) -> Path:
    """Saves ``bundle``, atomically: as one file if ``path`` ends in ``.optgen``, else as a directory."""
    return bundle.save(path)


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Loads and verifies the bundle of a rule.

    Raises:
        BundleNotFoundError: if there is none.
        BundleVersionError: if it is newer than this optgen.
        BundleError: if it holds something else, a file is missing, or is not what the manifest's hash says.
    """
    return Bundle.read(path)
