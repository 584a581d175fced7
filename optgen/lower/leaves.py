"""Writing a plan for GPUs: kernels that take a leaf, and loops over lists of leaves around them.

Where a kernel must know more of its leaf than its memory (totals of reductions, the number of elements, random bits),
the module is called by ``leaves`` instead of ``list``: its entry points are those of modules by rows, and it is told
what it must know in two lists more. See ``templates/tied_list.mlir.j2``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from optgen.dsl.variant import KernelSpec
from optgen.lower import codes
from optgen.lower.graph import Graph, Node, Value
from optgen.lower.ops import OPS, REDUCTIONS, constant, widen
from optgen.lower.pairs import OPAQUE_ZERO, write_pair_nodes
from optgen.lower.plan import Pass, Plan
from optgen.lower.rows import columns_of
from optgen.lower.style import Style, module_name, operands_in_memory, render, write_nodes

#: What is handed on to a kernel: its name outside and inside, and its type.
_Handed = tuple[str, str, str]


def emit_leaves(spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> str:
    """The module that updates any tree, given as a list of leaves for each operand.

    Its entry point ``apply`` takes those lists and the scalars, and returns the number of leaves and the scalar state.
    By ``leaves``, it takes behind the lists of leaves ``places`` (i64: for each leaf its number of elements, of lanes
    for reductions, and its number in the tree) and ``totals`` (f64: for each leaf its number of elements and the totals
    of earlier stages), and behind the scalars the totals over the tree. ``stage0``, ``stage1``... take the same and,
    behind ``totals``, a buffer for partial results: a line for each reduction, two of f32 where the device lacks f64,
    with as many of them for each leaf as it has lanes. They return that buffer.
    """
    return _Leaves(spec, graph, plan, style).render()


class _Leaves:
    """Names and types of everything in one module that loops over leaves."""

    def __init__(self, spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> None:
        self.spec, self.graph, self.plan, self.style = spec, graph, plan, style
        self.pairs = style.pairs and spec.dtypes.compute == "f64"
        # What is in memory, as the kernel sees it.
        self.operands = operands_in_memory(spec)
        self.coded = {i: o for i, o in enumerate(spec.operands) if o.coded}
        count = len(self.operands)
        self.tensors = dict(zip(graph.inputs[:count], range(count), strict=True))
        self.scalars = dict(zip(graph.inputs[count:], spec.scalars, strict=True))
        columns, self.trees = columns_of(plan)
        # The line of each leaf in `totals`: its size, then the columns of all stages.
        self.columns = {value: 1 + i for i, value in enumerate(columns)}
        self.told = plan.leafwise or spec.random

    def render(self) -> str:
        """The module's text."""
        stages = [self.stage(i, each.work, each.nodes) for i, each in enumerate(self.plan.reductions)]
        entries = [*stages, self.update()]
        return render(
            "tied_list.mlir.j2",
            name=module_name(self.spec),
            operands=self.operands,
            compute=self.spec.dtypes.compute,
            splits=any(e["splits"] for e in entries),
            entries=entries,
        )

    def host(self, value: Value) -> str:
        """The name of a scalar in the prologue."""
        if any(value == v for _, v in self.trees):
            return f"%t{value.index}"
        return f"%{self.scalars[value].name}" if value in self.scalars else f"%s{value.index}"

    def is_pair(self, value: Value) -> bool:
        """Whether kernels see ``value`` as a pair of f32."""
        return self.pairs and value.dtype == "f64"

    def parts(self, values: Iterable[Value], outer: Callable[[Value], str], inner: str) -> list[_Handed]:
        """Scalars that are handed on."""
        handed = []
        for value in values:
            ends = [("_h", "f32"), ("_l", "f32")] if self.is_pair(value) else [("", value.dtype)]
            handed += [(f"{outer(value)}{end}", f"{inner}{value.index}{end}", dtype) for end, dtype in ends]
        return handed

    def name(self, work: Pass, value: Value) -> str:
        """The name of a value inside a kernel."""
        if value in self.tensors:
            index = self.tensors[value]
            return f"%{'d' if index in self.coded else 'e'}_{self.operands[index].name}"
        return f"{'%k' if value in work.captures else '%v'}{value.index}"

    def write(self, work: Pass, nodes: Iterable[Node], prefix: str) -> list[str]:
        """Nodes inside a kernel; the number of elements comes as a total."""
        nodes = [n for n in nodes if n.op != "size"]
        if self.pairs:
            return write_pair_nodes(nodes, lambda v: self.name(work, v), prefix, halves=self.style.halves)
        return write_nodes(nodes, lambda v: self.name(work, v), halves=self.style.halves)

    def entry(self, name: str, work: Pass, *, stage: int, opaque: bool) -> dict[str, Any]:
        """What entry points have in common; ``stage`` of them come before."""
        known = [*work.reductions, *(n.result for n in work.entry if n.op == "size")]
        each = ["%line = arith.muli %i, %three : index"] if self.told else []
        told: list[_Handed] = []
        entry: list[str] = []
        for value in known:
            total = f"%r{value.index}"
            each += _get(total, "totals", "%known", self.columns.get(value, 0))
            if self.style.pairs:
                each.append(f"{total}_h, {total}_l = util.call @split({total}) : (f64) -> (f32, f32)")
                told += [(f"{total}{end}", f"{total}{end}", "f32") for end in ("_h", "_l")]
            else:
                told.append((total, total, "f64"))
            entry += self.widen(total, self.name(work, value), value.dtype)
        zero = [(OPAQUE_ZERO, OPAQUE_ZERO, "i32")] if opaque else []
        lists = [f"%{o.name}_list: !util.list<!hal.buffer_view>" for o in self.operands]
        if self.told:
            lists += ["%places: !util.list<i64>", "%totals: !util.list<f64>"]
        scalars = [f"%{s.name}" for s in self.spec.scalars] + [self.host(v) for s, v in self.trees if s < stage]
        prologue = self.plan.prologue_of(work, self.graph)
        pairs = [self.host(v) for v in work.captures if self.is_pair(v)]
        return {
            "name": name,
            "lists": lists,
            "scalars": scalars,
            "prologue": write_nodes(prologue, self.host),
            "pairs": pairs,
            "splits": bool(pairs) or (self.style.pairs and bool(known)),
            "opaque": opaque,
            "told": self.told,
            "width": 1 + len(self.columns),
            "each": each,
            "coefficients": self.parts(work.captures, self.host, "%c") + told + zero,
            "captures": self.parts(work.captures, lambda v: f"%c{v.index}", "%k") + [(i, i, t) for _, i, t in told]
            + zero,
            "entry": entry + self.write(work, work.entry, "%q"),
            "body": self.decoded(work) + self.write(work, work.body, "%p"),
            "reads": [i for v, i in self.tensors.items() if v in work.leaves],
            "results": [],
            "returned": [],
            "reductions": [],
        }  # fmt: skip

    def decoded(self, work: Pass) -> list[str]:
        """What the coded operands of a pass stand for."""
        lines = []
        for value in work.leaves:
            if operand := self.coded.get(self.tensors[value]):
                memory = self.operands[self.tensors[value]]
                lines += codes.decode(f"%d_{memory.name}", f"%e_{memory.name}", operand.dtype)
        return lines

    def widen(self, total: str, result: str, dtype: str) -> list[str]:
        """A total as the graph's value ``result`` of type ``dtype``."""
        if not self.style.pairs:
            return widen(total, "f64", result, dtype)
        if dtype != "f64":
            return [f"{result} = arith.addf {total}_h, {total}_l : f32"]
        keep = constant(f"{result}_z", -0.0, "f32")
        return [keep, *(f"{result}{end} = arith.addf {total}{end}, {result}_z : f32" for end in ("_h", "_l"))]

    def update(self) -> dict[str, Any]:
        """The entry point ``apply``."""
        work = self.plan.update
        update = self.entry("apply", work, stage=len(self.plan.reductions), opaque=self.pairs)
        results = [i for i, o in enumerate(self.operands) if o.role != "input"]
        update |= {
            "results": results,
            "reads": [i for i in update["reads"] if i not in results],
            "outputs": [self.name(work, v) for v in work.results],
            "returned": [self.host(v) for v in self.plan.returned],
        }
        if self.spec.random:
            self.round_at_random(update)
        return update

    def round_at_random(self, update: dict[str, Any]) -> None:
        """Encodes what the update's kernel yields for operands with such a rounding."""
        parts = [f"%h_{part}" for part in codes.PARTS]
        update["each"] += _get("%number", "places", "%line", 2)
        update["each"] += codes.host_keys(parts, self.spec.dtypes.compute, "%number")
        # A leaf starts at its element 0, so that what its elements' indices are added to is the first key itself.
        update["coefficients"] += [(f"%key{i}", f"%key{i}", "i32") for i in (0, 1)]
        update["captures"] += [("%key0", "%key0", "i32"), ("%key1", "%key1", "i32"), ("%key0", "%key2", "i32")]
        chosen = [i for i in update["results"] if i in self.coded]
        lines, words = codes.words(-(-len(chosen) // 2), "%place")
        update["body"] += ["%place = linalg.index 0 : index", *lines]
        for position, i in enumerate(chosen):
            at, result = update["results"].index(i), f"%n_{self.operands[i].name}"
            word, half = words[position // 2], position % 2
            update["body"] += codes.encode(result, update["outputs"][at], self.coded[i].dtype, word, half)
            update["outputs"][at] = result

    def stage(self, index: int, work: Pass, nodes: tuple[Node, ...]) -> dict[str, Any]:
        """The entry point of one stage of reductions.

        Each lane adds up every so many-th element of its leaf, in f64 or, where the device lacks it, in pairs of f32.
        """
        entry = self.entry(f"stage{index}", work, stage=index, opaque=self.style.pairs)
        entry["lists"].append("%partials: !hal.buffer_view")
        entry["each"] += _get("%size_w", "places", "%line", 0) + _get("%lanes_w", "places", "%line", 1)
        ends, dtype = (("_h", "_l"), "f32") if self.style.pairs else (("",), "f64")
        lines: list[str] = entry["body"]
        neutrals: list[str] = []
        for position, (node, value) in enumerate(zip(nodes, work.results, strict=True)):
            found, start = REDUCTIONS[node.op], f"%neutral{position}"
            source = self.name(work, value)
            if self.style.pairs:
                if not self.is_pair(value):
                    low = constant(f"%w{position}_l", 0.0, "f32")
                    lines += [low, f"%w{position}_h = arith.addf {source}, %w{position}_l : f32"]
                    source = f"%w{position}"
                neutrals += [constant(f"{start}_h", found.neutral, "f32"), constant(f"{start}_l", 0.0, "f32")]
                lines += _combine_pairs(node.op, f"%o{position}", f"%a{position}", source, f"%b{position}_")
            else:
                if value.dtype != "f64":
                    lines += OPS["convert"].write(f"%w{position}", [source], value.dtype, "f64")
                    source = f"%w{position}"
                neutrals.append(constant(start, found.neutral, "f64"))
                lines.append(f"%o{position} = {found.combine} %a{position}, {source} : f64")
        return entry | {
            "neutrals": neutrals,
            "reductions": [f"{position}{end}" for position in range(len(nodes)) for end in ends],
            "accumulator": dtype,
        }


def _combine_pairs(op: str, result: str, total: str, source: str, prefix: str) -> list[str]:
    """Lines for the pair ``result``, which is ``total`` combined with ``source`` by the reduction ``op``."""
    values = [Value(i, "leaf", "f64") for i in range(3)]
    names = dict(zip(values, (total, source, result), strict=True))
    node = Node(op.removeprefix("reduce_"), values[2], (values[0], values[1]))
    return write_pair_nodes([node], names.__getitem__, prefix)


def _get(result: str, table: str, line: str, column: int) -> list[str]:
    """Lines for the VM: one number of a leaf's line in a list."""
    dtype = {"places": "i64", "totals": "f64"}[table]
    return [
        f"{result}_o = arith.constant {column} : index",
        f"{result}_p = arith.addi {line}, {result}_o : index",
        f"{result} = util.list.get %{table}[{result}_p] : !util.list<{dtype}>",
    ]
