"""TVM's relax.training: the update as a function of the whole tree, which returns new tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from optgen.bench.data import Data
from optgen.bench.peers import AbsentError, Peer, need, only_f32
from optgen.bench.work import BETA1, BETA2, EPS, LR, MOMENTUM


class Tvm(Peer):
    """``tvm.relax.training.optimizer``, compiled for this processor. Its arrays are its own."""

    def __init__(self, data: Data, threads: int) -> None:
        only_f32(data.case)
        rule = data.case.rule
        if rule.name not in ("sgd", "momentum", "adam"):
            raise AbsentError("has SGD, momentum and Adam alone")
        tvm, relax = need("tvm"), need("tvm.relax")
        optimizers = need("tvm.relax.training.optimizer")
        shapes = [(n,) for n in data.case.work.sizes]
        params = [relax.Var(f"w{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
        optimizer: Any
        if rule.name == "adam":
            optimizer = optimizers.Adam(LR, (BETA1, BETA2), EPS)
        elif rule.name == "momentum":
            optimizer = optimizers.MomentumSGD(LR, MOMENTUM)
        else:
            optimizer = optimizers.SGD(LR)
        try:
            optimizer.init(params)
        except ValueError:
            # TVM 0.27 refuses to make the state, after all else: the state is made here.
            optimizer.state = ()
        module = tvm.IRModule({optimizer.name: optimizer.get_function()})
        target = tvm.target.Target({"kind": "llvm", "mcpu": "native", "num-cores": threads})
        device = tvm.cpu()
        self._update = relax.VirtualMachine(tvm.compile(module, target), device)[optimizer.name]

        def tensors(leaves: list[np.ndarray]) -> list[Any]:
            return [tvm.runtime.tensor(leaf) for leaf in leaves]

        numbers = [np.zeros((), np.int64)] + ([np.ones((), np.float32)] * 2 if rule.name == "adam" else [])
        self._params: Any = tensors(data.params)
        self._grads = tensors(data.grads)
        self._state: Any = [*tensors(numbers), *(t for leaves in data.state.values() for t in tensors(leaves))]

    def step(self) -> None:
        """One update."""
        self._params, self._state = self._update(self._params, self._grads, self._state)

    def params(self) -> list[np.ndarray]:
        """TVM's."""
        return [tensor.numpy() for tensor in self._params]
