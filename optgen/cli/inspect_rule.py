"""What ``optgen inspect`` shows of the bundle of a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optgen.cli.inspect_parts import Listed, facts_of, groups, hypers, leaves, needs
from optgen.cli.output import size, table, yes

if TYPE_CHECKING:
    from optgen.artifact import Bundle, Manifest


def inspect_rule(bundle: Bundle) -> Listed:
    """Facts, and tables of hyperparameters, modules and the layout."""
    manifest = bundle.manifest
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
        "groups": groups(manifest.groups),
        "layout": f"{layout}, fixed" if manifest.fixed_layout else layout,
    }
    layouts = [] if manifest.layout is None else [leaves("leaf", [(e, "") for e in manifest.layout])]
    return Listed(facts | facts_of(bundle), manifest.doc, [hypers(manifest.hypers), _modules(bundle), *layouts])


def _state(manifest: Manifest) -> list[str]:
    """Each piece of state, with what it starts as where that is not zero."""
    starts = {name: f"{value:g}" if isinstance(value, float | int) else value for name, value in manifest.init.items()}
    tensors = [f"{name} (first {starts[name]})" if name in starts else name for name in manifest.state]
    return tensors + [f"{name} (a number, first {value:g})" for name, value in manifest.scalars.items()]


def _modules(bundle: Bundle) -> Any:
    rows = table("kernel", "operands", "target", "size", "in place", "needs", right=["size"])
    for kernel in bundle.manifest.all_kernels:
        label, operands = kernel.name, " ".join(f"{o.name}:{o.dtype}" for o in kernel.operands)
        for module in kernel.modules:
            place = yes(module.in_place) if kernel.in_place else f"no: {kernel.reason}"
            rows.add_row(label, operands, module.target, size(len(bundle.module(module))), place, needs(module))
            label = operands = ""
    return rows
