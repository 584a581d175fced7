"""Packing trees: all leaves of a dtype side by side in one aligned buffer."""

from __future__ import annotations

from typing import Any, TypeVar

from optgen.errors import LeafError
from optgen.runtime import memory
from optgen.runtime.tree import leaves_of, map_tree, show

Tree = TypeVar("Tree")


def pack(tree: Tree, *, values: bool = True) -> Tree:
    """A tree like ``tree`` whose leaves are views of one aligned buffer for each dtype, in order.

    Args:
        tree: of numpy, torch or optgen arrays; the new leaves are of the same kinds.
        values: whether they hold the same numbers, or zeros.

    Raises:
        LeafError: if a leaf is a JAX array, which cannot be a view, or no array at all.
    """
    leaves = {path: memory.as_leaf(value, path, "leaf") for path, value in leaves_of(tree).items()}
    for path, leaf in leaves.items():
        if leaf.kind == "jax":
            raise LeafError(f"leaf {show(path)} cannot be packed: JAX arrays are never views of other memory")
    slots = memory.packed({path: (leaf.array.shape, leaf.dtype) for path, leaf in leaves.items()})

    def moved(path: str, _: Any) -> Any:
        if values:
            slots[path][...] = leaves[path].array
        return memory.to_kind(slots[path], leaves[path].dtype, leaves[path].kind)

    packed: Tree = map_tree(moved, tree)
    return packed
