"""Rules' docstrings as plain text: the formulas, LaTeX in the source, for terminals and comments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optgen.dsl.rule import Rule


def formula(rule: Rule) -> list[str]:
    """The rule's formulas, as plain text that can be read in a terminal."""
    return [plain(part) for part in mathematics(rule.doc)]


def summary(rule: Rule) -> str:
    """The first sentence of the rule's explanation, with its formulas as plain text."""
    first = " ".join(rule.doc.split("\n\n")[0].split())
    return inline(first)


def mathematics(doc: str) -> list[str]:
    """The formulas of a docstring, in LaTeX."""
    found, inside = [], False
    for paragraph in doc.split("\n\n"):
        inside = paragraph.startswith(".. math::") or (inside and paragraph.startswith("    "))
        if inside:
            found.append(" ".join(paragraph.removeprefix(".. math::").split()))
        else:
            found += re.findall(r":math:`([^`]+=[^`]+)`", paragraph)
    return found


def inline(text: str) -> str:
    """A paragraph with its formulas, and names in quotes, as plain text."""
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
    return text if re.fullmatch(r"\\?\w+'?(?:_\\?\w+)?", text) else f"({text})"
