"""Steps that add to a mean of grads and update nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from optgen.artifact import KernelInfo, MicroInfo
from optgen.runtime.counts import number_of
from optgen.runtime.execute import prepare, run_together, scalar_state
from optgen.runtime.tree import leaves_of

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Optimizer, Work


class MicroStep:
    """The leaves of an update, bound to the kernels that accumulate grads.

    Args:
        optimizer: of a rule that accumulates.
        works: the leaves.

    Attributes:
        every: which step updates.
        count: the name of the number of grads in the mean.
        calls: one for each kernel.
    """

    def __init__(self, optimizer: Optimizer, works: Sequence[Work]) -> None:
        info = optimizer.manifest.micro
        assert info is not None
        self._optimizer, self._info = optimizer, info
        self.count = info.count
        self.every = optimizer.manifest.baked.get(info.every, 1.0)
        groups: dict[str, tuple[KernelInfo, list[list[Any]]]] = {}
        for work in works:
            names = [o.name for o in work.kernel.operands]
            at = names.index(info.state), names.index(optimizer.manifest.inputs[0])
            wanted = [work.kernel.operands[i].dtype for i in at]
            kernel = next(
                k
                for k in info.kernels
                if [o.dtype for o in k.operands] == wanted and k.dtypes["compute"] == work.kernel.dtypes["compute"]
            )
            groups.setdefault(kernel.name, (kernel, []))[1].append([work.arrays[i] for i in at])
        device = optimizer.device
        self.calls = [prepare(device, *optimizer.module(k, device), k, leaves) for k, leaves in groups.values()]

    def set(self, values: Mapping[str, float]) -> None:
        """Takes from a step's hyperparameters what it needs."""
        self.every = values.get(self._info.every, self.every)

    def due(self, state: MutableMapping[str, Any]) -> bool:
        """Whether the next step updates."""
        return self._optimizer.scalar(state, self._info.count) + 1 >= self.every

    def run(self, state: MutableMapping[str, Any]) -> None:
        """Adds the grads to the mean."""
        count = self._optimizer.scalar(state, self._info.count)
        run_together(self.calls, [[count]] * len(self.calls))
        (state[self._info.count],) = scalar_state(self.calls).values() if self.calls else (count + 1,)


#: In a state while a mean is being made: the leaves that had no grad yet, by path.
UNSEEN = "unseen"


def window(state: Mapping[str, Any], info: MicroInfo, absent: Collection[str]) -> frozenset[str]:
    """Of leaves that have no grad at this step, those that had none since the mean was last used.

    As torch's ``p.grad`` does, the mean then counts nothing for them; a leaf that has had a grad counts a zero.
    """
    if number_of(state, info.count) == 0:
        return frozenset(absent)
    return frozenset(absent) & leaves_of(state.get(UNSEEN)).keys()
