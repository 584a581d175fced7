"""TVM's relax.training. Reported, not run."""

from __future__ import annotations

import numpy as np

from optgen.bench.data import Data
from optgen.bench.peers import AbsentError, Peer, need, only_f32


class Tvm(Peer):
    """``tvm.relax.training.optimizer``."""

    def __init__(self, data: Data, threads: int) -> None:
        only_f32(data.case)
        need("tvm.relax.training.optimizer")
        raise AbsentError("not run: Adam.init of TVM 0.27 raises as installed, and no way round it is written here")

    def step(self) -> None:
        """One update."""

    def params(self) -> list[np.ndarray]:
        """None."""
        return []
