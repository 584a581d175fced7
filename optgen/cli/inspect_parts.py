"""What ``optgen inspect`` shows of bundles of all kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optgen.cli.output import size, table

if TYPE_CHECKING:
    from optgen.artifact.base import AnyBundle
    from optgen.artifact.manifest import LeafInfo, ModuleInfo
    from optgen.hyper import Hyper

#: Leaves that are listed of a tree; models have thousands.
_LEAVES = 20


@dataclass(frozen=True)
class Listed:
    """What is shown of a bundle: facts by name, an explanation, tables."""

    facts: Mapping[str, str]
    doc: str
    tables: Sequence[Any]


def facts_of(bundle: AnyBundle[Any]) -> dict[str, str]:
    """The facts that all kinds have."""
    manifest = bundle.manifest
    return {
        "made by": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
        "runs with": f"iree-base-runtime {manifest.min_runtime} or newer",
        "size": f"{size(bundle.size)} in {len(bundle.files)} files, format {manifest.format}",
    }


def groups(given: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each pattern, with its hyperparameters."""
    return "\n".join(
        f"{pattern}: {', '.join(f'{n}={v:g}' for n, v in numbers.items())}" for pattern, numbers in given.items()
    )


def hypers(given: Iterable[Hyper]) -> Any:
    """A table of hyperparameters."""
    rows = table("hyperparameter", "default", "range")
    for hyper in given:
        default = "counted in the state" if hyper.kind == "step" else "must be given"
        rows.add_row(hyper.name, default if hyper.default is None else f"{hyper.default:g}", _range(hyper))
    return rows


def _range(hyper: Hyper) -> str:
    if hyper.kind == "step":
        return f"whole numbers from {0 if hyper.closed else 1}"
    if hyper.kind == "decay":
        return "[0, 1]" if hyper.closed else "[0, 1)"
    return "any number" if hyper.signed else "at least 0"


def needs(module: ModuleInfo) -> str:
    """What a processor must be and have to run a module."""
    return f"{module.arch}, {len(module.features)} features" if module.arch else "-"


def leaves(title: str, given: Sequence[tuple[LeafInfo, str]], role: str = "") -> Any:
    """A table of leaves, each with what it is for, under the header ``role``; the first ones of many."""
    headers = (title, *([role] if role else []), "dtype", "shape")
    rows = table(*headers)
    for leaf, what in given[:_LEAVES]:
        shape = "x".join(map(str, leaf.shape)) or "one element"
        rows.add_row(leaf.path or "(the array itself)", *([what] if role else []), leaf.dtype, shape)
    if len(given) > _LEAVES:
        rows.add_row(f"... {len(given) - _LEAVES} more", *[""] * (len(headers) - 1))
    return rows
