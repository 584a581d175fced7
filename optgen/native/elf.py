"""What an object file's library says of itself, read from the ELF file: version, kernels and what it needs."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from optgen.errors import LoweringError

_SYMBOLS, _RELOCATIONS_ADDEND, _RELOCATIONS = 2, 4, 9


@dataclass(frozen=True)
class ObjectExport:
    """A kernel as the library lists it: what it takes, and the pages of memory that each of its workgroups needs."""

    name: str
    constants: int
    bindings: int
    memory_pages: int


@dataclass(frozen=True)
class ObjectLibrary:
    """A library's table.

    Attributes:
        version: of the table's layout.
        exports: the kernels, in order.
        imports: the number of functions that it wants from a runtime.
        constants: the number of constants that it wants when it is loaded.
        undefined: the symbols that it must be linked with.
    """

    version: int
    exports: tuple[ObjectExport, ...]
    imports: int
    constants: int
    undefined: tuple[str, ...]


def read_library(data: bytes, query: str) -> ObjectLibrary:
    """Reads the table that the function ``query`` returns.

    Raises:
        LoweringError: if the file is no little-endian relocatable ELF file, or has no such table.
    """
    try:
        return _Elf(data).library(query)
    except (struct.error, IndexError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise LoweringError(f"the object file has no library table of a known form at '{query}' ({error!r})") from error


@dataclass(frozen=True)
class _Section:
    name: int
    type: int
    offset: int
    size: int
    link: int
    info: int
    entry: int


@dataclass(frozen=True)
class _Symbol:
    name: str
    section: int
    value: int


_Spot = tuple[int, int]  # a section and an offset in it


class _Elf:
    def __init__(self, data: bytes) -> None:
        self.data = data
        if data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] != 1 or self.unpack("H", 16)[0] != 1:
            raise LoweringError("the object file must be a little-endian relocatable ELF file")
        self.pointer = 8 if data[4] == 2 else 4
        self.word = "Q" if self.pointer == 8 else "I"
        (start,) = self.unpack(self.word, 16 + 8 + 2 * self.pointer)
        size, count = self.unpack("HH", 46 if self.pointer == 4 else 58)
        w = self.word
        self.sections = [
            _Section(*(fields[i] for i in (0, 1, 4, 5, 6, 7, 9)))
            for i in range(count)
            if (fields := self.unpack(f"II{w}{w}{w}{w}II{w}{w}", start + i * size))
        ]
        self.symbols = self.read_symbols()
        self.pointers = self.read_relocations()

    def unpack(self, form: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from("<" + form, self.data, at)

    def text(self, at: int) -> str:
        return self.data[at : self.data.index(b"\0", at)].decode()

    def read_symbols(self) -> list[_Symbol]:
        table = next(s for s in self.sections if s.type == _SYMBOLS)
        names = self.sections[table.link].offset
        found = []
        for at in range(table.offset, table.offset + table.size, table.entry):
            if self.pointer == 8:
                name, _, _, section, value, _ = self.unpack("IBBHQQ", at)
            else:
                name, value, _, _, _, section = self.unpack("IIIBBH", at)
            found.append(_Symbol(self.text(names + name), section, value))
        return found

    def read_relocations(self) -> dict[_Spot, _Spot]:
        """From each place that the linker fills in to what it will point to."""
        found = {}
        for section in self.sections:
            if section.type not in (_RELOCATIONS, _RELOCATIONS_ADDEND):
                continue
            addends = section.type == _RELOCATIONS_ADDEND
            for at in range(section.offset, section.offset + section.size, section.entry):
                place, info, *addend = self.unpack(self.word * 2 + (self.word.lower() if addends else ""), at)
                symbol = self.symbols[info >> (32 if self.pointer == 8 else 8)]
                if not addends:
                    addend = list(self.unpack(self.word, self.sections[section.info].offset + place))
                found[section.info, place] = symbol.section, symbol.value + addend[0]
        return found

    def at(self, spot: _Spot) -> int:
        """Where in the file."""
        return self.sections[spot[0]].offset + spot[1]

    def library(self, query: str) -> ObjectLibrary:
        table = next(((s.section, s.value) for s in self.symbols if s.name == f"{query}_v0"), None)
        if table is None:
            raise LoweringError(f"the object file has no library table '{query}_v0'")

        def field(index: int) -> _Spot:
            return table[0], table[1] + index * self.pointer

        def count(index: int) -> int:
            return self.unpack("I", self.at(field(index)))[0]

        attributes, names = self.pointers[field(5)], self.pointers[field(8)]
        exports = []
        for i in range(count(3)):
            pages, constants, bindings = self.unpack("HBB", self.at(attributes) + 64 * i + 8)
            name = self.text(self.at(self.pointers[names[0], names[1] + i * self.pointer]))
            exports.append(ObjectExport(name, constants, bindings, pages))
        undefined = tuple(sorted(s.name for s in self.symbols if s.section == 0 and s.name))
        version = self.unpack("I", self.at(self.pointers[field(0)]))[0]
        return ObjectLibrary(version, tuple(exports), count(1), count(13), undefined)
