"""``optgen rules``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from optgen.cli.output import console, table

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


def formula(rule: Rule) -> list[str]:
    """The rule's formulas, as plain text that can be read in a terminal."""
    return [plain(part) for part in _mathematics(rule.doc)]


def summary(rule: Rule) -> str:
    """The first sentence of the rule's explanation, with its formulas as plain text."""
    first = " ".join(rule.doc.split("\n\n")[0].split())
    return _inline(first)


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
            out.print("", _inline(" ".join(paragraph.split())), sep="\n")
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
            "formula": _mathematics(rule.doc),
            "source": rule.source,
            "inputs": rule.inputs,
            "state": [dataclasses.asdict(slot) for slot in rule.state],
            "scalars": rule.scalars,
            "hyperparameters": [
                {**dataclasses.asdict(hyper), "optional": hyper.name in rule.optional} for hyper in rule.hypers
            ],
            "structure": rule.flags,
        }
        for rule in rules
    ]
    typer.echo(json.dumps(data, indent=1))


def _mathematics(doc: str) -> list[str]:
    """The formulas of a docstring, in LaTeX."""
    import re

    found, inside = [], False
    for paragraph in doc.split("\n\n"):
        inside = paragraph.startswith(".. math::") or (inside and paragraph.startswith("    "))
        if inside:
            found.append(" ".join(paragraph.removeprefix(".. math::").split()))
        else:
            found += re.findall(r":math:`([^`]+=[^`]+)`", paragraph)
    return found


def _inline(text: str) -> str:
    """A paragraph with its formulas, and names in quotes, as plain text."""
    import re

    text = re.sub(r":math:`([^`]*)`", lambda match: plain(match.group(1)), text)
    return text.replace("``", "")


_GREEK = {
    "alpha": "α", "beta": "β", "delta": "δ", "epsilon": "ε", "eta": "η", "gamma": "γ", "kappa": "κ", "lambda": "λ",
    "mu": "μ", "rho": "ρ", "tau": "τ", "psi": "ψ", "infty": "∞", "prod": "∏", "sum": "∑", "le": "≤", "ge": "≥",
    "max": "max", "min": "min", "quad": " ", "qquad": " ", "hat": "^", "sigma": "σ",
}  # fmt: skip


def plain(latex: str) -> str:
    r"""LaTeX as text for a terminal: ``\frac{a}{b}`` becomes ``a / b``; separate formulas are parted by ``;``.

    Only what the rules' docstrings use is known.
    """
    import re

    text = " ".join(latex.split())
    text = re.sub(r",?\s*\\q?quad\b", ";  ", text)
    cases = re.compile(r"\\begin\{cases\}(.*?)\\end\{cases\}")
    text = cases.sub(lambda m: "{" + " | ".join(_case(line) for line in m.group(1).split("\\\\")) + "}", text)
    text = re.sub(r"\\(?:left|right|,|;|!)", "", text).replace("\\|", "‖").replace("\\tfrac12", "½ ")
    text = text.replace("\\tfrac1t", "1/t")
    text = re.sub(r"\\(?:mathrm|text)\{([^{}]*)\}", r"\1", text)
    text = _fractions(text)
    text = re.sub(r"\\hat ?\\?(\w)", lambda m: f"{m.group(1)}̂" if len(m.group(1)) == 1 else m.group(0), text)
    text = re.sub(r"\\([a-zA-Z]+)", lambda m: _GREEK.get(m.group(1), m.group(1)), text)
    text = re.sub(
        r"([_^])\{([^{}]*)\}", lambda m: m.group(1) + (m.group(2) if len(m.group(2)) == 1 else f"({m.group(2)})"), text
    )
    text = re.sub(r"\^\((t)\)", r"^\1", text)
    return " ".join(text.split()).replace("; ", ";  ").strip(" ,;")


def _case(line: str) -> str:
    value, _, condition = line.partition("&")
    return f"{value.strip()} if {condition.strip()}" if condition.strip() != "\\text{else}" else f"{value.strip()} else"


def _fractions(text: str) -> str:
    """``\\frac`` and ``\\sqrt`` with their arguments, from the outermost inwards."""
    for command, count in (("\\frac", 2), ("\\sqrt", 1)):
        while (at := text.find(command)) >= 0:
            parts, end = [], at + len(command)
            for _ in range(count):
                part, end = _argument(text, end)
                parts.append(part)
            whole = f"√{_closed(parts[0])}" if count == 1 else f"{_closed(parts[0])}/{_closed(parts[1])}"
            text = f"{text[:at]}{whole}{text[end:]}"
    return text


def _argument(text: str, at: int) -> tuple[str, int]:
    """The argument of a command that begins at ``at``, in braces or one letter, and where it ends."""
    while text[at] == " ":
        at += 1
    if text[at] != "{":
        return text[at], at + 1
    depth, start = 0, at + 1
    while True:
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
        if depth == 0:
            return text[start : at - 1].strip(), at


def _closed(text: str) -> str:
    """In parentheses, unless it is a single symbol."""
    import re

    return text if re.fullmatch(r"\\?\w+'?(?:_\\?\w+)?", text) else f"({text})"
