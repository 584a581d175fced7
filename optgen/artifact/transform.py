"""Transform bundles: the update of one whole tree, compiled, in the same storage as the rules.

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
from optgen.artifact.manifest import KernelInfo, LeafInfo, ModuleInfo, kernel_from_json, modules_from_json, parse
from optgen.errors import BundleError

FORMAT = 1


@dataclass(frozen=True)
class TensorInfo:
    """A leaf of one of the trees that the update takes.

    Attributes:
        tree: ``params``, ``grads``, ``state``, or the name of an extra argument.
        path: where it is in its tree.
        shape: of the array.
        dtype: of the array.
        keys: for the state, its path as keys: names in dicts, numbers in lists.
    """

    tree: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    keys: tuple[str | int, ...] = ()

    @property
    def passed(self) -> str:
        """The dtype that modules see: a truth value is an i32 to them, since devices store bits differently."""
        return "i32" if self.dtype == "i1" else self.dtype


@dataclass(frozen=True)
class InitialInfo:
    """What a leaf of the state is before the first step.

    Attributes:
        kind: ``fill`` with ``number``; ``stored`` in the bundle's ``initial.npz``; a ``copy`` of the param ``path``;
            or ``computed`` from the params by the module ``init``, whose result ``number`` it is.
        number: see there.
        path: see there.
    """

    kind: str
    number: float = 0
    path: str = ""


@dataclass(frozen=True)
class FunctionInfo:
    """A function of tensors, compiled.

    Attributes:
        name: to call it by in errors.
        reads: the arguments of the update that it takes.
        outputs: shape and dtype of what it returns.
        modules: one for each target.
        stablehlo: its path in the bundle.
    """

    name: str
    reads: tuple[int, ...]
    outputs: tuple[LeafInfo, ...]
    modules: tuple[ModuleInfo, ...]
    stablehlo: str


@dataclass(frozen=True)
class CallInfo:
    """One call of an in-place kernel.

    Attributes:
        kernel: its position in the manifest.
        scalars: for each of its scalars, the head's result.
        leaves: for each leaf, the arguments of the update that are its operands.
    """

    kernel: int
    scalars: tuple[int, ...]
    leaves: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TransformManifest:
    """What a transform bundle holds.

    Attributes:
        format: version of this layout.
        name: of the transformation.
        arguments: the leaves that the update takes: params, grads, state, extra arguments.
        writes: those of them that it replaces.
        initial: for each leaf of the state, what it begins as.
        init: computes those that depend on the params; None where none does.
        head: runs first and only reads: returns scalars, then the new values of the arguments ``head_writes``; or None.
        head_scalars: how many scalars it returns.
        head_writes: the arguments that it computes anew, out of place.
        reasons: for those of them that are not scalars, why: by the argument's number.
        kernels: the in-place kernels.
        calls: their calls.
        update: path of the update as it was traced.
        versions: of optgen, compiler and JAX that made it.
        min_runtime: the oldest iree-base-runtime that can run it.
        files: SHA-256 of every other file, by path.
    """

    name: str
    arguments: tuple[TensorInfo, ...]
    writes: tuple[int, ...]
    initial: tuple[InitialInfo, ...]
    init: FunctionInfo | None
    head: FunctionInfo | None
    head_scalars: int
    head_writes: tuple[int, ...]
    reasons: Mapping[int, str]
    kernels: tuple[KernelInfo, ...]
    calls: tuple[CallInfo, ...]
    update: str
    versions: Mapping[str, str] = field(default_factory=dict)
    min_runtime: str = "3.12"
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def in_place(self) -> tuple[int, ...]:
        """The arguments of rank 1 or more that kernels update in place."""
        found: dict[int, None] = {}
        for call in self.calls:
            operands = self.kernels[call.kernel].operands
            for leaf in call.leaves:
                found.update({a: None for a, o in zip(leaf, operands, strict=True) if o.role != "input"})
        return tuple(sorted(found))

    @property
    def out_of_place(self) -> dict[str, str]:
        """The leaves of rank 1 or more that are computed anew and copied, as ``tree/path``, with the reason."""
        found = {}
        for index, reason in sorted(self.reasons.items()):
            argument = self.arguments[index]
            found[f"{argument.tree}/{argument.path}".rstrip("/")] = reason
        return found

    def to_json(self) -> str:
        """The text of ``manifest.json``; the same manifest always gives the same bytes."""
        data = asdict(self)
        return json.dumps({"format": data.pop("format"), "kind": "transform", **data}, indent=1, sort_keys=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> TransformManifest:
        """Reads ``manifest.json``.

        Raises:
            BundleVersionError: if its format is newer than this optgen.
            BundleError: if it is not the manifest of a transformation.
        """
        data = parse(text, "transform", FORMAT)
        try:
            return cls(
                format=data["format"],
                name=data["name"],
                arguments=tuple(
                    TensorInfo(a["tree"], a["path"], tuple(a["shape"]), a["dtype"], tuple(a["keys"]))
                    for a in data["arguments"]
                ),
                writes=tuple(data["writes"]),
                initial=tuple(InitialInfo(i["kind"], i["number"], i["path"]) for i in data["initial"]),
                init=_function(data["init"]),
                head=_function(data["head"]),
                head_scalars=data["head_scalars"],
                head_writes=tuple(data["head_writes"]),
                reasons={int(key): reason for key, reason in data["reasons"].items()},
                kernels=tuple(kernel_from_json(k) for k in data["kernels"]),
                calls=tuple(
                    CallInfo(c["kernel"], tuple(c["scalars"]), tuple(tuple(leaf) for leaf in c["leaves"]))
                    for c in data["calls"]
                ),
                update=data["update"],
                versions=dict(data["versions"]),
                min_runtime=data["min_runtime"],
                files=dict(data["files"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"manifest.json lacks {error}") from error


def _function(data: Any) -> FunctionInfo | None:
    if data is None:
        return None
    return FunctionInfo(
        data["name"],
        tuple(data["reads"]),
        tuple(LeafInfo(o["path"], tuple(o["shape"]), o["dtype"]) for o in data["outputs"]),
        modules_from_json(data["modules"]),
        data["stablehlo"],
    )


@dataclass(frozen=True)
class TransformBundle:
    """A compiled transformation in memory: what :func:`write_transform` saves and :func:`read_transform` loads."""

    manifest: TransformManifest
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, manifest: TransformManifest, files: Mapping[str, bytes]) -> TransformBundle:
        """A new bundle; the manifest gets the hashes of ``files``."""
        hashes = {name: storage.digest(data) for name, data in sorted(files.items())}
        return cls(dataclasses.replace(manifest, files=hashes), dict(files))

    def module(self, info: ModuleInfo) -> bytes:
        """The bytes of a compiled module."""
        return self.files[info.file]

    @property
    def stablehlo(self) -> str:
        """The update of the whole tree, as it was traced."""
        return self.files[self.manifest.update].decode()

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


def write_transform(bundle: TransformBundle, path: str | os.PathLike[str]) -> Path:
    """Saves ``bundle``, atomically: as one file if ``path`` ends in ``.optgen``, else as a directory."""
    return storage.write_files(path, {storage.MANIFEST: bundle.manifest.to_json().encode(), **bundle.files})


def transform_of(path: str | os.PathLike[str], files: dict[str, bytes]) -> TransformBundle:
    """The transform bundle that the ``files`` of ``path`` are, verified.

    Raises:
        BundleVersionError: if it is newer than this optgen.
        BundleError: if it is something else, a file is missing, or one is not what the manifest's hash says.
    """
    rest = dict(files)
    manifest = TransformManifest.from_json(rest.pop(storage.MANIFEST))
    functions = [f for f in (manifest.init, manifest.head) if f is not None]
    named = [manifest.update, *(f.stablehlo for f in functions)]
    named += [m.file for function in functions for m in function.modules]
    named += [m.file for kernel in manifest.kernels for m in kernel.modules]
    if any(i.kind == "stored" for i in manifest.initial):
        named.append("initial.npz")
    return TransformBundle(manifest, storage.verify(path, rest, manifest.files, named))


def read_transform(path: str | os.PathLike[str]) -> TransformBundle:
    """Loads and verifies a transform bundle.

    Raises:
        BundleNotFoundError: if there is none.
        BundleVersionError, BundleError: as :func:`transform_of`.
    """
    return transform_of(path, storage.read_files(path))
