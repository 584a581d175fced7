"""What a training step is to be: checked settings, traced parts, arguments and entry points, for any arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optgen.artifact.function import Structure
from optgen.artifact.manifest import LeafInfo
from optgen.artifact.step import COMPUTE, EntryInfo, StepArgument
from optgen.probes.generate import Fill
from optgen.train.join import Entry, join, passed_through, unread
from optgen.train.leafwise import leaf_kernels
from optgen.train.parts import Part
from optgen.train.update import Update

#: The parts that replace params and state.
_UPDATES = ("update", "mean")


@dataclass(frozen=True)
class StepPlan:
    """A step before it is compiled. Made by :func:`plan_step`.

    Attributes:
        name: of the loss function.
        doc: first line of its docstring.
        update: the optimizer.
        gradient: loss, gradient and metrics.
        evaluation: what is evaluated beside the step.
        metrics, result: the structures of metrics and of what evaluation gives.
        arguments: of all programs; numbers of the arithmetic's type have the dtype ``compute``.
        groups: hyperparameters by patterns of leaves' paths.
        asked: the arithmetic that was asked for.
        fills: what arguments hold in probes, by their position; of those that come from the user's examples.
    """

    name: str
    doc: str
    update: Update
    gradient: Part
    evaluation: Part | None
    metrics: Structure
    result: Structure
    arguments: tuple[StepArgument, ...]
    groups: Mapping[str, Mapping[str, float]]
    asked: str | None
    fills: Mapping[int, Fill] = field(default_factory=dict)

    def parts(self, compute: str) -> dict[str, Part]:
        """The traced parts, by name, for one arithmetic."""
        found = {"gradient": self.gradient, "update": self.update.trace(compute)}
        if self.update.every:
            found["mean"] = self.update.trace_micro(compute)
        if self.evaluation is not None:
            found["evaluation"] = self.evaluation
        if self.update.init is not None:
            found["initial"] = self.update.init
        return found

    def entries(self, parts: Mapping[str, Part]) -> tuple[EntryInfo, ...]:
        """The programs: ``step``, and where there are such ``micro``, ``evaluate`` and ``init``."""
        found = [self._entry("step", parts, ("gradient", "update"))]
        if "mean" in parts:
            found.append(self._entry("micro", parts, ("gradient", "mean")))
        if "evaluation" in parts:
            found.append(self._entry("evaluate", parts, ("evaluation",)))
        if "initial" in parts:
            found.append(self._entry("init", parts, ("initial",)))
        return tuple(found)

    def _entry(self, name: str, parts: Mapping[str, Part], keys: tuple[str, ...]) -> EntryInfo:
        made: dict[str, LeafInfo] = {}
        for key in keys:
            made |= {leaf.path: leaf for leaf in parts[key].outputs}
        last = parts[keys[-1]]
        unchanged = passed_through(last) if name in ("step", "micro") else set()
        wanted = set().union(*(_inputs(parts[k]) for k in keys))
        used = set().union(*(_inputs(parts[k]) - unread(parts[k]) for k in keys))
        takes = tuple(
            i for i, a in enumerate(self.arguments) if a.name in wanted and (a.role != "hyper" or a.name in used)
        )
        results = [
            leaf
            for leaf in made.values()
            if leaf.path not in unchanged and not leaf.path.startswith("grads/") and leaf.path != "grads"
        ]
        at = {self.arguments[i].name: i for i in takes}
        gives = tuple(at.get(leaf.path, -1) for leaf in results) if name != "init" else (-1,) * len(results)
        return EntryInfo(name, takes, gives, tuple(results))

    def text(
        self,
        compute: str,
        parts: Mapping[str, Part],
        entries: Sequence[EntryInfo],
        apart: Iterable[int] = (),
        *,
        in_place: bool = True,
        fuse: bool = True,
        name: str = "step",
    ) -> str:
        """The module of ``entries``.

        Args:
            compute: the arithmetic.
            parts, entries: as :meth:`parts` and :meth:`entries` give them.
            apart: arguments that are not to be overwritten.
            in_place: False to overwrite none.
            fuse: whether each leaf's update is one kernel; see :func:`optgen.train.leafwise.leaf_kernels`.
            name: of the module.
        """
        keys = {"step": ("gradient", "update"), "micro": ("gradient", "mean"), "evaluate": ("evaluation",)}
        out = set(apart)
        made = [
            Entry(
                entry.name,
                keys.get(entry.name, ("initial",)),
                tuple(leaf_of(self.arguments[i], compute) for i in entry.takes),
                entry.results,
                frozenset(self.arguments[i].name for i in self.overwritten(entry) if in_place and i not in out),
            )
            for entry in entries
        ]
        written = {
            key: leaf_kernels(parts[key], f"{key}_main", entry.aliased)
            for entry in made
            for key in entry.parts
            if fuse and key in _UPDATES
        }
        return join(name, parts, made, written=written)

    def overwritten(self, entry: EntryInfo) -> tuple[int, ...]:
        """The arguments that a program may overwrite: arrays, but no single numbers, which many kernels read."""
        return tuple(
            i
            for i in entry.gives
            if i >= 0 and self.arguments[i].role in ("param", "state") and self.arguments[i].shape
        )


def leaf_of(argument: StepArgument, compute: str) -> LeafInfo:
    """Name, shape and dtype of an argument, for one arithmetic."""
    return LeafInfo(argument.name, argument.shape, compute if argument.dtype == COMPUTE else argument.dtype)


def _inputs(part: Part) -> set[str]:
    return {leaf.path for leaf in part.inputs}
