"""Groups of leaves, by patterns of their paths, with hyperparameters of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from optgen.errors import HyperparameterError
from optgen.hyper import Hyper

#: A group's factor for ``lr``, where the rule has no hyperparameter of that name.
SCALE = "lr_scale"


@dataclass(frozen=True)
class Group:
    """Leaves that share their hyperparameters.

    Attributes:
        index: which group of its optimizer this is; 0 has no numbers of its own.
        numbers: hyperparameters that differ from those of a step.
        scale: a factor for ``lr``.
    """

    index: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0

    def values(self, common: Mapping[str, float]) -> dict[str, float]:
        """The hyperparameters of its leaves in a step with the hyperparameters ``common``."""
        values = {**common, **self.numbers}
        if self.scale != 1.0:
            values["lr"] *= self.scale
        return values


class Groups:
    """The groups of an optimizer.

    All patterns that match a leaf's path apply to it; where two have the same hyperparameter, the first one's counts.

    Args:
        patterns: from each pattern, as of ``fnmatch``, to hyperparameters. ``*`` matches dots and slashes too, and a
            pattern may have dots where paths have slashes.
        hyper: gives the hyperparameter of a name, or raises.
        common: hyperparameters that must be the same for all leaves, because scalar state depends on them.

    Raises:
        HyperparameterError: if a number is out of its range, unknown, or one of those in ``common``.
    """

    def __init__(
        self, patterns: Mapping[str, Mapping[str, Any]], hyper: Callable[[str], Hyper], common: Mapping[str, str]
    ) -> None:
        self._patterns: list[tuple[str, dict[str, float]]] = []
        for pattern, numbers in patterns.items():
            if not isinstance(pattern, str) or not isinstance(numbers, Mapping):
                raise HyperparameterError(
                    f"'groups' must map patterns of paths to dicts of hyperparameters (got {pattern!r}: {numbers!r})"
                )
            self._patterns.append((pattern, {n: _check(n, v, pattern, hyper, common) for n, v in numbers.items()}))
        self._none = Group(0)
        self._known: dict[tuple[int, ...], Group] = {(): self._none}
        self._scaled_by = "" if _has(hyper, SCALE) else SCALE

    def of(self, path: str) -> Group:
        """The group of the leaf at ``path``."""
        if not self._patterns:
            return self._none
        dotted = path.replace("/", ".")
        found = tuple(
            i
            for i, (pattern, _) in enumerate(self._patterns)
            if fnmatchcase(path, pattern) or fnmatchcase(dotted, pattern)
        )
        if found not in self._known:
            numbers: dict[str, float] = {}
            for i in reversed(found):
                numbers |= self._patterns[i][1]
            scale = numbers.pop(self._scaled_by, 1.0)
            self._known[found] = Group(len(self._known), numbers, scale)
        return self._known[found]


def _has(hyper: Callable[[str], Hyper], name: str) -> bool:
    try:
        hyper(name)
    except HyperparameterError:
        return False
    return True


def _check(name: str, value: Any, pattern: str, hyper: Callable[[str], Hyper], common: Mapping[str, str]) -> float:
    known = Hyper(SCALE) if name == SCALE and not _has(hyper, SCALE) and _has(hyper, "lr") else hyper(name)
    if known.kind == "step":
        raise HyperparameterError(f"'step' of group {pattern!r} must not be given: it is counted in the state")
    if (why := common.get("lr" if known.name == SCALE and not _has(hyper, SCALE) else name)) is not None:
        raise HyperparameterError(f"'{name}' of group {pattern!r} must not be given: {why}")
    return known.check(value)
