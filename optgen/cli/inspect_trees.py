"""What ``optgen inspect`` shows of bundles that were compiled for one tree: functions, transformations, steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optgen.artifact.manifest import LeafInfo
from optgen.cli.inspect_parts import Listed, facts_of, groups, hypers, leaves, needs
from optgen.cli.output import size, table, yes

if TYPE_CHECKING:
    from optgen.artifact.function import FunctionBundle
    from optgen.artifact.step import StepArgument, StepBundle, StepManifest, StepModule
    from optgen.artifact.transform import TransformBundle

#: In the order in which they are told.
_ROLES = {
    "param": "params", "frozen": "frozen params", "state": "state", "batch": "batch", "eval_batch": "evaluation",
}  # fmt: skip


def inspect_function(bundle: FunctionBundle) -> Listed:
    """Facts, and tables of modules, arguments and results."""
    manifest = bundle.manifest
    facts = {
        "function": f"{manifest.name}({', '.join(manifest.arguments)})",
        "arguments": _amount(manifest.inputs),
        "results": _amount(manifest.outputs),
    }
    rows = table("target", "size", "in place", "needs", right=["size"])
    for module in manifest.modules:
        rows.add_row(module.target, size(len(bundle.module(module))), "no: results are new arrays", needs(module))
    arguments = leaves("argument", [(leaf, "") for leaf in manifest.inputs])
    results = leaves("result", [(leaf, "") for leaf in manifest.outputs])
    return Listed(facts | facts_of(bundle), manifest.doc, [rows, arguments, results])


def inspect_transform(bundle: TransformBundle) -> Listed:
    """Facts, and tables of modules, of what is computed out of place, and of the arguments."""
    manifest = bundle.manifest
    trees: dict[str, list[LeafInfo]] = {}
    for a in manifest.arguments:
        trees.setdefault(a.tree, []).append(LeafInfo(f"{a.tree}/{a.path}".rstrip("/"), a.shape, a.dtype))
    facts = {"transformation": f"{manifest.name}, of optax"} | {tree: _amount(own) for tree, own in trees.items()}
    rows = table("part", "operands", "target", "size", "in place", "needs", right=["size"])
    kernels = {kernel.name: kernel for kernel in manifest.kernels}
    for compiled in manifest.compiled:
        kernel, label = kernels.get(compiled.name), compiled.name
        operands = " ".join(f"{o.name}:{o.dtype}" for o in kernel.operands) if kernel else ""
        for module in compiled.modules:
            place = yes(module.in_place) if kernel else "no: it only reads"
            rows.add_row(label, operands, module.target, size(len(bundle.module(module))), place, needs(module))
            label = operands = ""
    writes = set(manifest.writes)
    roles = ["replaced" if i in writes else "read" for i in range(len(manifest.arguments))]
    every = leaves("leaf", list(zip((e for own in trees.values() for e in own), roles, strict=True)), "is")
    tables = [rows, every]
    if manifest.out_of_place:
        apart = table("out of place", "because")
        for path, reason in manifest.out_of_place.items():
            apart.add_row(path, reason)
        tables.insert(1, apart)
    return Listed(facts | facts_of(bundle), "An update of one whole tree, as optax traced it.", tables)


def inspect_step(bundle: StepBundle) -> Listed:
    """Facts, and tables of hyperparameters, modules, arguments and results."""
    manifest = bundle.manifest
    by_role: dict[str, list[StepArgument]] = {}
    for argument in manifest.arguments:
        by_role.setdefault(argument.role, []).append(argument)
    facts = {
        "step": f"{manifest.name}, by {manifest.optimizer}",
        "programs": ", ".join(entry.name for entry in manifest.entries),
        **{title: _amount(by_role.get(role, ())) for role, title in _ROLES.items()},
        "numbers": ", ".join(a.path for role in ("count", "scalar") for a in by_role.get(role, ())),
        "key": "one for each step" if "rng" in by_role else "none",
        "accumulates": f"the mean of grads; '{manifest.every}' is the number of steps" if manifest.every else "",
        "groups": groups(manifest.groups),
    }
    rows = table("target", "size", "arithmetic", "in place", "needs", right=["size"])
    for module in manifest.modules:
        data = size(len(bundle.module(module)))
        rows.add_row(module.target, data, module.compute, _place(manifest, module), needs(module))
    listed = [(LeafInfo(a.name, a.shape, a.dtype), a.role) for role in _ROLES for a in by_role.get(role, ())]
    results = [
        (LeafInfo(result.path, result.shape, result.dtype), entry.name)
        for entry in manifest.entries
        for result, give in zip(entry.results, entry.gives, strict=True)
        if give < 0
    ]
    numbers = [hypers(manifest.hypers)] if manifest.hypers else []
    tables = [*numbers, rows, leaves("leaf", listed, "role"), leaves("result", results, "of")]
    return Listed(facts | facts_of(bundle), manifest.doc, tables)


def _place(manifest: StepManifest, module: StepModule) -> str:
    if module.in_place:
        return "yes"
    names = [manifest.arguments[i].name for i in module.apart]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"all but {', '.join(names[:3])}{more}: {module.reason}"


def _amount(given: Sequence[Any]) -> str:
    """How many leaves and elements; nothing for none."""
    elements = sum(math.prod(leaf.shape) for leaf in given)
    leaf = "leaf" if len(given) == 1 else "leaves"
    return f"{len(given)} {leaf}, {elements:,} elements" if given else ""
