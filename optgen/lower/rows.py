"""Writing a plan for CPUs: kernels that take a table of rows and treat a whole tree in one dispatch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optgen.dsl.variant import KernelSpec
from optgen.lower import codes
from optgen.lower.graph import Graph, Node, Value
from optgen.lower.ops import OPS, REDUCTIONS, constant, widen
from optgen.lower.plan import Pass, Plan, is_tree_reduction
from optgen.lower.style import Style, module_name, operands_in_memory, render, write_nodes


@dataclass(frozen=True)
class _Totals:
    """What a kernel reads of an earlier stage's totals: the stage, how many it has, and the column and name of each."""

    stage: int
    width: int
    extracts: tuple[tuple[int, str], ...]


def emit_rows(spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> str:
    """The module that updates any tree, given as a table of rows.

    Its entry points are ``stage0``, ``stage1``... for the reductions and ``apply`` for the update. Each takes a view
    for each operand, the table of rows, the totals of earlier stages that have any for leaves, a stage its partial
    results, then the scalars, the totals of earlier stages over the tree, and two fences. ``apply`` returns the views
    of what it updated, a stage that of its partial results.
    """
    return _Rows(spec, graph, plan, style).render()


class _Rows:
    def __init__(self, spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> None:
        self.spec, self.graph, self.plan, self.style = spec, graph, plan, style
        self.operands = operands_in_memory(spec)
        self.coded = {i: o for i, o in enumerate(spec.operands) if o.coded}
        self.random = any(o.rounding == "stochastic" for o in self.coded.values())
        count = len(self.operands)
        self.tensors = dict(zip(graph.inputs[:count], range(count), strict=True))
        self.scalars = {v: f"%h_{s.name}" for v, s in zip(graph.inputs[count:], spec.scalars, strict=True)}
        self.columns, self.trees = columns_of(plan)

    def render(self) -> str:
        assert self.style.vector is not None
        entries = [self.stage(i, each.work, each.nodes) for i, each in enumerate(self.plan.reductions)]
        results = [i for i, o in enumerate(self.operands) if o.role != "input"]
        update = self.entry("apply", len(entries), self.plan.update, results)
        update["returned"] = [self.host(v) for v in self.plan.returned]
        update["outputs"] = [self.name(self.plan.update, v) for v in self.plan.update.results]
        if self.random:
            self.round_at_random(update)
        return render(
            "rows.mlir.j2",
            name=module_name(self.spec),
            operands=self.operands,
            compute=self.spec.dtypes.compute,
            mode=self.style.float_mode,
            # More at once hide what 8-bit loads and the hash wait for: a tenth faster with AVX2 and with AVX-512.
            vector=self.style.vector * (4 if self.random else 1),
            indexed=self.random,
            entries=[*entries, update],
        )

    def host(self, value: Value) -> str:
        """The name of a scalar in a prologue."""
        if any(value == v for _, v in self.trees):
            return f"%t{value.index}"
        return self.scalars.get(value, f"%s{value.index}")

    def name(self, work: Pass, value: Value) -> str:
        """The name of a value inside a kernel."""
        if value in self.tensors:
            index = self.tensors[value]
            return f"%{'d' if index in self.coded else 'e'}_{self.operands[index].name}"
        return f"{'%k' if value in work.captures else '%v'}{value.index}"

    def decoded(self, work: Pass) -> list[str]:
        """What the coded operands of a pass stand for."""
        lines = []
        for value in work.leaves:
            if operand := self.coded.get(self.tensors[value]):
                memory = self.operands[self.tensors[value]]
                lines += codes.decode(f"%d_{memory.name}", f"%e_{memory.name}", operand.dtype)
        return lines

    def round_at_random(self, update: dict[str, Any]) -> None:
        """Encodes what the update's kernel yields for operands with such a rounding."""
        compute = self.spec.dtypes.compute
        parts = [(f"%h_h_{name}", f"%k_{name}") for name in codes.PARTS]
        update["captures"] += [(outer, inner, compute) for outer, inner in parts]
        update["entry"] += codes.keys([inner for _, inner in parts], compute, "%number", "%start")
        chosen = [i for i in update["results"] if i in self.coded]
        lines, words = codes.words(-(-len(chosen) // 2), "%place")
        update["body"] += ["%place = linalg.index 0 : index", *lines]
        for position, i in enumerate(chosen):
            at, result = update["results"].index(i), f"%n_{self.operands[i].name}"
            word, half = words[position // 2], position % 2
            update["body"] += codes.encode(result, update["outputs"][at], self.coded[i].dtype, word, half)
            update["outputs"][at] = result

    def write(self, work: Pass, nodes: Iterable[Node]) -> list[str]:
        return write_nodes(nodes, lambda v: self.name(work, v), "%size", halves=self.style.halves)

    def entry(self, name: str, stage: int, work: Pass, results: list[int]) -> dict[str, Any]:
        """What entry points have in common; ``stage`` of them come before."""
        lines: list[str] = []
        totals = []
        for index in range(stage):
            width = sum(s == index for s, _ in self.columns.values())
            if not width:
                continue
            extracts = []
            for value, (where, column) in self.columns.items():
                if where == index and value in work.reductions:
                    extracts.append((column, f"%r{value.index}"))
                    lines += widen(f"%r{value.index}", "f64", self.name(work, value), value.dtype)
            totals.append(_Totals(index, width, tuple(extracts)))
        nodes = (*work.entry, *work.body)
        return {
            "name": name,
            "totals": totals,
            "scalars": [*self.scalars.values(), *(self.host(v) for s, v in self.trees if s < stage)],
            "prologue": write_nodes(self.plan.prologue_of(work, self.graph), self.host),
            "captures": [(self.host(v), self.name(work, v), v.dtype) for v in work.captures],
            "entry": lines + self.write(work, work.entry),
            "body": [*self.decoded(work), *self.write(work, work.body)],
            "sized": any(n.op == "size" for n in nodes),
            "results": results,
            "reads": [i for v, i in self.tensors.items() if v in work.leaves and i not in results],
            "reductions": [],
            "returned": [],
            "lanes": 0,
        }

    def stage(self, index: int, work: Pass, nodes: tuple[Node, ...]) -> dict[str, Any]:
        """The entry point of one stage of reductions."""
        entry = self.entry(f"stage{index}", index, work, [])
        reductions, outputs = [], []
        body: list[str] = entry["body"]
        for position, (node, value) in enumerate(zip(nodes, work.results, strict=True)):
            reduction, source = REDUCTIONS[node.op], self.name(work, value)
            if value.dtype != "f64":
                body += OPS["convert"].write(f"%w{position}", [source], value.dtype, "f64")
                source = f"%w{position}"
            body.append(f"%o{position} = {reduction.combine} {source}, %a{position} : f64")
            outputs.append(f"%o{position}")
            reductions.append(
                {"neutral": constant(f"%neutral{position}", reduction.neutral, "f64"), "combine": reduction.combine}
            )
        assert self.style.vector is not None
        # Enough accumulators to hide the latency of an addition, few enough to stay in registers.
        lanes = self.style.vector * (2 if len(nodes) == 1 else 1)
        return entry | {"reductions": reductions, "outputs": outputs, "lanes": lanes}


def columns_of(plan: Plan) -> tuple[dict[Value, tuple[int, int]], list[tuple[int, Value]]]:
    """Where each reduction's total is to be found.

    Returns:
        For those over leaves their stage and, among those of it, their column; for those over the tree their stage.
    """
    columns: dict[Value, tuple[int, int]] = {}
    trees = []
    for index, stage in enumerate(plan.reductions):
        for node in stage.nodes:
            if is_tree_reduction(node):
                trees.append((index, node.result))
            else:
                columns[node.result] = (index, sum(s == index for s, _ in columns.values()))
    return columns, trees
