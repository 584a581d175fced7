"""``optgen inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from optgen.cli.arguments import open_bundle
from optgen.cli.output import console, size, table, yes

if TYPE_CHECKING:
    from optgen.artifact import Bundle, Manifest
    from optgen.hyper import Hyper

#: Leaves of a layout that are listed; models have thousands.
_LEAVES = 20


def inspect_command(
    bundle: Annotated[str, typer.Argument(help="A bundle, or the name of a prebuilt one.")],
    json: Annotated[bool, typer.Option("--json", help="The manifest itself.")] = False,
) -> None:
    """Show what a bundle holds. Its hashes are checked on the way."""
    opened = open_bundle(bundle)
    if json:
        typer.echo(opened.manifest.to_json(), nl=False)
        return
    out = console()
    out.print(_facts(opened))
    out.print("", opened.manifest.doc or "(without explanation)", sep="\n")
    for rows in (_hypers(opened), _modules(opened), _layout(opened)):
        if rows is not None:
            out.print("", rows)


def _facts(bundle: Bundle) -> Any:
    from rich.table import Table

    manifest = bundle.manifest
    versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
    structure = ", ".join(f"{name}={str(value).lower()}" for name, value in manifest.structure.items())
    layout = "any" if manifest.layout is None else f"{len(manifest.layout)} leaves"
    facts = {
        "rule": f"{manifest.rule}, in the convention of {manifest.convention}",
        "variant": manifest.variant + (f" ({structure})" if structure else ""),
        "source": manifest.source,
        "param": manifest.param,
        "inputs": ", ".join(manifest.inputs),
        "state": ", ".join(_state(manifest)) or "none",
        "per element": ", ".join(manifest.per_element),
        "baked in": ", ".join(f"{name}={value:g}" for name, value in manifest.baked.items()),
        "groups": "\n".join(
            f"{pattern}: {', '.join(f'{n}={v:g}' for n, v in numbers.items())}"
            for pattern, numbers in manifest.groups.items()
        ),
        "layout": f"{layout}, fixed" if manifest.fixed_layout else layout,
        "made by": versions,
        "runs with": f"iree-base-runtime {manifest.min_runtime} or newer",
        "size": f"{size(bundle.size)} in {len(bundle.files)} files, format {manifest.format}",
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(name, value)
    return grid


def _state(manifest: Manifest) -> list[str]:
    """Each piece of state, with what it starts as where that is not zero."""
    starts = {name: f"{value:g}" if isinstance(value, float | int) else value for name, value in manifest.init.items()}
    tensors = [f"{name} (first {starts[name]})" if name in starts else name for name in manifest.state]
    return tensors + [f"{name} (a number, first {value:g})" for name, value in manifest.scalars.items()]


def _hypers(bundle: Bundle) -> Any:
    rows = table("hyperparameter", "default", "range")
    for hyper in bundle.manifest.hypers:
        default = "counted in the state" if hyper.kind == "step" else "must be given"
        rows.add_row(hyper.name, default if hyper.default is None else f"{hyper.default:g}", _range(hyper))
    return rows


def _range(hyper: Hyper) -> str:
    if hyper.kind == "step":
        return f"whole numbers from {0 if hyper.closed else 1}"
    if hyper.kind == "decay":
        return "[0, 1]" if hyper.closed else "[0, 1)"
    return "any number" if hyper.signed else "at least 0"


def _modules(bundle: Bundle) -> Any:
    rows = table("kernel", "operands", "target", "size", "in place", "needs", right=["size"])
    for kernel in bundle.manifest.all_kernels:
        label, operands = kernel.name, " ".join(f"{o.name}:{o.dtype}" for o in kernel.operands)
        for module in kernel.modules:
            needs = f"{module.arch}, {len(module.features)} features" if module.arch else "-"
            place = yes(module.in_place) if kernel.in_place else f"no: {kernel.reason}"
            rows.add_row(label, operands, module.target, size(len(bundle.module(module))), place, needs)
            label = operands = ""
    return rows


def _layout(bundle: Bundle) -> Any:
    leaves = bundle.manifest.layout
    if leaves is None:
        return None
    rows = table("leaf", "dtype", "shape")
    for leaf in leaves[:_LEAVES]:
        rows.add_row(leaf.path or "(the array itself)", leaf.dtype, "x".join(map(str, leaf.shape)) or "one element")
    if len(leaves) > _LEAVES:
        rows.add_row(f"... {len(leaves) - _LEAVES} more", "", "")
    return rows
