"""The update rules, each a few lines of mathematics.

>>> from optgen.rules import get_rule
>>> get_rule("adamw").hyper("weight_decay").default
0.01
>>> get_rule("adamw", "optax").hyper("weight_decay").default
0.0001
"""

from __future__ import annotations

from optgen.dsl.rule import Rule
from optgen.errors import UnknownRuleError
from optgen.rules import (
    adabelief,
    adagrad,
    adam,
    adamax,
    adan,
    ftrl,
    ivy,
    layerwise,
    lion,
    nadam,
    radam,
    rmsprop,
    schedule_free,
    sgd,
    sophia,
)

_FAMILIES = (
    sgd, adam, adamax, nadam, radam, adabelief, adan, adagrad, rmsprop, ftrl, lion, layerwise, schedule_free, sophia,
    ivy,
)  # fmt: skip

RULES: dict[tuple[str, str], Rule] = {
    (rule.name, rule.convention): rule
    for family in _FAMILIES
    for rule in vars(family).values()
    if isinstance(rule, Rule)
}

#: Conventions whose arithmetic and defaults are those of another, under which the rule is registered.
SAME: dict[tuple[str, str], str] = {
    ("sgd", "optax"): "torch",
    ("adam", "optax"): "torch",
    ("adamax", "optax"): "torch",
    ("adadelta", "optax"): "torch",
}

#: Which convention is meant where none is named: the first of these that the rule has.
PREFERRED = ("torch", "optax", "keras", "ivy")


def conventions(name: str) -> list[str]:
    """The conventions that rule ``name`` is there in, the default first."""
    found = [c for n, c in (*RULES, *SAME) if n == name]
    return sorted(found, key=PREFERRED.index)


def get_rule(name: str | Rule, convention: str | None = None) -> Rule:
    """The rule of that name.

    Args:
        name: a name, or a rule, which is returned as it is.
        convention: whose arithmetic; by default torch's, else optax's, else the only one there is.

    Raises:
        UnknownRuleError: if there is none; the message lists those there are.
    """
    if isinstance(name, Rule):
        return name
    found = conventions(name)
    if not found:
        known = ", ".join(dict.fromkeys(n for n, _ in sorted(RULES)))
        raise UnknownRuleError(f"unknown rule {name!r}; the rules are {known}")
    chosen = found[0] if convention is None else convention
    if chosen not in found:
        raise UnknownRuleError(
            f"rule {name!r} must be in the convention of {' or '.join(found)} (got convention={convention!r})"
        )
    return RULES[name, SAME.get((name, chosen), chosen)]
