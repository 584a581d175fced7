"""Arguments are not overwritten.

IREE 3.13 lets an operation that changes an array (a scatter, an update of a slice, a sort) work in the memory of an
argument that nothing reads afterwards, whether it was donated or not. Such an operation gets a copy.
"""

from __future__ import annotations

from typing import Any

from optgen.dsl.trace import import_jax
from optgen.lower.repair.rewriter import Rewriter, shape_of

#: Operations that change arrays, with how many of their operands may be changed: all where it is None.
CHANGING: dict[str, Any] = {
    "stablehlo.scatter": lambda op: (len(op.operands) - 1) // 2,
    "stablehlo.dynamic_update_slice": lambda op: 1,
    "stablehlo.sort": lambda op: len(op.operands),
}
#: What an array passes through without being copied.
_SAME = (
    "reshape", "bitcast_convert", "optimization_barrier", "transpose", "convert", "broadcast_in_dim", "slice", "pad",
)  # fmt: skip


def keep_arguments(rewriter: Rewriter) -> None:
    """Has what would change an argument of ``main`` change a copy."""
    ir, module = rewriter.ir, rewriter.module
    functions = {_name(ir, f.operation): f.operation for f in module.body.operations}
    calls: dict[str, list[Any]] = {}
    changing: list[Any] = []

    def visit(op: Any) -> Any:
        if op.name == "func.call":
            calls.setdefault(ir.FlatSymbolRefAttr(op.attributes["callee"]).value, []).append(op)
        elif op.name in CHANGING:
            changing.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    given: dict[tuple[str, int], bool] = {}

    def an_argument(value: Any) -> bool:
        op = getattr(value.owner, "operation", value.owner)
        while hasattr(op, "operands"):
            position = list(op.results).index(value)
            if op.name == "func.call":
                called = functions[ir.FlatSymbolRefAttr(op.attributes["callee"]).value]
                value = list(called.regions[0].blocks[0].operations)[-1].operation.operands[position]
            elif op.name.removeprefix("stablehlo.") in _SAME:
                value = op.operands[position]
            else:
                return False
            op = getattr(value.owner, "operation", value.owner)
        owner = op.owner.operation
        if owner.name != "func.func":
            return False  # of a loop, whose arguments are its own
        key = _name(ir, owner), ir.BlockArgument(value).arg_number
        if owner == functions.get("main"):
            return not _donated(ir, owner, key[1])
        if key not in given:
            given[key] = False  # until it is seen, so that recursion ends
            given[key] = any(an_argument(call.operands[key[1]]) for call in calls.get(key[0], ()))
        return given[key]

    for op in changing:
        for i in range(CHANGING[op.name](op)):
            if shape_of(op.operands[i]) and an_argument(op.operands[i]):
                (op.operands[i],) = rewriter.call(op, _copy, [op.operands[i]], "copy")


def _copy(x: Any) -> Any:
    """Put together from two parts, since the compiler sees through whatever leaves an array as it is."""
    jnp = import_jax().numpy
    axis = next((d for d, extent in enumerate(x.shape) if extent > 1), None)
    if axis is None:
        return jnp.concatenate([x, x])[:1]
    first, second = jnp.split(x, [x.shape[axis] // 2], axis)
    return jnp.concatenate([first, second], axis)


def _name(ir: Any, op: Any) -> str:
    return str(ir.StringAttr(op.attributes["sym_name"]).value) if "sym_name" in op.attributes else ""


def _donated(ir: Any, main: Any, position: int) -> bool:
    if "arg_attrs" not in main.attributes:
        return False
    noted = str(ir.ArrayAttr(main.attributes["arg_attrs"])[position])
    return "tf.aliasing_output" in noted or "jax.buffer_donor" in noted
