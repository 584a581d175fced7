"""Putting JAX functions into a StableHLO module, in the place of its operations."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from optgen.dsl.trace import import_jax
from optgen.errors import LoweringError

#: What JAX lowers functions for: no device that it knows. For CPUs it writes random bits as loops, which take part in
#: neither fusion nor in-place updates, and are control flow to callers without a runtime.
PLATFORM = "iree"

_DTYPES = {
    "i1": "bool", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "ui8": "uint8", "ui16": "uint16",
    "ui32": "uint32", "ui64": "uint64", "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64",
}  # fmt: skip


#: What the names of functions begin with that are put into a module.
_OWN = "repair"


class Rewriter:
    """A module that is being changed.

    Attributes:
        ir: the compiler's bindings.
        module: what is changed.
        changed: whether anything was.
    """

    def __init__(self, ir: Any, module: Any) -> None:
        self.ir, self.module, self.changed = ir, module, False
        self._made: dict[tuple[Hashable, ...], tuple[str, list[Any]]] = {}

    def call(self, before: Any, function: Callable[..., Any], operands: Sequence[Any], key: Hashable) -> list[Any]:
        """The results of a JAX function, called right before an operation.

        Args:
            before: the operation.
            function: of arrays, to an array or several.
            operands: values of the module.
            key: what tells this function from others, beside the types of its operands.
        """
        ir = self.ir
        types = tuple(str(v.type) for v in operands)
        if (key, *types) not in self._made:
            self._made[key, *types] = self._insert(function, operands)
        name, results = self._made[key, *types]
        self.changed = True
        with ir.InsertionPoint(before), before.location:
            made = ir.Operation.create(
                "func.call",
                results=results,
                operands=list(operands),
                attributes={"callee": ir.FlatSymbolRefAttr.get(name)},
            )
        return list(made.results)

    def replace(self, op: Any, function: Callable[..., Any], key: Hashable) -> None:
        """Puts a JAX function of an operation's operands in its place."""
        values = self.call(op, function, list(op.operands), key)
        for old, new in zip(op.results, values, strict=True):
            old.replace_all_uses_with(new)
        op.erase()

    def spread(self, before: Any, scalar: Any, shape: Sequence[int]) -> Any:
        """A value without dimensions in all elements of a shape, made right before an operation."""
        ir = self.ir
        self.changed = True
        with ir.InsertionPoint(before), before.location:
            kind = ir.RankedTensorType.get(list(shape), ir.RankedTensorType(scalar.type).element_type)
            none = ir.DenseI64ArrayAttr.get([])
            return ir.Operation.create(
                "stablehlo.broadcast_in_dim",
                results=[kind],
                operands=[scalar],
                attributes={"broadcast_dimensions": none},
            ).results[0]

    def _insert(self, function: Callable[..., Any], operands: Sequence[Any]) -> tuple[str, list[Any]]:
        """Adds a function to the module; its name and the types of its results."""
        jax, ir = import_jax(), self.ir
        with jax.enable_x64(True):
            structs = [jax.ShapeDtypeStruct(shape_of(v), dtype_of(v)) for v in operands]
            text = jax.jit(function, keep_unused=True).trace(*structs).lower(lowering_platforms=(PLATFORM,)).as_text()
        taken = {_symbol(ir, f.operation) for f in self.module.body.operations}
        prefix = next(f"{_OWN}{n}_" for n in range(len(self._made), 1 << 30) if f"{_OWN}{n}_main" not in taken)
        other = ir.Module.parse(text)
        own = [f.operation for f in other.body.operations]

        def visit(op: Any) -> Any:
            for note in ("callee", "decomposition"):
                if note in op.attributes:
                    called = ir.FlatSymbolRefAttr(op.attributes[note]).value
                    op.attributes[note] = ir.FlatSymbolRefAttr.get(prefix + called)
            return ir.WalkResult.ADVANCE

        other.operation.walk(visit)
        results: list[Any] = []
        for each in own:
            name = _symbol(ir, each)
            if name == "main":
                results = list(ir.FunctionType(ir.TypeAttr(each.attributes["function_type"]).value).results)
            each.attributes["sym_name"] = ir.StringAttr.get(prefix + name)
            each.attributes["sym_visibility"] = ir.StringAttr.get("private")
            for note in ("res_attrs", "arg_attrs"):
                if note in each.attributes:
                    del each.attributes[note]
            each.clone(ir.InsertionPoint(self.module.body))
        return f"{prefix}main", results


#: Looks at an operation of the module and changes it where it must be changed.
Repair: TypeAlias = Callable[[Rewriter, Any], None]


def rewrite(
    text: str,
    repairs: Mapping[str, Repair],
    *,
    also: Iterable[str] = (),
    last: Callable[[Rewriter], None] | None = None,
) -> str:
    """``text`` with every operation seen by what is for its name; itself, if nothing is changed.

    Args:
        text: a StableHLO module.
        repairs: what looks at each operation, by its name; at those of what was put in, too.
        also: names of operations that ``last`` is for.
        last: looks at the whole module in the end.

    Raises:
        LoweringError: if it is no module that this compiler reads.
    """
    if not any(name in text for name in (*repairs, *also)):
        return text
    from iree.compiler import ir

    with ir.Context() as context, ir.Location.unknown():
        module = parsed(ir, text, context)
        rewriter = Rewriter(ir, module)
        seen: set[Any] = set()
        while found := [f.operation for f in module.body.operations if f.operation not in seen]:
            for function in found:  # what was put in may hold such operations itself
                seen.add(function)
                for op in operations_of(ir, function, repairs):
                    repairs[op.name](rewriter, op)
        if last:
            last(rewriter)
        if not rewriter.changed:
            return text
        return str(module.operation.get_asm(enable_debug_info="loc(" in text))


def parsed(ir: Any, text: str, context: Any) -> Any:
    """The module of a text.

    Raises:
        LoweringError: if it is no module that this compiler reads.
    """
    try:
        return ir.Module.parse(text, context)
    except ir.MLIRError as error:
        first = str(error).strip().splitlines()
        raise LoweringError(f"the program is not StableHLO that the compiler reads: {first[-1][:200]}") from error


def operations_of(ir: Any, function: Any, names: Container[str]) -> list[Any]:
    """The operations of a function that have one of some names, in those that they are in as well."""
    found: list[Any] = []

    def visit(op: Any) -> Any:
        if op.name in names:
            found.append(op)
        return ir.WalkResult.ADVANCE

    function.walk(visit)
    return found


def is_own(op: Any) -> bool:
    """Whether an operation is in a function that a repair has put into the module."""
    while op.name != "func.func":
        op = op.parent
    return str(op.attributes["sym_name"]).strip('"').startswith(_OWN)


def _symbol(ir: Any, op: Any) -> str:
    return str(ir.StringAttr(op.attributes["sym_name"]).value)


def shape_of(value: Any) -> tuple[int, ...]:
    """The extents of a value of the module."""
    return tuple(int(n) for n in re.findall(r"(\d+)x", str(value.type).partition("<")[2]))


def dtype_of(value: Any) -> Any:
    """The element type of a value of the module, as JAX calls it."""
    import jax.numpy as jnp

    name = _DTYPES[element_of(value)]
    return jnp.bfloat16 if name == "bfloat16" else np.dtype(name)


def element_of(value: Any) -> str:
    """The element type of a value of the module, as MLIR calls it."""
    found = re.match(r"tensor<(?:\d+x)*([a-z]+\d*)", str(value.type))
    return found[1] if found else ""


def numbers(attribute: Any, name: str = "") -> list[int]:
    """The integers of a list: the attribute itself, or its part that is called ``name``; empty where it has none."""
    text = str(attribute)
    pattern = rf"\b{name} = \[([^\]]*)\]" if name else r": ([^>]*)>|array<i64>"
    found = re.search(pattern, text)
    return [int(n) for n in found[1].split(",")] if found and found[1] and found[1].strip() else []


def pairs_of(attribute: Any, rank: int) -> list[tuple[int, int]]:
    """The padding before and after each dimension: ``dense<0>``, or ``dense<[[0, 1], [2, 3]]>``."""
    found = [int(n) for n in re.findall(r"-?\d+", str(attribute).partition("> :")[0])]
    return [(found[0], found[0])] * rank if len(found) == 1 else list(zip(found[::2], found[1::2], strict=True))


def number(attribute: Any, name: str) -> int:
    """An integer of an attribute by name; 0, as MLIR leaves it out, where it has none."""
    found = re.search(rf"\b{name} = (-?\d+)", str(attribute))
    return int(found[1]) if found else 0
