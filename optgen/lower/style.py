"""What kernels of all kinds share: what differs between devices, the skeletons, and how nodes are written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from optgen import resources
from optgen.dsl.variant import KernelSpec, Operand
from optgen.dtypes import CODES
from optgen.errors import LoweringError
from optgen.lower.graph import Node, Value
from optgen.lower.halves import convert_half
from optgen.lower.ops import OPS, constant


@dataclass(frozen=True)
class Style:
    """What differs between kernels for different kinds of device.

    Attributes:
        pairs: whether f64 inside kernels is made of pairs of f32, because the device lacks it.
        halves: whether f16 is converted by integer arithmetic, because the device lacks it.
        vector: for CPUs, the elements that the loop handles at once. Such kernels take a table of rows and update a
            whole tree in one dispatch; None gives kernels that take lists of leaves.
        float_mode: for CPUs that can take denormal numbers for zero, the architecture: IREE has them do so, and the
            kernels do not.
    """

    pairs: bool = False
    halves: bool = False
    vector: int | None = None
    float_mode: str = ""


@cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.templates()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **context: Any) -> str:
    """One of the skeletons in ``templates/``, filled in."""
    text: str = _environment().get_template(template).render(**context)
    return text


def write_nodes(
    nodes: Iterable[Node], name: Callable[[Value], str], size: str | None = None, *, halves: bool = False
) -> list[str]:
    """The MLIR of ``nodes``, each value under ``name(value)``.

    Args:
        nodes: in order.
        name: gives the SSA name of a value.
        size: SSA name of the number of elements, an index; needed where the nodes use it.
        halves: whether f16 is converted by integer arithmetic.

    Raises:
        LoweringError: for an operation on a type that it does not exist for.
    """
    lines: list[str] = []
    for node in nodes:
        result, operands = name(node.result), [name(v) for v in node.operands]
        if node.op == "constant":
            assert isinstance(node.attribute, float)
            lines.append(constant(result, node.attribute, node.result.dtype))
        elif node.op == "size":
            lines.append(f"{result}_i = arith.index_cast {size} : index to i64")
            lines.append(f"{result} = arith.sitofp {result}_i : i64 to {node.result.dtype}")
        elif "f16" in (node.result.dtype, node.operands[0].dtype):
            ends = node.operands[0].dtype, node.result.dtype
            lines += convert_half(node.op, result, operands[0], *ends, native=not halves)
        else:
            dtype = node.operands[0].dtype
            extra = str(node.attribute) if node.op == "compare" else node.result.dtype
            try:
                lines += OPS[node.op].write(result, operands, dtype, extra)
            except ValueError as error:
                raise LoweringError(f"'{node.op}' cannot be lowered: {error}") from None
    return lines


def module_name(spec: KernelSpec) -> str:
    """An MLIR symbol for the module: ``adamw_f32``. It shows in traces and profiles."""
    return symbol(f"{spec.variant.name}_{spec.dtypes.name}")


def symbol(text: str) -> str:
    """``text`` as a bare MLIR symbol: what a function or a rule is called need be no identifier (``<lambda>``)."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    return f"_{name}" if not name or name[0].isdigit() else name


def named(operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
    """The operands under names that no template uses, whatever the rule's author has called them."""
    return tuple(dataclasses.replace(o, name=f"x_{o.name}") for o in operands)


def operands_in_memory(spec: KernelSpec) -> tuple[Operand, ...]:
    """The operands as a kernel sees them: f16 and 8-bit codes as their bits, under the names of :func:`named`."""
    bits = {"f16": "i16", **dict.fromkeys(CODES, "i8")}
    return tuple(dataclasses.replace(o, dtype=bits.get(o.dtype, o.dtype)) for o in named(spec.operands))
