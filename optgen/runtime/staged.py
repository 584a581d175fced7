"""Calls in stages: reductions, whose partial results the caller combines, then the update."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from optgen.artifact import ReductionInfo
from optgen.runtime.call import Call


class StagedCall(Call):
    """Leaves bound to a module with an entry point for each stage of reductions. See :class:`Call`."""

    def run(self, scalars: Sequence[float]) -> bool:
        """As :meth:`Call.run`."""
        totals: list[float] = []
        for index in range(len(self.kernel.stages)):
            totals += self.stage(index, [*scalars, *totals])
        return self.apply([*scalars, *totals] if totals else scalars)

    @abstractmethod
    def stage(self, index: int, scalars: Sequence[float]) -> list[float]:
        """Runs one stage of reductions.

        Args:
            index: which.
            scalars: of the kernel, and the totals over the tree of the stages before.

        Returns:
            Its totals over the tree, as far as these leaves go. Those for leaves stay here.
        """

    @abstractmethod
    def apply(self, scalars: Sequence[float]) -> bool:
        """The update itself, after all stages. Takes what :meth:`stage` takes, and returns what :meth:`run` does."""


def combine(
    stage: Sequence[ReductionInfo], partials: Sequence[np.ndarray], first: np.ndarray, totals: np.ndarray | None
) -> list[float]:
    """Combines the partial results of one stage, in f64.

    Args:
        stage: its reductions.
        partials: of each, one for each part of each leaf.
        first: where in them each leaf begins.
        totals: a line for each leaf, which gets the totals over it; None where the stage has none of those.

    Returns:
        The totals over all of these leaves.
    """
    found, at = [], 0
    for column, line in zip(stage, partials, strict=True):
        if column.tree:
            found.append(column.total(line))
        else:
            assert totals is not None
            column.ufunc.reduceat(line, first, out=totals[:, at])
            at += 1
    return found


def leafwise(stage: Sequence[ReductionInfo]) -> int:
    """How many reductions of a stage are over each leaf by itself."""
    return sum(not column.tree for column in stage)
