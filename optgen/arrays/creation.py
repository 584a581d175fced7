"""Making arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optgen.arrays.ndarray import Array
from optgen.arrays.trees import map_leaves
from optgen.dtypes import dtype_name, numpy_dtype
from optgen.errors import LeafError
from optgen.runtime.memory import ALIGNMENT, as_leaf, kind_of


def array(obj: Any, dtype: Any = None, copy: bool = True) -> Array:
    """An Array of the values of ``obj``.

    Args:
        obj: a number, nested lists of numbers, or a numpy, torch, JAX or optgen array.
        dtype: of the elements, by any library's name. By default that of ``obj`` if that is an array or a numpy
            scalar; else f32, i32 or bool, as for ivy.
        copy: whether the Array has memory of its own, aligned to 64 bytes. Otherwise it shares that of ``obj`` where
            that is an array of this dtype.

    Raises:
        ValueError: if the lists are ragged or do not hold numbers, or there is no such dtype.
        LeafError: if ``obj`` is a tensor that is not on the CPU.

    Example:
        >>> array([1.0, 2, 3])
        ivy.array([1., 2., 3.])
    """
    memory, wanted = _memory(obj), None if dtype is None else _dtype(dtype)
    if wanted is None:
        narrow = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}
        own = bool(kind_of(obj)) or isinstance(obj, np.generic)
        wanted = memory.dtype if own else np.dtype(narrow.get(memory.dtype, memory.dtype))
    if not copy and memory.dtype == wanted:
        return Array(memory)
    result = _aligned(memory.shape, wanted)
    result[...] = memory
    return Array(result)


def zeros(shape: int | Sequence[int], dtype: Any = "float32") -> Array:
    """An Array of zeros.

    Args:
        shape: the extents, or the one extent.
        dtype: of the elements, by any library's name.

    Raises:
        ValueError: if an extent is negative, or there is no such dtype.

    Example:
        >>> zeros((2, 1)).shape
        (2, 1)
    """
    extents = (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(n) for n in shape)
    if min(extents, default=0) < 0:
        raise ValueError(f"'shape' must not have negative extents (got {shape!r})")
    result = _aligned(extents, _dtype(dtype))
    result[...] = 0
    return Array(result)


def zeros_like(x: Any) -> Any:
    """Zeros of the kind, shape and dtype of ``x``: an array for an array, a tree for a tree.

    Args:
        x: a numpy, torch, JAX or optgen array, a Container or dict of these; a number or list gives an Array.

    Raises:
        LeafError: if ``x`` is something else.
    """
    if isinstance(x, Mapping):
        return map_leaves(zeros_like, x)
    kind = kind_of(x)
    if kind == "torch":
        import torch

        return torch.zeros_like(x)
    if kind == "jax":
        import jax.numpy as jnp

        return jnp.zeros_like(x)
    if kind == "numpy":
        return zeros(x.shape, x.dtype).data
    if kind == "array":
        return zeros(x.shape, x.dtype)
    try:
        return zeros_like(array(x, copy=False))
    except (TypeError, ValueError) as error:
        raise LeafError(f"'x' must be an array or a tree of arrays (got {type(x).__name__})") from error


def _memory(obj: Any) -> np.ndarray:
    if kind_of(obj) == "array":
        found: np.ndarray = obj.data
        return found
    if kind_of(obj) == "torch":
        try:
            leaf = as_leaf(obj, "", "obj")
        except LeafError:
            if obj.device.type != "cpu":
                raise
            return np.asarray(obj.detach())  # integers and booleans
        return leaf.array.view(numpy_dtype("bf16")) if leaf.dtype == "bf16" else leaf.array
    result = np.asarray(obj)
    if result.dtype.kind in "OSUMm":
        raise ValueError(f"'obj' must hold numbers (got {type(obj).__name__} with dtype {result.dtype})")
    return result


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        return numpy_dtype(dtype_name(dtype))
    except ValueError:
        name = str(dtype).removeprefix("torch.")
    try:
        return np.dtype(name if "." not in name and "<" not in name else dtype)
    except TypeError as error:
        raise ValueError(f"'dtype' must be a type of numbers (got {dtype!r})") from error


def _aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """As ``runtime.memory.empty``, for any dtype."""
    size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(tuple(shape))
