"""Seeing whether what a step is bound to is still where it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optgen.runtime.memory import kind_of
from optgen.runtime.recall import place_of

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Work


class Watch:
    """The tensors of leaves, which may be re-pointed, and the trees of a state, whose arrays may be replaced.

    Args:
        works: the leaves.
        state: the state.
        names: of its trees.
    """

    def __init__(self, works: Sequence[Work], state: Mapping[str, Any], names: Sequence[str]) -> None:
        owners = [leaf.owner for work in works for leaf in work.leaves if leaf.kind in ("torch", "array")]
        self._owners = owners
        self._places = list(map(place_of, owners))
        self._trees = [(name, state[name]) for name in names]
        nodes: list[Any] = []
        for _, tree in self._trees:
            _nodes(tree, nodes)
        # Each inner node, its children, and where among them are those whose equality would be one number's.
        self._nodes = [(node, kept := _children(node), _alike(kept)) for node in nodes]

    def moved(self, state: Mapping[str, Any]) -> bool:
        """Whether something is not where it was."""
        try:
            for name, tree in self._trees:
                if state[name] is not tree:
                    return True
            for node, kept, alike in self._nodes:
                # Tuples look at identity first, which is fast; arrays that differ cannot say whether they are equal.
                now = tuple(node.values()) if type(node) is dict else _children(node)
                if now != kept:
                    return True
                if alike:
                    for i in alike:
                        if now[i] is not kept[i]:
                            return True
        except (KeyError, ValueError, RuntimeError, TypeError):
            return True
        return bool(self._owners) and list(map(place_of, self._owners)) != self._places


def _nodes(tree: Any, found: list[Any]) -> None:
    if isinstance(tree, Mapping | list | tuple):
        found.append(tree)
        for child in _children(tree):
            _nodes(child, found)


def _children(node: Any) -> tuple[Any, ...]:
    return tuple(node.values() if isinstance(node, Mapping) else node)


def _alike(children: Sequence[Any]) -> list[int]:
    return [i for i, child in enumerate(children) if not kind_of(child) or math.prod(child.shape) < 2]
