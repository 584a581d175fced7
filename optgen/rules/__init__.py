"""The update rules, each a few lines of mathematics.

>>> from optgen.rules import get_rule
>>> get_rule("adamw").hyper("weight_decay").default
0.01
"""

from __future__ import annotations

from optgen.dsl.rule import Rule
from optgen.errors import UnknownRuleError
from optgen.rules.adam import adam, adamw
from optgen.rules.ivy import adam_ivy, adam_step, gradient_descent
from optgen.rules.sgd import sgd

RULES: dict[tuple[str, str], Rule] = {
    (rule.name, rule.convention): rule for rule in (sgd, adam, adamw, gradient_descent, adam_ivy, adam_step)
}


def get_rule(name: str | Rule, convention: str | None = None) -> Rule:
    """The rule of that name.

    Args:
        name: a name, or a rule, which is returned as it is.
        convention: whose arithmetic; by default torch's, or the only one there is.

    Raises:
        UnknownRuleError: if there is none; the message lists those there are.
    """
    if isinstance(name, Rule):
        return name
    found = {c: rule for (n, c), rule in RULES.items() if n == name and convention in (None, c)}
    if not found:
        known = ", ".join(n if c == "torch" else f"{n} (convention={c!r})" for n, c in sorted(RULES))
        wanted = name if convention is None else f"{name} (convention={convention!r})"
        raise UnknownRuleError(f"unknown rule {wanted!r}; the rules are {known}")
    return found.get("torch") or next(iter(found.values()))
