"""Functions of numbers that IREE's kernels lack, or compute wrong.

On CPUs there is no sine, cosine, tangent, arc tangent or hyperbolic tangent of f64 (``undefined symbol``), and
``expm1`` and ``log1p`` of f64 are 0 for small numbers. Of f32, sines of large numbers are infinite, and arc tangents
and cube roots are off by tens of ulp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optgen.lower.repair import elementary
from optgen.lower.repair.remainder import remainder
from optgen.lower.repair.rewriter import Repair, Rewriter, element_of

_BOTH, _WIDE = ("f16", "bf16", "f32", "f64"), ("f64",)

#: For each operation, the element types that it is written out for. Narrow ones are computed in f32.
_OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "stablehlo.sine": (elementary.sin, _BOTH),
    "stablehlo.cosine": (elementary.cos, _BOTH),
    "stablehlo.tan": (elementary.tan, _BOTH),
    "chlo.tan": (elementary.tan, _BOTH),
    "stablehlo.atan2": (elementary.atan2, _BOTH),
    "chlo.atan": (elementary.atan, _BOTH),
    "chlo.asin": (elementary.asin, _BOTH),
    "chlo.acos": (elementary.acos, _BOTH),
    "stablehlo.cbrt": (elementary.cbrt, _BOTH),
    "stablehlo.exponential_minus_one": (elementary.expm1, _BOTH),
    "stablehlo.log_plus_one": (elementary.log1p, _BOTH),
    "stablehlo.remainder": (remainder, _BOTH),
    "stablehlo.tanh": (elementary.tanh, _WIDE),
    "chlo.sinh": (elementary.sinh, _WIDE),
    "chlo.asinh": (elementary.asinh, _BOTH),
    "chlo.acosh": (elementary.acosh, _BOTH),
    "chlo.atanh": (elementary.atanh, _BOTH),
}


def _function(rewriter: Rewriter, op: Any) -> None:
    function, dtypes = _OPERATIONS[op.name]
    element = element_of(op.results[0])
    if element not in dtypes or "complex" in str(op.results[0].type):
        return

    def computed(*operands: Any) -> Any:
        if element in ("f32", "f64"):
            return function(*operands)
        return function(*(x.astype("float32") for x in operands)).astype(operands[0].dtype)

    rewriter.replace(op, computed, op.name)


FUNCTIONS: dict[str, Repair] = dict.fromkeys(_OPERATIONS, _function)
