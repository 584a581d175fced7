"""One kernel for each leaf of an update, by construction.

What an update makes of a leaf is elementwise, but for numbers of whole leaves or of the tree. Left to itself the
compiler writes two or three kernels for it, since several results leave it, and moves moments through memory of their
own. Its flag for more (``aggressive-fusion``) miscompiles whatever is not elementwise. So the elementwise operations
that end in the new values of a leaf become one ``linalg.generic`` here, whose results take the memory of the operands
that they replace. What else needs a value in between, a norm of the leaf for instance, keeps the operations that it
had: they read the old values, and come first, because the kernel needs their result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optgen.compiler.driver import compile_mlir
from optgen.train.parts import Part, tensor

#: Up to linear algebra on tensors, where each operation of StableHLO is one of its own yet.
_FLAGS = ("--iree-input-demote-f64-to-f32=false", "--compile-to=input")
_GENERIC = "linalg.generic"


def leaf_kernels(part: Part, name: str, overwritten: Collection[str]) -> list[str]:
    """The functions of an update in which each leaf has one kernel.

    Args:
        part: the update. What a result replaces has its name among the inputs.
        name: what to call the function.
        overwritten: the inputs whose memory the results of the same name take.

    Returns:
        The function's text, and that of another which it calls; nothing where the compiler makes more of the part than
        one function: its StableHLO is right as it is, in more kernels.
    """
    from iree.compiler import ir

    positions = {leaf.path: i for i, leaf in enumerate(part.inputs)}
    tied = {i: positions[leaf.path] for i, leaf in enumerate(part.outputs) if leaf.path in overwritten}
    text = compile_mlir(part.stablehlo, _FLAGS).decode()
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.parse(text)
        operations = [each.operation for each in module.body.operations]
        if [op.name for op in operations] != ["util.func"]:
            return []
        (function,) = operations
        _Fusion(ir, function, tied).run()
        given = [str(argument.type) for argument in function.regions[0].blocks[0].arguments]
        returned = [str(value.type) for value in list(function.regions[0].blocks[0].operations)[-1].operands]
        asked = [tensor(leaf) for leaf in part.inputs], [tensor(leaf) for leaf in part.outputs]
        inner = name if asked == (given, returned) else f"{name}_leaves"
        function.attributes["sym_name"] = ir.StringAttr.get(inner)
        function.verify()
        texts = [_as_func(str(function))]
        return texts if inner == name else [*texts, _signed(name, asked, (given, returned))]


def _as_func(text: str) -> str:
    """A public function of IREE's own dialect as a private one of MLIR's, which StableHLO can call."""
    opening, ending = "util.func public @", "\n  util.return "
    assert text.startswith(opening)
    assert text.count(ending) == 1
    return "func.func private @" + text.removeprefix(opening).replace(ending, "\n  return ")


_Types = tuple[list[str], list[str]]


def _signed(name: str, asked: _Types, given: _Types) -> str:
    """The function ``name``, which calls that of the leaves: ``linalg`` knows no unsigned numbers."""

    def convert(values: Sequence[str], before: Sequence[str], after: Sequence[str], to: str) -> list[str]:
        for i, (value, old, new) in enumerate(zip(values, before, after, strict=True)):
            if old != new:
                lines.append(f"  %{to}{i} = stablehlo.bitcast_convert {value} : ({old}) -> {new}")
        return [v if b == a else f"%{to}{i}" for i, (v, b, a) in enumerate(zip(values, before, after, strict=True))]

    lines: list[str] = []
    arguments = [f"%arg{i}" for i in range(len(asked[0]))]
    operands = convert(arguments, asked[0], given[0], "in")
    head = ", ".join(f"{a}: {kind}" for a, kind in zip(arguments, asked[0], strict=True))
    kinds = [", ".join(each) for each in (*given, asked[1])]
    lines.append(f"  %made:{len(given[1])} = call @{name}_leaves({', '.join(operands)}) : ({kinds[0]}) -> ({kinds[1]})")
    results = convert([f"%made#{i}" for i in range(len(given[1]))], given[1], asked[1], "out")
    lines.append(f"  return {', '.join(results)} : {kinds[2]}")
    return "\n".join([f"func.func private @{name}({head}) -> ({kinds[2]}) {{", *lines, "}"])


@dataclass
class _Group:
    """Results that become one kernel.

    Attributes:
        shape: of all of them.
        results: their positions among the function's results.
        work: positions of the operations, in the function's order.
        operands: what the kernel reads: values and the maps by which it does.
    """

    shape: tuple[int, ...]
    results: list[int]
    work: set[int]
    operands: dict[tuple[Any, Any], None]


class _Fusion:
    """One function, rewritten."""

    def __init__(self, ir: Any, function: Any, tied: Mapping[int, int]) -> None:
        self.ir, self.tied = ir, tied
        self.block = function.regions[0].blocks[0]
        self.ops = [each.operation for each in self.block.operations]
        self.last = self.ops[-1]
        self.made = {result: i for i, op in enumerate(self.ops) for result in op.results}
        self.plain = [self.elementwise(op) for op in self.ops]
        self.reads = [self.inputs(op) if plain else [] for op, plain in zip(self.ops, self.plain, strict=True)]

    def run(self) -> None:
        for group in self.groups(list(self.last.operands)):
            self.write(group)
        for op in reversed(self.ops):
            if op.name in (_GENERIC, "tensor.empty") and not any(True for r in op.results for _ in r.uses):
                op.erase()

    # Finding.

    def elementwise(self, op: Any) -> bool:
        """Whether an operation computes each element of its results by itself."""
        if op.name != _GENERIC or any("parallel" not in str(kind) for kind in op.attributes["iterator_types"]):
            return False
        results = len(op.results)
        shape = self.shape(op.results[0])
        if not shape or not all(self.ir.RankedTensorType(r.type).has_static_shape for r in op.results):
            return False
        if any(each != self.same(shape) for each in list(op.attributes["indexing_maps"])[-results:]):
            return False
        arguments = list(op.regions[0].blocks[0].arguments)
        return not any(True for argument in arguments[-results:] for _ in argument.uses)

    def same(self, shape: tuple[int, ...]) -> Any:
        """The map of what is read in its own place."""
        return self.ir.AffineMapAttr.get(self.ir.AffineMap.get_identity(len(shape)))

    def shape(self, value: Any) -> tuple[int, ...]:
        return tuple(self.ir.RankedTensorType(value.type).shape)

    def inputs(self, op: Any) -> list[tuple[Any, Any]]:
        """What an elementwise operation reads, and by which maps."""
        maps = list(op.attributes["indexing_maps"])[: -len(op.results)]
        return list(zip(op.operands, maps, strict=False))

    def producer(self, value: Any, each: Any, shape: tuple[int, ...]) -> int | None:
        """The operation that makes ``value``, if it can be part of the kernel that reads it."""
        at = self.made.get(value)
        return at if at is not None and self.plain[at] and each == self.same(shape) else None

    def groups(self, returned: Sequence[Any]) -> list[_Group]:
        """Results that read the same arrays are one kernel's."""
        found: list[_Group] = []
        seen: set[Any] = set()
        for position, value in enumerate(returned):
            at = self.made.get(value)
            if at is None or not self.plain[at] or value in seen:
                continue
            seen.add(value)
            group = self.group(position, at)
            for other in [each for each in found if self.together(each, group)]:
                found.remove(other)
                group = _Group(
                    group.shape,
                    other.results + group.results,
                    other.work | group.work,
                    other.operands | group.operands,
                )
            found.append(group)
        return found

    def group(self, position: int, at: int) -> _Group:
        """One result, with the elementwise operations that it is made by."""
        group = _Group(self.shape(self.ops[at].results[0]), [position], set(), {})
        left = [at]
        while left:
            current = left.pop()
            if current in group.work:
                continue
            group.work.add(current)
            for value, each in self.reads[current]:
                producer = self.producer(value, each, group.shape)
                if producer is None:
                    group.operands[value, each] = None
                else:
                    left.append(producer)
        return group

    def together(self, one: _Group, other: _Group) -> bool:
        same = self.same(one.shape)
        return one.shape == other.shape and any(key in other.operands and key[1] == same for key in one.operands)

    # Writing.

    def write(self, group: _Group) -> None:
        """Puts the kernel where all that it reads is there, and uses its results from there on."""
        ir, same = self.ir, self.same(group.shape)
        returned = [self.last.operands[i] for i in group.results]
        needed = [value for value, _ in group.operands] + [v for at in group.work for v in self.captured(self.ops[at])]
        behind = max((self.made[value] for value in needed if value in self.made), default=-1)
        elsewhere = {value for value, each in group.operands if each != same}
        ties = [self.overwritten(*each, elsewhere) for each in zip(group.results, returned, strict=True)]
        replaced = {tie for tie in ties if tie is not None}
        reads = [key for key in group.operands if key[1] != same or key[0] not in replaced]
        with ir.InsertionPoint(self.ops[behind + 1]):
            outs = [
                ir.Operation.create("tensor.empty", results=[value.type]).results[0] if tie is None else tie
                for tie, value in zip(ties, returned, strict=True)
            ]
            kinds = ", ".join(["#linalg.iterator_type<parallel>"] * len(group.shape))
            new = ir.Operation.create(
                _GENERIC,
                results=[value.type for value in returned],
                operands=[value for value, _ in reads] + outs,
                attributes={
                    "indexing_maps": ir.ArrayAttr.get([each for _, each in reads] + [same] * len(outs)),
                    "iterator_types": ir.Attribute.parse(f"[{kinds}]"),
                    "operandSegmentSizes": ir.DenseI32ArrayAttr.get([len(reads), len(outs)]),
                },
                regions=1,
            )
        body = new.regions[0].blocks.append(*(ir.RankedTensorType(value.type).element_type for value in new.operands))
        known = dict(zip([*reads, *((out, same) for out in outs)], body.arguments, strict=True))
        made: dict[Any, Any] = {}
        with ir.InsertionPoint(body):
            for position in sorted(group.work):
                self.copy(position, group.shape, known, made)
            ir.Operation.create("linalg.yield", operands=[made[value] for value in returned])
        for value, result in zip(returned, new.results, strict=True):
            for use in list(value.uses):
                user = use.owner.operation
                if user.block == self.block and new.is_before_in_block(user):
                    user.operands[use.operand_number] = result

    def overwritten(self, result: int, value: Any, elsewhere: Collection[Any]) -> Any:
        """The argument whose memory a result takes, unless elements of it are read that are not the result's own."""
        argument = self.block.arguments[self.tied[result]] if result in self.tied else None
        taken = argument is not None and argument.type == value.type and argument not in elsewhere
        return argument if taken else None

    def captured(self, op: Any) -> Iterable[Any]:
        """What the body of an elementwise operation uses of the function around it: constants."""
        for each in op.regions[0].blocks[0].operations:
            yield from (operand for operand in each.operands if operand in self.made)

    def copy(self, at: int, shape: tuple[int, ...], known: Mapping[Any, Any], made: dict[Any, Any]) -> None:
        """Writes the body of an elementwise operation at the end of the kernel's."""
        block = self.ops[at].regions[0].blocks[0]
        inner: dict[Any, Any] = {}
        for argument, (value, each) in zip(block.arguments, self.reads[at], strict=False):
            inner[argument] = known[value, each] if self.producer(value, each, shape) is None else made[value]
        *operations, last = [each.operation for each in block.operations]
        for each in operations:
            copy = each.clone().operation
            for i, operand in enumerate(each.operands):
                copy.operands[i] = inner.get(operand, operand)
            inner.update(zip(each.results, copy.results, strict=True))
        for result, value in zip(self.ops[at].results, last.operands, strict=True):
            made[result] = inner.get(value, value)
