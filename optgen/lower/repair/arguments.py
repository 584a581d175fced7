"""64-bit integers at the boundary of a program that JAX traced with 32-bit numbers."""

from __future__ import annotations

from collections.abc import Mapping

#: What JAX makes of an array's element type by default, where that is another: ``jnp.asarray`` keeps the lower bits.
NARROWED = {"i64": "i32", "ui64": "ui32"}


def taking_wide(text: str, positions: Mapping[int, str]) -> str:
    """A program whose ``main`` takes 64-bit integers and goes on with their lower 32 bits.

    Args:
        text: StableHLO.
        positions: of arguments, with the element type that they are to have.
    """
    if not positions:
        return text
    from iree.compiler import ir

    with ir.Context(), ir.Location.unknown():
        module = ir.Module.parse(text)
        main = next(f.operation for f in module.body.operations if str(f.operation.attributes["sym_name"]) == '"main"')
        block = main.regions[0].blocks[0]
        for position, element in positions.items():
            argument = block.arguments[position]
            narrow = argument.type
            argument.set_type(ir.Type.parse(str(narrow).replace(NARROWED[element], element)))
            with ir.InsertionPoint.at_block_begin(block):
                made = ir.Operation.create("stablehlo.convert", results=[narrow], operands=[argument])
            argument.replace_all_uses_except(made.results[0], made)
        results = ir.FunctionType(ir.TypeAttr(main.attributes["function_type"]).value).results
        kind = ir.FunctionType.get([a.type for a in block.arguments], results)
        main.attributes["function_type"] = ir.TypeAttr.get(kind)
        return str(module.operation.get_asm(enable_debug_info="loc(" in text))
