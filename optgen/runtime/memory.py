"""Arrays of any kind as numpy views of their memory, and back."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from optgen.dtypes import dtype_name, storage_dtype
from optgen.errors import LeafError, OverlapError
from optgen.runtime.tree import show

#: Alignment of the arrays that optgen allocates: what the compiler's widest loads like.
ALIGNMENT = 64

#: Elements up to which strides of no simple order are followed to each element; beyond it they count as overlapping.
_COUNTED = 2**22


@dataclass(slots=True)
class Leaf:
    """An array of any kind.

    Attributes:
        path: where it is in its tree.
        array: its memory; bf16 as uint16.
        dtype: its element type.
        kind: ``numpy``, ``torch``, ``jax`` or ``array`` (optgen's own).
        owner: the array as the user gave it.
    """

    path: str
    array: np.ndarray
    dtype: str
    kind: str
    owner: Any

    _address: int = -1

    @property
    def address(self) -> int:
        """Where its memory begins; asked for once, since numpy takes its time to say."""
        if self._address < 0:
            self._address = self.array.__array_interface__["data"][0]
        return self._address


_PLAIN = {"e": "f16", "f": "f32", "d": "f64"}  # by numpy's type character


def as_leaf(value: Any, path: str, what: str, *, codes: bool = False) -> Leaf:
    """``value`` as a leaf that shares its memory.

    Args:
        value: a numpy, torch, JAX or optgen array.
        path: where it is in its tree.
        what: which tree, for errors.
        codes: whether it may be of 8-bit codes, which are uint8: a leaf of type ``ui8``.

    Raises:
        LeafError: if it is no such array, not on the CPU, or not of a floating-point type that modules know.
    """
    if type(value) is np.ndarray and (plain := _PLAIN.get(value.dtype.char)) and value.dtype.isnative:
        return Leaf(path, value, plain, "numpy", value)  # what nearly every leaf is
    kind, array = array_of(value, path, what)
    if codes and array.dtype == np.uint8:
        return Leaf(path, array, "ui8", kind, value)
    try:
        name = dtype_name(value.dtype if kind == "torch" else array.dtype)
    except ValueError:
        raise LeafError(f"{what}{_at(path)} must have dtype f32, f64, bf16 or f16 (got {value.dtype})") from None
    if name == "bf16":
        array = array.view(np.uint16)
    if not array.dtype.isnative:
        raise LeafError(f"{what}{_at(path)} must have native byte order (got {array.dtype.str})")
    return Leaf(path, array, name, kind, value)


def array_of(value: Any, path: str, what: str) -> tuple[str, np.ndarray]:
    """The kind of an array and its memory, whatever its element type; torch's bf16 as uint16.

    Raises:
        LeafError: if it is no array, or not on the CPU.
    """
    kind = kind_of(value)
    if kind == "array":
        return kind, value.data
    if kind == "numpy":
        return kind, value
    if kind == "torch":
        return kind, _torch_memory(value, path, what)
    if kind == "jax":
        return kind, np.asarray(value)
    got = type(value).__name__
    if isinstance(value, np.generic | int | float):  # of one, only a copy could be updated
        got += ", a number without memory to update: take np.array(value, ...)"
    raise LeafError(f"{what}{_at(path)} must be a numpy, torch, JAX or optgen array (got {got})")


def kind_of(value: Any) -> str:
    """``numpy``, ``torch``, ``jax``, ``array``, or '' for anything else. Imports nothing."""
    if isinstance(value, np.ndarray):
        return "numpy"
    if getattr(value, "__optgen_array__", False):
        return "array"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return "torch"
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return "jax"
    return ""


def _torch_memory(tensor: Any, path: str, what: str) -> np.ndarray:
    import torch

    if tensor.device.type != "cpu":
        raise LeafError(f"{what}{_at(path)} must be on the CPU (got a tensor on {tensor.device})")
    if tensor.layout != torch.strided:
        raise LeafError(f"{what}{_at(path)} must be dense (got layout {tensor.layout})")
    try:
        plain = tensor.detach()
        plain = plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain
        array: np.ndarray = plain.numpy()
    except RuntimeError as error:  # what torch.func and other transforms hand out has no memory of its own
        reason = str(error).splitlines()[0]
        raise LeafError(f"{what}{_at(path)} must be a tensor with memory of its own ({reason})") from error
    return array.view(np.uint16) if tensor.dtype == torch.bfloat16 else array


def to_kind(array: np.ndarray, dtype: str, kind: str) -> Any:
    """``array`` (bf16 as uint16) as an array of ``kind`` that shares its memory where that kind can."""
    if kind == "torch":
        import torch

        if dtype == "bf16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    typed = _typed(array, dtype)
    if kind == "jax":
        import jax.numpy as jnp

        return jnp.array(typed)  # a copy: JAX must never see its array change
    if kind == "array":
        from optgen.arrays import Array

        return Array(typed)
    return typed


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        from optgen.dtypes import numpy_dtype

        return array.view(numpy_dtype("bf16"))
    return array


def empty(shape: Sequence[int], dtype: str, alignment: int = ALIGNMENT) -> np.ndarray:
    """An uninitialised C-contiguous array whose memory starts at a multiple of ``alignment``."""
    kind = storage_dtype(dtype)
    count = math.prod(shape)
    raw = np.empty(count * kind.itemsize + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + count * kind.itemsize].view(kind).reshape(tuple(shape))


def aligned_copy(array: np.ndarray, dtype: str) -> np.ndarray:
    """A C-contiguous, aligned copy of ``array``."""
    result = empty(array.shape, dtype)
    result[...] = array
    return result


def packed(slots: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, np.ndarray]:
    """Zeros of the given shapes and dtypes, side by side in one aligned buffer for each dtype."""
    found: dict[str, np.ndarray] = {}
    for dtype in dict.fromkeys(dtype for _, dtype in slots.values()):
        mine = {path: shape for path, (shape, kind) in slots.items() if kind == dtype}
        buffer = empty((sum(math.prod(shape) for shape in mine.values()),), dtype)
        buffer[...] = 0
        start = 0
        for path, shape in mine.items():
            stop = start + math.prod(shape)
            found[path] = buffer[start:stop].reshape(shape)
            start = stop
    return found


def bump_versions(tensors: Sequence[Any]) -> None:
    """Tells torch's autograd that tensors have changed, as torch's own in-place operations do."""
    import torch

    torch.autograd.graph.increment_version(tensors)


def usable(array: np.ndarray) -> bool:
    """Whether a kernel can run on this memory itself: C-contiguous, and each element on its own boundary."""
    return bool(array.flags.c_contiguous) and array.ctypes.data % array.itemsize == 0


def alias(array: np.ndarray) -> np.ndarray:
    """The memory of a C-contiguous ``array`` as an array that does not keep it alive."""
    raw = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    return np.ndarray(array.shape, array.dtype, memoryview(raw))


def writable_alias(array: np.ndarray) -> np.ndarray:
    """The memory of a C-contiguous ``array`` as an array that IREE imports, which refuses read-only ones.

    Only for operands that the module reads: nothing is ever written through it. The caller keeps ``array`` alive.
    """
    if array.flags.writeable:
        return array
    memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    return np.ndarray(array.shape, array.dtype, memoryview(memory))


def overlaps_itself(array: np.ndarray) -> bool:
    """Whether elements of ``array`` share memory with one another, as those of broadcast views and windows do."""
    if array.flags.c_contiguous or array.size < 2:
        return False
    steps = sorted(
        (abs(stride), extent) for stride, extent in zip(array.strides, array.shape, strict=True) if extent > 1
    )
    reach = array.itemsize
    for stride, extent in steps:
        if stride < reach:
            break  # this dimension's steps lie between those of smaller ones: they may meet, or not
        reach += stride * (extent - 1)
    else:
        return False
    if steps[0][0] < array.itemsize or array.size > _COUNTED:
        return True
    places = np.zeros(1, np.int64)
    for stride, extent in steps:
        places = np.add.outer(places, np.arange(extent, dtype=np.int64) * stride).reshape(-1)
    places.sort()
    return bool((np.diff(places) < array.itemsize).any())


def check_own_memory(array: np.ndarray, what: str) -> None:
    """Refuses an array to be written whose elements share memory with one another.

    Raises:
        LeafError: naming it.
    """
    if overlaps_itself(array):
        raise LeafError(
            f"{what} must have memory of its own for each element (it is a broadcast view, or one of overlapping "
            "windows): update a copy of it"
        )


def check_overlap(leaves: Sequence[tuple[Leaf, str, bool]]) -> None:
    """Refuses memory that is written while something else reads or writes it.

    Args:
        leaves: leaf, name of its tree, and whether it is written.

    Raises:
        OverlapError: naming both leaves.
    """
    spans = []
    for index, (leaf, _, _) in enumerate(leaves):
        if leaf.array.size:
            low, high = _bounds(leaf)
            spans.append((low, high, index))
    spans.sort()
    if all(high <= low for (_, high, _), (low, _, _) in pairwise(spans)):
        return
    open_spans: list[tuple[int, int]] = []  # (end, index) of spans that may still overlap what follows
    for low, high, index in spans:
        open_spans = [(end, other) for end, other in open_spans if end > low]
        leaf, tree, written = leaves[index]
        for _, other in open_spans:
            leaf2, tree2, written2 = leaves[other]
            if (written or written2) and _share(leaf.array, leaf2.array):
                raise OverlapError(
                    f"{tree}{_at(leaf.path)} and {tree2}{_at(leaf2.path)} share memory, and the update would write "
                    "one while it uses the other: give each its own array"
                )
        open_spans.append((high, index))


def _bounds(leaf: Leaf) -> tuple[int, int]:
    if leaf.array.flags.c_contiguous:
        return leaf.address, leaf.address + leaf.array.nbytes
    low, high = np.lib.array_utils.byte_bounds(leaf.array)
    return int(low), int(high)


def _share(a: np.ndarray, b: np.ndarray) -> bool:
    if a.flags.c_contiguous and b.flags.c_contiguous:
        return True  # their spans overlap, and there are no gaps
    try:
        return bool(np.shares_memory(a, b, max_work=100_000))  # type: ignore[arg-type]  # any number, by numpy's docs
    except (RuntimeError, np.exceptions.TooHardError):
        return True


def _at(path: str) -> str:
    return f" {show(path)}" if path else ""
