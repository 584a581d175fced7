"""optax under jit, with params and state donated."""

from __future__ import annotations

from typing import Any

import numpy as np

from optgen.bench.data import Data
from optgen.bench.peers import AbsentError, Peer, need, only_f32
from optgen.bench.work import BETA1, BETA2, EPS, LR, MAX_NORM, MOMENTUM


class Optax(Peer):
    """The step that optax's documentation shows, donated. Its arrays are JAX's own."""

    def __init__(self, data: Data, threads: int) -> None:
        only_f32(data.case)
        optax, jax = need("optax"), need("jax")
        rule = data.case.rule
        if rule.averages:
            raise AbsentError("optax.ema averages updates, not params")
        if "adamw" in rule.name:
            optimizer = optax.adamw(LR, BETA1, BETA2, EPS, weight_decay=rule.decay)
        elif rule.name == "adam":
            optimizer = optax.adam(LR, BETA1, BETA2, EPS)
        elif rule.name == "lion":
            optimizer = optax.lion(LR, BETA1, BETA2, weight_decay=rule.decay)
        elif rule.name == "lamb":
            optimizer = optax.lamb(LR, BETA1, BETA2, EPS, weight_decay=rule.decay)
        else:
            optimizer = optax.sgd(LR, momentum=MOMENTUM if rule.slots else None)
        if rule.clips:
            optimizer = optax.chain(optax.clip_by_global_norm(MAX_NORM), optimizer)
        cpu = jax.devices("cpu")[0]

        def update(params: Any, state: Any, grads: Any) -> Any:
            changes, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, changes), state

        self._jax = jax
        self._update = jax.jit(update, donate_argnums=(0, 1))
        with jax.default_device(cpu):
            self._params = [jax.numpy.array(w) for w in data.params]
            self._grads = [jax.numpy.array(g) for g in data.grads]
            self._state = jax.jit(optimizer.init)(self._params)

    def step(self) -> None:
        """One update."""
        self._params, self._state = self._update(self._params, self._state, self._grads)
        self._jax.block_until_ready((self._params, self._state))

    def params(self) -> list[np.ndarray]:
        """JAX's."""
        return [np.asarray(w) for w in self._params]
