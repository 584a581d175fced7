"""What users type for rules, settings and bundles, as objects."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import typer

from optgen.cli.settings import settings_of
from optgen.errors import RuleError, UnknownRuleError

if TYPE_CHECKING:
    from optgen.artifact import Bundle
    from optgen.artifact.kinds import SomeBundle
    from optgen.dsl import Rule
    from optgen.dsl.variant import Variant


def find_rule(text: str, convention: str | None = None) -> Rule:
    """The rule that ``text`` names: one of optgen's by name, ``file.py:name``, or a chain of such and parts.

    Raises:
        UnknownRuleError: if there is no such rule.
        RuleError: if the file is missing or cannot be run.
    """
    from optgen.dsl.chain import parse_chain
    from optgen.rules import get_rule

    if "+" in text and not Path(text.rpartition(":")[0] or text).is_file():
        return parse_chain(text, lambda term: find_rule(term, convention))
    file, colon, name = text.rpartition(":")
    if not (colon and file.endswith(".py")):
        if not text.endswith(".py"):
            return get_rule(text, convention)
        file, name = text, ""
    if convention is not None:
        raise typer.BadParameter(
            "is for optgen's own rules; a rule in a file says which it follows", param_hint="--convention"
        )
    rules = _rules_in(Path(file))
    if not name and len(rules) == 1:
        return next(iter(rules.values()))
    if name not in rules:
        has = f"it has {', '.join(rules)}" if rules else "it has no rule at all: decorate one with @optgen.rule(...)"
        raise UnknownRuleError(
            f"there is no rule {name!r} in {file} ({has})" if name else f"which rule of {file}? {has}"
        )
    return rules[name]


def _rules_in(path: Path) -> dict[str, Rule]:
    from optgen.dsl import Rule

    if not path.is_file():
        raise RuleError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"optgen_rules_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up there
    sys.path.insert(0, str(path.parent.resolve()))  # what lies beside the file can be imported, as from a script
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
        where = f" ({path.name}, line {lines[-1]})" if lines and not isinstance(error, SyntaxError) else ""
        raise RuleError(f"{path} cannot be loaded{where}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return {name: value for name, value in vars(module).items() if isinstance(value, Rule)}


def parse_settings(texts: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """``name=value`` texts as a dict: true and false as bools, none as None, all else as numbers.

    Raises:
        typer.BadParameter: if one is nothing of the kind.
    """
    try:
        return settings_of(texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def parse_bake(texts: Iterable[str], settings: dict[str, Any]) -> list[str]:
    """The names to bake in. Values given with them, as in ``lr=0.1``, are put into ``settings``."""
    texts = list(texts)
    settings.update(parse_settings([t for t in texts if "=" in t], "--bake"))
    return [text.partition("=")[0].strip() for text in texts]


def choose_variant(rule: Rule, settings: dict[str, Any], bake: Iterable[str], **more: Any) -> Variant:
    """The variant that settings mean, as :func:`optgen.compile` chooses it; ``more`` is for :meth:`Variant.of`.

    Raises:
        HyperparameterError: for a name or value that the rule does not have.
    """
    from optgen.dsl.variant import Variant
    from optgen.errors import HyperparameterError
    from optgen.runtime.loading import split_settings

    structure, values = split_settings(rule.flags, rule.optional, settings)
    baked: dict[str, float] = {}
    for name in bake:
        value = values.get(name, rule.hyper(name).default)
        if value is None:
            raise HyperparameterError(f"'{name}' must have a value to be baked in: write --bake {name}=VALUE")
        baked[name] = value
    for name, value in values.items():
        rule.hyper(name).check(value)
    return Variant.of(rule, structure=structure, bake=baked, **more)


def check_dtype(text: str, option: str = "--dtype") -> str:
    """The MLIR name of a dtype.

    Raises:
        typer.BadParameter: if it is none that optgen has.
    """
    from optgen.dtypes import dtype_name

    try:
        return dtype_name(text)
    except ValueError as error:
        raise typer.BadParameter(str(error).partition(" ")[2], param_hint=option) from None


def parse_state_dtype(text: str | None) -> Any:
    """What ``optgen.compile`` takes as ``state_dtype``: a dtype, ``f8``, or from ``m=bf16,v=f8v`` a mapping.

    Raises:
        typer.BadParameter: if there is a dtype that optgen does not have.
    """
    from optgen.dtypes import state_dtype_name

    def check(name: str) -> str:
        try:
            return state_dtype_name(name)
        except ValueError as error:
            raise typer.BadParameter(str(error).partition(" ")[2], param_hint="--state-dtype") from None

    if text is None or text == "f8":
        return text
    if "=" not in text:
        return check(text)
    pairs = (each.partition("=") for each in text.split(","))
    return {slot.strip(): check(name.strip()) for slot, _, name in pairs}


def open_bundle(text: str) -> Bundle:
    """See :func:`optgen.runtime.loading.open_bundle`."""
    from optgen.runtime import loading

    return loading.open_bundle(text)


def open_any(text: str) -> SomeBundle:
    """See :func:`optgen.runtime.loading.open_any`."""
    from optgen.runtime import loading

    return loading.open_any(text)
