"""The update rules, each a few lines of mathematics.

>>> from optgen.rules import get_rule
>>> get_rule("adamw").hyper("weight_decay").default
0.01
>>> get_rule("adamw", "optax").hyper("weight_decay").default
0.0001
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from optgen.dsl.rule import Rule
from optgen.errors import UnknownRuleError

#: The files that each rule is in. They are read when a rule of theirs is asked for: all of them take 25 ms.
_FILES = {
    "sgd": "sgd",
    "adam": "adam ivy",
    "adamw": "adam", "amsgrad": "adam",
    "adamax": "adamax", "adamaxw": "adamax",
    "nadam": "nadam", "nadamw": "nadam",
    "radam": "radam",
    "adabelief": "adabelief", "yogi": "adabelief",
    "adan": "adan", "ademamix": "adan", "adopt": "adan",
    "adagrad": "adagrad", "adadelta": "adagrad",
    "rmsprop": "rmsprop", "rprop": "rmsprop",
    "ftrl": "ftrl",
    "lion": "lion", "signsgd": "lion", "signum": "lion",
    "lars": "layerwise", "lamb": "layerwise", "novograd": "layerwise",
    "schedule_free_sgd": "schedule_free", "schedule_free_adamw": "schedule_free",
    "sophia_g": "sophia",
    "muon": "muon",
    "adafactor": "adafactor",
    "gradient_descent": "ivy", "adam_step": "ivy",
}  # fmt: skip

if TYPE_CHECKING:
    RULES: dict[tuple[str, str], Rule]


@cache
def _family(file: str) -> dict[tuple[str, str], Rule]:
    found = vars(import_module(f"optgen.rules.{file}")).values()
    return {(rule.name, rule.convention): rule for rule in found if isinstance(rule, Rule)}


@cache
def _all() -> dict[tuple[str, str], Rule]:
    found = {key: rule for files in _FILES.values() for file in files.split() for key, rule in _family(file).items()}
    names = list(_FILES)
    return dict(sorted(found.items(), key=lambda item: (names.index(item[0][0]), PREFERRED.index(item[0][1]))))


def __getattr__(name: str) -> Any:
    if name == "RULES":
        return _all()
    raise AttributeError(f"module 'optgen.rules' has no attribute {name!r}")


#: Conventions whose arithmetic and defaults are those of another, under which the rule is registered.
SAME: dict[tuple[str, str], str] = {
    ("sgd", "optax"): "torch",
    ("adam", "optax"): "torch",
    ("adamax", "optax"): "torch",
    ("adadelta", "optax"): "torch",
}

#: Rules that relate elements to one another, and are compiled for the shapes of given leaves.
OUT_OF_PLACE = ("muon", "adafactor")

#: Which convention is meant where none is named: the first of these that the rule has.
PREFERRED = ("torch", "optax", "keras", "ivy")


def rule_names() -> list[str]:
    """The names of all rules."""
    return list(_FILES)


def conventions(name: str) -> list[str]:
    """The conventions that rule ``name`` is there in, the default first."""
    families = [_family(file) for file in _FILES.get(name, "").split()]
    found = [c for n, c in (*(key for family in families for key in family), *SAME) if n == name]
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
        known = ", ".join(sorted(_FILES))
        raise UnknownRuleError(f"unknown rule {name!r}; the rules are {known}")
    chosen = found[0] if convention is None else convention
    if chosen not in found:
        raise UnknownRuleError(
            f"rule {name!r} must be in the convention of {' or '.join(found)} (got convention={convention!r})"
        )
    key = name, SAME.get((name, chosen), chosen)
    return next(family[key] for file in _FILES[name].split() if key in (family := _family(file)))
