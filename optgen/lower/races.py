"""Proof that a shader is right whatever the size of the device's subgroups: it assumes none, and no invocation reads
what another has written, or overwrites it, without a barrier in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optgen.lower.address import Address, Addresses, apart, within
from optgen.lower.spirv import (
    ACCESS_CHAINS,
    ATOMIC_LOAD,
    ATOMIC_STORE,
    ATOMICS,
    BRANCH_CONDITIONAL,
    CAPABILITY,
    CONTROL_BARRIER,
    FUNCTION_CALL,
    LOAD,
    PHI,
    STORE,
    TYPE_POINTER,
    VARIABLE,
    Block,
    Instruction,
    Shader,
    shaders,
)

_WORKGROUP, _STORAGE = 4, (2, 12)
#: What an invocation alone sees, and what nobody writes: inputs, uniform constants, push constants, own variables.
_HARMLESS = (0, 1, 6, 7, 9)
_SCOPE_WORKGROUP, _RELEASE_AND_ACQUIRE, _WORKGROUP_MEMORY = 2, (8, 16), 0x100
#: Capabilities of shaders that know nothing of subgroups: of numbers, of memory, and of shaders themselves.
_CAPABILITIES = frozenset(
    {0, 1, 9, 10, 11, 12, 22, 39, 4427, 4433, 4434, 4435, 4436, 4441, 4442, 4448, 4449, 4450, 4464, 4465, 5345, 5346,
     5347, 6016, 6017, 6018, 6019, 5116}
)  # fmt: skip
_SUBGROUPS = frozenset({*range(259, 272), *range(333, 367), *range(4421, 4433), *range(4456, 4461), *range(5000, 5008),
                        *range(5358, 5363), *range(5571, 5582)})  # fmt: skip
#: Built-in numbers that are about subgroups: their size, number and masks.
_BUILT_IN, _SUBGROUP_NUMBERS = 11, frozenset({36, 38, 40, 41, 4416, 4417, 4418, 4419, 4420})
_EXECUTION_MODES = frozenset({35, 36, 37})
_DIVISIONS = (134, 135)
#: What modules call that have kernels. Those that only fill memory have none.
_CREATES = b"executable.create"


@dataclass(frozen=True)
class Fault:
    """Something that a kernel does that is not proven right.

    Attributes:
        kernel: its name.
        what: that it does.
        race: whether more barriers may mend it.
    """

    kernel: str
    what: str
    race: bool = True

    def __str__(self) -> str:
        return f"{self.kernel} {self.what}"


@dataclass(frozen=True)
class _Access:
    memory: str
    index: tuple[Address, ...]
    kind: tuple[int, int]
    reads: bool
    writes: bool
    atomic: bool


def find_faults(module: bytes, *, subgroups: bool = False) -> list[Fault]:
    """What is not proven right in a module's kernels for Vulkan; empty where every subgroup size gives the same.

    Args:
        module: as the compiler wrote it.
        subgroups: whether operations over subgroups are allowed, as they are for one chip.
    """
    found: list[Fault] = []
    kernels = shaders(module)
    if not kernels and _CREATES in module:
        return [Fault("a kernel", "cannot be found in the module", race=False)]
    for shader in kernels:
        names = ", ".join(shader.entries.values())
        try:
            if not subgroups:
                found += [Fault(names, what, race=False) for what in _assumptions(shader)]
            for entry, name in shader.entries.items():
                found += [Fault(name, what) for what in _Kernel(shader, entry).races()]
        except ValueError as error:
            found.append(Fault(names or "a kernel", f"cannot be followed: {error}", race=False))
    return found


def _assumptions(shader: Shader) -> Iterable[str]:
    for each in shader.globals:
        if each.opcode == CAPABILITY and each.operands[0] not in _CAPABILITIES:
            yield f"needs SPIR-V's capability {each.operands[0]}, which is not known to be free of subgroups"
        if each.opcode == 71 and each.operands[1] == _BUILT_IN and each.operands[2] in _SUBGROUP_NUMBERS:
            yield f"reads a number of subgroups (built-in {each.operands[2]})"
        if each.opcode == 16 and each.operands[1] in _EXECUTION_MODES:
            yield "asks for a subgroup size"
    for blocks in shader.functions.values():
        for block in blocks.values():
            for each in block.body:
                if each.opcode in _SUBGROUPS:
                    yield f"works over subgroups (operation {each.opcode})"


def _behind(state: frozenset[_Access]) -> frozenset[_Access]:
    """What may still meet what comes after a barrier: buffers, which it does not order."""
    return frozenset(each for each in state if not each.memory.startswith("workgroup"))


class _Kernel:
    """One entry point."""

    def __init__(self, shader: Shader, entry: int) -> None:
        self._shader = shader
        self._blocks = shader.functions[entry]
        self._addresses = Addresses(shader, entry)
        self._local = self._addresses.local
        self._events = {label: list(self._happens(block)) for label, block in self._blocks.items()}

    def races(self) -> list[str]:
        """What invocations of one workgroup may do to each other."""
        if self._local == (1, 1, 1):
            return []
        found = self._divergent_barriers()
        seen: set[tuple[str, str]] = set()
        before: dict[int, frozenset[_Access]] = {label: frozenset() for label in self._blocks}
        waiting = list(self._blocks)
        while waiting:
            label = waiting.pop(0)
            state = before[label]
            for event in self._events[label]:
                state = _behind(state) if event is None else state | {event}
            for after in self._blocks[label].successors:
                if not state <= before[after]:
                    before[after] |= state
                    waiting.append(after)
        for label in self._blocks:
            state = before[label]
            for event in self._events[label]:
                if event is None:
                    state = _behind(state)
                    continue
                for earlier in state:
                    if why := self._conflict(earlier, event):
                        seen.add((event.memory, why))
                state |= {event}
        return found + [f"{why} {memory} without a barrier" for memory, why in sorted(seen)]

    def _conflict(self, earlier: _Access, later: _Access) -> str:
        if earlier.memory != later.memory or not (earlier.writes or later.writes):
            return ""
        if earlier.atomic and later.atomic:
            return ""
        buffer = not later.memory.startswith("workgroup")
        # Of buffers, what is read before it is written is the business of lower/hazard.py.
        if buffer and not (earlier.writes and later.reads):
            return ""
        if earlier.kind == later.kind and len(earlier.index) == len(later.index):
            *outer, last = zip(earlier.index, later.index, strict=True)
            if all(a == b and not a.digits for a, b in outer) and apart(*last, self._local):
                return ""
        if not later.reads:
            return "overwrites what another invocation has read or written in"
        if not later.writes or earlier.writes:
            return "reads what another invocation has written in"
        return "overwrites what another invocation has read in"

    def _happens(self, block: Block) -> Iterable[_Access | None]:
        """The accesses of a block in order; None for a barrier."""
        bounds = self._addresses.bounds(block.label)
        for each in block.body:
            if each.opcode == CONTROL_BARRIER:
                self._check_barrier(each)
                yield None
            elif each.opcode == LOAD:
                yield from self._access(each.operands[0], bounds, reads=True)
            elif each.opcode == STORE:
                yield from self._access(each.operands[0], bounds, writes=True)
            elif each.opcode in ATOMICS:
                writes, reads = each.opcode != ATOMIC_LOAD, each.opcode != ATOMIC_STORE
                yield from self._access(each.operands[0], bounds, reads=reads, writes=writes, atomic=True)
            elif each.opcode in (FUNCTION_CALL, 63, 64):
                raise ValueError(f"it calls a function or copies memory (operation {each.opcode})")
            elif each.result and each.opcode not in (*ACCESS_CHAINS, VARIABLE) and self._is_pointer(each.type):
                raise ValueError(f"it computes pointers (operation {each.opcode})")

    def _is_pointer(self, kind: int) -> bool:
        made = self._shader.instructions.get(kind)
        return made is not None and made.opcode == TYPE_POINTER

    def _check_barrier(self, each: Instruction) -> None:
        numbers = [self._shader.number(operand) for operand in each.operands]
        execution, _, semantics = numbers
        if execution is None or execution > _SCOPE_WORKGROUP or semantics is None:
            raise ValueError("it has a barrier that is not for the workgroup")
        if not any(semantics & order for order in _RELEASE_AND_ACQUIRE) or not semantics & _WORKGROUP_MEMORY:
            raise ValueError("it has a barrier that does not order workgroup memory")

    def _access(
        self, pointer: int, bounds: dict[str, int], *, reads: bool = False, writes: bool = False, atomic: bool = False
    ) -> Iterable[_Access]:
        index: list[int] = []
        made = self._shader.instructions[pointer]
        kind = made.type
        while made.opcode in ACCESS_CHAINS:
            index[:0] = made.operands[1:]
            made = self._shader.instructions[made.operands[0]]
        if made.opcode != VARIABLE:
            raise ValueError(f"it computes pointers (operation {made.opcode})")
        storage = made.operands[0]
        if storage in _HARMLESS:
            return
        if storage == _WORKGROUP:
            memory, kind = f"workgroup memory {made.result}", 0
        elif storage in _STORAGE:
            place = self._shader.decoration(made.result, 34), self._shader.decoration(made.result, 33)
            memory = f"binding {place[0]}.{place[1]}"
        else:
            raise ValueError(f"it uses memory of an unknown kind ({storage})")
        part = 1
        if storage in _STORAGE and index and (atomic or not writes):
            index[-1], part = self._part_of_word(index[-1])
        addresses = tuple(within(self._addresses.of(each), bounds) for each in index)
        yield _Access(memory, addresses, (kind, part), reads, writes, atomic)

    def _part_of_word(self, index: int) -> tuple[int, int]:
        """The element that a word is accessed for, and how many it has: where 8 and 16 bits cannot be stored, an
        element is read from its word, and written by an atomic and and an atomic or that leave the others alone."""
        made = self._shader.instructions[index]
        count = self._shader.number(made.operands[1]) if made.opcode in _DIVISIONS else None
        return (made.operands[0], count) if count in (2, 4) else (index, 1)

    def _divergent_barriers(self) -> list[str]:
        """Barriers that only some invocations may reach."""
        places = [label for label, events in self._events.items() if None in events]
        if not places:
            return []
        after = self._post_dominators()
        for label in places:
            for other, block in self._blocks.items():
                last = block.body[-1]
                if last.opcode not in (BRANCH_CONDITIONAL, 251) or label in after[other] - {other}:
                    continue
                reached = any(label in self._reachable(each) for each in block.successors)
                if reached and not self._uniform(last.operands[0], set()):
                    return ["has a barrier that some invocations of a workgroup may not reach"]
        return []

    def _uniform(self, value: int, open_: set[int]) -> bool:
        """Whether all invocations that are in the same round of the same loops have the same value."""
        if value in open_ or self._shader.number(value) is not None:
            return True
        if self._addresses.shared(value) is not None:
            return True
        made = self._shader.instructions.get(value)
        if made is None or made.opcode == LOAD or value not in self._inside():
            return made is not None and made.opcode == 43
        open_.add(value)
        ids = made.operands[0::2] if made.opcode == PHI else made.operands
        if made.opcode == PHI and len(made.operands) != 4:
            return False
        return all(self._uniform(each, open_) for each in ids if each in self._shader.instructions)

    def _inside(self) -> set[int]:
        return {each.result for block in self._blocks.values() for each in block.body if each.result}

    def _reachable(self, label: int) -> set[int]:
        found, waiting = {label}, [label]
        while waiting:
            for each in self._blocks[waiting.pop()].successors:
                if each not in found:
                    found.add(each)
                    waiting.append(each)
        return found

    def _post_dominators(self) -> dict[int, set[int]]:
        every = set(self._blocks)
        after = {label: {label} if not b.successors else set(every) for label, b in self._blocks.items()}
        changed = True
        while changed:
            changed = False
            for label, block in self._blocks.items():
                if block.successors:
                    new = {label} | set.intersection(*(after[each] for each in block.successors))
                    if new != after[label]:
                        after[label], changed = new, True
        return after
