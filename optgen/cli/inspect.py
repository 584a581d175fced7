"""``optgen inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from optgen.cli.arguments import open_any
from optgen.cli.output import console

if TYPE_CHECKING:
    from optgen.artifact.kinds import SomeBundle
    from optgen.cli.inspect_parts import Listed


def inspect_command(
    bundle: Annotated[str, typer.Argument(help="A bundle of any kind, or the name of a prebuilt rule.")],
    json: Annotated[bool, typer.Option("--json", help="The manifest itself.")] = False,
) -> None:
    """Show what a bundle holds: a rule, a function, an optax transformation or a training step.

    Its hashes are checked on the way.
    """
    opened = open_any(bundle)
    if json:
        typer.echo(opened.manifest.to_json(), nl=False)
        return
    listed, out = _listed(opened), console()
    out.print(_grid(listed))
    out.print("", listed.doc or "(without explanation)", sep="\n")
    for rows in listed.tables:
        out.print("", rows)


def _listed(bundle: SomeBundle) -> Listed:
    from optgen.artifact.function import FunctionBundle
    from optgen.artifact.step import StepBundle
    from optgen.artifact.transform import TransformBundle
    from optgen.cli import inspect_rule, inspect_trees

    if isinstance(bundle, FunctionBundle):
        return inspect_trees.inspect_function(bundle)
    if isinstance(bundle, TransformBundle):
        return inspect_trees.inspect_transform(bundle)
    if isinstance(bundle, StepBundle):
        return inspect_trees.inspect_step(bundle)
    return inspect_rule.inspect_rule(bundle)


def _grid(listed: Listed) -> Any:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for name, value in listed.facts.items():
        if value:
            grid.add_row(name, value)
    return grid
