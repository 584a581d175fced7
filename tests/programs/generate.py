"""Programs by number: the same number is always the same program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from programs import layers as layers  # registers its pieces
from programs import moves as moves  # and these
from programs.build import MOST, Apply, Builder, Values
from programs.heads import SOURCES, anchor, head
from programs.pieces import PIECES

#: Every rule's turn comes; most programs show their gradients, by SGD.
_OTHERS = 0.3
_SEED = 20261127


@dataclass(frozen=True)
class Program:
    """A training program.

    Attributes:
        number: what it is made from.
        text: its loss, piece by piece.
        params, batch: what it begins with.
        loss: of params, batch and, if ``random``, a key.
        rule: the optimizer.
        kept: which pieces of the number's are in it.
    """

    number: int
    text: str
    params: dict[str, np.ndarray]
    batch: dict[str, np.ndarray]
    loss: Any
    random: bool
    rule: str
    kept: tuple[int, ...]
    kinds: tuple[str, ...]


def program(number: int, keep: Sequence[int] | None = None, rule: str | None = None) -> Program:
    """The program of a number.

    Args:
        number: any from 0 on.
        keep: leave out other pieces than these, to find what a fault is due to.
        rule: another optimizer.
    """
    rng = np.random.default_rng([_SEED, number])
    count = int(rng.integers(1, 7))
    names = list(PIECES)
    weights = np.array([weight for weight, _ in PIECES.values()])
    chosen = [names[i] for i in rng.choice(len(names), count, p=weights / weights.sum())]
    starts = list(SOURCES)
    weights = np.array([weight for weight, _ in SOURCES.values()])
    start = str(rng.choice(starts, p=weights / weights.sum()))
    other, which = rng.random() < _OTHERS, int(rng.integers(2**31))

    builder, steps, texts, kinds, kept = Builder(), [], [], [], []

    def made(position: int) -> np.random.Generator:  # of its own, so that it stays as it is if others are left out
        return np.random.default_rng([_SEED, number, position])

    text, begin = SOURCES[start][1](made(0), builder)
    steps.append(begin)
    texts.append(text)
    shape = _shape(builder, steps)
    assert shape is not None
    if not builder.params:
        text, step = anchor(made(1), shape, builder)
        steps.append(step)
        texts.append(text)
    for position, name in enumerate(chosen):
        if keep is not None and position not in keep:
            continue
        before = Builder(dict(builder.params), dict(builder.batch), builder.random)
        found = PIECES[name][1](made(2 + position), shape, builder)
        after = None if found is None else _shape(builder, [*steps, found[1]])
        if found is None or after is None:
            builder = before
            continue
        texts.append(found[0])
        steps.append(found[1])
        kinds.append(name)
        kept.append(position)
        shape = after
    text, end = head(made(1000), shape, builder)
    steps.append(end)
    texts.append(text)
    return Program(
        number, " > ".join(texts), builder.params, builder.batch, _loss(steps, builder.random), builder.random,
        rule or (_rules()[which % len(_rules())] if other else "sgd"), tuple(kept),
        (start, *kinds, text.partition("(")[0]),
    )  # fmt: skip


def _rules() -> list[str]:
    from optgen.rules import rule_names

    return [name for name in rule_names() if name not in ("gradient_descent", "adam_step")]


def _loss(steps: Sequence[Apply], random: bool) -> Any:
    def loss(params: Any, batch: Any) -> Any:
        return _run(steps, Values(params, batch, None))

    def loss_with_key(params: Any, batch: Any, rng: Any) -> Any:
        return _run(steps, Values(params, batch, rng))

    return loss_with_key if random else loss


def _run(steps: Sequence[Apply], values: Values) -> Any:
    h: Any = None
    for step in steps:
        h = step(h, values)
    return h


def _shape(builder: Builder, steps: Sequence[Apply]) -> tuple[int, ...] | None:
    """The shape after some steps, where it is one of f32 and of moderate size."""
    import jax

    def run(params: Any, batch: Any, key: Any) -> Any:
        return _run(steps, Values(params, batch, key))

    try:
        found = jax.eval_shape(run, builder.params, builder.batch, jax.random.key(0))
    except (TypeError, ValueError, ZeroDivisionError, NotImplementedError):
        return None  # a piece that this shape does not suit
    small = 0 < found.size <= MOST and len(found.shape) <= 5
    return found.shape if small and str(found.dtype) == "float32" else None
