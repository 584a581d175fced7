"""Numbers of steps, as states hold them: of the whole tree, and of leaves that have missed some.

torch counts the steps of each param by itself: those for which it had a grad. So does a rule of torch's convention.
As long as no grad was ever missing ``state["step"]`` is the count of all leaves. From then on ``state["leaf_step"]``
has the counts of the leaves whose own is another, by path, and ``state["leaf_NAME"]`` their scalar state, where the
rule has some (NAdam's product of momenta). What belongs to a part of a chain for the whole tree (a loss scale, the
number of skipped updates) stays one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optgen.artifact import Manifest
from optgen.errors import TreeError
from optgen.runtime.tree import leaves_of, show

#: Steps that are counted exactly in every arithmetic's widest float.
_MOST = 2**53


def count_of(value: Any, what: str = "state 'step'") -> int:
    """A number of steps as Python's integer.

    Args:
        value: an integer of any kind, a float that is one, or an array of no dimensions that holds either.
        what: what to call it in errors.

    Raises:
        TreeError: if it is something else, negative, or not finite.
    """
    if type(value) is int and 0 <= value < _MOST:
        return value
    if not isinstance(value, bool | np.bool_ | str | bytes):
        try:
            array = np.asarray(value)
            if array.shape == () and array.dtype.kind in "iuf" and 0 <= array < _MOST and array == np.floor(array):
                return int(array)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TreeError(f"{what} must be a whole number of steps, at least 0 (got {value!r})")


def number_of(state: Mapping[str, Any], name: str) -> float:
    """A number of scalar state.

    Raises:
        TreeError: if the state lacks it, or it is no finite number.
    """
    if name not in state:
        raise TreeError(f"'state' must have '{name}' (it has {', '.join(map(repr, state))})")
    value = state[name]
    if type(value) is float and -_LARGEST <= value <= _LARGEST:
        return value
    if not isinstance(value, bool | np.bool_ | str | bytes):
        try:
            array = np.asarray(value)
            if array.size == 1 and array.dtype.kind in "iuf" and np.isfinite(array).all():
                return float(array.reshape(()))
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TreeError(f"state '{name}' must be a finite number (got {value!r})")


_LARGEST = float(np.finfo(np.float64).max)


LEAF_STEP = "leaf_step"
#: Scalar state of parts of chains that is about the calls of a whole tree, whoever's leaves they are.
_OF_TREE = ("loss_scale", "good_steps", "skipped", "micro")

#: The count of a leaf, and then its scalar state.
Own = tuple[float, ...]


class LeafCounts:
    """What the leaves of a rule count by themselves.

    Args:
        manifest: of the rule.

    Attributes:
        wanted: whether they count by themselves at all: in torch's convention, where something depends on it. With a
            schedule the count is the tree's, since that is what schedules go by.
        scalars: the scalar state that leaves have by themselves.
        skipped: the scalar state that counts calls that have updated nothing.
    """

    def __init__(self, manifest: Manifest) -> None:
        def of_tree(name: str, kinds: Sequence[str] = _OF_TREE) -> bool:
            return any(name == kind or name.endswith(f"_{kind}") for kind in kinds)

        names = {h.name for h in manifest.hypers}
        counts = "step" in names
        scheduled = counts and bool(names & {"lr_scale", "schedule_lr_scale"})
        self.scalars = tuple(n for n in manifest.scalars if not of_tree(n))
        self.skipped = tuple(n for n in manifest.scalars if of_tree(n, ("skipped",)))
        self.wanted = manifest.convention == "torch" and not scheduled and (counts or bool(self.scalars))

    def of(self, state: Mapping[str, Any]) -> dict[str, Own]:
        """The leaves whose count is not that of the tree, by path.

        Raises:
            TreeError: if a number is none, or missing.
        """
        if not self.wanted or state.get(LEAF_STEP) is None:
            return {}
        counts = {
            path: count_of(v, f"state 'leaf_step' at {show(path)}") for path, v in leaves_of(state[LEAF_STEP]).items()
        }
        columns = []
        for name in self.scalars:
            given = leaves_of(state.get(f"leaf_{name}"))
            if missing := [path for path in counts if path not in given]:
                raise TreeError(f"state 'leaf_{name}' must have {show(missing[0])}, which 'leaf_step' has")
            columns.append({path: number_of(given, path) for path in counts})
        return {path: (float(count), *(c[path] for c in columns)) for path, count in counts.items()}

    def behind(self, state: Mapping[str, Any], own: Mapping[str, Own], missing: Iterable[str]) -> dict[str, Own]:
        """Those of :meth:`of`, and those that a call is about to leave out."""
        if not self.wanted:
            return {}
        now = (float(count_of(state["step"])), *(number_of(state, name) for name in self.scalars))
        return {**own, **{path: now for path in missing if path not in own}}

    def after(
        self, own: Mapping[str, Own], new: Mapping[str, Sequence[float]], missing: Iterable[str], skipped: float
    ) -> dict[str, Any]:
        """What a call leaves in the state.

        Args:
            own: from :meth:`behind`.
            new: the new scalar state of those of its leaves that took part, by path.
            missing: those that did not.
            skipped: by how much the number of skipped calls has grown; such calls count as calls for all.
        """
        found = {path: (values[0] + 1, *new[path]) for path, values in own.items() if path in new}
        found |= {path: (own[path][0] + skipped, *own[path][1:]) for path in missing if path in own}
        found = {path: found.get(path, own[path]) for path in own}
        if not found:
            return {}
        columns = {f"leaf_{name}": {p: v[1 + i] for p, v in found.items()} for i, name in enumerate(self.scalars)}
        return {LEAF_STEP: {path: int(values[0]) for path, values in found.items()}, **columns}

    def grown(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
        """By how much the number of skipped calls has grown."""
        return sum(float(after[name]) - float(before[name]) for name in self.skipped if name in after)
