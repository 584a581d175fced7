"""Hazards of aliasing: reads of memory that the program has already overwritten.

A program whose results lie in its arguments' memory (``tf.aliasing_output``) is compiled without anybody looking for
what else reads an argument: IREE places the result there after its own copy-on-write has run. So the compiled program
is searched. The text is the compiler's IR right before it allocates memory (``--mlir-print-ir-before=
iree-stream-schedule-allocation``): commands are in the order in which they will run, results that take an argument's
memory are tied to it, and values are still in SSA form, which tells a read of the old contents from one of the new.

The program's own memory is searched as well: sorts, scatters and updates write in place, and what IREE 3.13 copies for
them it may join with the original again, if a kernel without operands has made it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from optgen.errors import HazardError
from optgen.lower.order import Order, When
from optgen.lower.pointwise import Bodies

#: The flag that makes iree-compile print what :func:`find_hazards` reads.
PRINT_FLAG = "--mlir-print-ir-before=iree-stream-schedule-allocation"
#: Of a hazard in memory that is no argument's.
OWN = -2
_HEADER = "// -----// IR Dump"
_COMMANDS = tuple(
    f"stream.async.{name}" for name in ("dispatch", "update", "copy", "fill", "clone", "transfer", "slice", "load")
)
#: Commands whose first operand is the memory that they write, and nothing else.
_TARGET_FIRST = ("stream.async.update", "stream.async.copy", "stream.async.fill")


@dataclass(frozen=True)
class Hazard:
    """A read that may see what another command has written.

    Attributes:
        function: the entry point.
        argument: the position of the argument that is overwritten: -1 if it is not known, :data:`OWN` for the
            program's own memory.
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
        what = "a value of the program's own" if self.argument == OWN else f"argument {self.argument}"
        how = {
            "after": f"reads {what} after {self.writer} has written it",
            "concurrent": f"reads {what} while {self.writer} may write it",
            "within": f"reads elements of argument {self.argument} that it writes elsewhere",
            "unknown": f"uses argument {self.argument}, written by {self.writer}, in a way that cannot be followed",
        }[self.kind]
        return f"{self.function}: {self.reader} {how}"


def find_hazards(printed: str, *, movable: bool = False) -> list[Hazard]:
    """The hazards of every function in the IR that the compiler printed with :data:`PRINT_FLAG`.

    The analysis is exact for straight programs, and refuses what it cannot follow: memory that is written inside a
    loop or a branch, and a command that reads what it writes, unless each element depends on its own place alone.

    Args:
        printed: what iree-compile wrote to its standard error. Of several modules (constants are evaluated in one of
            their own) the last one counts.
        movable: whether the device's compiler may move loads behind stores; see :class:`Bodies`. True for GPUs.

    Raises:
        ValueError: if there is no such module in it.
    """
    from iree.compiler import ir

    text = _last_module(printed)
    found: list[Hazard] = []
    with ir.Context():
        module = ir.Module.parse(text)
        bodies = Bodies(module, movable=movable)
        for op in module.body.operations:
            if op.operation.name in ("util.func", "func.func") and op.operation.regions[0].blocks:
                found += _Function(op.operation, bodies).run()
    return found


def check_own_memory(hazards: Iterable[Hazard]) -> None:
    """Raises what is wrong in the program's own memory: nothing that a caller donates is at fault there.

    Raises:
        HazardError: for the first such hazard.
    """
    for hazard in hazards:
        if hazard.argument == OWN:
            raise HazardError(
                f"the compiler would make a wrong module: {hazard}. Write in another way what sorts, scatters into or "
                "updates an array that is made of constants alone",
                [OWN],
            )


def _last_module(printed: str) -> str:
    _, header, rest = printed.rpartition(_HEADER)
    if not header:
        raise ValueError("the compiler printed no IR: it must be run with " + PRINT_FLAG)
    # Warnings of later passes may follow; a module ends with a brace, or with its resources, at a line's beginning.
    found = re.match(r"[^\n]*\n(.*?^\}$(?:\s*^\{-#.*?^#-\}$)?)", rest, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError("the compiler printed IR that has no end")
    return found[1]


@dataclass
class _Memory:
    """An argument's memory, or the program's own: its versions, by the writes that have been made."""

    #: The argument's position, or OWN.
    argument: int
    #: The newest version, the command that wrote it, and when.
    version: int = 0
    writer: str = ""
    when: When | None = None
    #: Reads, with the time of each.
    reads: list[tuple[When, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """What an SSA value is: a version of some memory."""

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
        self.order = Order()
        self.nested = 0

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
                "stream.timepoint.join": self.order.joined,
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
        self.order.begin(op)
        self.enter(op, ordered=True)
        self.order.end(op)

    def concurrent(self, op: Any) -> None:
        self.order.next_group()
        self.enter(op, ordered=False)
        self.order.next_group()

    def enter(self, op: Any, *, ordered: bool) -> None:
        block = op.regions[0].blocks[0]
        resources = [v for v in op.operands if "resource" in str(v.type)]
        for argument, outer in zip(block.arguments, resources, strict=False):
            if outer in self.places:
                self.places[argument] = self.places[outer]
        for each in block.operations:
            if ordered:
                self.order.next_group()
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
        elif op.name in _COMMANDS:
            self.command(op)
            if op.name == "stream.async.transfer":  # within one device it need not move anything
                self.passing(op)
        else:
            self.other(op)

    def awaiting(self, op: Any) -> None:
        resources = [v for v in op.operands if "resource" in str(v.type)]
        for result, outer in zip(op.results, resources, strict=False):
            if outer in self.places:
                self.places[result] = self.places[outer]
        self.order.waited(op)

    def passing(self, op: Any) -> None:
        for result, operand in zip(op.results, op.operands, strict=False):
            if operand in self.places:
                self.places[result] = self.places[operand]

    # Commands.

    def command(self, op: Any) -> None:
        """Something that reads its operands and may write those that results are tied to."""
        label = _label(op)
        self.order.next_command()
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
                if self.order.beside(when):
                    self.report(memory, reader, label, "concurrent")
            if place.version != memory.version and memory.argument != OWN:  # two results in the same memory
                self.report(memory, label, memory.writer, "after")
            memory.version += 1
            memory.writer, memory.when = label, self.order.now
            self.places[result] = _Place(memory, memory.version)
        for result in op.results:
            if result not in self.places and "resource" in str(result.type):
                self.places[result] = _Place(_Memory(OWN), 0)

    def reads(self, op: Any, index: int) -> bool:
        if op.name == "stream.async.dispatch":
            return self.bodies.reads(op, index)
        return index > 0 or op.name not in _TARGET_FIRST

    def same(self, op: Any, memory: _Memory) -> list[int]:
        return [i for i, v in enumerate(op.operands) if v in self.places and self.places[v].memory is memory]

    def read(self, place: _Place, label: str) -> None:
        memory = place.memory
        beside = memory.when is not None and self.order.beside(memory.when)
        if place.version != memory.version:
            self.report(memory, label, memory.writer, "concurrent" if beside else "after")
        elif beside:
            self.report(memory, label, memory.writer, "concurrent")
        memory.reads.append((self.order.now, label))

    def control(self, op: Any) -> None:
        """A loop or a branch: it may read arguments' memory, as long as nothing in it writes any."""
        self.other(op)
        self.nested += 1
        self.order.control(op, self.walk)
        self.nested -= 1

    def other(self, op: Any) -> None:
        """An operation that is not known: it reads, and what it returns may be what it was given."""
        for value in op.operands:
            place = self.places.get(value)
            if place is not None:
                self.read(place, op.name)
                if self.order.now.region or any("resource" in str(r.type) for r in op.results):
                    self.report(place.memory, op.name, place.memory.writer or "another command", "unknown")

    def report(self, memory: _Memory, reader: str, writer: str, kind: str) -> None:
        if memory.argument == OWN and kind not in ("after", "concurrent"):
            return  # the compiler's own ways to write in place are its own to know
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
