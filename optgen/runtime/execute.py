"""Calling a kernel's module on leaves: by rows on CPUs, by lists of leaves elsewhere.

A call is prepared once, with everything that depends on the leaves, and then run with scalars any number of times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.dtypes import SIZES
from optgen.runtime.call import Call as Call
from optgen.runtime.device import Binding, Device, get_device, tasks_pay
from optgen.runtime.memory import writable_alias
from optgen.runtime.module import LoadedModule
from optgen.runtime.rows import RowsCall
from optgen.runtime.stages import StagesCall


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
        lists = self.launch(scalars)
        reads, moved = [], False
        for i in self.results:
            for j, (binding, leaf) in enumerate(zip(self.bindings[i], self.arrays, strict=True)):
                view = lists[i].get_as_object(j, self.module.runtime.HalBufferView)
                same = self.same(binding, view)
                moved |= not same
                if binding.staged or not same:
                    reads.append((view, leaf[i]))
        self.device.read_all(reads)
        return not moved

    def launch(self, scalars: Sequence[float]) -> list[Any]:
        """Updates what is on the device, and leaves it there.

        Returns:
            For each operand, the list of its views.
        """
        if not self.bindings:
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
        return lists

    def same(self, binding: Binding, view: Any) -> bool:
        """Whether ``view`` is the memory of ``binding``."""
        if self.device.backend != "cpu":
            return self.info.in_place
        return self.device.address(view) == binding.array.ctypes.data


def prepare(
    device: Device,
    info: ModuleInfo,
    module: LoadedModule,
    kernel: KernelInfo,
    leaves: Sequence[Sequence[np.ndarray]],
    numbers: Sequence[int] | None = None,
) -> Call:
    """Binds leaves to a module, in the way that it is called. ``numbers`` are the leaves' in their tree."""
    if info.abi == "stages":
        return StagesCall(device, info, module, kernel, leaves, numbers)
    if device.uri == "cpu" and tasks_pay(sum(leaf[0].size for leaf in leaves)):
        device = get_device("local-task")
        module = module.on(device)
    kind = RowsCall if info.abi == "rows" else ListCall
    return kind(device, info, module, kernel, leaves)


def run_together(calls: Sequence[Call], scalars: Sequence[Sequence[float]]) -> bool:
    """Runs calls that together update one tree.

    Args:
        calls: each for some of its leaves, of the same rule.
        scalars: of each.

    Returns:
        Whether every result lay in the memory of its operand; where not, it has been copied there.
    """
    staged = [call for call in calls if isinstance(call, StagesCall)]
    if len(staged) < len(calls) or not any(column.tree for call in staged for s in call.kernel.stages for column in s):
        kept = [call.run(numbers) for call, numbers in zip(calls, scalars, strict=True)]
        return all(kept)
    totals: list[float] = []
    for index, stage in enumerate(staged[0].kernel.stages):
        found = [call.stage(index, [*numbers, *totals]) for call, numbers in zip(staged, scalars, strict=True)]
        trees = [column for column in stage if column.tree]
        totals += [column.total([line[i] for line in found]) for i, column in enumerate(trees)]
    kept = [call.apply([*numbers, *totals]) for call, numbers in zip(staged, scalars, strict=True)]
    return all(kept)


def scalar_state(calls: Iterable[Call]) -> dict[str, float]:
    """The scalar state after these calls, from the one with the widest arithmetic; empty where there is none."""
    widest = max(calls, key=lambda call: SIZES[call.kernel.dtypes["compute"]], default=None)
    return {} if widest is None else dict(zip(widest.kernel.returned, widest.returned, strict=True))
