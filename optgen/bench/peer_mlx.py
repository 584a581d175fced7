"""MLX on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from optgen.bench.data import Data
from optgen.bench.peers import AbsentError, Peer, need, only_f32
from optgen.bench.work import BETA1, BETA2, EPS, LR, MOMENTUM


class Mlx(Peer):
    """``mlx.optimizers``, evaluated after each step. Its arrays are its own."""

    def __init__(self, data: Data, threads: int) -> None:
        only_f32(data.case)
        if data.case.rule.again:
            raise AbsentError("has no such rule")
        self._mx = mx = need("mlx.core")
        optimizers = need("mlx.optimizers")
        mx.set_default_device(mx.cpu)
        rule, betas = data.case.rule, [BETA1, BETA2]
        self._optimizer: Any
        if rule.name == "adamw":
            self._optimizer = optimizers.AdamW(LR, betas, EPS, weight_decay=rule.decay, bias_correction=True)
        elif rule.name == "adam":
            self._optimizer = optimizers.Adam(LR, betas, EPS, bias_correction=True)
        elif rule.name == "lion":
            self._optimizer = optimizers.Lion(LR, betas, weight_decay=rule.decay)
        else:
            self._optimizer = optimizers.SGD(LR, momentum=MOMENTUM if rule.slots else 0.0)
        self._params = {str(i): mx.array(w) for i, w in enumerate(data.params)}
        self._grads = {str(i): mx.array(g) for i, g in enumerate(data.grads)}
        self._optimizer.init(self._params)
        mx.eval(self._params, self._grads, self._optimizer.state)

    def step(self) -> None:
        """One update."""
        self._params = self._optimizer.apply_gradients(self._grads, self._params)
        self._mx.eval(self._params, self._optimizer.state)

    def params(self) -> list[np.ndarray]:
        """MLX's."""
        return [np.array(w) for w in self._params.values()]
