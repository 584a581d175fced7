"""Calling a kernel's module on leaves: by rows on CPUs, by lists of leaves elsewhere.

A call is prepared once, with everything that depends on the leaves, and then run with scalars any number of times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.dtypes import SIZES
from optgen.runtime.call import Call as Call
from optgen.runtime.device import Device, get_device, tasks_pay
from optgen.runtime.leaves import LeavesCall, ListCall
from optgen.runtime.module import LoadedModule
from optgen.runtime.rows import RowsCall
from optgen.runtime.staged import StagedCall
from optgen.runtime.stages import StagesCall


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
    if info.abi == "leaves":
        return LeavesCall(device, info, module, kernel, leaves, numbers)
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
    staged = [call for call in calls if isinstance(call, StagedCall)]
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
