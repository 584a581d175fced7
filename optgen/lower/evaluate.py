"""Evaluating a graph in float64 with numpy: the reference that artifacts carry as probe vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optgen.lower.graph import Graph, Node, Value
from optgen.lower.ops import OPS, REDUCTIONS, evaluate_compare

#: How far operands are moved, relatively, to see how far results move: far above f64's rounding, far below 1.
_NUDGE = 2.0**-26


def evaluate(graph: Graph, arguments: Sequence[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Runs ``graph``, traced with every dtype f64, on float64 arrays and numbers.

    Returns:
        The outputs, and for each the magnitude of its largest term, which is what rounding errors are to be seen
        against: where terms cancel, the result may be arbitrarily smaller than they are. The largest term of a value
        is the largest of its own magnitude, the operands that it is the sum of, and what the largest terms of its
        operands amount to in it.
    """
    values: dict[Value, Any] = {v: np.asarray(a, np.float64) for v, a in zip(graph.inputs, arguments, strict=True)}
    terms: dict[Value, Any] = {v: np.zeros_like(a) for v, a in values.items()}  # arguments are exact
    shape = next((np.shape(values[v]) for v in graph.inputs if v.kind == "leaf"), ())
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            operands = [values[v] for v in node.operands]
            if node.op == "constant":
                result: Any = bool(node.attribute) if node.result.dtype == "i1" else np.float64(node.attribute)
            elif node.op == "size":
                result = np.float64(np.prod(shape))
            elif node.op == "compare":
                result = evaluate_compare(str(node.attribute), *operands)
            else:
                result = _function(node)(*operands)
            values[node.result] = result
            terms[node.result] = _largest_term(node, operands, [terms[v] for v in node.operands], result)
    outputs = [np.broadcast_to(np.asarray(values[v], np.float64), shape).copy() for v in graph.outputs]
    largest = [
        np.fmax(np.broadcast_to(terms[v], shape), np.abs(o)) for v, o in zip(graph.outputs, outputs, strict=True)
    ]
    return outputs, largest


def _function(node: Node) -> Callable[..., Any]:
    return REDUCTIONS[node.op].evaluate if node.op in REDUCTIONS else OPS[node.op].evaluate


def _largest_term(node: Node, operands: list[Any], terms: list[Any], result: Any) -> Any:
    if node.result.dtype == "i1" or node.op in ("constant", "size", "convert"):
        return terms[0] if node.op == "convert" else np.zeros(np.shape(result))
    largest = np.abs(np.asarray(result, np.float64))
    if node.op in ("add", "subtract"):
        largest = np.fmax(largest, np.fmax(*(np.abs(o) for o in operands)))
    for i, value in enumerate(node.operands):
        if value.dtype != "i1":
            moved = [o + _NUDGE * terms[i] if j == i else o for j, o in enumerate(operands)]
            largest = np.fmax(largest, np.abs(_function(node)(*moved) - result) / _NUDGE)
    return largest
