"""Remembering the last step: the same arrays again need no second check.

Training loops hand the same trees to every step. What was checked and prepared for them holds as long as each leaf is
the same object over the same memory, which is far cheaper to see. Only weak references are kept: what the user drops
is freed.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from optgen.runtime.memory import kind_of
from optgen.runtime.torch_grads import place_of_grad

if TYPE_CHECKING:
    from optgen.runtime.bound import BoundStep

_ARRAYS = {np.ndarray}
_SIZE, _DTYPE = attrgetter("size"), attrgetter("dtype")


class Recalled:
    """A step that has been made, and the trees that it was made for.

    Args:
        trees: params, grads and state tensors, in a fixed order.
        written: whether a step writes each of them.
        bound: the prepared step; it must not hold on to the arrays.

    Attributes:
        tensors: positions of the torch tensors, among the leaves, that a step writes.
        owners: for each of them, the position of its tree.
    """

    def __init__(self, trees: Sequence[Any], written: Sequence[bool], bound: BoundStep) -> None:
        self.bound = bound
        leaves: list[Any] = []
        self.keys: list[Any] = []
        self.tensors: list[int] = []
        self.owners: list[int] = []
        for owner, (tree, changes) in enumerate(zip(trees, written, strict=True)):
            start = len(leaves)
            _outline(tree, leaves, self.keys)
            if changes:
                self.tensors += [i for i in range(start, len(leaves)) if kind_of(leaves[i]) == "torch"]
                self.owners += [owner] * (len(self.tensors) - len(self.owners))
        # Objects are told by their identity: as long as all of them live, no other can have one's.
        self.ids = list(map(id, leaves))
        self._alive = True
        self._refs = [weakref.ref(leaf, self._died) for leaf in leaves if leaf is not None]
        self._plain = set(map(type, leaves)) == {np.ndarray}
        plain = list(enumerate(leaves)) if self._plain else []
        self._deep = [i for i, leaf in plain if leaf.ndim > 1]
        self._closed = [i for i, leaf in plain if not leaf.flags.carray]
        flat = self._plain and all(
            type(t) is np.ndarray or (isinstance(t, Mapping) and set(map(type, t.values())) == _ARRAYS) for t in trees
        )
        self._flat = [None if type(t) is np.ndarray else tuple(t) for t in trees] if flat else []
        self.probes = self._probe(leaves)

    def _died(self, _: Any) -> None:
        self._alive = False

    def _probe(self, leaves: list[Any]) -> Any:
        """What changes when one of the objects gets other memory, or may not be written any more."""
        if self._plain:  # as below, in a third of the time: arrays that are bound are contiguous, which flags say, too
            found: list[Any] = [list(map(_SIZE, leaves)), list(map(_DTYPE, leaves)), [a.flags.carray for a in leaves]]
            if self._deep:
                found.append([leaves[i].shape for i in self._deep])
            if self._closed:
                found.append([leaves[i].flags.num for i in self._closed])
            return found
        return [_probe(leaf) for leaf in leaves]

    def matches(self, trees: Sequence[Any]) -> list[Any] | None:
        """The leaves of ``trees`` if they are those of before, over the same memory; else None."""
        if not self._alive:
            return None
        leaves: list[Any] = []
        if self._flat:
            for tree, names in zip(trees, self._flat, strict=True):
                if names is None:
                    leaves.append(tree)
                elif isinstance(tree, dict | Mapping) and tuple(tree) == names:
                    leaves += tree.values()
                else:
                    return None
            same = list(map(id, leaves)) == self.ids
        else:
            keys: list[Any] = []
            for tree in trees:
                _outline(tree, leaves, keys)
            same = list(map(id, leaves)) == self.ids and keys == self.keys
        return leaves if same and self._probe(leaves) == self.probes else None


def _outline(tree: Any, leaves: list[Any], keys: list[Any]) -> None:
    """Appends the leaves of ``tree``, None among them, and what its inner nodes look like."""
    if type(tree) is np.ndarray:
        leaves.append(tree)
    elif isinstance(tree, dict | Mapping):
        keys.append(tuple(tree))
        children = list(tree.values())
        if set(map(type, children)) == _ARRAYS:  # by far the most frequent, and the largest
            leaves += children
            return
        for child in children:
            _outline(child, leaves, keys)
    elif isinstance(tree, list | tuple):
        keys.append(len(tree))
        for child in tree:
            _outline(child, leaves, keys)
    else:
        leaves.append(tree)


def _probe(leaf: Any) -> Any:
    """What changes when the same object gets other memory or a new layout, or may not be written any more."""
    if isinstance(leaf, np.ndarray):
        return leaf.shape, leaf.strides, leaf.dtype, leaf.flags.writeable
    if getattr(leaf, "__optgen_array__", False):
        data = leaf.data
        return id(data), data.shape, data.strides, data.dtype, data.flags.writeable
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(leaf, torch.Tensor):
        return leaf.data_ptr(), leaf.shape, leaf.stride(), leaf.dtype, place_of_grad(leaf)
    return None


def place_of(owner: Any) -> Any:
    """Where the memory of a tensor or an optgen array is, which may be re-pointed."""
    if getattr(owner, "__optgen_array__", False):
        return id(owner.data)
    return owner.data_ptr(), owner.dtype
