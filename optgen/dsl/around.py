"""Parts of chains: what is done around a rule, written as a function around a function.

A part is ``part(update, w, g, *state, *, ...)``: ``update(w, g)`` is all that lies further in, the rule at last. It
returns what ``update`` did (a :class:`New`), followed by its own new state and scalar state. Its signature is read as
a rule's is (see :mod:`optgen.dsl.rule`). Of its keyword parameters ``lr`` and ``step`` are those of the rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optgen.dsl.ops import where
from optgen.dsl.rule import Rule, RuleFunction, rule
from optgen.errors import HyperparameterError

#: Keyword parameters that parts share with the rule.
SHARED = ("lr", "step")


@dataclass(frozen=True)
class New:
    """What an update has made, or what was there before it.

    Attributes:
        w: the param.
        tensors: state tensors.
        scalars: scalar state.
    """

    w: Any
    tensors: tuple[Any, ...] = ()
    scalars: tuple[Any, ...] = ()

    def param(self, w: Any) -> New:
        """The same with another param."""
        return dataclasses.replace(self, w=w)

    def only_if(self, condition: Any, old: New) -> New:
        """All of it where ``condition`` holds, a truth value for the whole tree, and ``old`` where it does not."""
        return New(
            where(condition, self.w, old.w),
            tuple(where(condition, a, b) for a, b in zip(self.tensors, old.tensors, strict=True)),
            tuple(where(condition, a, b) for a, b in zip(self.scalars, old.scalars, strict=True)),
        )


@dataclass(frozen=True)
class Update:
    """All that lies further in than a part.

    Attributes:
        run: the function.
        old: param and state of what lies further in, as they are before it.
    """

    run: Callable[..., New]
    old: New

    def __call__(self, w: Any, g: Any, *, step: Any = None) -> New:
        """The update of ``w`` by ``g``; as the step of that number where one is given."""
        return self.run(w, g, step)


@dataclass(frozen=True)
class Part:
    """One part of a chain, with its numbers. Made by calling a :class:`PartKind`.

    Attributes:
        name: what users call it, e.g. ``clip_by_global_norm``.
        before: what it is in front of the rule, where it may be there: a rule whose first tensor is ``update``.
        after: what it is behind the rule, where it may be there.
        given: its numbers, by the name of the hyperparameter, and its flags.
        outermost: whether nothing may come before it.
        micro: for gradient accumulation, the update of its state on the steps that do nothing else.
    """

    name: str
    before: Rule | None
    after: Rule | None
    given: Mapping[str, float | bool] = field(default_factory=dict)
    outermost: bool = False
    micro: Rule | None = None

    def at(self, behind: bool) -> Rule | None:
        """What it is behind or in front of the rule, with its numbers; None where it may not be there."""
        found = self.after if behind else self.before
        if found is None:
            return None
        hypers = tuple(
            dataclasses.replace(h, default=h.check(self.given[h.name])) if h.name in self.given else h
            for h in found.hypers
        )
        scalars = {n: float(self.given.get(n, v)) for n, v in found.scalars.items()}
        flags = {n: bool(self.given.get(n, v)) for n, v in found.flags.items()}
        return dataclasses.replace(found, hypers=hypers, scalars=scalars, flags=flags)


@dataclass(frozen=True)
class PartKind:
    """A part of chains without its numbers: call it with them, by position or by name. Made by :func:`part`.

    Attributes:
        part: with no numbers given.
        positional: what positional arguments mean, in order.
        initial: the scalar state among them, of which the first value is given.
    """

    part: Part
    positional: tuple[str, ...]
    initial: frozenset[str] = frozenset()

    @property
    def __name__(self) -> str:  # what a function has, too
        return self.part.name

    @property
    def doc(self) -> str:
        """Formula and explanation."""
        found = self.part.before or self.part.after
        assert found is not None
        return found.doc

    def __call__(self, *numbers: float, **named: float | bool) -> Part:
        """The part with these numbers, which become the defaults of its hyperparameters.

        Raises:
            HyperparameterError: for one that it does not have, or that is out of its range.
        """
        part = self.part
        if len(numbers) > len(self.positional):
            raise HyperparameterError(
                f"'{part.name}' must be given at most {len(self.positional)} numbers (got {len(numbers)})"
            )
        given = {**dict(zip(self.positional, numbers, strict=False)), **named}
        found = part.before or part.after
        assert found is not None
        if len(given) < len(numbers) + len(named):
            twice = next(n for n in self.positional[: len(numbers)] if n in named)
            raise HyperparameterError(f"'{twice}' of '{part.name}' must be given once")
        for name, value in given.items():
            if name in found.flags:
                if not isinstance(value, bool):
                    raise HyperparameterError(f"'{name}' must be True or False (got {value!r})")
            elif name not in self.positional or isinstance(value, bool):
                if isinstance(value, bool):
                    raise HyperparameterError(f"'{name}' of '{part.name}' must be a number (got {value!r})")
                known = ", ".join([*self.positional, *found.flags]) or "none"
                raise HyperparameterError(f"'{part.name}' has no hyperparameter '{name}' (it has {known})")
            elif name not in self.initial:
                found.hyper(name).check(value)
        return dataclasses.replace(part, given=given)


def part(
    *, behind: bool | None, initial: tuple[str, ...] = (), outermost: bool = False, micro: Rule | None = None,
    other: RuleFunction | None = None, **declaration: Any,
) -> Callable[[RuleFunction], PartKind]:  # fmt: skip
    """Makes a :class:`PartKind` from a function around an update.

    Args:
        behind: whether it has its place behind the rule, or in front of it; None where it may have both.
        initial: scalar state whose first value users may give.
        outermost: whether it must come before all other parts.
        micro: see :class:`Part`.
        other: the function for its place behind the rule, where that differs.
        declaration: as for :func:`optgen.rule`.

    Example:
        >>> @part(behind=False)
        ... def halve(update, w, g, *, factor=0.5):
        ...     return update(w, factor * g)
        >>> halve(0.25).given
        {'factor': 0.25}
    """

    def decorate(function: RuleFunction) -> PartKind:
        made = rule(**declaration)(function)
        second = made if other is None else rule(name=made.name, **declaration)(other)
        positional = [h.name for h in made.hypers if h.name not in SHARED]
        return PartKind(
            Part(made.name, None if behind else made, second if behind is not False else None,
                 outermost=outermost, micro=micro),
            (*initial, *positional),
            frozenset(initial),
        )  # fmt: skip

    return decorate
