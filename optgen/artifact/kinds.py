"""Reading bundles without knowing what they hold."""

from __future__ import annotations

import os

from optgen.artifact import storage
from optgen.artifact.base import kind_of_bundle
from optgen.artifact.bundle import Bundle
from optgen.artifact.function import FunctionBundle
from optgen.artifact.step import StepBundle
from optgen.artifact.transform import TransformBundle

#: A bundle of any kind.
SomeBundle = Bundle | FunctionBundle | TransformBundle | StepBundle

_BY_KIND: dict[str, type[SomeBundle]] = {
    bundle.manifest_type.kind: bundle for bundle in (Bundle, FunctionBundle, TransformBundle, StepBundle)
}


def read_any(path: str | os.PathLike[str]) -> SomeBundle:
    """Loads and verifies a bundle of any kind.

    Raises:
        BundleNotFoundError: if there is none.
        BundleVersionError: if it is newer than this optgen.
        BundleError: if a file is missing, or is not what the manifest's hash says.
    """
    files = storage.read_files(path)
    kind = kind_of_bundle(files[storage.MANIFEST])
    return _BY_KIND.get(kind, Bundle).from_files(path, files)
