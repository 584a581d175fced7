"""Trees in files: state and params, saved whole or not at all, and read back without running anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optgen.dtypes import numpy_dtype
from optgen.errors import LeafError, TreeError
from optgen.runtime import memory
from optgen.runtime.files import read_arrays, write_arrays
from optgen.runtime.tree import leaves_of, map_tree, show


def save_state(path: str | os.PathLike[str], tree: Any) -> Path:
    """Writes a tree of arrays and numbers: a state, or ``{"params": params, "state": state}``.

    Each leaf is an array of the file, named by its path, ``state/m/encoder/0/w``. The file is written beside its place
    and moved there: readers see the old one or the new one. Nothing is pickled.

    Args:
        path: ends in ``.npz`` or ``.safetensors``; the latter also holds bfloat16.
        tree: nested dicts, lists and tuples of numpy, torch, JAX or optgen arrays, and of numbers.

    Returns:
        The path.

    Raises:
        FileError: if the name ends otherwise.
        LeafError: for a leaf that is no array or number, or bfloat16 in an npz file.
        TreeError: if two leaves have the same path, or the tree is a leaf itself.

    Example:
        >>> import numpy as np, optgen, tempfile
        >>> opt, w = optgen.prebuilt("adam"), np.ones(2, np.float32)
        >>> path = optgen.save_state(tempfile.mkdtemp() + "/run.npz", {"w": w, "state": opt.init({"w": w})})
        >>> optgen.load_state(path)["state"]["step"]
        0
    """
    if memory.kind_of(tree) or not isinstance(tree, Mapping | list | tuple):
        raise TreeError(
            f"'tree' must be a dict, a list or a tuple, whose leaves have paths (got {type(tree).__name__})"
        )
    arrays = {leaf: _array(value, leaf) for leaf, value in leaves_of(tree).items()}
    where = Path(path)
    write_arrays(where, arrays)
    return where


def load_state(path: str | os.PathLike[str], into: Any = None) -> Any:
    """Reads a tree that :func:`save_state` has written.

    Args:
        path: of the file.
        into: a tree with the very leaves of the file, such as a fresh state: its numpy, torch and optgen arrays are
            filled, so that what is bound to them goes on.

    Returns:
        Nested dicts of numpy arrays and of Python's numbers, where those were numbers or had no dimensions and 64 bits.
        Lists and tuples come back as dicts with the keys ``0``, ``1``..., which optimizers take as well. With ``into``,
        a tree like it: the same arrays but for JAX's, which are new, and new numbers.

    Raises:
        FileError: if there is no such file, or it is damaged.
        TreeError: if ``into`` does not have the leaves of the file.
        LeafError: if one has another shape or dtype there. Nothing has been filled then.
    """
    arrays = read_arrays(Path(path))
    if into is None:
        return _nested(arrays)
    leaves = leaves_of(into)
    for name in dict.fromkeys([*leaves, *arrays]):
        if name not in arrays or name not in leaves:
            lacks = f"{path}" if name not in arrays else "'into'"
            raise TreeError(f"'into' must have the leaves of {path}: {lacks} lacks {show(name)}")
    for name, value in leaves.items():
        if memory.kind_of(value):
            own = _array(value, name)
            if own.shape != arrays[name].shape or own.dtype != arrays[name].dtype:
                raise LeafError(
                    f"{show(name)} must be {arrays[name].dtype} of shape {arrays[name].shape}, as in {path} (got "
                    f"{own.dtype} of shape {own.shape})"
                )
            if memory.kind_of(value) != "jax" and not memory.array_of(value, name, "into")[1].flags.writeable:
                raise LeafError(f"{show(name)} must be writable (it is read-only)")
    return map_tree(lambda name, value: _filled(value, arrays[name], name), into)


def _array(value: Any, path: str) -> np.ndarray:
    if isinstance(value, bool | int | float | np.generic):
        return np.asarray(value)
    kind, array = memory.array_of(value, path, "leaf")
    if kind == "torch" and str(value.dtype) == "torch.bfloat16":
        return array.view(numpy_dtype("bf16"))
    return np.asarray(array)


def _filled(value: Any, array: np.ndarray, path: str) -> Any:
    kind = memory.kind_of(value)
    if not kind:
        return array.item() if array.shape == () else array
    if kind == "jax":
        import jax.numpy as jnp

        return jnp.array(array)
    own = memory.array_of(value, path, "into")[1]
    own[...] = array.view(own.dtype)
    if kind == "torch":
        memory.bump_versions([value])
    return value


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *inner, last = path.split("/")
        node = tree
        for key in inner:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise TreeError(f"{show(path)} cannot be beside a leaf at {show('/'.join(inner))}")
        number = array.shape == () and array.dtype in (np.int64, np.float64, np.bool_)
        node[last] = array.item() if number else array
    return tree
