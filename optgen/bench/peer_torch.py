"""torch.optim, in its three fast forms, on the shared memory."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np

from optgen.bench.data import Data
from optgen.bench.peers import Peer, need, only_f32
from optgen.bench.work import BETA1, BETA2, EPS, LR, MOMENTUM


class _Torch(Peer):
    flags: ClassVar[dict[str, bool]]

    def __init__(self, data: Data, threads: int) -> None:
        only_f32(data.case)
        torch = need("torch")
        torch.set_num_threads(threads)
        rule = data.case.rule
        self._data = data
        tensors = [torch.nn.Parameter(torch.from_numpy(w)) for w in data.params]
        for tensor, grad in zip(tensors, data.grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
        if rule.slots == ("m", "v"):
            kind = torch.optim.AdamW if rule.decay else torch.optim.Adam
            extra: dict[str, Any] = {"betas": (BETA1, BETA2), "eps": EPS, "weight_decay": rule.decay}
        else:
            kind, extra = torch.optim.SGD, {"momentum": MOMENTUM if rule.slots else 0.0}
        self.optimizer = kind(tensors, lr=LR, **extra, **self.flags)
        self._share_state(torch, tensors)
        self._step = self.optimizer.step

    def _share_state(self, torch: Any, tensors: list[Any]) -> None:
        names = {"m": "exp_avg", "v": "exp_avg_sq"} if len(self._data.state) == 2 else {"m": "momentum_buffer"}
        for index, tensor in enumerate(tensors if self._data.state else []):
            state = self.optimizer.state[tensor]
            if len(names) == 2:
                state["step"] = torch.tensor(0.0)
            for slot, leaves in self._data.state.items():
                state[names[slot]] = torch.from_numpy(leaves[index])

    def step(self) -> None:
        """One update."""
        self._step()

    def params(self) -> list[np.ndarray]:
        """The shared ones."""
        return self._data.params


class Fused(_Torch):
    """``fused=True``."""

    flags: ClassVar[dict[str, bool]] = {"fused": True}


class Foreach(_Torch):
    """``foreach=True``."""

    flags: ClassVar[dict[str, bool]] = {"foreach": True}


class Compiled(_Torch):
    """``torch.compile`` of the foreach step."""

    flags: ClassVar[dict[str, bool]] = {"foreach": True}

    def __init__(self, data: Data, threads: int) -> None:
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        super().__init__(data, threads)
        torch = need("torch")
        torch._dynamo.reset()
        self._step = torch.compile(self.optimizer.step)
