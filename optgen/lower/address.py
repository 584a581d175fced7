"""Addresses in a shader as sums: which invocation, which round of which loop, and what all invocations share."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from optgen.lower.spirv import BRANCH_CONDITIONAL, LOAD, PHI, VARIABLE, Instruction, Shader

_BUILT_IN = 11
_LOCAL_INVOCATION, _WORKGROUP, _WORKGROUPS, _WORKGROUP_SIZE = 27, 26, 24, 25
_INPUT, _PUSH_CONSTANT = 1, 9


@dataclass(frozen=True)
class Digit:
    """``scale`` times a whole number from 0 to ``count`` - 1 (None: no bound), of an invocation (``x``, ``y``, ``z``)
    or of a loop (its phi's id)."""

    scale: int
    count: int | None
    of: str


@dataclass(frozen=True)
class Address:
    """``base`` + what is the same for a whole workgroup + digits. ``known`` is False for what is no such sum."""

    base: int = 0
    shared: tuple[tuple[Hashable, int], ...] = ()
    digits: tuple[Digit, ...] = ()
    known: bool = True

    def plus(self, other: Address, times: int = 1) -> Address:
        """The sum of this and ``times`` the other."""
        if not (self.known and other.known):
            return UNKNOWN
        shared = dict(self.shared)
        for key, scale in other.shared:
            shared[key] = shared.get(key, 0) + scale * times
        digits = {(d.of, d.count): d.scale for d in self.digits}
        for d in other.digits:
            digits[d.of, d.count] = digits.get((d.of, d.count), 0) + d.scale * times
        return Address(
            self.base + times * other.base,
            tuple(sorted(((k, s) for k, s in shared.items() if s), key=repr)),
            tuple(Digit(scale, count, of) for (of, count), scale in digits.items() if scale),
        )


UNKNOWN = Address(known=False)


def apart(one: Address, other: Address, local: tuple[int, int, int]) -> bool:
    """Whether two different invocations of a workgroup never meet, the first at ``one`` and the second at ``other``.

    Equal numbers in a system of mixed radix have equal digits: if those of the invocation are among them, and each is
    worth more than all below it together, then only an invocation itself gets to its address.
    """
    if not (one.known and other.known) or one.shared != other.shared:
        return False
    axes = {axis for axis, extent in zip("xyz", local, strict=True) if extent > 1}
    own = [{d.of: d.scale for d in a.digits if d.of in axes} for a in (one, other)]
    if own[0] != own[1] or own[0].keys() != axes:
        return False
    lowest = min(own[0].values(), default=0)
    if lowest <= 0:
        return not axes
    slack = abs(one.base - other.base)
    merged: dict[tuple[int, str, int], int | None] = {}
    for address in (one, other):
        seen: dict[tuple[int, str], int] = {}
        for d in address.digits:
            if d.scale < 0:
                return False
            kind = d.of if d.of in "xyz" else "loop"
            # Loops of the two addresses that are worth the same are the same digit; within one address they add up.
            nth = seen[d.scale, kind] = seen.get((d.scale, kind), -1) + 1
            key = (d.scale, kind, nth)
            known = merged.get(key, 1)
            merged[key] = None if known is None or d.count is None else max(known, d.count)
    for (scale, _, _), count in sorted(merged.items(), key=lambda item: item[0][0]):
        if scale >= lowest and scale <= slack:
            return False
        if count is None:
            slack = 2**62
        else:
            slack += scale * (count - 1)
    return True


def within(address: Address, bounds: dict[str, int]) -> Address:
    """``address`` where invocations are known to lie below ``bounds``."""
    if not bounds or not address.known:
        return address
    digits = (
        Digit(d.scale, min(bounds[d.of], d.count or bounds[d.of]), d.of) if d.of in bounds else d
        for d in address.digits
    )
    return Address(address.base, address.shared, tuple(digits))


@dataclass
class Addresses:
    """The addresses of one entry point's values."""

    shader: Shader
    entry: int
    local: tuple[int, int, int] = field(init=False)
    _known: dict[int, Address] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)
    _over: dict[int, set[int]] | None = None

    def __post_init__(self) -> None:
        self.local = self.shader.local_size(self.entry)
        self._home = {
            each.result: block for block in self.shader.functions[self.entry].values() for each in block.body
            if each.result
        }  # fmt: skip
        blocks = self.shader.functions[self.entry]
        self._before: dict[int, list[int]] = {label: [] for label in blocks}
        for label, block in blocks.items():
            for after in dict.fromkeys(block.successors):
                self._before[after].append(label)

    def of(self, value: int) -> Address:
        """The address that ``value`` is, as an integer."""
        if value not in self._known:
            if value in self._open:
                return UNKNOWN
            self._open.add(value)
            self._known[value] = self._find(value)
            self._open.discard(value)
        return self._known[value]

    def shared(self, value: int) -> Hashable | None:
        """A name for a value that is the same for a whole workgroup, all the time; None if it may not be."""
        address = self.of(value)
        if not address.known or address.digits:
            return None
        return (address.base, address.shared)

    def bounds(self, label: int) -> dict[str, int]:
        """What invocations that get to a block lie below, by dimension: what the conditions say that lead there."""
        found: dict[str, int] = {}
        for other in self._dominators()[label]:
            before = self._before[other]
            if len(before) != 1:
                continue
            last = self.shader.functions[self.entry][before[0]].body[-1]
            if last.opcode == BRANCH_CONDITIONAL and last.operands[1] == other != last.operands[2]:
                for axis, bound in self._says(last.operands[0]):
                    found[axis] = max(1, min(bound, found.get(axis, bound)))
        return found

    def _says(self, condition: int) -> list[tuple[str, int]]:
        made = self.shader.instructions[condition]
        if made.opcode == 167:  # both
            return [each for operand in made.operands for each in self._says(operand)]
        if made.opcode not in (172, 173, 176, 177):
            return []
        small, large = made.operands if made.opcode in (176, 177) else made.operands[::-1]
        who, limit = self.of(small), self._at_most(large)
        if limit is None or not who.known or who.shared or len(who.digits) != 1 or who.digits[0].of not in "xyz":
            return []
        return (
            [(who.digits[0].of, math.ceil((limit - who.base) / who.digits[0].scale))] if who.digits[0].scale > 0 else []
        )

    def _at_most(self, value: int) -> int | None:
        """A number that ``value`` is not above: itself, or what it is the minimum of."""
        number, made = self.shader.number(value), self.shader.instructions[value]
        if number is None and made.opcode == 12 and made.operands[1] in (38, 39):
            return next((n for n in map(self.shader.number, made.operands[2:]) if n is not None), None)
        return number

    def _dominators(self) -> dict[int, set[int]]:
        if self._over is None:
            blocks = self.shader.functions[self.entry]
            first, every = next(iter(blocks)), set(blocks)
            self._over = {label: {label} if label == first else set(every) for label in blocks}
            changed = True
            while changed:
                changed = False
                for label in blocks:
                    if label != first and self._before[label]:
                        new = {label} | set.intersection(*(self._over[each] for each in self._before[label]))
                        changed |= new != self._over[label]
                        self._over[label] = new
        return self._over

    def _find(self, value: int) -> Address:
        number = self.shader.number(value)
        if number is not None:
            return Address(number)
        made = self.shader.instructions.get(value)
        if made is None:
            return UNKNOWN
        ops = made.operands
        if made.opcode == 128:
            return self.of(ops[0]).plus(self.of(ops[1]))
        if made.opcode == 130:
            return self.of(ops[0]).plus(self.of(ops[1]), -1)
        if made.opcode == 132:
            for factor, rest in (ops, ops[::-1]):
                fixed = self.of(factor)
                if fixed == Address(fixed.base):
                    return Address().plus(self.of(rest), fixed.base)
        if made.opcode == 196:
            fixed = self.of(ops[1])
            if fixed == Address(fixed.base) and 0 <= fixed.base < 31:
                return Address().plus(self.of(ops[0]), 2**fixed.base)
        if made.opcode == 81 and (found := self._built_in(ops[0], ops[1:])) is not None:
            return found
        if made.opcode == PHI:
            return self._loop(value, made)
        return self._same_for_all(made)

    def _built_in(self, vector: int, place: tuple[int, ...]) -> Address | None:
        loaded = self.shader.instructions.get(vector)
        if loaded is None or loaded.opcode != LOAD or len(place) != 1:
            return None
        kind = self.shader.decoration(loaded.operands[0], _BUILT_IN)
        if kind == _LOCAL_INVOCATION:
            extent = self.local[place[0]]
            return Address(digits=(Digit(1, extent, "xyz"[place[0]]),)) if extent > 1 else Address()
        return None

    def _same_for_all(self, made: Instruction) -> Address:
        """A value by itself, where it is the same for the whole workgroup."""
        name = self._name(made, 0)
        return UNKNOWN if name is None else Address(shared=((name, 1),))

    def _name(self, made: Instruction, depth: int) -> Hashable | None:
        if made.opcode == LOAD:
            return self._name_of_load(made)
        # Arithmetic without side effects: conversions, integers, floats, comparisons, composites, GLSL's functions.
        pure = made.opcode in (12, 43, 44, 81, 82, 80, 169) or 109 <= made.opcode <= 205
        if not pure or depth > 16:
            return None
        parts: list[Hashable] = []
        for position, operand in enumerate(made.operands):
            literal = (made.opcode == 81 and position > 0) or (made.opcode == 12 and position < 2)
            if literal or made.opcode == 43 or operand not in self.shader.instructions:
                parts.append(operand)
                continue
            inner = self.shader.instructions[operand]
            part = (
                self.shared(operand) if inner.opcode in (128, 130, 132, 196, 81, PHI) else self._name(inner, depth + 1)
            )
            if part is None:
                return None
            parts.append(part)
        return (made.opcode, made.type, tuple(parts))

    def _name_of_load(self, made: Instruction) -> Hashable | None:
        """What is loaded of built-in numbers and push constants never changes."""
        chain: list[Hashable] = []
        pointer = self.shader.instructions.get(made.operands[0])
        while pointer is not None and pointer.opcode in (65, 66):
            for index in pointer.operands[1:]:
                number = self.shader.number(index)
                if number is None:
                    return None
                chain.append(number)
            pointer = self.shader.instructions.get(pointer.operands[0])
        if pointer is None or pointer.opcode != VARIABLE:
            return None
        if pointer.operands[0] == _PUSH_CONSTANT:
            return (LOAD, pointer.result, tuple(chain))
        kind = self.shader.decoration(pointer.result, _BUILT_IN)
        if pointer.operands[0] == _INPUT and kind in (_WORKGROUP, _WORKGROUPS, _WORKGROUP_SIZE):
            return (LOAD, pointer.result, tuple(chain))
        return None

    def _loop(self, value: int, made: Instruction) -> Address:
        """A loop's counter: what it begins with, and its step times the round."""
        if len(made.operands) != 4:
            return UNKNOWN
        for start, following in (made.operands[0::2], made.operands[2::-2]):
            after = self.shader.instructions.get(following)
            if after is None or after.opcode != 128 or value not in after.operands:
                continue
            step, begin = self.of(after.operands[1 - after.operands.index(value)]), self.of(start)
            if not (step.known and begin.known) or step.digits:
                return UNKNOWN
            # Where the step is a multiple of something known at run time alone, so is what the rounds add up to.
            unit = math.gcd(step.base, *(scale for _, scale in step.shared))
            if unit == 0 or step.base < 0:
                return UNKNOWN
            count = None if step.shared else self._rounds(value, begin, unit)
            return begin.plus(Address(digits=(Digit(unit, count, f"loop{value}"),)))
        return UNKNOWN

    def _rounds(self, value: int, begin: Address, step: int) -> int | None:
        """How often a loop runs at most; None if that is not known."""
        if begin.shared or any(d.scale < 0 for d in begin.digits):
            return None
        last = self._home[value].body[-1]
        if last.opcode != BRANCH_CONDITIONAL:
            return None
        test = self.shader.instructions.get(last.operands[0])
        if test is None or test.opcode not in (176, 177) or test.operands[0] != value:
            return None
        limit = self.shader.number(test.operands[1])
        return None if limit is None else max(1, math.ceil((limit - begin.base) / step))
