"""What a prepared call of a kernel's module is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from optgen.artifact import KernelInfo, ModuleInfo
from optgen.runtime.device import Device
from optgen.runtime.module import LoadedModule


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
        #: The scalar state after the last run.
        self.returned: list[float] = []
        #: Whether results are known to lie in the memory of their operands, so that the arrays are not needed.
        self.trusted = False

    @abstractmethod
    def run(self, scalars: Sequence[float]) -> bool:
        """Updates the leaves, and ``returned``.

        Returns:
            Whether every result lay in the memory of its operand; where not, it has been copied there.
        """
