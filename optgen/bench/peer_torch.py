"""torch.optim, in its three fast forms, on the shared memory."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np

from optgen.bench.data import Data
from optgen.bench.peers import AbsentError, Peer, need, only_f32
from optgen.bench.work import AVERAGE, BETA1, BETA2, EPS, LR, MAX_NORM, MOMENTUM


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
        self.tensors = tensors
        if rule.name in ("lion", "lamb"):
            raise AbsentError("torch.optim has no such rule: see torch composition")
        if "v" in rule.slots:
            kind = torch.optim.AdamW if rule.decay else torch.optim.Adam
            extra: dict[str, Any] = {"betas": (BETA1, BETA2), "eps": EPS, "weight_decay": rule.decay}
        else:
            kind, extra = torch.optim.SGD, {"momentum": MOMENTUM if rule.slots else 0.0}
        self.optimizer = kind(tensors, lr=LR, **extra, **self.flags)
        self._share_state(torch, tensors)
        self._step = self._around(torch, tensors, self.optimizer.step)

    def _around(self, torch: Any, tensors: list[Any], step: Any) -> Any:
        """The step with what a training loop would call before and after it."""
        rule = self._data.case.rule
        if not rule.clips:
            return step
        means = [torch.from_numpy(e) for e in self._data.state.get("e", [])]
        values = [tensor.data for tensor in tensors]
        clip, lerp = torch.nn.utils.clip_grad_norm_, torch._foreach_lerp_

        def composed() -> None:
            clip(tensors, MAX_NORM, foreach=True)
            step()
            if means:
                lerp(means, values, 1 - AVERAGE)

        return composed

    def _share_state(self, torch: Any, tensors: list[Any]) -> None:
        names = {"m": "exp_avg", "v": "exp_avg_sq"} if "v" in self._data.state else {"m": "momentum_buffer"}
        for index, tensor in enumerate(tensors if self._data.state else []):
            state = self.optimizer.state[tensor]
            if len(names) == 2:
                state["step"] = torch.tensor(0.0)
            for slot, leaves in self._data.state.items():
                if slot in names:
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
        self._step = self._around(torch, self.tensors, torch.compile(self.optimizer.step))


class Composed(Peer):
    """What torch.optim lacks, of torch._foreach operations, as libraries for torch write such rules."""

    def __init__(self, data: Data, threads: int) -> None:
        only_f32(data.case)
        if data.case.rule.name not in ("lion", "lamb"):
            raise AbsentError("torch.optim has the rule")
        self._torch = torch = need("torch")
        torch.set_num_threads(threads)
        self._data, self._count, self._rule = data, 0, data.case.rule
        tensors = [[torch.from_numpy(a) for a in leaves] for leaves in (data.params, data.grads, *data.state.values())]
        self._w, self._g, self._m, *rest = tensors
        self._v = rest[0] if rest else []

    def step(self) -> None:
        """One update."""
        self._count += 1
        with self._torch.no_grad():
            (self._lion if self._rule.name == "lion" else self._lamb)()

    def _lion(self) -> None:
        f = self._torch
        u = f._foreach_lerp(self._m, self._g, 1 - BETA1)
        f._foreach_sign_(u)
        f._foreach_mul_(self._w, 1 - LR * self._rule.decay)
        f._foreach_add_(self._w, u, alpha=-LR)
        f._foreach_lerp_(self._m, self._g, 1 - BETA2)

    def _lamb(self) -> None:
        f, t = self._torch, self._count
        f._foreach_lerp_(self._m, self._g, 1 - BETA1)
        f._foreach_mul_(self._v, BETA2)
        f._foreach_addcmul_(self._v, self._g, self._g, 1 - BETA2)
        root = f._foreach_div(self._v, 1 - BETA2**t)
        f._foreach_sqrt_(root)
        f._foreach_add_(root, EPS)
        u = f._foreach_div(self._m, 1 - BETA1**t)
        f._foreach_div_(u, root)
        f._foreach_add_(u, self._w, alpha=self._rule.decay)
        trust = f._foreach_div(f._foreach_norm(self._w), f._foreach_norm(u))
        f._foreach_mul_(u, trust)
        f._foreach_add_(self._w, u, alpha=-LR)

    def params(self) -> list[np.ndarray]:
        """The shared ones."""
        return self._data.params
