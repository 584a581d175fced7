"""Transform bundles: the update of one whole tree, compiled, in the same storage as the rules.

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
from optgen.artifact.manifest import Compiled, KernelInfo, LeafInfo, ModuleInfo, kernel_from_json, modules_from_json
from optgen.probes.info import ProbeInfo

if TYPE_CHECKING:
    from typing import Self

FORMAT = 2


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
class TransformManifest(AnyManifest):
    """What a transform bundle holds.

    Attributes:
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
        probes: of the update; one or none.
        unprobed: why there is none.
    """

    kind = "transform"
    newest = FORMAT

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
    probes: tuple[ProbeInfo, ...] = ()
    unprobed: str = ""
    format: int = field(default=FORMAT, kw_only=True)

    @property
    def probed(self) -> Sequence[ProbeInfo]:
        """As :attr:`AnyManifest.probed`."""
        return self.probes

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

    @property
    def functions(self) -> tuple[FunctionInfo, ...]:
        """Those of ``init`` and ``head`` that there are."""
        return tuple(function for function in (self.init, self.head) if function is not None)

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    @property
    def compiled(self) -> Sequence[Compiled]:
        """What depends on the params, the head and the kernels."""
        return (*self.functions, *self.kernels)

    @property
    def named(self) -> set[str]:
        """As :attr:`AnyManifest.named`."""
        found = super().named | {self.update, *(function.stablehlo for function in self.functions)}
        return found | {INITIAL} if any(i.kind == "stored" for i in self.initial) else found

    @classmethod
    def _read(cls, data: Mapping[str, Any], **common: Any) -> Self:
        return cls(
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
            probes=tuple(ProbeInfo.from_json(p, _results(data)) for p in data.get("probes", ())),
            unprobed=data.get("unprobed", ""),
            **common,
        )


def _results(data: Mapping[str, Any]) -> list[LeafInfo]:
    found = [data["arguments"][i] for i in data["writes"]]
    return [
        LeafInfo(f"{a['tree']}/{a['path']}".rstrip("/"), tuple(a["shape"]), "i32" if a["dtype"] == "i1" else a["dtype"])
        for a in found
    ]


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
class TransformBundle(AnyBundle[TransformManifest]):
    """A compiled transformation in memory."""

    manifest_type = TransformManifest

    @property
    def stablehlo(self) -> str:
        """The update of the whole tree, as it was traced."""
        return self.files[self.manifest.update].decode()
