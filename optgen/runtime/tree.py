"""Trees: nested dicts (Containers among them), lists and tuples of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optgen.errors import TreeError


def is_tree(value: Any) -> bool:
    """Whether ``value`` is an inner node."""
    return isinstance(value, Mapping | list | tuple)


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of ``tree`` with their paths, as ``encoder/0/w``. None stands for no leaf at all."""
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from walk(child, f"{path}/{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for index, child in enumerate(tree):
            yield from walk(child, f"{path}/{index}" if path else str(index))
    elif tree is not None:
        yield path, tree


def leaves_of(tree: Any) -> dict[str, Any]:
    """The leaves by path. A lone array is a tree with the path ``''``.

    Raises:
        TreeError: if two leaves have the same path, as ``{"a/b": x, "a": {"b": y}}`` gives them.
    """
    found: dict[str, Any] = {}
    for path, leaf in walk(tree):
        if path in found:
            raise TreeError(f"two leaves have the path {show(path)}: rename a key that has a '/' in it")
        found[path] = leaf
    return found


def map_tree(function: Callable[[str, Any], Any], tree: Any, path: str = "") -> Any:
    """A tree like ``tree`` with ``function(path, leaf)`` in place of each leaf."""
    if isinstance(tree, Mapping):
        items = {k: map_tree(function, v, f"{path}/{k}" if path else str(k)) for k, v in tree.items()}
        return items if type(tree) is dict else type(tree)(items)  # type: ignore[call-arg]
    if isinstance(tree, list | tuple):
        children = [map_tree(function, v, f"{path}/{i}" if path else str(i)) for i, v in enumerate(tree)]
        if hasattr(tree, "_fields"):
            return type(tree)(*children)
        return children if type(tree) is list else type(tree)(children)
    return None if tree is None else function(path, tree)


def nest(leaves: Sequence[tuple[tuple[str | int, ...], Any]]) -> Any:
    """A tree of dicts and lists with each leaf where its keys say; {} where a list has nothing."""
    if len(leaves) == 1 and not leaves[0][0]:
        return leaves[0][1]
    children: dict[str | int, list[tuple[tuple[str | int, ...], Any]]] = {}
    for keys, leaf in leaves:
        children.setdefault(keys[0], []).append((keys[1:], leaf))
    if children and all(isinstance(key, int) for key in children):
        last = max(key for key in children if isinstance(key, int))
        return [nest(children.get(i, [])) for i in range(last + 1)]
    return {key: nest(child) for key, child in children.items()}


def match(paths: Mapping[str, Any], tree: Any, what: str, *, optional: bool = False) -> dict[str, Any]:
    """The leaves of ``tree``, which must have those of ``paths``.

    Args:
        paths: the leaves of the params.
        tree: another tree.
        what: what to call it in errors.
        optional: whether leaves may be missing, as grads of frozen params are.

    Raises:
        TreeError: naming the first leaf that one has and the other lacks.
    """
    found = leaves_of(tree)
    for path in found:
        if path not in paths:
            raise TreeError(
                f"'{what}' must have the structure of the params: it has a leaf {show(path)} that they lack "
                f"(they have {_some(paths)})"
            )
    if not optional:
        for path in paths:
            if path not in found:
                raise TreeError(
                    f"'{what}' must have the structure of the params: it lacks the leaf {show(path)} "
                    f"(it has {_some(found)})"
                )
    return found


def show(path: str) -> str:
    """A path as it is quoted in errors."""
    return f"'{path}'" if path else "(the array itself)"


def _some(paths: Mapping[str, Any]) -> str:
    names = [show(p) for p in paths]
    return ", ".join(names[:4]) + (f", ... {len(names)} in all" if len(names) > 4 else "") if names else "none"
