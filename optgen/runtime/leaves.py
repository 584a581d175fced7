"""Calling a module by lists of leaves, a dispatch for each: on GPUs, and where a rule runs out of place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.errors import LeafError
from optgen.runtime.call import Call
from optgen.runtime.device import Binding, Device
from optgen.runtime.memory import writable_alias
from optgen.runtime.module import LoadedModule
from optgen.runtime.staged import StagedCall, combine, leafwise

#: Elements that a lane of a reduction takes at least, and lanes of a leaf at most: enough to keep a GPU busy, few
#: enough to read back. Lanes stay below 65,535 elements each (Mesa's limit for loops) up to leaves of 4 * 10^9.
ROUNDS, LANES = 32, 65_536

#: Elements of a leaf that has random bits of its own for each: 32 bits of an element's index make them.
RANDOM_MOST = 2**32


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
        return self._read_back(self.launch(scalars))

    def launch(self, scalars: Sequence[float]) -> list[Any]:
        """Updates what is on the device, and leaves it there.

        Returns:
            For each operand, the list of its views.
        """
        if not self.bindings:
            self._bind()
        arguments, lists = self._arguments()
        return self._launch(arguments, lists, scalars)

    def _arguments(self) -> tuple[Any, list[Any]]:
        """The arguments that every entry point begins with, and the lists among them."""
        rt = self.module.runtime
        arguments, lists = rt.VmVariantList(len(self.bindings) + 24), []
        for bindings in self.bindings:
            views = rt.VmVariantList(len(bindings))
            for binding in bindings:
                views.push_ref(binding.view)
            arguments.push_list(views)
            lists.append(views)
        return arguments, lists

    def _launch(self, arguments: Any, lists: list[Any], scalars: Sequence[float]) -> list[Any]:
        for number in scalars:
            arguments.push_float(number)
        outputs = self.module.runtime.VmVariantList(1 + len(self.kernel.returned))
        self.module.invoke(arguments, outputs, "apply")
        self.returned = [float(outputs.get_variant(1 + i)) for i in range(len(self.kernel.returned))]
        return lists

    def _read_back(self, lists: Sequence[Any]) -> bool:
        """What an update has left in lists of views, into the leaves. Returns what :meth:`run` does."""
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

    def same(self, binding: Binding, view: Any) -> bool:
        """Whether ``view`` is the memory of ``binding``."""
        if self.device.backend != "cpu":
            return self.info.in_place
        return self.device.address(view) == binding.array.ctypes.data


class LeavesCall(ListCall, StagedCall):
    """Leaves bound to a module that is told besides how many elements each has, and the totals of reductions.

    Raises:
        LeafError: for a leaf of more than 2^32 elements that would be rounded at random.
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
        sizes = np.array([leaf[0].size for leaf in leaves], np.int64)
        if kernel.indexed and sizes.max() > RANDOM_MOST:
            raise LeafError(
                f"a leaf must have at most 2**32 elements to be rounded at random on {device.uri} (got {sizes.max()})"
            )
        lanes = np.minimum(-(-sizes // ROUNDS), LANES)
        self._places = module.runtime.VmVariantList(3 * len(sizes))
        for line in zip(sizes, lanes, range(len(sizes)) if numbers is None else numbers, strict=True):
            for number in line:
                self._places.push_int(int(number))
        self._first = np.cumsum(lanes) - lanes
        # The line of each leaf: its size, and what all stages have found of it.
        widths = [leafwise(stage) for stage in kernel.stages]
        self._columns = np.cumsum([1, *widths])
        self._totals = np.zeros((len(sizes), 1 + sum(widths)))
        self._totals[:, 0] = sizes
        dtype, height = ("f32", 2) if info.pairs else ("f64", 1)
        self._partials = [
            device.empty((height * len(stage), int(lanes.sum())), dtype) if stage else None for stage in kernel.stages
        ]

    def run(self, scalars: Sequence[float]) -> bool:
        """As :meth:`Call.run`."""
        return StagedCall.run(self, scalars)

    def launch(self, scalars: Sequence[float]) -> list[Any]:
        """As :meth:`ListCall.launch`."""
        if not self.bindings:
            self._bind()
        totals: list[float] = []
        for index in range(len(self.kernel.stages)):
            totals += self._reduce(index, [*scalars, *totals])
        return super().launch([*scalars, *totals])

    def stage(self, index: int, scalars: Sequence[float]) -> list[float]:
        """As :meth:`StagedCall.stage`."""
        if index == 0:
            self._bind()
        return self._reduce(index, scalars)

    def apply(self, scalars: Sequence[float]) -> bool:
        """As :meth:`StagedCall.apply`."""
        if not self.kernel.stages:
            self._bind()
        return self._read_back(super().launch(scalars))

    def _arguments(self) -> tuple[Any, list[Any]]:
        arguments, lists = super()._arguments()
        totals = self.module.runtime.VmVariantList(self._totals.size)
        for number in self._totals.ravel().tolist():
            totals.push_float(number)
        arguments.push_list(self._places)
        arguments.push_list(totals)
        return arguments, lists

    def _reduce(self, index: int, scalars: Sequence[float]) -> list[float]:
        """One stage on what is on the device; see :meth:`stage`."""
        rt, stage, partials = self.module.runtime, self.kernel.stages[index], self._partials[index]
        assert partials is not None
        arguments, _ = self._arguments()
        arguments.push_ref(partials)
        for number in scalars:
            arguments.push_float(number)
        outputs = rt.VmVariantList(1)
        self.module.invoke(arguments, outputs, f"stage{index}")
        found = np.empty(tuple(partials.shape), np.float32 if self.info.pairs else np.float64)
        self.device.read(outputs.get_as_object(0, rt.HalBufferView), found)
        lines = found.astype(np.float64)
        if self.info.pairs:
            lines = lines[0::2] + lines[1::2]
        low, high = self._columns[index : index + 2]
        return combine(stage, list(lines), self._first, self._totals[:, low:high])
