"""What one command of a compiled program does with the memory that it is given, read from its body.

A command may read and write the same memory if each element that it writes depends, of that memory, on the element in
the same place alone, and everything that reads it leads to what is written: then every tile is read before it is
overwritten, whatever the order of tiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optgen.lower.lines import operations

_SUBSPAN = "stream.binding.subspan"
_LOAD, _STORE = "iree_tensor_ext.dispatch.tensor.load", "iree_tensor_ext.dispatch.tensor.store"


class Bodies:
    """The bodies of a module's commands. Bindings that cannot be understood count as read, and as not pointwise.

    Args:
        module: the program.
        movable: whether loads may be moved behind stores. The two are different bindings, of which one says that it is
            only read: Mesa's Vulkan driver, and others for GPUs, take that for a promise. Then what is read of memory
            that is overwritten must go into what overwrites it and into nothing else.
    """

    def __init__(self, module: Any, *, movable: bool = False) -> None:
        self._movable = movable
        self._functions: dict[tuple[str, str], Any] = {}
        for each in module.body.operations:
            if each.operation.name != "stream.executable":
                continue
            executable = _name(each.operation)
            for inner in operations(each.operation):
                if inner.name == "func.func":
                    self._functions[executable, _name(inner)] = inner

    def reads(self, op: Any, operand: int) -> bool:
        """Whether the command ``op`` may read its operand of that position."""
        if (argument := self._argument(op, operand)) is None:
            return True
        return any("<writeonly:" not in str(span.results[0].type) for span in _users(argument))

    def pointwise(self, op: Any, operands: Iterable[int]) -> bool:
        """Whether ``op``, all of whose ``operands`` are the same memory, reads of it only what it then overwrites."""
        arguments = [self._argument(op, each) for each in operands]
        loads: list[Any] = []
        stores: list[Any] = []
        for argument in arguments:
            if argument is None:
                return False
            for span in _users(argument):
                if span.name != _SUBSPAN:
                    return False
                for use in _users(span.results[0]):
                    if use.name not in (_LOAD, _STORE):
                        return False
                    (loads if use.name == _LOAD else stores).append(use)
        if len(stores) != 1 or any(_slice(load) != _slice(stores[0]) for load in loads):
            return False
        stored = stores[0].operands[0]
        return all(_leads(load.results[0], stored, self._movable) for load in loads)

    def _argument(self, op: Any, operand: int) -> Any:
        """The argument of the body that is the ``operand`` of ``op``; None if there is no body to look at."""
        if op.name != "stream.async.dispatch" or len(list(op.attributes["entry_points"])) != 1:
            return None
        parts = str(op.attributes["entry_points"][0]).replace('"', "").split("::")
        function = self._functions.get((parts[0].lstrip("@"), parts[-1].lstrip("@")))
        index = operand - int(next(iter(op.attributes["operandSegmentSizes"])))
        if function is None or not 0 <= index < len(function.regions[0].blocks[0].arguments):
            return None
        return function.regions[0].blocks[0].arguments[index]


def _leads(value: Any, stored: Any, movable: bool) -> bool:
    """Whether every use of ``value`` is by an elementwise operation that makes ``stored`` of it, place by place."""
    users = [use for use in _users(value) if use.name != _STORE]
    for op in users:
        maps = _elementwise_maps(op)
        if maps is None:
            return False
        inputs = len(op.operands) - len(op.results)
        out = maps[inputs]
        if any(m != out for m in maps[inputs:]) or any(
            m != out for m, operand in zip(maps, op.operands, strict=True) if operand == value
        ):
            return False
        made = [r for r in op.results if r == stored or (any(True for _ in r.uses) and _leads(r, stored, movable))]
        others = [(i, r) for i, r in enumerate(op.results) if r not in made]
        if not made or any(user.name != _STORE for _, r in others for user in _users(r)):
            return False
        if movable and any(_depends(op, i, value) for i, _ in others):
            return False
        if movable and any(user.name == _STORE for r in made if r != stored for user in _users(r)):
            return False
    return bool(users) or value == stored


def _depends(op: Any, result: int, value: Any) -> bool:
    """Whether a result of a ``linalg.generic`` is computed from its operand ``value``."""
    block = op.regions[0].blocks[0]
    operations = list(block.operations)
    wanted = [operations[-1].operation.operands[result]]
    mine = [a for a, operand in zip(block.arguments, op.operands, strict=True) if operand == value]
    seen: list[Any] = []
    while wanted:
        each = wanted.pop()
        if each in mine:
            return True
        if each not in seen:
            seen.append(each)
            owner = each.owner
            if hasattr(owner, "operation"):
                wanted += list(owner.operation.operands)
    return False


def _elementwise_maps(op: Any) -> list[str] | None:
    """The indexing maps of a ``linalg.generic`` whose iterators are all parallel; None for anything else."""
    if op.name != "linalg.generic" or any("parallel" not in str(each) for each in op.attributes["iterator_types"]):
        return None
    return [str(each) for each in op.attributes["indexing_maps"]]


def _slice(op: Any) -> tuple[str, ...]:
    names = ("static_offsets", "static_sizes", "static_strides")
    return (*(str(op.attributes[name]) for name in names), str(len(op.operands) - (op.name == _STORE)))


def _name(op: Any) -> str:
    return str(op.attributes["sym_name"]).strip('"')


def _users(value: Any) -> list[Any]:
    return [use.owner.operation for use in value.uses]
