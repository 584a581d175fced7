"""One leaf of an update: its tensors checked, broadcast and laid out for a kernel."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.arrays.engine import kernel_of, run, scalars_of
from optgen.arrays.ndarray import Array
from optgen.arrays.operation import ADAM_STEP, Operation
from optgen.dtypes import dtype_name, from_float64, storage_dtype, to_float64
from optgen.errors import HyperparameterError, LeafError
from optgen.hyper import Hyper
from optgen.runtime import memory
from optgen.runtime.memory import Leaf
from optgen.runtime.tree import show

Shape = tuple[int, ...]

# np.dtype.name is slow: what it says, for the types that need no further look.
_NAMES = {np.dtype(np.float32): "f32", np.dtype(np.float64): "f64", np.dtype(np.float16): "f16"}


@dataclass(slots=True)
class Work:
    """One leaf of an update.

    Attributes:
        operation: which.
        path: of the leaf.
        leaves: the tensors given, in the order of ``operation.inputs``.
        shape: to which all of them broadcast.
        rate: lr as a number, or as an array that broadcasts to ``shape``; None where there is none.
        rate_owner: lr as the caller gave it.
        values: the other hyperparameters.
        stop: whether no derivative flows through the results.
    """

    operation: Operation
    path: str
    leaves: tuple[Leaf, ...]
    shape: Shape
    rate: float | np.ndarray | None
    rate_owner: Any
    values: Mapping[str, Any]
    stop: bool

    @property
    def dtype(self) -> str:
        """Of the weights and grads."""
        return self.leaves[0].dtype

    @property
    def bundle(self) -> str:
        """The bundle that has the kernel."""
        return self.operation.tensor_bundle if isinstance(self.rate, np.ndarray) else self.operation.bundle

    def leaf(self, name: str) -> Leaf:
        """The tensor of that name."""
        return self.leaves[self.operation.inputs.index(name)]

    def result_dtype(self, name: str) -> str:
        """The element type of a result."""
        return state_dtype(self.dtype) if name in ("m", "v") else self.dtype

    def result_shape(self, name: str) -> Shape:
        """The shape of a result: that to which what it depends on broadcasts."""
        if name not in ("m", "v"):
            return self.shape
        return broadcast(self.leaf("g").array.shape, self.leaf(name).array.shape)

    def scalars(self) -> tuple[float, ...]:
        """The kernel's scalars."""
        values = self.values if isinstance(self.rate, np.ndarray) else {**self.values, "lr": self.rate}
        return scalars_of(kernel_of(self.bundle, self.dtype), values)

    def operands(self, targets: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """An array for each operand of the kernel; those that it replaces are of ``targets`` where that has them."""
        arrays = []
        for operand in kernel_of(self.bundle, self.dtype).operands:
            name = operand.name
            if name == "lr":
                arrays.append(readable(np.asarray(self.rate), self.shape, operand.dtype))
                continue
            source = None if name == "delta" else self.leaf(name).array  # the old delta is not read
            if operand.role == "input":
                assert source is not None
                arrays.append(readable(source, self.shape, operand.dtype))
                continue
            target = targets.get(name)
            if target is None:
                target = memory.empty(self.shape, operand.dtype)
            if source is not None and source is not target:
                target[...] = source
            arrays.append(target)
        return arrays

    def result(self, name: str, array: np.ndarray) -> np.ndarray:
        """A result, out of what the kernel left in ``array``, which is of ``shape``."""
        shape = self.result_shape(name)
        if array.shape == shape:
            return array
        if not array.size and 0 not in shape:
            return self._state_alone(name, shape)
        # Along the axes that it does not have, every row is the same.
        kept = array[(0,) * (array.ndim - len(shape))]
        index = tuple(
            slice(None) if have == want else slice(0, 1) for have, want in zip(kept.shape, shape, strict=True)
        )
        return memory.aligned_copy(kept[index], self.result_dtype(name))

    def _state_alone(self, name: str, shape: Shape) -> np.ndarray:
        # The weights are empty, this state is not.
        given = {n: np.zeros((), storage_dtype(state_dtype(self.dtype))) for n in ("m", "v")}
        given |= {n: self.leaf(n).array for n in ("g", name)}
        kernel = kernel_of(ADAM_STEP.bundle, self.dtype)
        arrays = [memory.empty(shape, operand.dtype) for operand in kernel.operands]
        for operand, array in zip(kernel.operands, arrays, strict=True):
            if operand.name != "delta":
                array[...] = given[operand.name]
        run(ADAM_STEP.bundle, self.dtype, [arrays], scalars_of(kernel, self.values))
        return next(a for o, a in zip(kernel.operands, arrays, strict=True) if o.name == name)


def prepare(
    operation: Operation, path: str, given: tuple[Any, ...], lr: Any, values: Mapping[str, Any], stop: bool
) -> Work:
    """Checks the tensors of one leaf.

    Args:
        operation: which.
        path: of the leaf.
        given: the tensors, in the order of ``operation.inputs``.
        lr: number or tensor; ignored where the operation has none.
        values: the other hyperparameters, checked.
        stop: whether no derivative flows.

    Raises:
        LeafError: if one is no array, has the wrong dtype, or a shape that does not broadcast.
        HyperparameterError: if lr is not finite.
    """
    labels = operation.labels
    lead = _lead(given[0], path, labels[0])
    wide = state_dtype(lead.dtype)
    leaves = [lead]
    for name, label, value in zip(operation.inputs[1:], labels[1:], given[1:], strict=True):
        wanted = wide if name in ("m", "v") else lead.dtype
        leaf = _leaf(value, path, label) or _plain(value, path, label, wanted, lead.kind)
        if leaf.dtype != wanted:
            why = "" if wanted == lead.dtype else f", that of the state for {lead.dtype}"
            raise LeafError(
                f"{where(label, path)} must have dtype {wanted}{why}, as '{labels[0]}' has dtype {lead.dtype} "
                f"(got {leaf.dtype})"
            )
        leaves.append(leaf)
    rate, rate_shape = _rate(lr, operation.hypers["lr"], path, wide) if operation.per_element else (None, ())
    shape = _common([*zip(labels, [leaf.array.shape for leaf in leaves], strict=True), ("lr", rate_shape)], path)
    return Work(operation, path, tuple(leaves), shape, rate, lr, values, stop)


def _common(shapes: list[tuple[str, Shape]], path: str) -> Shape:
    """The shape to which all of the named shapes broadcast."""
    shape = shapes[0][1]
    for label, other in shapes:
        if other and other != shape:
            try:
                shape = broadcast(shape, other)
            except ValueError:
                raise LeafError(
                    f"{where(label, path)} must have a shape that broadcasts with {shape}, that of what precedes it "
                    f"(got {other})"
                ) from None
    return shape


def _lead(value: Any, path: str, label: str) -> Leaf:
    """The tensor whose dtype and kind decide."""
    if isinstance(value, np.generic):
        value = np.asarray(value)
    return _leaf(value, path, label) or _plain(value, path, label, "f32", "array")


def _leaf(value: Any, path: str, label: str) -> Leaf | None:
    """``value`` as a leaf; None if it is no array."""
    if type(value) is np.ndarray:
        array, kind = value, "numpy"
    elif type(value) is Array:
        array, kind = value.data, "array"
    else:
        if is_tracer(value):
            return _traced(value, path, label)
        if not memory.kind_of(value):
            return None
        return memory.as_leaf(value, path, label)
    name = _NAMES.get(array.dtype)
    return memory.as_leaf(value, path, label) if name is None else Leaf(path, array, name, kind, value)


def _plain(value: Any, path: str, label: str, dtype: str, kind: str) -> Leaf:
    """Numbers and lists of numbers, which take the dtype that is wanted."""
    try:
        if not isinstance(value, int | float | np.generic | list | tuple):
            raise TypeError
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise LeafError(
            f"{where(label, path)} must be a numpy, torch, JAX or optgen array, or hold numbers "
            f"(got {type(value).__name__})"
        ) from None
    return Leaf(path, np.asarray(from_float64(array, dtype)), dtype, kind, value)


def _traced(value: Any, path: str, label: str) -> Leaf:
    """A leaf that stands for a JAX tracer: its shape and dtype without memory."""
    try:
        name = dtype_name(value.dtype)
    except ValueError:
        raise LeafError(f"{where(label, path)} must have dtype f32, f64, bf16 or f16 (got {value.dtype})") from None
    return Leaf(path, np.broadcast_to(np.zeros((), storage_dtype(name)), value.shape), name, "jax", value)


def _rate(lr: Any, hyper: Hyper, path: str, dtype: str) -> tuple[float | np.ndarray, Shape]:
    """lr as a number or, where it has several elements, an array of the dtype in which the kernel computes."""
    if type(lr) is float:
        return hyper.check(lr), ()
    if is_tracer(lr):
        traced = _traced(lr, path, "lr").array
        return traced, traced.shape
    if memory.kind_of(lr):
        _, array = memory.array_of(lr, path, "lr")
        if array.dtype.kind not in "iu" or str(lr.dtype) == "torch.bfloat16":  # which comes as uint16
            leaf = memory.as_leaf(lr, path, "lr")
            array = to_float64(leaf.array, leaf.dtype)
    elif isinstance(lr, list | tuple):
        array = _plain(lr, path, "lr", "f64", "numpy").array
    else:
        return hyper.check(lr), ()
    if array.size == 1:
        return hyper.check(array.item()), array.shape
    if not np.isfinite(array).all():
        raise HyperparameterError(f"{where('lr', path)} must be finite (got {array[~np.isfinite(array)][0]})")
    return array.astype(storage_dtype(dtype)), array.shape


def readable(array: np.ndarray, shape: Shape, dtype: str) -> np.ndarray:
    """``array`` at that shape, in memory that a kernel can read."""
    if array.shape == shape and memory.usable(array):
        return array
    result = memory.empty(shape, dtype)
    result[...] = array
    return result


def broadcast(a: Shape, b: Shape) -> Shape:
    """The shape to which both broadcast.

    Raises:
        ValueError: if they do not.
    """
    return a if a == b or not b else tuple(np.broadcast_shapes(a, b))


def state_dtype(dtype: str) -> str:
    """The element type of the state, and of the arithmetic, for weights of ``dtype``."""
    return "f64" if dtype == "f64" else "f32"


def where(label: str, path: str) -> str:
    """An argument, and the leaf of it, as errors name it."""
    return f"{label} {show(path)}" if path else label


def is_tracer(value: Any) -> bool:
    """Whether ``value`` is JAX's stand-in for an array in a function that it transforms. Imports nothing."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)
