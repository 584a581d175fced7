"""Functions of f64 that IREE's CPU kernels lack, or compute wrong for small numbers, as arithmetic in a graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from optgen.dsl.trace import import_jax
from optgen.lower.graph import Graph, Node, Value, graph_of
from optgen.lower.repair import elementary

#: The shape that an expansion is traced on; its graph has none.
_SHAPE = (7,)


def expand(graph: Graph) -> Graph:
    """The graph with such functions of leaves written out. Those of scalars stay: the host has a C library."""
    from optgen.train import elementary as series

    functions: dict[str, Callable[..., Any]] = {
        "tanh": elementary.tanh,
        "exponential_minus_one": elementary.expm1,
        "log_plus_one": elementary.log1p,
        "atan2": elementary.atan2_by_comparison,
        "cbrt": elementary.cbrt_by_power,
        # Of arguments up to 1e5: the way for all of them needs integers, which graphs do not have.
        "sine": series.sin,
        "cosine": series.cos,
    }
    wanted = {n.op for n in graph.nodes if n.result.kind == "leaf" and n.result.dtype == "f64"} & functions.keys()
    if not wanted:
        return graph
    nodes: list[Node] = []
    known: dict[Value, Value] = {}
    count = 1 + max(v.index for v in (*graph.inputs, *(n.result for n in graph.nodes)))
    for node in graph.nodes:
        operands = tuple(known.get(v, v) for v in node.operands)
        if node.op not in wanted or node.result.kind != "leaf" or node.result.dtype != "f64":
            nodes.append(Node(node.op, node.result, operands, node.attribute))
            continue
        inner = _traced(functions[node.op], len(operands))
        own = dict(zip(inner.inputs, operands, strict=True))
        for each in inner.nodes:
            own[each.result] = Value(count, each.result.kind, each.result.dtype)
            count += 1
            nodes.append(Node(each.op, own[each.result], tuple(own[v] for v in each.operands), each.attribute))
        known[node.result] = own[inner.outputs[0]]
    return Graph(graph.inputs, tuple(nodes), tuple(known.get(v, v) for v in graph.outputs))


@cache
def _traced(function: Callable[..., Any], count: int) -> Graph:
    jax = import_jax()
    with jax.enable_x64(True):
        structs = [jax.ShapeDtypeStruct(_SHAPE, "float64")] * count
        return graph_of(jax.jit(function).trace(*structs).lower(lowering_platforms=("cpu",)).as_text(), _SHAPE)
