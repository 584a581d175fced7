"""Trees: nested dicts (Containers among them), lists and tuples of arrays."""

from __future__ import annotations

from collections import defaultdict
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
        return mapping_like(
            tree, {k: map_tree(function, v, f"{path}/{k}" if path else str(k)) for k, v in tree.items()}
        )
    if isinstance(tree, list | tuple):
        return sequence_like(
            tree, [map_tree(function, v, f"{path}/{i}" if path else str(i)) for i, v in enumerate(tree)]
        )
    return None if tree is None else function(path, tree)


def mapping_like(tree: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """``items``, whose keys are those of ``tree``, in a mapping of its type; in a dict where its type cannot hold them.

    Constructors of foreign types may take something else than their items, so what they make is compared with what
    it should hold.
    """
    kind: Any = type(tree)
    if kind is dict:
        return items
    if isinstance(tree, defaultdict):
        if kind is defaultdict:
            return defaultdict(tree.default_factory, items)
        return items
    try:
        made = kind(items)
        same = made is not tree and list(made) == list(items) and all(made[k] is v for k, v in items.items())
        # Containers make Containers of their dicts; other values stay what they are.
        return made if same or getattr(kind, "__optgen_tree__", False) else items
    except Exception:
        return items


def sequence_like(tree: list[Any] | tuple[Any, ...], children: list[Any]) -> Any:
    """``children`` in a sequence of the type of ``tree``; in a list or tuple where that type cannot hold them."""
    kind: Any = type(tree)
    if kind is list:
        return children
    plain: Any = children if isinstance(tree, list) else tuple(children)
    if kind is tuple:
        return plain
    try:
        made = kind(*children) if hasattr(kind, "_fields") else kind(children)
        same = len(made) == len(children) and all(a is b for a, b in zip(made, children, strict=True))
        return made if same else plain
    except Exception:
        return plain


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
