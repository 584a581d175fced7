"""Calling a module by rows: stages of reductions, then the update, shared by the caller and its worker threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.runtime.call import Call
from optgen.runtime.device import Device
from optgen.runtime.memory import empty
from optgen.runtime.module import LoadedModule
from optgen.runtime.rows import Spans, join_rows, split_rows

#: Seconds for which the caller looks whether its workers are done before it sleeps: to be woken takes 50 us.
_PATIENCE = 5e-4


class StagesCall(Call):
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
    ) -> None:
        super().__init__(device, info, module, kernel, leaves)
        self._spans = Spans(kernel, leaves)
        self.rows = _number_leaves(self._spans.table, kernel)
        first = np.flatnonzero(np.diff(self.rows[:, -2], prepend=-1))
        self._partials = [empty((len(self.rows), len(stage)), "f64") for stage in kernel.stages]
        self._totals = [
            empty((len(first), width), "f64") if (width := sum(not c.tree for c in stage)) else None
            for stage in kernel.stages
        ]
        self._first = first
        self._shares = [
            _Share(where, module.on(where), self, low, high) for where, low, high in _share(self.rows, device)
        ]

    def run(self, scalars: Sequence[float]) -> bool:
        """As :meth:`Call.run`."""
        totals: list[float] = []
        for index in range(len(self._partials)):
            totals += self.stage(index, [*scalars, *totals])
        return self.apply([*scalars, *totals] if totals else scalars)

    def stage(self, index: int, scalars: Sequence[float]) -> list[float]:
        """Runs one stage of reductions.

        Args:
            index: which.
            scalars: of the kernel, and the totals over the tree of the stages before.

        Returns:
            Its totals over the tree, as far as these leaves go. Those for leaves stay here.
        """
        self._all(f"stage{index}", index, scalars)
        lines, totals = self._partials[index], self._totals[index]
        found, at = [], 0
        for i, column in enumerate(self.kernel.stages[index]):
            line = np.ascontiguousarray(lines[:, i])
            if column.tree:
                found.append(column.total(line))
            else:
                assert totals is not None
                column.ufunc.reduceat(line, self._first, out=totals[:, at])
                at += 1
        return found

    def apply(self, scalars: Sequence[float]) -> bool:
        """The update itself, after all stages. Takes what :meth:`stage` takes, and returns what :meth:`run` does."""
        outputs = self._all("apply", len(self._partials), scalars)
        if self.kernel.returned:
            first = len(self.results)
            self.returned = [float(outputs[0].get_variant(first + i)) for i in range(len(self.kernel.returned))]
        if self.trusted:
            return True
        moved = False
        rt = self.module.runtime
        for share, found in zip(self._shares, outputs, strict=True):
            for position, i in enumerate(self.results):
                address = share.device.address(found.get_as_object(position, rt.HalBufferView))
                if address is not None and address != self._spans.bases[i]:
                    moved = True
                    self._spans.copy_back(address, i, self.arrays)
        self.trusted = not moved
        return not moved

    def _all(self, entry: str, stages: int, scalars: Sequence[float]) -> list[Any]:
        """Every share of the rows, at once; ``stages`` of reductions have been done."""
        if len(self._shares) == 1:
            return [self._shares[0].run(entry, stages, scalars)]
        mine, *others = self._shares
        begun = [share.begin(entry, stages, scalars) for share in others]
        try:
            outputs = [mine.run(entry, stages, scalars), *begun]
        finally:
            for share in others:
                share.wait()
        return outputs


class _Share:
    """Some of the rows, on one device."""

    def __init__(self, device: Device, module: LoadedModule, call: StagesCall, low: int, high: int) -> None:
        self.device, self.module = device, module
        rt = module.runtime
        self._bound = call._spans.views(device)
        self._bound.append(_span(device, call.rows[low:high], "i64"))
        self._partials = [_span(device, p[low:high], "f64") for p in call._partials]
        self._totals = [None if t is None else _span(device, t, "f64") for t in call._totals]
        self._views = [view for view, _ in self._bound]
        self._none = rt.HalFence(0)
        # A device without threads of its own is done when the call returns.
        self._semaphore = None if device.inline else device.hal.create_semaphore(0)
        self._count = 0
        self._arguments: Any = None

    def begin(self, entry: str, stages: int, scalars: Sequence[float]) -> Any:
        """Starts an entry point; results are there once :meth:`wait` has returned.

        Returns:
            The list of what it returns.
        """
        rt = self.module.runtime
        arguments = rt.VmVariantList(len(self._views) + 2 * len(self._partials) + len(scalars) + 2)
        push = arguments.push_ref
        for view in self._views:
            push(view)
        for bound in self._totals[:stages]:
            if bound is not None:
                push(bound[0])
        if entry != "apply":
            push(self._partials[stages][0])
        for number in scalars:
            arguments.push_float(number)
        push(self._none)
        signal = self._none
        if self._semaphore is not None:
            self._count += 1
            signal = rt.HalFence.create_at(self._semaphore, self._count)
        push(signal)
        outputs = rt.VmVariantList(8)
        self.module.invoke(arguments, outputs, entry)
        self._arguments = arguments, signal  # in use until it is done
        return outputs

    def wait(self) -> None:
        """Waits for what has begun."""
        if self._semaphore is None:
            return
        done, until = self._semaphore.query, time.perf_counter() + _PATIENCE
        while done() < self._count:
            if time.perf_counter() > until:
                self._arguments[1].wait()
                return

    def run(self, entry: str, stages: int, scalars: Sequence[float]) -> Any:
        """:meth:`begin` and :meth:`wait`."""
        outputs = self.begin(entry, stages, scalars)
        self.wait()
        return outputs


def _span(device: Device, array: np.ndarray, dtype: str) -> tuple[Any, Any]:
    return device.span(array.reshape(-1).view(np.uint8).data, array.shape, dtype)


def _number_leaves(table: np.ndarray, kernel: KernelInfo) -> np.ndarray:
    """The rows of ``table``, each with its leaf's number and size behind its own count."""
    if not kernel.leafwise:
        table = join_rows(table)
    numbered = np.empty((len(table), table.shape[1] + 2), np.int64)
    numbered[:, :-2] = table
    numbered[:, -2] = np.arange(len(table))
    numbered[:, -1] = table[:, -1]
    return split_rows(numbered, counts=-3)


def _share(rows: np.ndarray, device: Device) -> list[tuple[Device, int, int]]:
    """Who does which rows: the caller's first."""
    workers = device.workers(int(rows[:, -3].sum())) if len(rows) > 1 else None
    if workers is None:
        return [(device, 0, len(rows))]
    done = np.cumsum(rows[:, -3])
    mine = int(np.searchsorted(done, done[-1] // (workers.threads + 1))) + 1
    return [(device, 0, mine), (workers, mine, len(rows))] if mine < len(rows) else [(device, 0, len(rows))]
