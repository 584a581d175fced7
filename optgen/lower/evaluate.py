"""Evaluating a graph in float64 with numpy: the reference that artifacts carry as probe vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.lower.graph import Graph, Value
from optgen.lower.ops import OPS, REDUCTIONS, evaluate_compare


def evaluate(graph: Graph, arguments: Sequence[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Runs ``graph``, traced with every dtype f64, on float64 arrays and numbers.

    Returns:
        The outputs, and for each output the magnitude of its largest term: where the last operation adds or
        subtracts, the larger of its operands; else the output's own. Rounding errors are to be seen against that,
        because where terms cancel, the result may be arbitrarily smaller than they are.
    """
    values: dict[Value, Any] = {
        v: np.asarray(a, np.float64) for v, a in zip(graph.inputs, arguments, strict=True)
    }
    size = next((np.size(values[v]) for v in graph.inputs if v.kind == "leaf"), 1)
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            operands = [values[v] for v in node.operands]
            if node.op == "constant":
                result: Any = bool(node.attribute) if node.result.dtype == "i1" else np.float64(node.attribute)
            elif node.op == "size":
                result = np.float64(size)
            elif node.op in REDUCTIONS:
                result = REDUCTIONS[node.op].evaluate(operands[0])
            elif node.op == "compare":
                result = evaluate_compare(str(node.attribute), *operands)
            else:
                result = OPS[node.op].evaluate(*operands)
            values[node.result] = result
    shape = next((np.shape(values[v]) for v in graph.inputs if v.kind == "leaf"), ())
    producer = graph.producer()
    outputs, terms = [], []
    for output in graph.outputs:
        result = np.broadcast_to(np.asarray(values[output], np.float64), shape)
        term = np.abs(result)
        node = producer.get(output)
        if node is not None and node.op in ("add", "subtract"):
            for operand in node.operands:
                term = np.fmax(term, np.abs(np.asarray(values[operand], np.float64)))
        outputs.append(result.copy())
        terms.append(np.broadcast_to(term, shape).copy())
    return outputs, terms
