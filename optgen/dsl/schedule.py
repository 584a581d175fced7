"""What a learning rate schedule is: a function of the step and of numbers, traced into the module as a rule is."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optgen.dsl.rule import Rule
from optgen.errors import HyperparameterError
from optgen.hyper import Hyper


@dataclass(frozen=True)
class Schedule:
    """A learning rate by the step, for ``chain(..., lr=...)``. Its numbers are run-time hyperparameters.

    Attributes:
        rule: its function, which takes keywords alone, and its numbers.
    """

    rule: Rule


@dataclass(frozen=True)
class ScheduleKind:
    """A schedule without its numbers: call it with them. Made by :func:`schedule`.

    Attributes:
        rule: its function and hyperparameters, with the defaults that they have.
    """

    rule: Rule

    @property
    def doc(self) -> str:
        """Formula and explanation."""
        return self.rule.doc

    def __call__(self, *numbers: float, **named: float) -> Schedule:
        """The schedule with these numbers, by position or by name. Those that are not given must be given to steps.

        Raises:
            HyperparameterError: for one that it does not have, or that is out of its range.
        """
        names = [h.name for h in self.rule.hypers if h.name not in ("step", "lr_scale")]
        if len(numbers) > len(names):
            raise HyperparameterError(
                f"'{self.rule.name}' must be given at most {len(names)} numbers (got {len(numbers)})"
            )
        given = {**dict(zip(names, numbers, strict=False)), **named}
        if twice := [n for n in names[: len(numbers)] if n in named]:
            raise HyperparameterError(f"'{twice[0]}' of '{self.rule.name}' must be given once")
        for name in given:
            if name not in names:
                raise HyperparameterError(
                    f"'{self.rule.name}' has no hyperparameter '{name}' (it has {', '.join(names)})"
                )
        hypers = tuple(
            dataclasses.replace(h, default=h.check(given[h.name])) if h.name in given else h for h in self.rule.hypers
        )
        return Schedule(dataclasses.replace(self.rule, hypers=hypers))


def schedule(function: Callable[..., Any]) -> ScheduleKind:
    """Makes a schedule from ``function(*, step, ...)``; ``step`` is 1 at the first update.

    Every schedule has a factor ``lr_scale``, 1 by default, for :ref:`groups` of leaves.
    """

    def scaled(*, lr_scale: Any, **keywords: Any) -> Any:
        return lr_scale * function(**keywords)

    scaled.__doc__ = function.__doc__
    hypers = [
        Hyper(p.name, "step" if p.name == "step" else "scalar", None if p.default is p.empty else float(p.default))
        for p in inspect.signature(function).parameters.values()
    ]
    name = function.__name__
    return ScheduleKind(
        Rule(name, "torch", scaled, "w", (), (), (*hypers, Hyper("lr_scale", default=1.0)), {}, frozenset(), "")
    )
