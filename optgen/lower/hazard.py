"""Hazards of aliasing: reads of memory that the program has already overwritten.

A program whose results lie in its arguments' memory (``tf.aliasing_output``) is compiled without anybody looking for
what else reads an argument: IREE places the result there after its own copy-on-write has run. So the compiled program
is searched. The text is the compiler's IR right before it allocates memory (``--mlir-print-ir-before=
iree-stream-schedule-allocation``): commands are in the order in which they will run, results that take an argument's
memory are tied to it, and values are still in SSA form, which tells a read of the old contents from one of the new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from optgen.lower.pointwise import Bodies

#: The flag that makes iree-compile print what :func:`find_hazards` reads.
PRINT_FLAG = "--mlir-print-ir-before=iree-stream-schedule-allocation"
_HEADER = "// -----// IR Dump"
#: Commands whose first operand is the memory that they write, and nothing else.
_TARGET_FIRST = ("stream.async.update", "stream.async.copy", "stream.async.fill")


@dataclass(frozen=True)
class Hazard:
    """A read that may see what another command has written.

    Attributes:
        function: the entry point.
        argument: the position of the argument that is overwritten.
        reader: the command that reads it.
        writer: the command that writes it.
        kind: ``after`` where the write comes first, ``concurrent`` where nothing orders the two, ``within`` where one
            command does both, by elements that are not each other's, ``unknown`` where the analysis cannot tell.
    """

    function: str
    argument: int
    reader: str
    writer: str
    kind: str

    def __str__(self) -> str:
        how = {
            "after": f"reads argument {self.argument} after {self.writer} has written it",
            "concurrent": f"reads argument {self.argument} while {self.writer} may write it",
            "within": f"reads elements of argument {self.argument} that it writes elsewhere",
            "unknown": f"uses argument {self.argument}, written by {self.writer}, in a way that cannot be followed",
        }[self.kind]
        return f"{self.function}: {self.reader} {how}"


def find_hazards(printed: str) -> list[Hazard]:
    """The hazards of every function in the IR that the compiler printed with :data:`PRINT_FLAG`.

    The analysis is exact for straight programs, and refuses what it cannot follow: memory that is written inside a
    loop or a branch, and a command that reads what it writes, unless each element depends on its own place alone.

    Args:
        printed: what iree-compile wrote to its standard error. Of several modules (constants are evaluated in one of
            their own) the last one counts.

    Raises:
        ValueError: if there is no such module in it.
    """
    from iree.compiler import ir

    text = _last_module(printed)
    found: list[Hazard] = []
    with ir.Context():
        module = ir.Module.parse(text)
        bodies = Bodies(module)
        for op in module.body.operations:
            if op.operation.name in ("util.func", "func.func") and op.operation.regions[0].blocks:
                found += _Function(op.operation, bodies).run()
    return found


def _last_module(printed: str) -> str:
    _, header, rest = printed.rpartition(_HEADER)
    if not header:
        raise ValueError("the compiler printed no IR: it must be run with " + PRINT_FLAG)
    return rest[rest.index("\n") :]


@dataclass(frozen=True)
class _When:
    """A time: commands of the same group of the same region run side by side.

    Attributes:
        region: the number of the ``stream.async.execute``; 0 for the host.
        group: within it.
        command: the number of the command.
    """

    region: int
    group: int
    command: int = 0


@dataclass
class _Memory:
    """An argument's memory: its versions, by the writes that have been made."""

    argument: int
    #: The newest version, the command that wrote it, and when.
    version: int = 0
    writer: str = ""
    when: _When | None = None
    #: Reads, with the time of each.
    reads: list[tuple[_When, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """What an SSA value is: a version of an argument's memory."""

    memory: _Memory
    version: int


class _Function:
    """One function, walked in the order of its commands."""

    def __init__(self, function: Any, bodies: Bodies) -> None:
        self.name = str(function.attributes["sym_name"]).strip('"')
        self.block = function.regions[0].blocks[0]
        self.bodies = bodies
        self.places: dict[Any, _Place] = {}
        self.found: dict[Hazard, None] = {}
        self.now = _When(0, 0)
        self.nested = 0
        #: What each region, by its number, comes after; what the host has waited for; what timepoints stand for.
        self.before: dict[int, frozenset[int]] = {0: frozenset()}
        self.timepoints: dict[Any, frozenset[int]] = {}
        self.regions = 0

    def run(self) -> list[Hazard]:
        self.walk(self.block)
        return list(self.found)

    def walk(self, block: Any) -> None:
        for each in block.operations:
            op = each.operation
            visit: Callable[[Any], None] | None = {
                "stream.tensor.import": self.importing,
                "stream.async.execute": self.executing,
                "stream.async.concurrent": self.concurrent,
                "stream.timepoint.await": self.awaiting,
                "stream.timepoint.join": self.joining,
                "stream.async.dispatch": self.command,
                "stream.async.update": self.command,
                "stream.async.copy": self.command,
                "stream.async.fill": self.command,
                "stream.async.clone": self.command,
                "stream.async.transfer": self.command,
                "stream.async.slice": self.command,
                "stream.async.load": self.command,
                "stream.tensor.export": self.command,
                "util.optimization_barrier": self.passing,
            }.get(op.name)
            if visit is not None:
                visit(op)
            elif op.regions:
                self.control(op)
            else:
                self.other(op)

    # Operations that move values around.

    def importing(self, op: Any) -> None:
        owner = op.operands[0]
        number = next((i for i, a in enumerate(self.block.arguments) if a == owner), -1)
        self.places[op.results[0]] = _Place(_Memory(number), 0)

    def executing(self, op: Any) -> None:
        self.regions += 1
        number = self.regions
        self.before[number] = self.before[0].union(*(self.timepoints.get(v, ()) for v in op.operands))
        self.now = _When(number, 0, self.now.command)
        self.enter(op, ordered=True)
        self.now = _When(0, 0, self.now.command)
        for result in op.results:
            self.timepoints[result] = self.before[number] | {number}

    def concurrent(self, op: Any) -> None:
        self.next()
        self.enter(op, ordered=False)
        self.next()

    def next(self) -> None:
        self.now = dataclasses.replace(self.now, group=self.now.group + 1)

    def enter(self, op: Any, *, ordered: bool) -> None:
        block = op.regions[0].blocks[0]
        resources = [v for v in op.operands if "resource" in str(v.type)]
        for argument, outer in zip(block.arguments, resources, strict=False):
            if outer in self.places:
                self.places[argument] = self.places[outer]
        for each in block.operations:
            if ordered:
                self.next()
            self.step(each.operation)
        last = list(block.operations)[-1].operation
        for result, inner in zip(op.results, last.operands, strict=False):
            if inner in self.places:
                self.places[result] = self.places[inner]

    def step(self, op: Any) -> None:
        if op.name == "stream.yield":
            return
        if op.name == "stream.async.concurrent":
            self.concurrent(op)
        elif op.regions:
            self.control(op)
        else:
            self.command(op)

    def awaiting(self, op: Any) -> None:
        resources = [v for v in op.operands if "resource" in str(v.type)]
        for result, outer in zip(op.results, resources, strict=False):
            if outer in self.places:
                self.places[result] = self.places[outer]
        self.before[0] = self.before[0].union(*(self.timepoints.get(v, ()) for v in op.operands))

    def joining(self, op: Any) -> None:
        for result in op.results:
            self.timepoints[result] = frozenset().union(*(self.timepoints.get(v, ()) for v in op.operands))

    def passing(self, op: Any) -> None:
        for result, operand in zip(op.results, op.operands, strict=True):
            if operand in self.places:
                self.places[result] = self.places[operand]

    # Commands.

    def command(self, op: Any) -> None:
        """Something that reads its operands and may write those that results are tied to."""
        label = _label(op)
        self.now = dataclasses.replace(self.now, command=self.now.command + 1)
        written: list[tuple[_Place, Any]] = []
        for result, operand in zip(op.results, _tied(op), strict=False):
            if operand is not None and op.operands[operand] in self.places:
                written.append((self.places[op.operands[operand]], result))
        overwritten = {id(place.memory) for place, _ in written}
        for index, value in enumerate(op.operands):
            place = self.places.get(value)
            if place is not None and self.reads(op, index):
                self.read(place, label)
                if id(place.memory) in overwritten and not self.bodies.pointwise(op, self.same(op, place.memory)):
                    self.report(place.memory, label, label, "within")
        for place, result in written:
            memory = place.memory
            if self.nested:
                self.report(memory, label, label, "unknown")
            for when, reader in memory.reads:
                if self.beside(when):
                    self.report(memory, reader, label, "concurrent")
            if place.version != memory.version:  # two results in the same memory
                self.report(memory, label, memory.writer, "after")
            memory.version += 1
            memory.writer, memory.when = label, self.now
            self.places[result] = _Place(memory, memory.version)

    def reads(self, op: Any, index: int) -> bool:
        if op.name == "stream.async.dispatch":
            return self.bodies.reads(op, index)
        return index > 0 or op.name not in _TARGET_FIRST

    def same(self, op: Any, memory: _Memory) -> list[int]:
        return [i for i, v in enumerate(op.operands) if v in self.places and self.places[v].memory is memory]

    def read(self, place: _Place, label: str) -> None:
        memory = place.memory
        beside = memory.when is not None and self.beside(memory.when)
        if place.version != memory.version:
            self.report(memory, label, memory.writer, "concurrent" if beside else "after")
        elif beside:
            self.report(memory, label, memory.writer, "concurrent")
        memory.reads.append((self.now, label))

    def beside(self, when: _When) -> bool:
        """Whether nothing orders this command and the one at ``when``."""
        if when.command == self.now.command:
            return False
        if when.region == self.now.region:
            return self.now.region > 0 and when.group == self.now.group
        return self.now.region > 0 and when.region > 0 and when.region not in self.before[self.now.region]

    def control(self, op: Any) -> None:
        """A loop or a branch: it may read arguments' memory, as long as nothing in it writes any."""
        self.other(op)
        self.nested += 1
        for region in op.regions:
            for block in region.blocks:
                self.walk(block)
        self.nested -= 1

    def other(self, op: Any) -> None:
        """An operation that is not known: it reads, and what it returns may be what it was given."""
        for value in op.operands:
            place = self.places.get(value)
            if place is not None:
                self.read(place, op.name)
                if any("resource" in str(r.type) for r in op.results):
                    self.report(place.memory, op.name, place.memory.writer or "another command", "unknown")

    def report(self, memory: _Memory, reader: str, writer: str, kind: str) -> None:
        self.found[Hazard(self.name, memory.argument, reader, writer, kind)] = None


def _label(op: Any) -> str:
    if "entry_points" in op.attributes:
        return str(op.attributes["entry_points"][0]).rpartition("@")[2]
    return str(op.name)


def _tied(op: Any) -> Iterator[int | None]:
    """For each result the operand whose memory it takes."""
    if op.name in _TARGET_FIRST:
        yield 0
        return
    if op.name != "stream.async.dispatch" or "tied_operands" not in op.attributes:
        yield from (None for _ in op.results)
        return
    first = _first_operand(op)
    for each in _numbers(op.attributes["tied_operands"]):
        yield None if each < 0 else first + each


def _first_operand(op: Any) -> int:
    """Tied operands are counted without a dispatch's workload, which comes first."""
    segments = list(op.attributes["operandSegmentSizes"]) if "operandSegmentSizes" in op.attributes else [0]
    return int(segments[0])


def _numbers(attribute: Any) -> Iterable[int]:
    return (int(str(each).partition(" ")[0]) for each in attribute)
