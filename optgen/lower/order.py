"""What comes before what in a compiled program: commands, regions of commands, and the timepoints that order those."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_Regions = frozenset[int]
_NONE: _Regions = frozenset()


@dataclass(frozen=True)
class When:
    """A time: commands of the same group of the same region run side by side.

    Attributes:
        region: the number of the ``stream.async.execute``; 0 for the host.
        group: within it.
        command: the number of the command.
    """

    region: int
    group: int
    command: int


class Order:
    """The order of a function's regions, as far as timepoints say it. Told of operations one after the other.

    Attributes:
        now: the time of the current command.
    """

    def __init__(self) -> None:
        self.now = When(0, 0, 0)
        #: For each region those that it comes after; for 0, the host, those that it has waited for.
        self._before: dict[int, _Regions] = {0: _NONE}
        self._timepoints: dict[Any, _Regions] = {}
        self._count = 0
        self._marks = 0

    def begin(self, op: Any) -> None:
        """A region begins."""
        self._count += 1
        self._before[self._count] = self._before[0] | self._of(op.operands)
        self.now = When(self._count, 0, self.now.command)

    def end(self, op: Any) -> None:
        """It ends; its timepoint stands for it and for what it comes after."""
        number = self.now.region
        self.now = When(0, 0, self.now.command)
        for result in op.results:
            if _is_timepoint(result):
                self._timepoints[result] = self._before[number] | {number}

    def next_group(self) -> None:
        """What follows in this region comes after what was there."""
        self.now = dataclasses.replace(self.now, group=self.now.group + 1)

    def next_command(self) -> None:
        """Another command."""
        self.now = dataclasses.replace(self.now, command=self.now.command + 1)

    def waited(self, op: Any) -> None:
        """The host has waited for timepoints."""
        self._before[0] |= self._of(op.operands)

    def joined(self, op: Any) -> None:
        """A timepoint for several."""
        for result in op.results:
            self._timepoints[result] = self._of(op.operands)

    def beside(self, when: When) -> bool:
        """Whether nothing orders the current command and the one at ``when``."""
        if when.command == self.now.command or 0 in (when.region, self.now.region):
            return False
        if when.region == self.now.region:
            return when.group == self.now.group
        return when.region not in self._before[self.now.region]

    def control(self, op: Any, walk: Callable[[Any], None]) -> None:
        """A loop or a branch; ``walk`` is called for each of its blocks.

        Regions inside a loop have run when its timepoint is reached if each round's timepoint comes after the one of
        the round before.
        """
        waited = self._before[0]
        if op.name == "scf.for":
            block = op.regions[0].blocks[0]
            self._loop(op, list(op.operands)[3:], list(block.arguments)[1:], walk, [block])
        elif op.name == "scf.while":
            blocks = [region.blocks[0] for region in op.regions]
            self._loop(op, list(op.operands), list(blocks[0].arguments), walk, blocks)
        else:
            self._branch(op, walk)
        self._before[0] = waited  # what the host has waited for inside may not have run

    def _loop(
        self, op: Any, initial: list[Any], arguments: list[Any], walk: Callable[[Any], None], blocks: list[Any]
    ) -> None:
        marks = {}
        for argument, start in zip(arguments, initial, strict=False):
            if _is_timepoint(argument):
                self._marks -= 1
                marks[argument] = self._marks
                self._timepoints[argument] = self._of([start]) | {self._marks}
        ends: list[list[Any]] = []
        for block in blocks:
            if ends:  # the second block of a while: it takes what the condition passes on
                for argument, passed in zip(block.arguments, ends[-1], strict=False):
                    self._timepoints[argument] = self._of([passed])
            walk(block)
            last = list(block.operations)[-1].operation
            ends.append(list(last.operands)[1 if last.name == "scf.condition" else 0 :])
        rounds, given = ends[-1], ends[0]
        own = set(marks.values())
        for position, (result, start) in enumerate(zip(op.results, initial, strict=False)):
            if not _is_timepoint(result):
                continue
            first = self._of([start])
            made = self._of([rounds[position]]) if position < len(rounds) else _NONE
            left = self._of([given[position]]) if position < len(given) else _NONE
            mark = marks.get(arguments[position])
            self._timepoints[result] = first | ((made | left) - own) if mark in made and mark in left else _NONE

    def _branch(self, op: Any, walk: Callable[[Any], None]) -> None:
        inside: list[_Regions] = []
        ends: list[list[Any]] = []
        for region in op.regions:
            for block in region.blocks:
                start = self._count
                walk(block)
                inside.append(frozenset(range(start + 1, self._count + 1)))
                ends.append(list(list(block.operations)[-1].operation.operands))
        for position, result in enumerate(op.results):
            if _is_timepoint(result) and ends:
                every = [
                    self._of([end[position]] if position < len(end) else []).union(
                        *(other for k, other in enumerate(inside) if k != i)
                    )
                    for i, end in enumerate(ends)
                ]
                self._timepoints[result] = frozenset.intersection(*every)

    def _of(self, values: Any) -> _Regions:
        return _NONE.union(*(self._timepoints.get(v, _NONE) for v in values))


def _is_timepoint(value: Any) -> bool:
    return "timepoint" in str(value.type)
