"""Trees of the functional API: nested mappings of leaves. Lists are leaves here, of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optgen.errors import TreeError
from optgen.runtime.tree import mapping_like, show

Path = tuple[Any, ...]


def path_text(path: Path) -> str:
    """A path as errors show it: ``encoder/w``."""
    return "/".join(map(str, path))


def flatten(tree: Mapping[Any, Any]) -> dict[Path, Any]:
    """The leaves by path, in order. None stands for no leaf."""
    return dict(_walk(tree, ()))


def _walk(tree: Mapping[Any, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    for key, child in tree.items():
        if isinstance(child, Mapping):
            yield from _walk(child, (*path, key))
        elif child is not None:
            yield (*path, key), child


def rebuild(tree: Mapping[Any, Any], leaves: Mapping[Path, Any], path: Path = ()) -> Any:
    """A tree like ``tree``, of the same types, with ``leaves`` for its own."""
    items = {
        key: rebuild(child, leaves, (*path, key)) if isinstance(child, Mapping) else leaves.get((*path, key))
        for key, child in tree.items()
    }
    return mapping_like(tree, items)


def map_leaves(function: Callable[[Any], Any], tree: Mapping[Any, Any]) -> Any:
    """A tree like ``tree`` with ``function(leaf)`` for each leaf."""
    return rebuild(tree, {path: function(leaf) for path, leaf in flatten(tree).items()})


def matched(tree: Mapping[Any, Any], name: str, paths: Mapping[Path, Any], first: str) -> dict[Path, Any]:
    """The leaves of argument ``name``, which must have those of argument ``first``.

    Raises:
        TreeError: naming the first leaf that one of them has and the other lacks.
    """
    found = flatten(tree)
    for path in paths:
        if path not in found:
            raise TreeError(f"'{name}' must have the leaves of '{first}': it lacks {show(path_text(path))}")
    for path in found:
        if path not in paths:
            raise TreeError(f"'{name}' must have the leaves of '{first}', which lacks {show(path_text(path))}")
    return found
