"""Calling a module by rows: stages of reductions, then the update, shared by the caller and its worker threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.runtime.device import Device
from optgen.runtime.memory import empty
from optgen.runtime.module import LoadedModule
from optgen.runtime.rows import Spans, join_rows, split_rows
from optgen.runtime.staged import StagedCall, combine, leafwise

#: Seconds for which the caller looks whether its workers are done before it sleeps: to be woken takes 50 us.
_PATIENCE = 5e-4


class StagesCall(StagedCall):
    """Leaves bound to a module by rows. See :class:`Call`.

    Where there is enough to do, the rows are shared: the device's worker threads begin with theirs, and the caller
    does its own meanwhile, instead of sleeping.
    """

    def __init__(
        self,
        device: Device,
        info: ModuleInfo,
        module: LoadedModule,
        kernel: KernelInfo,
        leaves: Sequence[Sequence[np.ndarray]],
        numbers: Sequence[int] | None = None,
    ) -> None:
        super().__init__(device, info, module, kernel, leaves)
        self._spans = Spans(kernel, leaves)
        self.rows = _number_leaves(self._spans.table, kernel, numbers)
        counts = self.rows[:, len(kernel.operands)]
        first = np.flatnonzero(np.diff(self.rows[:, len(kernel.operands) + 1], prepend=-1))
        self._partials = [empty((len(self.rows), len(stage)), "f64") for stage in kernel.stages]
        self._totals = [
            empty((len(first), width), "f64") if (width := leafwise(stage)) else None for stage in kernel.stages
        ]
        self._first = first
        workers = device.workers(int(counts.sum()), kernel.dtypes["compute"]) if len(self.rows) > 1 else None
        self._pieces = _pieces(counts, workers.threads + 1 if workers else 1)
        self._mine = _Hand(device, module, self)
        self._theirs = _Hand(workers, module.on(workers), self) if workers and len(self._pieces) > 1 else None
        # What most calls on small leaves are, whose time is that of Python's own steps.
        simple = len(self._pieces) == 1 and not kernel.stages and not kernel.returned
        self._at_once = simple and self._mine.inline

    def run(self, scalars: Sequence[float]) -> bool:
        """As :meth:`Call.run`."""
        if self._at_once:
            outputs = [self._mine.begin("apply", 0, scalars, 0)]
            return self.trusted or self._trust(outputs)
        return super().run(scalars)

    def stage(self, index: int, scalars: Sequence[float]) -> list[float]:
        """As :meth:`StagedCall.stage`."""
        self._all(f"stage{index}", index, scalars)
        lines = [np.ascontiguousarray(line) for line in self._partials[index].T]
        return combine(self.kernel.stages[index], lines, self._first, self._totals[index])

    def apply(self, scalars: Sequence[float]) -> bool:
        """As :meth:`StagedCall.apply`."""
        outputs = self._all("apply", len(self._partials), scalars)
        if self.kernel.returned:
            first = len(self.results)
            self.returned = [float(outputs[0].get_variant(first + i)) for i in range(len(self.kernel.returned))]
        return self.trusted or self._trust(outputs)

    def _trust(self, outputs: list[Any]) -> bool:
        """Whether results lie where their operands do; where not, copies them there."""
        moved = False
        rt = self.module.runtime
        for found in outputs:
            for position, i in enumerate(self.results):
                address = self.device.address(found.get_as_object(position, rt.HalBufferView))
                if address is not None and address != self._spans.bases[i]:
                    moved = True
                    self._spans.copy_back(address, i, self.arrays)
        self.trusted = not moved
        return not moved

    def _all(self, entry: str, stages: int, scalars: Sequence[float]) -> list[Any]:
        """All pieces of the rows; ``stages`` of reductions have been done.

        The caller takes pieces from the front, its workers from the back, until they meet.

        Returns:
            What each call of the entry point returned.
        """
        mine, theirs = self._mine, self._theirs
        if theirs is None:
            outputs = [mine.begin(entry, stages, scalars, piece) for piece in range(len(self._pieces))]
            mine.wait()
            return outputs
        front, back, outputs = 0, len(self._pieces), []
        try:
            while front < back:
                # One ahead of what they work at, so that they need not wait for the caller to look.
                while front + 1 < back and theirs.pending() < 2:
                    back -= 1
                    outputs.append(theirs.begin(entry, stages, scalars, back))
                outputs.append(mine.begin(entry, stages, scalars, front))
                front += 1
        finally:
            theirs.wait()
        return outputs


class _Hand:
    """One of those who work: a device, and what it needs for each piece."""

    def __init__(self, device: Device, module: LoadedModule, call: StagesCall) -> None:
        self.device, self.module = device, module
        rt = module.runtime
        self.inline = device.inline
        self._bound = call._spans.views(device)
        self._totals = [None if t is None else _span(device, t, "f64") for t in call._totals]
        # For each piece its rows of the table, and of the partial results of each stage.
        self._tables = [_span(device, call.rows[low:high], "i64") for low, high in call._pieces]
        self._partials = [[_span(device, p[low:high], "f64") for p in call._partials] for low, high in call._pieces]
        views = [view for view, _ in self._bound]
        self._views = [(*views, table) for table, _ in self._tables]
        self._new_list = rt.VmVariantList
        self._new_fence = rt.HalFence.create_at
        self._none = rt.HalFence(0)
        # A device without threads of its own is done when the call returns.
        self._semaphore = None if device.inline else device.hal.create_semaphore(0)
        self._count = 0
        self._last = self._none
        self._busy: list[Any] = []  # arguments, which must live until the work is done

    def begin(self, entry: str, stages: int, scalars: Sequence[float], piece: int) -> Any:
        """Starts an entry point on a piece, after those that were started before.

        Returns:
            The list of what it returns: there, and written, once :meth:`wait` has returned.
        """
        arguments = self._new_list(32)
        push = arguments.push_ref
        for view in self._views[piece]:
            push(view)
        if stages:
            for bound in self._totals[:stages]:
                if bound is not None:
                    push(bound[0])
        if entry != "apply":
            push(self._partials[piece][stages][0])
        push_number = arguments.push_float
        for number in scalars:
            push_number(number)
        push(self._last)
        if self._semaphore is not None:
            self._count += 1
            self._last = self._new_fence(self._semaphore, self._count)
            self._busy.append(arguments)
            if self.device.aside is not None:
                self.device.aside.step()
        push(self._last)
        outputs = self._new_list(8)
        self.module.invoke(arguments, outputs, entry)
        return outputs

    def pending(self) -> int:
        """How many pieces have been started and are not done."""
        return 0 if self._semaphore is None else self._count - self._semaphore.query()

    def wait(self) -> None:
        """Waits for all that has been started."""
        if self._semaphore is None:
            return
        done, until = self._semaphore.query, time.perf_counter() + _PATIENCE
        while done() < self._count:
            if time.perf_counter() > until:
                self._last.wait()
                break
        self._busy.clear()


def _span(device: Device, array: np.ndarray, dtype: str) -> tuple[Any, Any]:
    return device.span(array.reshape(-1).view(np.uint8).data, array.shape, dtype)


def _number_leaves(table: np.ndarray, kernel: KernelInfo, numbers: Sequence[int] | None) -> np.ndarray:
    """The rows of ``table``, each with its leaf's line of totals and its size behind its own count.

    Where the kernel takes indices they are followed by where in its leaf the row starts, and the leaf's number.
    """
    if not kernel.leafwise:
        table = join_rows(table)
    lines, width = np.arange(len(table)), table.shape[1]
    columns = [table, lines, table[:, -1]]
    if kernel.indexed:
        columns += [np.zeros(len(table)), lines if numbers is None else np.array(numbers)]
    rows = split_rows(np.column_stack(columns).astype(np.int64), counts=width - 1)
    if kernel.indexed:
        begins = np.cumsum(rows[:, width - 1]) - rows[:, width - 1]  # were all leaves one
        first = np.flatnonzero(np.diff(rows[:, width], prepend=-1))
        rows[:, width + 2] = begins - begins[first][rows[:, width]]
    return rows


#: Elements from which rows are shared in many pieces, so that a thread that is held up does not hold up the rest.
_MANY_FROM = 3_000_000
#: The part of the rows that is dealt out in small pieces, and their number.
_DEALT, _SMALL = 0.2, 8


def _pieces(counts: np.ndarray, threads: int) -> list[tuple[int, int]]:
    """How rows with so many elements each are divided: a piece for the caller first, the workers' last."""
    done = np.cumsum(counts)
    total = int(done[-1])
    dealt, small = (_DEALT, _SMALL) if total >= _MANY_FROM else (0.0, 0)
    mine = (1 - dealt) / threads
    marks = [0.0, *(mine + dealt * i / small for i in range(small)), mine + dealt, 1.0] if threads > 1 else [0.0, 1.0]
    rows = [0, *(int(np.searchsorted(done, total * mark - 0.5)) + 1 for mark in marks[1:-1]), len(counts)]
    return [(low, high) for low, high in pairwise(rows) if low < high]
