"""Groups of leaves, by patterns of their paths, with hyperparameters of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from optgen.errors import HyperparameterError
from optgen.hyper import Hyper
from optgen.runtime.tree import show

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

    def value(self, name: str, common: Any) -> Any:
        """One of them."""
        found = self.numbers.get(name, common)
        return found * self.scale if name == "lr" and self.scale != 1.0 else found


class Groups:
    """The groups of an optimizer.

    All patterns that match a leaf's path apply to it; where two have the same hyperparameter, the first one's counts.
    A leaf's own path matches as it is, brackets and all.

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
        self._unmatched = tuple(pattern for pattern, _ in self._patterns)
        self._none = Group(0)
        self._known: dict[tuple[int, ...], Group] = {(): self._none}
        self._scaled_by = "" if _has(hyper, SCALE) else SCALE

    def of(self, path: str) -> Group:
        """The group of the leaf at ``path``."""
        if not self._patterns:
            return self._none
        found = tuple(i for i, (pattern, _) in enumerate(self._patterns) if matches(pattern, path))
        if found not in self._known:
            numbers: dict[str, float] = {}
            for i in reversed(found):
                numbers |= self._patterns[i][1]
            scale = numbers.pop(self._scaled_by, 1.0)
            self._known[found] = Group(len(self._known), numbers, scale)
        return self._known[found]

    def check(self, paths: Collection[str]) -> None:
        """:func:`check_matches` of the first params that the groups are used for."""
        if not self._unmatched or not paths:
            return
        check_matches(self._unmatched, paths)
        self._unmatched = ()


def matches(pattern: str, path: str) -> bool:
    """Whether ``pattern``, as of ``fnmatch``, with slashes or dots, is for the leaf at ``path``."""
    dotted = path.replace("/", ".")
    return pattern in (path, dotted) or fnmatchcase(path, pattern) or fnmatchcase(dotted, pattern)


def check_matches(patterns: Iterable[str], paths: Collection[str]) -> None:
    """Refuses patterns that match none of ``paths``.

    Raises:
        HyperparameterError: naming the first of them, and the path that is nearest to it.
    """
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            raise HyperparameterError(f"'groups' must match leaves of the params: {no_match(pattern, paths)}")


def no_match(pattern: str, paths: Iterable[str]) -> str:
    """What to say of a pattern that matches none of ``paths``: which of them is nearest to it."""
    from difflib import get_close_matches

    known = list(paths)
    spelled = {p: p for p in known} | {p.replace("/", "."): p for p in known}
    near = get_close_matches(pattern, spelled, n=1, cutoff=0.0)
    nearest = f"; the nearest is {show(spelled[near[0]])}" if near else ""
    return f"{pattern!r} matches none of the {len(known)} leaves{nearest}"


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
