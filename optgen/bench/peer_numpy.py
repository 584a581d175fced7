"""numpy, with nothing allocated."""

from __future__ import annotations

import numpy as np

from optgen.bench.data import Data, coefficients
from optgen.bench.peers import AbsentError, Peer, only_f32
from optgen.bench.work import BETA1, BETA2, LR, MOMENTUM


class Numpy(Peer):
    """Each rule by ufuncs in place, and one buffer as large as the largest leaf. One thread: numpy has no others."""

    def __init__(self, data: Data, threads: int) -> None:
        only_f32(data.case)
        if data.case.rule.again or data.case.rule.name == "lion":
            raise AbsentError("only sgd, momentum, adam and adamw are written for it")
        self._data, self._count = data, 0
        self._rows = list(zip(data.params, data.grads, *data.state.values(), strict=True))
        self._buffer = np.zeros(max(data.case.work.sizes), np.float32)
        self._update = {"sgd": self._sgd, "momentum": self._momentum}.get(data.case.rule.name, self._adam)

    def step(self) -> None:
        """One update."""
        self._count += 1
        self._update()

    def params(self) -> list[np.ndarray]:
        """The shared ones."""
        return self._data.params

    def _sgd(self) -> None:
        for w, g in self._rows:
            t = self._buffer[: w.size]
            np.multiply(g, LR, out=t)
            w -= t

    def _momentum(self) -> None:
        for w, g, m in self._rows:
            t = self._buffer[: w.size]
            m *= MOMENTUM
            m += g
            np.multiply(m, LR, out=t)
            w -= t

    def _adam(self) -> None:
        rule = self._data.case.rule
        alpha, eps, keep = coefficients(rule, self._count)
        for w, g, m, v in self._rows:
            t = self._buffer[: w.size]
            m *= BETA1
            np.multiply(g, 1 - BETA1, out=t)
            m += t
            v *= BETA2
            np.multiply(g, g, out=t)
            t *= 1 - BETA2
            v += t
            np.sqrt(v, out=t)
            t += eps
            np.divide(m, t, out=t)
            t *= alpha
            if rule.decay:
                w *= keep
            w -= t
