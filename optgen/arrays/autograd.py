"""Derivatives of updates for torch: the rule's derivative is a compiled module as well. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from optgen.arrays.engine import kernel_of, run, scalars_of
from optgen.arrays.leaf import Shape, Work, readable, state_dtype, where
from optgen.dtypes import from_float64, to_float64
from optgen.errors import LeafError
from optgen.runtime import memory


def wants_derivative(work: Work) -> bool:
    """Whether autograd records this update.

    Raises:
        LeafError: if it does, but a result would be an array of a kind that carries no derivative.
    """
    if work.stop or not torch.is_grad_enabled():
        return False
    named = [*zip(work.operation.labels, (leaf.owner for leaf in work.leaves), strict=True), ("lr", work.rate_owner)]
    source = next((label for label, owner in named if _requires_grad(owner)), None)
    if source is None:
        return False
    for position in work.operation.like:
        leaf = work.leaves[position]
        if leaf.kind != "torch":
            label = work.operation.labels[position]
            raise LeafError(
                f"{where(label, work.path)} must be a torch tensor, as its update carries the derivative by '{source}' "
                f"(got {type(leaf.owner).__name__}): convert it, or leave stop_gradients=True"
            )
    return True


def attach(work: Work, results: Sequence[Any]) -> list[Any]:
    """``results``, torch tensors, with the derivative of the update that made them."""
    owners = [*(leaf.owner for leaf in work.leaves), work.rate_owner]
    tensors = [owner if isinstance(owner, torch.Tensor) else None for owner in owners]
    return list(_Update.apply(work, results, *tensors))


def _requires_grad(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


class _Update(torch.autograd.Function):  # type: ignore[misc]
    """An update that has been made already: forward hands its results on, backward runs the derivative's module."""

    @staticmethod
    def forward(ctx: Any, work: Work, results: Sequence[Any], *tensors: Any) -> tuple[Any, ...]:
        # torch checks on backward that the tensors which it saves have not been changed; for arrays of other kinds
        # only a copy can tell what they were.
        ctx.save_for_backward(*(t for t in tensors if t is not None))
        ctx.copies = [
            None if isinstance(leaf.owner, torch.Tensor) else leaf.array.copy() for leaf in work.leaves
        ] + [work.rate.copy() if isinstance(work.rate, np.ndarray) else work.rate]  # fmt: skip
        ctx.saved = [t is not None for t in tensors]
        ctx.work = work
        return tuple(results)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        tensors = [next(saved) if there else None for there in ctx.saved]
        given = [
            copy if tensor is None else _wide(tensor)
            for tensor, copy in zip(tensors, ctx.copies, strict=True)
        ]  # fmt: skip
        pulled = _pull(ctx.work, given, [_wide(c) for c in cotangents])
        grads = [
            _narrow(grad, tensor) if needed and tensor is not None else None
            for grad, tensor, needed in zip(pulled, tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        return None, None, *grads


def _pull(work: Work, given: Sequence[Any], cotangents: Sequence[np.ndarray]) -> list[np.ndarray | None]:
    """The derivatives by the tensors given, then by lr, at the shape of the update, from those by its results.

    None stands for zero.

    16-bit tensors go through the f32 module: the update computes in f32 too, and rounding its result changes nothing
    about the derivative.
    """
    operation, dtype = work.operation, state_dtype(work.dtype)
    kernel = kernel_of(operation.vjp_bundle, dtype)
    primals = {
        name: _typed(0.0 if value is None else value, dtype)
        for name, value in zip((*operation.inputs, "lr"), given, strict=True)
    }
    incoming = {f"ct_{name}": value for name, value in zip(operation.results, cotangents, strict=True) if value.size}
    shape, absent = work.shape, set()
    if 0 in shape:
        # The weights are empty, but the state may not be: what has no part in it counts as zero.
        absent = {name for name, value in primals.items() if name in ("w", "lr") or not value.size}
        primals |= dict.fromkeys(absent, _typed(0.0, dtype))
        shape = np.broadcast_shapes(*(value.shape for value in primals.values()))
    primals["delta"] = _typed(0.0, dtype)  # not read
    arrays = []
    for operand in kernel.operands:
        if operand.role == "input":
            arrays.append(readable(primals[operand.name], shape, dtype))
            continue
        array = memory.empty(shape, dtype)
        array[...] = 0  # what is not part of a result has no cotangent
        if operand.name in incoming:
            array[_region(shape, incoming[operand.name].shape)] = incoming[operand.name]
        arrays.append(array)
    run(operation.vjp_bundle, dtype, [arrays], scalars_of(kernel, work.values))
    found = {operand.name: array for operand, array in zip(kernel.operands, arrays, strict=True)}
    # Cotangents of what the update replaces lie where those of its results did; the others have operands of their own.
    return [
        None if name in absent else found.get(f"d_{name}", found.get(f"ct_{name}"))
        for name in (*operation.inputs, "lr")
    ]


def _region(shape: Shape, part: Shape) -> Any:
    """Where a result of shape ``part`` lies in the update's ``shape``: in the first row of axes that it lacks."""
    lead = len(shape) - len(part)
    return (0,) * lead + tuple(
        slice(None) if have == want else slice(0, 1) for have, want in zip(shape[lead:], part, strict=True)
    )


def _wide(tensor: Any) -> np.ndarray:
    """A tensor's values; 16-bit ones as f32."""
    leaf = memory.as_leaf(tensor, "", "a tensor of the update")
    if leaf.dtype in ("f32", "f64"):
        return leaf.array
    return to_float64(leaf.array, leaf.dtype).astype(np.float32)


def _typed(value: Any, dtype: str) -> np.ndarray:
    return np.asarray(value, np.float64 if dtype == "f64" else np.float32)


def _narrow(grad: np.ndarray | None, tensor: Any) -> Any:
    """``grad`` as a tensor like ``tensor``, summed over what had been broadcast."""
    if grad is None:
        return torch.zeros_like(tensor)
    shape = tuple(tensor.shape)
    lead = grad.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        lead + i for i, n in enumerate(shape) if n == 1 and grad.shape[lead + i] != 1
    )  # fmt: skip
    dtype = memory.as_leaf(tensor, "", "a tensor of the update").dtype
    if axes:
        grad = grad.sum(axis=axes, dtype=np.float64).reshape(shape)  # many terms: f32 sums would lose digits
    elif {"f32": np.float32, "f64": np.float64}.get(dtype) == grad.dtype:
        return torch.from_numpy(grad)
    return memory.to_kind(np.asarray(from_float64(np.asarray(grad, np.float64), dtype)), dtype, "torch")
