"""The Container: a nested dict of arrays with attribute access and the methods of the functional API."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optgen.arrays.methods import UpdateMethods
from optgen.arrays.packing import pack
from optgen.arrays.printing import format_tree
from optgen.runtime.memory import kind_of


class Container(dict[str, Any], UpdateMethods):
    """A dict whose values are arrays or Containers, and whose keys are attributes too.

    Dicts that are put into it become Containers. It holds arrays of any kind, and numbers where it gives
    hyperparameters for each leaf. To JAX it is a pytree.

    Args:
        items: a mapping, or an iterable of pairs, as for a dict.
        named: further items.

    Example:
        >>> c = Container(layer={"w": 1.0}, b=2.0)
        >>> c.layer.w, c["b"]
        (1.0, 2.0)
    """

    __optgen_tree__ = True

    def __init__(self, items: Any = (), /, **named: Any) -> None:
        super().__init__()
        self.update(items, **named)
        _register_pytree()

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _contained(value))

    def update(self, items: Any = (), /, **named: Any) -> None:
        """Sets many items, as of a dict."""
        for key, value in dict(items, **named).items():
            self[key] = value

    def setdefault(self, key: str, default: Any = None, /) -> Any:
        """The item of that key, which is set if it is not there, as of a dict."""
        if key not in self:
            self[key] = default
        return self[key]

    def __ior__(self, other: Any) -> Container:  # type: ignore[override]
        self.update(other)
        return self

    def __or__(self, other: Any) -> Container:  # type: ignore[override]
        return Container({**self, **other})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(map(repr, self))
            raise AttributeError(f"Container has no key {name!r} (it has {known})") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"Container has no key {name!r}") from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(k for k in self if isinstance(k, str))})

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a Container is a tree, not an array: save it by optgen.save_state")

    def map(self, function: Callable[[Any], Any]) -> Container:
        """A Container of the same structure with ``function(leaf)`` in place of each leaf.

        Example:
            >>> Container(a=1.0, b={"c": 2.0}).map(lambda x: 2 * x).b.c
            4.0
        """
        return Container({k: v.map(function) if isinstance(v, Container) else function(v) for k, v in self.items()})

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts with the same leaves."""
        return {k: v.to_dict() if isinstance(v, Container) else v for k, v in self.items()}

    def copy(self) -> Container:
        """A Container of the same structure with copies of the arrays, so that updates in place reach only one."""
        return self.map(_copied)

    def pack(self) -> Container:
        """A copy whose leaves lie side by side in one aligned buffer for each dtype.

        An update of packed params, grads and state is one long row to a compiled module, whatever the number of leaves.

        Raises:
            LeafError: if a leaf is a JAX array, which cannot be a view, or no array at all.
        """
        return pack(self)

    def zeros(self) -> Container:
        """Zeros of the same structure, shapes and dtypes, packed as :meth:`pack` does it: grads for packed params."""
        return pack(self, values=False)

    def __repr__(self) -> str:
        return format_tree(self)


def _contained(value: Any) -> Any:
    return Container(value) if isinstance(value, Mapping) and not isinstance(value, Container) else value


def _copied(leaf: Any) -> Any:
    kind = kind_of(leaf)
    if kind == "torch":
        return leaf.clone()
    if kind == "numpy":
        return np.array(leaf)
    return leaf.copy() if kind == "array" else leaf  # JAX arrays and numbers never change


_registered = False


def _register_pytree() -> None:
    """Tells JAX, if it has been imported, that a Container is a pytree."""
    global _registered
    jax = sys.modules.get("jax")
    if _registered or jax is None or not hasattr(jax, "tree_util"):
        return
    _registered = True
    jax.tree_util.register_pytree_with_keys(
        Container,
        lambda c: ([(jax.tree_util.DictKey(k), c[k]) for k in sorted(c)], tuple(sorted(c))),
        lambda keys, children: Container(zip(keys, children, strict=True)),
    )
