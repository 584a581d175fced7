"""Convolutions with one window in some dimension, and elements that it does not reach.

IREE 3.13 drops the stride of a dimension in which there is one window, and then expects the window to be as long as the
padded input: what a stride of 3 leaves over behind a window of 2 makes it refuse the module. So the input ends where
the window does.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from optgen.lower.repair.rewriter import Repair, Rewriter, shape_of


def _convolution(rewriter: Rewriter, op: Any) -> None:
    ir = rewriter.ir
    left, kernel, out = (shape_of(v) for v in (op.operands[0], op.operands[1], op.results[0]))
    numbers = re.search(r"\[(.*?)\]x\[(.*?)\]->\[(.*?)\]", str(op.attributes["dimension_numbers"]))
    assert numbers is not None
    places = [{name.strip(): i for i, name in enumerate(numbers[n].split(","))} for n in (1, 2, 3)]
    count = len(left) - 2

    def given(name: str, default: int) -> list[int]:
        return [int(n) for n in op.attributes[name]] if name in op.attributes else [default] * count

    spread, dilation = given("lhs_dilation", 1), given("rhs_dilation", 1)
    before = np.array(op.attributes["padding"]) if "padding" in op.attributes else np.zeros((count, 2), np.int64)
    padding, ends = before.copy(), list(left)
    for d in range(count):
        along, window, results = (places[i][str(d)] for i in range(3))
        if out[results] != 1:
            continue
        reached, low = (kernel[window] - 1) * dilation[d] + 1, int(padding[d, 0])
        if (left[along] - 1) * spread[d] + 1 + int(padding[d].sum()) <= reached or low >= reached:
            continue
        ends[along] = min(left[along], (reached - low - 1) // spread[d] + 1)
        padding[d, 1] = reached - low - ((ends[along] - 1) * spread[d] + 1)
    if np.array_equal(padding, before) and ends == list(left):
        return
    with ir.InsertionPoint(op), op.location:
        if ends != list(left):
            kind = ir.RankedTensorType.get(ends, ir.RankedTensorType(op.operands[0].type).element_type)
            bounds = {"start_indices": [0] * len(ends), "limit_indices": ends, "strides": [1] * len(ends)}
            op.operands[0] = ir.Operation.create(
                "stablehlo.slice", results=[kind], operands=[op.operands[0]],
                attributes={name: ir.DenseI64ArrayAttr.get(values) for name, values in bounds.items()},
            ).result  # fmt: skip
        op.attributes["padding"] = ir.DenseIntElementsAttr.get(np.ascontiguousarray(padding, np.int64))
    rewriter.changed = True


CONVOLUTIONS: dict[str, Repair] = {"stablehlo.convolution": _convolution}
