"""Programs in which f16 is only kept: every operation on its numbers is one of f32, and casts are integer arithmetic.

IREE 3.13 links library functions for casts of f16, whose argument is of another type than the calls of 32-bit targets
pass: on 32-bit Arm all numbers of f16 are 0, and a module of WebAssembly is none.
"""

from __future__ import annotations

import re
from typing import Any

from optgen.errors import LoweringError
from optgen.lower.lines import operations
from optgen.lower.repair.rewriter import Rewriter, dtype_of, element_of, is_own, operations_of, parsed

#: What moves numbers and reads none. Regions of others are operations of their own.
_MOVES = frozenset(
    f"stablehlo.{name}"
    for name in (
        "broadcast_in_dim", "reshape", "transpose", "slice", "concatenate", "pad", "select", "gather", "dynamic_slice",
        "dynamic_update_slice", "reverse", "constant", "optimization_barrier", "bitcast_convert", "scatter", "sort",
        "reduce", "reduce_window", "while", "if", "case", "return", "iota", "select_and_scatter", "tuple", "map",
    )
)  # fmt: skip
_CAST = "stablehlo.convert"


def without_halves(text: str) -> str:
    """A module of StableHLO that computes nothing in f16.

    Args:
        text: the module. One without f16 is returned as it is.

    Raises:
        LoweringError: if a reduction or a sort compares or adds numbers of f16, or f64 is cast to them.
    """
    if not re.search(r"[x<]f16>", text):
        return text
    from iree.compiler import ir, passmanager

    with ir.Context() as context, ir.Location.unknown():
        module = parsed(ir, text, context)
        rewriter = Rewriter(ir, module)
        for function in [f.operation for f in module.body.operations]:
            for op in [each for each in operations(function) if _computes(each)]:
                _widen(ir, rewriter, op)
            for op in operations_of(ir, function, {_CAST}):
                _cast(rewriter, op)
        passmanager.PassManager.parse("builtin.module(inline,symbol-dce)").run(module.operation)
        return str(module.operation.get_asm(enable_debug_info="loc(" in text))


def _computes(op: Any) -> bool:
    """Whether an operation has an operand or a result of f16 and does more than move or cast it."""
    halves = any(element_of(v) == "f16" for v in (*op.operands, *op.results))
    return halves and op.name.startswith(("stablehlo.", "chlo.")) and op.name not in _MOVES and op.name != _CAST


def _widen(ir: Any, rewriter: Rewriter, op: Any) -> None:
    if op.parent.name != "func.func":
        what = op.parent.name.partition(".")[2]
        error = LoweringError(f"{what} in f16 cannot be written for 32-bit targets: cast its operand to float32")
        error.where = str(op.location)
        raise error
    rewriter.changed = True
    with ir.InsertionPoint(op), op.location:
        given = [_converted(ir, v, "f32") if element_of(v) == "f16" else v for v in op.operands]
        types = [_typed(ir, r.type, "f32") if element_of(r) == "f16" else r.type for r in op.results]
        attributes = {name: op.attributes[name] for name in op.attributes}
        made = ir.Operation.create(op.name, results=types, operands=given, attributes=attributes)
        for old, new in zip(op.results, made.results, strict=True):
            old.replace_all_uses_with(_converted(ir, new, "f16") if element_of(old) == "f16" else new)
    op.erase()


def _cast(rewriter: Rewriter, op: Any) -> None:
    source, target = element_of(op.operands[0]), element_of(op.results[0])
    if "f16" not in (source, target) or source == target or is_own(op):
        return
    if source == "f64":
        raise LoweringError(
            "a cast from float64 to float16 cannot be written for 32-bit targets: cast to float32 first"
        )
    dtype = dtype_of(op.results[0])
    if source == "f16":
        rewriter.replace(op, lambda x: from_half(x).astype(dtype), ("from half", target))
    else:
        rewriter.replace(op, lambda x: to_half(x.astype("float32")), ("to half", source))


def from_half(x: Any) -> Any:
    """f16 as f32; exact."""
    import jax.numpy as jnp
    from jax import lax

    word = lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32)
    sign, size = (word & 0x8000) << 16, word & 0x7FFF
    # Subnormals as an integer times 2^-24: as bits of f32 they would be subnormal, which devices may flush.
    small = lax.bitcast_convert_type(size.astype(jnp.float32) * jnp.float32(2.0**-24), jnp.uint32)
    usual = (size << 13) + jnp.uint32(112 << 23)
    bits = jnp.where(size < 0x0400, small, jnp.where(size >= 0x7C00, (size << 13) | 0x7F800000, usual))
    return lax.bitcast_convert_type(bits | sign, jnp.float32)


def to_half(x: Any) -> Any:
    """f32 rounded to the nearest f16, ties to even."""
    import jax.numpy as jnp
    from jax import lax

    word = lax.bitcast_convert_type(x, jnp.uint32)
    sign, size = (word >> 16) & 0x8000, word & 0x7FFFFFFF
    # Add half of the last place that is kept, a little less if that is even, and cut.
    usual = (size + ((size >> 13) & 1) + 0xFFF - jnp.uint32(112 << 23)) >> 13
    # The last place of 0.5 in f32 is 2^-24, that of f16's subnormals; so an addition rounds.
    half = lax.bitcast_convert_type(size, jnp.float32) + jnp.float32(0.5)
    small = lax.bitcast_convert_type(half, jnp.uint32) - jnp.uint32(0x3F000000)
    bits = jnp.where(size < 0x38800000, small, jnp.where(size >= 0x477FF000, jnp.uint32(0x7C00), usual))
    bits = jnp.where(size > 0x7F800000, jnp.uint32(0x7E00), bits)
    return lax.bitcast_convert_type((bits | sign).astype(jnp.uint16), jnp.float16)


def _converted(ir: Any, value: Any, element: str) -> Any:
    kind = _typed(ir, value.type, element)
    return ir.Operation.create(_CAST, results=[kind], operands=[value]).results[0]


def _typed(ir: Any, kind: Any, element: str) -> Any:
    return ir.Type.parse(re.sub(r"(?<=[x<])f(?:16|32)>", f"{element}>", str(kind)))
