"""Calling a kernel's module on leaves: by rows on CPUs, by lists of leaves elsewhere.

A call is prepared once, with everything that depends on the leaves, and then run with scalars any number of times.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.dtypes import SIZES
from optgen.runtime.device import Binding, Device, memory_type
from optgen.runtime.memory import ALIGNMENT, empty, writable_alias
from optgen.runtime.module import LoadedModule

#: Elements in a row, at most: enough to forget what a row costs, few enough that threads end together.
ROW = 16_384

_memory_at: Any = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.restype = ctypes.py_object
_memory_at.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_WRITABLE = 0x200


class Call(ABC):
    """Leaves bound to a module.

    Args:
        device: where the module is.
        info: the manifest's line on it.
        module: loaded.
        kernel: whose operands the leaves have.
        leaves: for each leaf an array for each operand, contiguous and aligned to its elements, of at least one
            element. The caller keeps them alive.
    """

    def __init__(
        self,
        device: Device,
        info: ModuleInfo,
        module: LoadedModule,
        kernel: KernelInfo,
        leaves: Sequence[Sequence[np.ndarray]],
    ) -> None:
        self.device, self.info, self.module = device, info, module
        self.arrays = leaves
        self.results = [i for i, o in enumerate(kernel.operands) if o.role != "input"]
        self.kernel = kernel
        self.returned: list[float] = []  # the scalar state after the last run

    @abstractmethod
    def run(self, scalars: Sequence[float]) -> bool:
        """Updates the leaves, and ``returned``.

        Returns:
            Whether every result lay in the memory of its operand; where not, it has been copied there.
        """


class ListCall(Call):
    """Leaves bound to a module that takes a list of views for each operand. See :class:`Call`."""

    bindings: Sequence[list[Binding]] = ()

    def _bind(self) -> None:
        """Views of the leaves; where they are copies on a device, of what the leaves hold now."""
        if self.bindings and not any(b.staged for bindings in self.bindings for b in bindings):
            return
        bound = [self.device.bind_leaf(self.kernel, [writable_alias(a) for a in leaf]) for leaf in self.arrays]
        self.bindings = [[leaf[i] for leaf in bound] for i in range(len(self.kernel.operands))]

    def run(self, scalars: Sequence[float]) -> bool:
        """As :meth:`Call.run`."""
        self._bind()
        rt = self.module.runtime
        lists = []
        arguments = rt.VmVariantList(len(self.bindings) + len(scalars))
        for bindings in self.bindings:
            views = rt.VmVariantList(len(bindings))
            for binding in bindings:
                views.push_ref(binding.view)
            arguments.push_list(views)
            lists.append(views)
        for number in scalars:
            arguments.push_float(number)
        outputs = rt.VmVariantList(1 + len(self.kernel.returned))
        self.module.invoke(arguments, outputs)
        self.returned = [float(outputs.get_variant(1 + i)) for i in range(len(self.kernel.returned))]
        reads, moved = [], False
        for i in self.results:
            for j, (binding, leaf) in enumerate(zip(self.bindings[i], self.arrays, strict=True)):
                view = lists[i].get_as_object(j, rt.HalBufferView)
                same = self.same(binding, view)
                moved |= not same
                if binding.staged or not same:
                    reads.append((view, leaf[i]))
        self.device.read_all(reads)
        return not moved

    def same(self, binding: Binding, view: Any) -> bool:
        """Whether ``view`` is the memory of ``binding``."""
        if self.device.backend != "cpu":
            return self.info.in_place
        return self.device.address(view) == binding.array.ctypes.data


class RowsCall(Call):
    """Leaves bound to a module that takes one view for each operand and a table of rows. See :class:`Call`.

    Each view spans the memory of all leaves of its operand, and what lies between them, which no row points to and
    nothing touches.
    """

    def __init__(
        self,
        device: Device,
        info: ModuleInfo,
        module: LoadedModule,
        kernel: KernelInfo,
        leaves: Sequence[Sequence[np.ndarray]],
    ) -> None:
        super().__init__(device, info, module, kernel, leaves)
        self.trusted = False
        sizes = [SIZES[o.dtype] for o in kernel.operands]
        counts = np.array([leaf[0].size for leaf in leaves], np.int64)
        table = np.empty((len(leaves), len(sizes) + 1), np.int64)
        table[:, -1] = counts
        self.views, self.bases, self.buffers = [], [], []
        for i, (operand, size) in enumerate(zip(kernel.operands, sizes, strict=True)):
            addresses = np.array([leaf[i].ctypes.data for leaf in leaves], np.int64)
            base = int(addresses.min())
            table[:, i] = (addresses - base) // size
            span = int((addresses + counts * size).max()) - base
            view, buffer = device.span(_memory_at(base, span, _WRITABLE), span // size, memory_type(operand.dtype))
            self.views.append(view)
            self.buffers.append(buffer)
            self.bases.append(base)
        self.rows = _split_rows(_join_rows(table))
        binding = device.bind(self.rows, "i64", self.rows.shape)
        self.views.append(binding.view)
        self.buffers.append(binding)

    def run(self, scalars: Sequence[float]) -> bool:
        """As :meth:`Call.run`."""
        rt = self.module.runtime
        arguments = rt.VmVariantList(len(self.views) + len(scalars))
        for view in self.views:
            arguments.push_ref(view)
        for number in scalars:
            arguments.push_float(number)
        count, scalar_results = len(self.results), len(self.kernel.returned)
        outputs = rt.VmVariantList(count + scalar_results)
        self.module.invoke(arguments, outputs)
        self.returned = [float(outputs.get_variant(count + i)) for i in range(scalar_results)]
        if self.trusted:
            return True
        moved = False
        for position, i in enumerate(self.results):
            view = outputs.get_as_object(position, rt.HalBufferView)
            if self.device.address(view) != self.bases[i]:
                moved = True
                self._copy_back(view, i)
        self.trusted = not moved
        return not moved

    def _copy_back(self, view: Any, operand: int) -> None:
        """The results of one operand, from a copy of its span."""
        source = self.device.address(view)
        assert source is not None
        for leaf in self.arrays:
            array = leaf[operand]
            ctypes.memmove(array.ctypes.data, source + array.ctypes.data - self.bases[operand], array.nbytes)


def _join_rows(table: np.ndarray) -> np.ndarray:
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


def _split_rows(table: np.ndarray) -> np.ndarray:
    """``table`` with leaves of more than ROW elements in pieces, in memory that modules may use."""
    pieces = -(-table[:, -1] // ROW)
    rows = empty((int(pieces.sum()), table.shape[1]), "i64", ALIGNMENT)
    if len(rows) == len(table):
        rows[:] = table
        return rows
    rows[:] = np.repeat(table, pieces, axis=0)
    first = np.cumsum(pieces) - pieces
    starts = (np.arange(len(rows)) - np.repeat(first, pieces)) * ROW
    rows[:, :-1] += starts[:, None]
    rows[:, -1] = np.minimum(rows[:, -1] - starts, ROW)
    return rows


def prepare(
    device: Device,
    info: ModuleInfo,
    module: LoadedModule,
    kernel: KernelInfo,
    leaves: Sequence[Sequence[np.ndarray]],
) -> Call:
    """Binds leaves to a module, in the way that it is called."""
    kind = RowsCall if info.abi == "rows" else ListCall
    return kind(device, info, module, kernel, leaves)
