"""The plan of a kernel: which part of a graph runs where, decided from the graph alone.

* The *prologue* is what depends on scalar arguments, or on reductions over the whole tree, alone. It runs once per
  call, on the host's VM.
* A *pass* reads whole leaves. Reductions come first, those that do not depend on each other in one pass; the last
  pass writes the new param and state, element by element, into the memory that it reads.
* What depends on a reduction but not on the element is the *entry* of the passes that use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optgen.errors import RuleError
from optgen.lower.graph import Graph, Node, Value
from optgen.lower.ops import REDUCTIONS


@dataclass(frozen=True)
class Pass:
    """One trip over memory.

    Attributes:
        results: what it computes: reductions' operands, or the graph's outputs.
        leaves: the leaf inputs that it reads.
        captures: what it uses of the prologue, of scalar arguments, and of earlier reductions over the whole tree.
        reductions: results of earlier reductions over its leaf that it uses.
        entry: scalar nodes that run once before the elements.
        body: leaf nodes, and the constants that they use.
    """

    results: tuple[Value, ...]
    leaves: tuple[Value, ...]
    captures: tuple[Value, ...]
    reductions: tuple[Value, ...]
    entry: tuple[Node, ...]
    body: tuple[Node, ...]


@dataclass(frozen=True)
class ReductionPass:
    """A pass together with the reduction nodes whose operands it computes."""

    work: Pass
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Plan:
    """A graph, arranged.

    Attributes:
        prologue: what depends on scalar arguments, and reductions over the whole tree, alone, in order.
        reductions: the passes before the update.
        update: the pass that writes.
        returned: scalars that the module returns, all of them from the prologue.
    """

    prologue: tuple[Node, ...]
    reductions: tuple[ReductionPass, ...]
    update: Pass
    returned: tuple[Value, ...] = ()

    def prologue_of(self, work: Pass, graph: Graph) -> tuple[Node, ...]:
        """The part of the prologue that one pass needs, where each has its own; the update's returns scalars too."""
        wanted = {*work.captures, *(self.returned if work is self.update else ())}
        return _slice(graph, wanted - set(graph.inputs))

    @property
    def trees(self) -> tuple[Node, ...]:
        """The reductions over the whole tree."""
        return tuple(n for r in self.reductions for n in r.nodes if is_tree_reduction(n))

    @property
    def leafwise(self) -> bool:
        """Whether a pass must know where leaves begin and end."""
        sized = any(n.op == "size" for each in (*(r.work for r in self.reductions), self.update) for n in each.entry)
        return sized or bool(self.reductions)

    @property
    def coefficients(self) -> tuple[Value, ...]:
        """What the prologue hands to the passes, scalar arguments that they use directly included."""
        passes = [r.work for r in self.reductions] + [self.update]
        seen: dict[Value, None] = {}
        for each in passes:
            seen.update(dict.fromkeys(each.captures))
        return tuple(sorted(seen, key=lambda v: v.index))

    def __str__(self) -> str:
        return (
            f"prologue {len(self.prologue)} ops; "
            + "".join(
                f"reduction pass over {len(r.work.leaves)} leaves, {len(r.work.body)} ops; " for r in self.reductions
            )
            + f"update pass over {len(self.update.leaves)} leaves, {len(self.update.body)} ops"
        )


def plan_of(graph: Graph, returned: Sequence[str] = ()) -> Plan:
    """Arranges ``graph`` into prologue, reduction passes and the update pass.

    Args:
        graph: whose last outputs are the scalars to return.
        returned: their names.

    Raises:
        RuleError: if one of them depends on a tensor.
    """
    tensors = len(graph.outputs) - len(returned)
    producer = graph.producer()
    inputs = set(graph.inputs)
    host = _host_scalars(graph)
    level: dict[Value, int] = dict.fromkeys(graph.inputs, 0)
    for node in graph.nodes:
        level[node.result] = max((level[v] for v in node.operands), default=0) + (node.op in REDUCTIONS)

    def make_pass(results: tuple[Value, ...]) -> Pass:
        needed: set[Value] = set()
        captures: set[Value] = set()
        reductions: set[Value] = set()
        stack = list(results)
        while stack:
            value = stack.pop()
            if value in needed:
                continue
            needed.add(value)
            node = producer.get(value)
            if value in host and (node is None or node.op != "constant"):
                captures.add(value)
            elif node is not None and node.op in REDUCTIONS:
                reductions.add(value)
            elif node is not None:
                stack.extend(node.operands)
        inside = [n for n in graph.nodes if n.result in needed - captures - reductions]
        entry = tuple(n for n in inside if n.result.kind == "scalar")
        return Pass(
            results=results,
            leaves=tuple(v for v in graph.inputs if v in needed and v.kind == "leaf"),
            captures=tuple(sorted(captures, key=lambda v: v.index)),
            reductions=tuple(sorted(reductions, key=lambda v: v.index)),
            entry=entry,
            body=tuple(n for n in inside if n.result.kind == "leaf"),
        )

    groups: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node.op in REDUCTIONS:
            groups.setdefault(level[node.result], []).append(node)
    reductions = tuple(
        ReductionPass(make_pass(tuple(n.operands[0] for n in nodes)), tuple(nodes))
        for _, nodes in sorted(groups.items())
    )
    update = make_pass(graph.outputs[:tensors])
    wanted = {v for each in (*(r.work for r in reductions), update) for v in each.captures}
    for name, value in zip(returned, graph.outputs[tensors:], strict=True):
        if value not in host:
            raise RuleError(f"scalar '{name}' must be computed from scalars alone (it depends on a tensor)")
        wanted.add(value)
    return Plan(_slice(graph, wanted - inputs), reductions, update, graph.outputs[tensors:])


def is_tree_reduction(node: Node) -> bool:
    """Whether ``node`` reduces all leaves of the tree together."""
    return node.op in REDUCTIONS and node.attribute == "tree"


def _host_scalars(graph: Graph) -> set[Value]:
    """Scalars that depend on nothing but scalar arguments and reductions over the whole tree."""
    host = {v for v in graph.inputs if v.kind == "scalar"}
    for node in graph.nodes:
        if is_tree_reduction(node):
            host.add(node.result)
        elif node.result.kind == "scalar" and node.op not in REDUCTIONS and node.op != "size":
            if all(v in host for v in node.operands):
                host.add(node.result)
    return host


def _slice(graph: Graph, wanted: set[Value]) -> tuple[Node, ...]:
    """The nodes that ``wanted`` depends on, in order; reductions over the tree are given."""
    needed = set(wanted)
    for node in reversed(graph.nodes):
        if node.result in needed and not is_tree_reduction(node):
            needed.update(node.operands)
    return tuple(n for n in graph.nodes if n.result in needed and not is_tree_reduction(n))
