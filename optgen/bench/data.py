"""The tensors of a case, which its peers share, and what an update must make of them."""

from __future__ import annotations

import math

import numpy as np

from optgen.bench.work import BETA1, BETA2, EPS, LR, MAX_NORM, MOMENTUM, Case, Rule
from optgen.runtime.memory import empty

_BLOCK = 2**20
_SAMPLE = 4096


class Data:
    """Params, grads and state in numpy's memory. bf16 as uint16.

    Peers that can work in memory of others all work in this, so that none has better pages than another.

    Attributes:
        case: what they are for.
        params, grads: a flat array for each leaf.
        state: for each slot of the rule, a flat f32 array for each leaf.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        sizes = case.work.sizes
        self.params = [empty((n,), case.dtype) for n in sizes]
        self.grads = [empty((n,), case.dtype) for n in sizes]
        self.state = {slot: [empty((n,), "f32") for n in sizes] for slot in case.rule.slots}
        rng = np.random.default_rng(7)
        block = min(_BLOCK, case.work.elements) + 1  # odd, as good as: leaves of one size differ
        self._w = self._stored(rng.standard_normal(block, np.float32))
        self._g = self._stored(rng.standard_normal(block, np.float32))
        self.reset()

    def reset(self) -> None:
        """As before the first update."""
        start = 0
        for w, g in zip(self.params, self.grads, strict=True):
            _fill(w, self._w, start)
            _fill(g, self._g, start)
            start = (start + w.size) % self._w.size
        for slot, leaves in self.state.items():
            for leaf, w in zip(leaves, self.params, strict=True):
                leaf[:] = w if slot == "e" else 0

    def sample(self, leaves: list[np.ndarray]) -> np.ndarray:
        """Some elements of each leaf, in float64; all of small ones."""
        picked = []
        for leaf in leaves:
            flat = leaf.reshape(-1)
            if flat.size > _SAMPLE:
                flat = flat[np.linspace(0, flat.size - 1, _SAMPLE).astype(np.int64)]
            picked.append(widen(flat))
        return np.concatenate(picked)

    def error(self, leaves: list[np.ndarray], steps: int) -> float:
        """How far params are from where ``steps`` updates should have taken them, relative to the change.

        Resets the tensors. For bf16 params, what their rounding explains is taken off.
        """
        found = self.sample(leaves)
        self.reset()
        w, g = self.sample(self.params), self.sample(self.grads)
        if self.case.rule.clips:
            norm = math.sqrt(sum(float(np.sum(np.square(widen(leaf)))) for leaf in self.grads))
            right = reference(self.case.rule, w, g * min(1.0, MAX_NORM / norm), steps)
        elif self.case.rule.again:  # norms of leaves: of all their elements
            leaves = [
                reference(self.case.rule, widen(a), widen(b), steps)
                for a, b in zip(self.params, self.grads, strict=True)
            ]
            right = self.sample(leaves)
        else:
            right = reference(self.case.rule, w, g, steps)
        off = np.abs(found - right)
        if self.case.dtype == "bf16":
            off = np.maximum(off - steps * 2.0**-8 * np.maximum(np.abs(right), np.abs(w)), 0)
        if not np.isfinite(found).all():
            return math.inf
        return float(off.max() / np.abs(right - w).max())

    def _stored(self, values: np.ndarray) -> np.ndarray:
        return (values.view(np.uint32) >> 16).astype(np.uint16) if self.case.dtype == "bf16" else values


def reference(rule: Rule, w: np.ndarray, g: np.ndarray, steps: int) -> np.ndarray:
    """The params after updates from zero state with one and the same grad, in float64."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, steps + 1):
        if rule.name == "sgd":
            w = w - LR * g
        elif rule.name == "momentum":
            m = MOMENTUM * m + g
            w = w - LR * m
        elif rule.name == "lion":
            w = w - LR * rule.decay * w - LR * np.sign(BETA1 * m + (1 - BETA1) * g)
            m = BETA2 * m + (1 - BETA2) * g
        elif rule.name == "lamb":
            m = BETA1 * m + (1 - BETA1) * g
            v = BETA2 * v + (1 - BETA2) * g * g
            u = (m / (1 - BETA1**step)) / (np.sqrt(v / (1 - BETA2**step)) + EPS) + rule.decay * w
            w = w - LR * (np.linalg.norm(w) / np.linalg.norm(u)) * u
        else:
            m = BETA1 * m + (1 - BETA1) * g
            v = BETA2 * v + (1 - BETA2) * g * g
            hat = (m / (1 - BETA1**step)) / (np.sqrt(v / (1 - BETA2**step)) + EPS)
            w = w - LR * rule.decay * w - LR * hat
    return w


def coefficients(rule: Rule, step: int) -> tuple[float, float, float]:
    """Adam's ``alpha``, ``eps`` and the factor of ``w``, so that ``w' = keep * w - alpha * m / (sqrt(v) + eps)``."""
    root = math.sqrt(1 - BETA2**step)
    return LR * root / (1 - BETA1**step), EPS * root, 1 - LR * rule.decay


def widen(array: np.ndarray) -> np.ndarray:
    """In float64; uint16 is taken for bf16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def _fill(leaf: np.ndarray, block: np.ndarray, start: int) -> None:
    position = 0
    while position < leaf.size:
        piece = block[start : start + leaf.size - position]
        leaf[position : position + piece.size] = piece
        position += piece.size
        start = 0
