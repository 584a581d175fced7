"""The parts that step programs are put together from: StableHLO modules whose arguments and results have names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from optgen.artifact.manifest import LeafInfo
from optgen.compiler.blame import Sources
from optgen.dsl.trace import import_jax
from optgen.dtypes import INTEGERS, element_name, numpy_dtype
from optgen.errors import LeafError
from optgen.lower.repair import located_stablehlo_of
from optgen.lower.repair.arguments import NARROWED, taking_wide
from optgen.runtime.tree import show, walk

#: Metrics that every step can compute by itself, over the params that are trained.
BUILT_IN = ("grad_norm", "param_norm")


@dataclass(frozen=True)
class Part:
    """A traced function of leaves.

    Attributes:
        stablehlo: a module whose ``main`` takes the ``inputs`` and returns the ``outputs``.
        inputs: by name: ``params/w``, ``state/m/w``, ``batch/x``, ``grads/w``...
        outputs: likewise; ``loss``, ``metrics/accuracy``, or the name of what is replaced.
        jaxpr: the same function as JAX has it, for :mod:`optgen.probes`.
        located: gives the StableHLO with JAX's notes on lines, for :mod:`optgen.compiler.blame`.
    """

    stablehlo: str
    inputs: tuple[LeafInfo, ...]
    outputs: tuple[LeafInfo, ...]
    jaxpr: Any = field(default=None, repr=False, compare=False)
    located: Callable[[], str] | None = field(default=None, repr=False, compare=False)


def leaves_of_example(tree: Any, name: str, *, hint: str = "") -> tuple[LeafInfo, ...]:
    """The leaves of an example, with paths that begin with ``name``.

    Args:
        tree: arrays, or whatever has a shape and a dtype.
        name: of the tree.
        hint: what to do about a shape that is not static.

    Raises:
        LeafError: for what is no array, has no elements, has a dtype that modules do not know, or an extent that is
            no number.
    """
    return tuple(_leaf(path, value, hint) for path, value in walk(tree, name))


def _leaf(path: str, value: Any, hint: str) -> LeafInfo:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        raise LeafError(f"{show(path)} must be an array, or have a shape and a dtype (got {type(value).__name__})")
    for extent in shape:
        try:
            whole = int(extent) == extent
        except Exception:  # a symbolic dimension of JAX has errors of its own
            whole = False
        if not whole:
            written = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
            raise LeafError(f"{show(path)} must have a static shape, of whole numbers (got {written}){hint}")
    if 0 in shape:
        raise LeafError(f"{show(path)} must have at least one element (got shape {tuple(shape)})")
    try:
        return LeafInfo(path, tuple(int(extent) for extent in shape), element_name(dtype))
    except ValueError as error:
        raise LeafError(f"{show(path)}: {error}") from None


def jax_dtype(name: str) -> Any:
    """JAX's name for an element type."""
    import jax.numpy as jnp

    return jnp.bfloat16 if name == "bf16" else numpy_dtype(name)


def struct(leaf: LeafInfo) -> Any:
    """``leaf`` as JAX takes it for an argument: of 64-bit integers the lower half, unless it keeps 64-bit numbers."""
    dtype = NARROWED.get(leaf.dtype, leaf.dtype) if narrowed([leaf]) else leaf.dtype
    return import_jax().ShapeDtypeStruct(leaf.shape, jax_dtype(dtype))


def tensor(leaf: LeafInfo) -> str:
    """The MLIR type of a leaf."""
    return f"tensor<{''.join(f'{extent}x' for extent in leaf.shape)}{leaf.dtype}>"


def is_float(leaf: LeafInfo) -> bool:
    """Whether a leaf can be trained."""
    return leaf.dtype not in INTEGERS


def wide_numbers(leaves: Sequence[LeafInfo]) -> Any:
    """A context in which JAX keeps 64-bit numbers, where one of the leaves is a float of 64 bits; else one that changes
    nothing. Integers do not count: labels of numpy's own type would change dtypes and random bits of all the rest."""
    if any(leaf.dtype == "f64" for leaf in leaves):
        return import_jax().enable_x64(True)
    return nullcontext()


def narrowed(leaves: Sequence[LeafInfo]) -> dict[int, str]:
    """The positions of 64-bit integers that JAX takes for 32-bit ones where it is used now, with their dtypes."""
    if import_jax().config.jax_enable_x64:
        return {}
    return {i: leaf.dtype for i, leaf in enumerate(leaves) if leaf.dtype in NARROWED}


def trace_part(
    function: Callable[..., Sequence[Any]], inputs: Sequence[LeafInfo], names: Callable[[], Sequence[str]]
) -> Part:
    """Traces a function of flat leaves.

    Args:
        function: takes the ``inputs`` and returns arrays.
        inputs: its arguments.
        names: gives the results' names, after the trace.
    """
    jax = import_jax()
    traced = jax.jit(function, keep_unused=True).trace(*(struct(leaf) for leaf in inputs))
    text, located = located_stablehlo_of(traced)
    wide = narrowed(inputs)
    outputs = [_leaf(name, info, "") for name, info in zip(names(), traced.out_info, strict=True)]
    return Part(
        taking_wide(text, wide), tuple(inputs), tuple(outputs), traced.jaxpr, lambda: taking_wide(located(), wide)
    )


def sources_of(parts: Mapping[str, Part]) -> Sources:
    """Where the functions of a program come from that parts are joined to."""
    return [(f"{key}_", part.located) for key, part in parts.items() if part.located is not None]
