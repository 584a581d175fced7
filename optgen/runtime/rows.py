"""Tables of rows: where the pieces of a tree lie, for modules that treat it in one dispatch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.dtypes import SIZES
from optgen.runtime.call import Call
from optgen.runtime.device import Device, memory_type
from optgen.runtime.memory import ALIGNMENT, empty
from optgen.runtime.module import LoadedModule

#: Elements in a row, at most: enough to forget what a row costs, few enough that threads end together.
ROW = 16_384

_memory_at: Any = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.restype = ctypes.py_object
_memory_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_WRITABLE = 0x200


class Spans:
    """The memory of leaves, as one span for each operand that covers them and whatever lies between.

    Args:
        kernel: whose operands the leaves have.
        leaves: as for :class:`Call`.

    Attributes:
        bases: where each span begins.
        table: for each leaf the offsets of its operands in their spans, in elements, and its number of elements.
    """

    def __init__(self, kernel: KernelInfo, leaves: Sequence[Sequence[np.ndarray]]) -> None:
        self._kernel = kernel
        sizes = [SIZES[o.dtype] for o in kernel.operands]
        counts = np.array([leaf[0].size for leaf in leaves], np.int64)
        self.table = np.empty((len(leaves), len(sizes) + 1), np.int64)
        self.table[:, -1] = counts
        self.bases: list[int] = []
        self._lengths: list[int] = []
        for i, size in enumerate(sizes):
            addresses = np.array([leaf[i].ctypes.data for leaf in leaves], np.int64)
            base = int(addresses.min())
            self.table[:, i] = (addresses - base) // size
            self.bases.append(base)
            self._lengths.append(int((addresses + counts * size).max()) - base)

    def views(self, device: Device) -> list[tuple[Any, Any]]:
        """A view of each span on a device of this process's memory, and the buffer that it needs."""
        return [
            device.span(_memory_at(base, length, _WRITABLE), [length // SIZES[o.dtype]], memory_type(o.dtype))
            for o, base, length in zip(self._kernel.operands, self.bases, self._lengths, strict=True)
        ]

    def copy_back(self, source: int, operand: int, leaves: Sequence[Sequence[np.ndarray]]) -> None:
        """The elements of one operand, from a copy of its span at ``source``."""
        for leaf in leaves:
            array = leaf[operand]
            ctypes.memmove(array.ctypes.data, source + array.ctypes.data - self.bases[operand], array.nbytes)


def join_rows(table: np.ndarray) -> np.ndarray:
    """``table`` with leaves that follow one another in every operand as one: packed trees become a single row."""
    if len(table) == 1:
        return table
    follows = (table[1:, :-1] == table[:-1, :-1] + table[:-1, -1:]).all(axis=1)
    if not follows.any():
        return table
    first = np.flatnonzero(np.concatenate([[True], ~follows]))
    joined = table[first].copy()
    joined[:, -1] = np.add.reduceat(table[:, -1], first)
    return joined


def split_rows(table: np.ndarray, counts: int = -1) -> np.ndarray:
    """``table`` with leaves of more than ROW elements in pieces, in memory that modules may use.

    Args:
        table: offsets, then the number of elements, then whatever pieces share.
        counts: where the number of elements is.
    """
    pieces = -(-table[:, counts] // ROW)
    rows = empty((int(pieces.sum()), table.shape[1]), "i64", ALIGNMENT)
    if len(rows) == len(table):
        rows[:] = table
        return rows
    rows[:] = np.repeat(table, pieces, axis=0)
    first = np.cumsum(pieces) - pieces
    starts = (np.arange(len(rows)) - np.repeat(first, pieces)) * ROW
    rows[:, :counts] += starts[:, None]
    rows[:, counts] = np.minimum(rows[:, counts] - starts, ROW)
    return rows


class RowsCall(Call):
    """Leaves bound to a module of format 1: one entry point, rows of offsets and a count. See :class:`Call`."""

    def __init__(
        self,
        device: Device,
        info: ModuleInfo,
        module: LoadedModule,
        kernel: KernelInfo,
        leaves: Sequence[Sequence[np.ndarray]],
    ) -> None:
        super().__init__(device, info, module, kernel, leaves)
        self._spans = Spans(kernel, leaves)
        self._bound = self._spans.views(device)
        self.rows = split_rows(join_rows(self._spans.table))
        binding = device.bind(self.rows, "i64", self.rows.shape)
        self._bound.append((binding.view, binding))

    def run(self, scalars: Sequence[float]) -> bool:
        """As :meth:`Call.run`."""
        rt = self.module.runtime
        arguments = rt.VmVariantList(len(self._bound) + len(scalars))
        for view, _ in self._bound:
            arguments.push_ref(view)
        for number in scalars:
            arguments.push_float(number)
        outputs = rt.VmVariantList(len(self.results))
        self.module.invoke(arguments, outputs)
        moved = False
        for position, i in enumerate(self.results):
            address = self.device.address(outputs.get_as_object(position, rt.HalBufferView))
            if address is not None and address != self._spans.bases[i]:
                moved = True
                self._spans.copy_back(address, i, self.arrays)
        return not moved
