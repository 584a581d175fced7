"""DeepSpeed's Adam for CPUs, on the shared memory. DeepSpeed compiles it when it is first used."""

from __future__ import annotations

from typing import Any

import numpy as np

from optgen.bench.data import Data
from optgen.bench.peers import AbsentError, Peer, need, only_f32
from optgen.bench.work import BETA1, BETA2, EPS, LR


class DeepSpeed(Peer):
    """``DeepSpeedCPUAdam``."""

    def __init__(self, data: Data, threads: int) -> None:
        only_f32(data.case)
        if data.case.rule.name not in ("adam", "adamw"):
            raise AbsentError("has Adam and AdamW alone")
        torch, adam = need("torch"), need("deepspeed.ops.adam")
        torch.set_num_threads(threads)
        tensors = [torch.nn.Parameter(torch.from_numpy(w)) for w in data.params]
        for tensor, grad in zip(tensors, data.grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
        rule = data.case.rule
        try:
            self._optimizer: Any = adam.DeepSpeedCPUAdam(
                tensors, lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=rule.decay, adamw_mode=bool(rule.decay)
            )
        except Exception as error:
            raise AbsentError(f"cannot be built: {(str(error).splitlines() or [''])[0][:120]}") from error
        for tensor, m, v in zip(tensors, data.state["m"], data.state["v"], strict=True):
            moments = {"exp_avg": torch.from_numpy(m), "exp_avg_sq": torch.from_numpy(v)}
            self._optimizer.state[tensor].update(step=0, **moments)
        self._data = data

    def step(self) -> None:
        """One update."""
        self._optimizer.step()

    def params(self) -> list[np.ndarray]:
        """The shared ones."""
        return self._data.params
