"""Function bundles: any function of trees of arrays, compiled, in the same storage as the rules.

History of the format:

* 1 (2026-11): first. The rules of :mod:`optgen.artifact.manifest` hold here too: a newer format is refused, unknown
  keys are ignored.
* 2 (2026-11-27): probes: ``probes`` in the manifest and the file ``probes.bin``; ``unprobed`` says why there are none.
  Bundles of format 1 have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optgen.artifact.base import AnyBundle, AnyManifest
from optgen.artifact.manifest import Compiled, LeafInfo, ModuleInfo, leaves_from_json, modules_from_json
from optgen.errors import TreeError
from optgen.probes.info import ProbeInfo

if TYPE_CHECKING:
    from typing import Self

FORMAT = 2

#: A tree as JSON: ``None``, ``"leaf"``, or one of ``{"dict": {...}}``, ``{"list": [...]}``, ``{"tuple": [...]}``.
Structure = Any


@dataclass(frozen=True)
class FunctionManifest(AnyManifest):
    """What a function bundle holds.

    Attributes:
        name: of the function.
        doc: first line of its docstring.
        arguments: the names of its arguments, each a tree.
        inputs: their leaves, in the order in which the modules take them; paths begin with the argument's name.
        outputs: the leaves of its result, in the order in which the modules return them.
        argument_trees: the structure of each argument.
        result_tree: the structure of the result.
        modules: one for each target.
        stablehlo: path of the traced function in the bundle.
        probes: of the function; one or none.
        unprobed: why there is none.
    """

    kind = "function"
    newest = FORMAT

    name: str
    doc: str
    arguments: tuple[str, ...]
    inputs: tuple[LeafInfo, ...]
    outputs: tuple[LeafInfo, ...]
    argument_trees: tuple[Structure, ...]
    result_tree: Structure
    modules: tuple[ModuleInfo, ...]
    stablehlo: str
    probes: tuple[ProbeInfo, ...] = ()
    unprobed: str = ""
    format: int = field(default=FORMAT, kw_only=True)

    @property
    def probed(self) -> Sequence[ProbeInfo]:
        """As :attr:`AnyManifest.probed`."""
        return self.probes

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
        return {*super().named, self.stablehlo}

    @classmethod
    def _read(cls, data: Mapping[str, Any], **common: Any) -> Self:
        return cls(
            name=data["name"],
            doc=data["doc"],
            arguments=tuple(data["arguments"]),
            inputs=leaves_from_json(data["inputs"]),
            outputs=leaves_from_json(data["outputs"]),
            argument_trees=tuple(data["argument_trees"]),
            result_tree=data["result_tree"],
            modules=modules_from_json(data["modules"]),
            stablehlo=data["stablehlo"],
            probes=tuple(ProbeInfo.from_json(p, leaves_from_json(data["outputs"])) for p in data.get("probes", ())),
            unprobed=data.get("unprobed", ""),
            **common,
        )


@dataclass(frozen=True)
class FunctionBundle(AnyBundle[FunctionManifest]):
    """A compiled function in memory."""

    manifest_type = FunctionManifest

    @property
    def stablehlo(self) -> str:
        """The traced function."""
        return self.files[self.manifest.stablehlo].decode()


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
