"""Putting parts together: one module whose entry points call them, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optgen.artifact.manifest import LeafInfo
from optgen.lower.style import render, symbol
from optgen.train.parts import Part, tensor


@dataclass(frozen=True)
class Entry:
    """An entry point: parts that are called in order, each with what it takes by name.

    Attributes:
        name: of the function.
        parts: names of parts. What a part returns takes the place of what had that name before.
        arguments: what the function takes.
        results: what it returns, by name.
        aliased: the arguments that are overwritten with the result of the same name.
    """

    name: str
    parts: tuple[str, ...]
    arguments: tuple[LeafInfo, ...]
    results: tuple[LeafInfo, ...]
    aliased: frozenset[str] = frozenset()


def join(
    name: str,
    parts: Mapping[str, Part],
    entries: Sequence[Entry],
    *,
    written: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The module.

    Args:
        name: of the module; what MLIR does not take in one becomes ``_``.
        parts: by name.
        entries: its entry points.
        written: the functions of parts that are not to be taken from their StableHLO, ``KEY_main`` among them.
    """
    functions: list[str] = []
    used = dict.fromkeys(part for entry in entries for part in entry.parts)
    for key in used:
        functions += (written or {}).get(key) or _functions(parts[key].stablehlo, key)
    return render("step.mlir.j2", name=symbol(name), functions=functions, entries=[_entry(e, parts) for e in entries])


def unread(part: Part) -> set[str]:
    """The names of the inputs that a part does nothing with."""
    return {leaf.path for leaf, argument in _arguments(part) if not argument}


def passed_through(part: Part) -> set[str]:
    """The names of the outputs that are the inputs of the same name, unchanged: nothing needs to be written."""
    from iree.compiler import ir

    with ir.Context():
        module = ir.Module.parse(part.stablehlo)
        block = _main(module).regions[0].blocks[0]
        last = list(block.operations)[-1]
        inputs = {leaf.path: block.arguments[i] for i, leaf in enumerate(part.inputs)}
        return {
            leaf.path
            for leaf, value in zip(part.outputs, last.operation.operands, strict=True)
            if leaf.path in inputs and inputs[leaf.path] == value
        }


def _arguments(part: Part) -> Iterator[tuple[LeafInfo, bool]]:
    """The inputs of a part, and whether it uses them."""
    from iree.compiler import ir

    with ir.Context():
        module = ir.Module.parse(part.stablehlo)
        block = _main(module).regions[0].blocks[0]
        yield from [
            (leaf, any(True for _ in argument.uses))
            for leaf, argument in zip(part.inputs, block.arguments, strict=True)
        ]


def _main(module: Any) -> Any:
    return next(op.operation for op in module.body.operations if _symbol(op.operation) == "main")


def _symbol(op: Any) -> str:
    return str(op.attributes["sym_name"]).strip('"') if "sym_name" in op.attributes else ""


def _functions(stablehlo: str, prefix: str) -> list[str]:
    """The functions of a module, private and with ``prefix`` in their names."""
    from iree.compiler import ir

    with ir.Context(), ir.Location.unknown():
        module = ir.Module.parse(stablehlo)
        own = {_symbol(op.operation) for op in module.body.operations}

        def visit(op: Any) -> Any:
            if "callee" in op.attributes and (name := str(op.attributes["callee"]).strip('@"')) in own:
                op.attributes["callee"] = ir.FlatSymbolRefAttr.get(f"{prefix}_{name}")
            return ir.WalkResult.ADVANCE

        module.operation.walk(visit)
        operations = [each.operation for each in module.body.operations]
        for op in operations:
            op.attributes["sym_name"] = ir.StringAttr.get(f"{prefix}_{_symbol(op)}")
            op.attributes["sym_visibility"] = ir.StringAttr.get("private")
            for notes in ("res_attrs", "arg_attrs"):
                if notes in op.attributes:
                    del op.attributes[notes]
        return [str(op) for op in operations]


def _entry(entry: Entry, parts: Mapping[str, Part]) -> dict[str, Any]:
    known = {leaf.path: f"%arg{i}" for i, leaf in enumerate(entry.arguments)}
    calls: list[dict[str, Any]] = []
    unused: list[dict[str, str]] = []
    given = {leaf.path: leaf for leaf in entry.arguments}
    converted: list[dict[str, str]] = []
    own: dict[tuple[str, str], str] = {}
    for number, key in enumerate(entry.parts):
        part = parts[key]
        count = range(len(part.outputs))
        for leaf in part.inputs:  # numbers that it does not use
            if leaf.path not in known:
                known[leaf.path] = f"%unused{len(unused)}"
                unused.append({"name": known[leaf.path], "type": tensor(leaf)})
        for leaf in part.inputs:  # numbers that come in the update's arithmetic
            argument = given.get(leaf.path)
            if argument is not None and argument.dtype != leaf.dtype:
                name = f"%converted{len(converted)}"
                converted.append(
                    {"name": name, "value": known[leaf.path], "from": tensor(argument), "type": tensor(leaf)}
                )
                own[key, leaf.path] = name
        last = number == len(entry.parts) - 1
        calls.append(
            {
                "function": f"{key}_main",
                "operands": [own.get((key, leaf.path), known[leaf.path]) for leaf in part.inputs],
                "operand_types": [tensor(leaf) for leaf in part.inputs],
                "result_types": [tensor(leaf) for leaf in part.outputs],
                "barrier": [] if last else [f"%call{number}#{i}" for i in count],
            }
        )
        made = "call" if last else "fenced"
        known |= {leaf.path: f"%{made}{number}#{i}" for i, leaf in enumerate(part.outputs)}
    positions = {leaf.path: i for i, leaf in enumerate(entry.results)}
    return {
        "name": entry.name,
        "arguments": [
            {"type": tensor(a), "aliased": positions[a.path] if a.path in entry.aliased else None}
            for a in entry.arguments
        ],
        "unused": unused,
        "converted": converted,
        "calls": calls,
        "results": [known[leaf.path] for leaf in entry.results],
        "result_types": [tensor(leaf) for leaf in entry.results],
    }
