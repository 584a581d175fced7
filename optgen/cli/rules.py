"""``optgen rules``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from optgen.cli.output import console, table
from optgen.formula import inline, mathematics, plain, summary

if TYPE_CHECKING:
    from optgen.dsl.rule import Rule, StateSlot
    from optgen.hyper import Hyper


def rules_command(
    name: Annotated[str | None, typer.Argument(help="A rule, to show in full.", show_default="list all")] = None,
    convention: Annotated[str | None, typer.Option(help="Only this one: torch, optax, keras, ivy.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the update rules, or show one: formula, state, hyperparameters, source."""
    from optgen.rules import PREFERRED, RULES, conventions, get_rule

    if convention is not None and convention not in PREFERRED:
        raise typer.BadParameter(
            f"must be one of {', '.join(PREFERRED)} (got {convention!r})", param_hint="--convention"
        )
    if name is None:
        chosen = [rule for rule in RULES.values() if convention in (None, rule.convention)]
    elif convention is not None:
        chosen = [get_rule(name, convention)]
    else:
        named = (get_rule(name, each) for each in conventions(get_rule(name).name))
        chosen = list({(rule.name, rule.convention): rule for rule in named}.values())
    if json:
        _write_json(chosen)
    elif name is None:
        _list(chosen)
    else:
        for i, rule in enumerate(chosen):
            _show(rule, first=i == 0)


def other_names(rule: Rule) -> list[str]:
    """The conventions that ``rule`` is meant by, its own first."""
    from optgen.rules import SAME

    mine = (rule.name, rule.convention)
    return [rule.convention, *(c for (n, c), same in SAME.items() if (n, same) == mine)]


def _list(rules: list[Rule]) -> None:
    rows = table("rule", "conventions", "state", "what it does")
    for name in dict.fromkeys(rule.name for rule in rules):
        family = [rule for rule in rules if rule.name == name]
        names = [c for rule in family for c in other_names(rule)]
        state = ", ".join([*(_slot(slot) for slot in family[0].state), *family[0].scalars]) or "none"
        rows.add_row(name, ", ".join(names), state, summary(family[0]))
    rows.columns[0].no_wrap = True
    console().print(rows)


def _show(rule: Rule, *, first: bool) -> None:
    out = console()
    if not first:
        out.print()
    out.print(f"{rule.name}, in the convention of {' and '.join(other_names(rule))}")
    for paragraph in rule.doc.split("\n\n"):
        if paragraph.startswith(".. math::"):
            out.print(
                "", *(f"    {line}" for line in plain(paragraph.removeprefix(".. math::")).split(";  ")), sep="\n"
            )
        elif paragraph.startswith("    "):
            out.print("", *(f"    {line}" for line in plain(paragraph).split(";  ")), sep="\n")
        else:
            out.print("", inline(" ".join(paragraph.split())), sep="\n")
    out.print("", f"source: {rule.source}", f"inputs: {', '.join(rule.inputs)}", sep="\n")
    slots = [_slot(slot, full=True) for slot in rule.state]
    numbers = [f"{name} (a number, first {value:g})" for name, value in rule.scalars.items()]
    out.print(f"state:  {', '.join([*slots, *numbers]) or 'none'}")
    rows = table("hyperparameter", "default", "kind")
    for hyper in rule.hypers:
        rows.add_row(hyper.name, _default(rule, hyper), "decay rate" if hyper.kind == "decay" else hyper.kind)
    for flag in rule.flags:
        rows.add_row(flag, "false", "structure")
    out.print("", rows)


def _slot(slot: StateSlot, *, full: bool = False) -> str:
    text = slot.name if slot.needs is None else f"{slot.name} (with {slot.needs})"
    return (
        f"{text} (first {slot.init if isinstance(slot.init, str) else format(slot.init, 'g')})"
        if (full and slot.init != 0)
        else text
    )


def _default(rule: Rule, hyper: Hyper) -> str:
    if hyper.kind == "step":
        return "counted in the state"
    if hyper.default is None:
        return "optional" if hyper.name in rule.optional else "must be given"
    return f"{hyper.default:g}"


def _write_json(rules: list[Rule]) -> None:
    import dataclasses
    import json

    data: list[dict[str, Any]] = [
        {
            "rule": rule.name,
            "conventions": other_names(rule),
            "summary": summary(rule),
            "formula": mathematics(rule.doc),
            "source": rule.source,
            "inputs": rule.inputs,
            "state": [
                {"name": slot.name, "needs": slot.needs, "init": slot.init, "own_shape": slot.shape is not None}
                for slot in rule.state
            ],
            "scalars": rule.scalars,
            "hyperparameters": [
                {**dataclasses.asdict(hyper), "optional": hyper.name in rule.optional} for hyper in rule.hypers
            ],
            "structure": rule.flags,
        }
        for rule in rules
    ]
    typer.echo(json.dumps(data, indent=1))
