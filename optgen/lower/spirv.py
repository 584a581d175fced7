"""SPIR-V as compiled modules hold it: words in, kernels with their blocks, accesses and barriers out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import pack, unpack_from

_MAGIC = pack("<I", 0x07230203)
_HEADER = 5

#: Instructions that give nothing, and those whose result has no type. All others give a type and a result.
_NO_RESULT = frozenset(
    {0, 3, 4, 5, 6, 8, 10, 14, 15, 16, 17, 56, 62, 63, 64, 71, 72, 74, 75, 224, 225, 228, 246, 247, 249, 250, 251, 252,
     253, 254, 255, 317, 330, 331, 332, 4416, 5632, 5633}
)  # fmt: skip
_NO_TYPE = frozenset({7, 11, *range(19, 40), 73, 248})
_TERMINATORS = frozenset({249, 250, 251, 252, 253, 254, 255, 4416})
ENTRY_POINT, EXECUTION_MODE, CAPABILITY, EXTENSION = 15, 16, 17, 10
TYPE_POINTER, CONSTANT, VARIABLE, LOAD, STORE = 32, 43, 59, 61, 62
ACCESS_CHAINS = frozenset({65, 66})
CONTROL_BARRIER, ATOMIC_LOAD, ATOMIC_STORE = 224, 227, 228
ATOMICS = frozenset(range(227, 243)) | {6035, 5614, 5615}
PHI, BRANCH_CONDITIONAL, FUNCTION_CALL = 245, 250, 57
LOCAL_SIZE = 17


@dataclass(frozen=True)
class Instruction:
    """One instruction: its opcode, the ids of its result and type (0 where there is none), and what else it has."""

    opcode: int
    result: int
    type: int
    operands: tuple[int, ...]


@dataclass
class Block:
    """A basic block: phis and all the rest but its label, and the labels of the blocks that may follow."""

    label: int
    body: list[Instruction] = field(default_factory=list)

    @property
    def successors(self) -> tuple[int, ...]:
        """Labels of the blocks that may follow."""
        last = self.body[-1]
        if last.opcode == 249:
            return last.operands[:1]
        if last.opcode == 250:
            return last.operands[1:3]
        if last.opcode == 251:  # selector, default, then pairs of a literal and a label
            return (last.operands[1], *last.operands[3::2])
        return ()


@dataclass
class Shader:
    """One SPIR-V module.

    Attributes:
        instructions: what gives a result, by that.
        globals: everything that stands outside functions.
        functions: by id, their blocks by label, the first one first.
        entries: the ids of entry points with their names.
    """

    instructions: dict[int, Instruction]
    globals: list[Instruction]
    functions: dict[int, dict[int, Block]]
    entries: dict[int, str]

    def decoration(self, target: int, kind: int) -> int | None:
        """The number of a decoration of ``target``; None if it has none."""
        for each in self.globals:
            if each.opcode == 71 and each.operands[:2] == (target, kind):
                return each.operands[2] if len(each.operands) > 2 else 0
        return None

    def local_size(self, entry: int) -> tuple[int, int, int]:
        """How many invocations a workgroup has, in three dimensions.

        Raises:
            ValueError: if the entry point does not say it as numbers.
        """
        for each in self.globals:
            if each.opcode == EXECUTION_MODE and each.operands[:2] == (entry, LOCAL_SIZE):
                return each.operands[2], each.operands[3], each.operands[4]
        raise ValueError("it does not say how large its workgroups are")

    def number(self, value: int) -> int | None:
        """The whole number that ``value`` is; None if it is no constant of 32 bits."""
        made = self.instructions.get(value)
        if made is None or made.opcode != CONSTANT or len(made.operands) != 1:
            return None
        kind = self.instructions[made.type]
        if kind.opcode != 21:  # not an integer
            return None
        number = made.operands[0]
        return number - 2**32 if number >= 2**31 else number


def shaders(module: bytes) -> list[Shader]:
    """The SPIR-V modules that a compiled module for Vulkan holds."""
    return [parse(words) for words in _binaries(module)]


def _binaries(module: bytes) -> Iterator[tuple[int, ...]]:
    # In a flatbuffer: vectors of words, each with their number before the first.
    at = module.find(_MAGIC)
    while at >= 0:
        if at % 4 == 0 and at >= 4:
            (count,) = unpack_from("<I", module, at - 4)
            if count > _HEADER and at + 4 * count <= len(module):
                yield unpack_from(f"<{count}I", module, at)
        at = module.find(_MAGIC, at + 4)


def parse(words: tuple[int, ...]) -> Shader:
    """One SPIR-V module from its words.

    Raises:
        ValueError: if they are not what SPIR-V is.
    """
    shader = Shader({}, [], {}, {})
    at, blocks, block = _HEADER, None, None
    while at < len(words):
        length, opcode = words[at] >> 16, words[at] & 0xFFFF
        if length == 0 or at + length > len(words):
            raise ValueError("its SPIR-V is damaged")
        each = _instruction(opcode, words[at + 1 : at + length])
        at += length
        if each.result:
            shader.instructions[each.result] = each
        if opcode == 54:
            blocks = shader.functions[each.result] = {}
        elif opcode == 56:
            blocks = block = None
        elif opcode == 248 and blocks is not None:
            block = blocks[each.result] = Block(each.result)
        elif block is not None:
            block.body.append(each)
        elif blocks is None:
            shader.globals.append(each)
            if opcode == ENTRY_POINT:
                shader.entries[each.operands[1]] = _text(each.operands[2:])
    for found in shader.functions.values():
        if any(not b.body or b.body[-1].opcode not in _TERMINATORS for b in found.values()):
            raise ValueError("its SPIR-V is damaged: a block has no end")
    return shader


def _instruction(opcode: int, rest: tuple[int, ...]) -> Instruction:
    if opcode in _NO_RESULT:
        return Instruction(opcode, 0, 0, rest)
    if opcode in _NO_TYPE:
        return Instruction(opcode, rest[0], 0, rest[1:])
    return Instruction(opcode, rest[1], rest[0], rest[2:])


def _text(words: tuple[int, ...]) -> str:
    data = pack(f"<{len(words)}I", *words)
    return data[: data.find(b"\0")].decode(errors="replace")
