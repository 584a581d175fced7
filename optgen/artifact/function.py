"""Function bundles: any function of trees of arrays, compiled, in the same storage as the rules.

History of the format:

* 1 (2026-11): first. The rules of :mod:`optgen.artifact.manifest` hold here too: a newer format is refused, unknown
  keys are ignored.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optgen.artifact import storage
from optgen.artifact.manifest import LeafInfo, ModuleInfo, leaves_from_json, modules_from_json, parse
from optgen.errors import BundleError, TreeError

FORMAT = 1

#: A tree as JSON: ``None``, ``"leaf"``, or one of ``{"dict": {...}}``, ``{"list": [...]}``, ``{"tuple": [...]}``.
Structure = Any


@dataclass(frozen=True)
class FunctionManifest:
    """What a function bundle holds.

    Attributes:
        format: version of this layout.
        name: of the function.
        doc: first line of its docstring.
        arguments: the names of its arguments, each a tree.
        inputs: their leaves, in the order in which the modules take them; paths begin with the argument's name.
        outputs: the leaves of its result, in the order in which the modules return them.
        argument_trees: the structure of each argument.
        result_tree: the structure of the result.
        modules: one for each target.
        stablehlo: path of the traced function in the bundle.
        versions: of optgen, compiler and JAX that made it.
        min_runtime: the oldest iree-base-runtime that can run it.
        files: SHA-256 of every other file, by path.
    """

    name: str
    doc: str
    arguments: tuple[str, ...]
    inputs: tuple[LeafInfo, ...]
    outputs: tuple[LeafInfo, ...]
    argument_trees: tuple[Structure, ...]
    result_tree: Structure
    modules: tuple[ModuleInfo, ...]
    stablehlo: str
    versions: Mapping[str, str] = field(default_factory=dict)
    min_runtime: str = "3.12"
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of ``manifest.json``; the same manifest always gives the same bytes."""
        data = asdict(self)
        return json.dumps({"format": data.pop("format"), "kind": "function", **data}, indent=1, sort_keys=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> FunctionManifest:
        """Reads ``manifest.json``.

        Raises:
            BundleVersionError: if its format is newer than this optgen.
            BundleError: if it is not the manifest of a function.
        """
        data = parse(text, "function", FORMAT)
        try:
            return cls(
                format=data["format"],
                name=data["name"],
                doc=data["doc"],
                arguments=tuple(data["arguments"]),
                inputs=leaves_from_json(data["inputs"]),
                outputs=leaves_from_json(data["outputs"]),
                argument_trees=tuple(data["argument_trees"]),
                result_tree=data["result_tree"],
                modules=modules_from_json(data["modules"]),
                stablehlo=data["stablehlo"],
                versions=dict(data["versions"]),
                min_runtime=data["min_runtime"],
                files=dict(data["files"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"manifest.json lacks {error}") from error


@dataclass(frozen=True)
class FunctionBundle:
    """A compiled function in memory: what :func:`write_function` saves and :func:`read_function` loads."""

    manifest: FunctionManifest
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, manifest: FunctionManifest, files: Mapping[str, bytes]) -> FunctionBundle:
        """A new bundle; the manifest gets the hashes of ``files``."""
        hashes = {name: storage.digest(data) for name, data in sorted(files.items())}
        return cls(dataclasses.replace(manifest, files=hashes), dict(files))

    def module(self, info: ModuleInfo) -> bytes:
        """The bytes of a compiled module."""
        return self.files[info.file]

    @property
    def stablehlo(self) -> str:
        """The traced function."""
        return self.files[self.manifest.stablehlo].decode()

    @cached_property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(len(data) for data in self.files.values())


def write_function(bundle: FunctionBundle, path: str | os.PathLike[str]) -> Path:
    """Saves ``bundle``, atomically: as one file if ``path`` ends in ``.optgen``, else as a directory."""
    return storage.write_files(path, {storage.MANIFEST: bundle.manifest.to_json().encode(), **bundle.files})


def read_function(path: str | os.PathLike[str]) -> FunctionBundle:
    """Loads and verifies a function bundle.

    Raises:
        BundleNotFoundError: if there is none.
        BundleVersionError: if it is newer than this optgen.
        BundleError: if it holds a rule, a file is missing, or one is not what the manifest's hash says.
    """
    files = storage.read_files(path)
    manifest = FunctionManifest.from_json(files.pop(storage.MANIFEST))
    named = (manifest.stablehlo, *(m.file for m in manifest.modules))
    return FunctionBundle(manifest, storage.verify(path, files, manifest.files, named))


def structure_of(tree: Any, path: str = "") -> Structure:
    """The structure of ``tree``. Its leaves are in the order of :func:`optgen.runtime.tree.walk`.

    Raises:
        TreeError: if a key of a dict is not a string, which JSON could not hold.
    """
    if isinstance(tree, Mapping):
        for key in tree:
            if not isinstance(key, str) or "/" in key:
                raise TreeError(f"{path or 'a tree'}: keys must be strings without '/' (got {key!r})")
        return {"dict": {key: structure_of(child, f"{path}/{key}") for key, child in tree.items()}}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [structure_of(child, f"{path}/{i}") for i, child in enumerate(tree)]}
    return None if tree is None else "leaf"


def restore(structure: Structure, leaves: Sequence[Any]) -> Any:
    """A tree of that structure with ``leaves`` in it. Named tuples come back as plain ones."""
    return _restore(structure, iter(leaves))


def _restore(structure: Structure, leaves: Iterator[Any]) -> Any:
    if structure is None:
        return None
    if structure == "leaf":
        return next(leaves)
    ((kind, children),) = structure.items()
    if kind == "dict":
        return {key: _restore(child, leaves) for key, child in children.items()}
    items = [_restore(child, leaves) for child in children]
    return items if kind == "list" else tuple(items)
