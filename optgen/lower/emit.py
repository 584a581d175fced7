"""Writing a plan as MLIR: the skeleton comes from ``templates/``, the operations from the graph."""

from __future__ import annotations

from typing import Any

from optgen.dsl.variant import KernelSpec
from optgen.dtypes import SIZES
from optgen.lower.graph import Graph
from optgen.lower.leaves import emit_leaves
from optgen.lower.plan import Plan
from optgen.lower.repair.words import in_words
from optgen.lower.rows import emit_rows
from optgen.lower.split import with_wide_sums
from optgen.lower.style import Style, module_name, named, render


def emit_in_place(spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> str:
    """The module that updates any tree in place: by rows (see :func:`emit_rows`) or by lists of leaves (see
    :func:`emit_leaves`)."""
    emit = emit_leaves if style.vector is None else emit_rows
    return emit(spec, graph, plan, style)


def emit_out_of_place(spec: KernelSpec, stablehlo: str, shape: tuple[int, ...], style: Style) -> str:
    """The module that computes new leaves of one static shape with the traced StableHLO itself.

    Same entry point as the in-place module; the lists come back holding new buffers.
    """
    text = with_wide_sums(stablehlo) if style.vector is not None else in_words(stablehlo) if style.pairs else stablehlo
    lines = text.strip().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("module"))
    inner = "\n".join(lines[start + 1 : -1]).replace("func.func public @main", "func.func private @main")
    operands, results = named(spec.operands), [_index(spec.operands, o.name) for o in spec.results]
    entry = {
        "name": "apply",
        "lists": [f"%{o.name}_list: !util.list<!hal.buffer_view>" for o in operands],
        "scalars": [f"%{s.name}" for s in spec.scalars],
        "coefficients": [(f"%{s.name}", f"%{s.name}", spec.dtypes.compute) for s in spec.scalars],
        "results": results,
        **dict.fromkeys(("prologue", "pairs", "each", "returned", "reductions"), ()),
        **dict.fromkeys(("opaque", "told"), False),
    }
    return render(
        "untied_list.mlir.j2",
        name=module_name(spec),
        operands=operands,
        results=results,
        scalars=spec.scalars,
        compute=spec.dtypes.compute,
        e=entry,
        dims={o.name: "".join(f"{extent}x" for extent in o.shape_for(shape)) for o in operands},
        functions=inner,
    )


def alignment(spec: KernelSpec) -> int:
    """The alignment in bytes that the kernel's operands have at least: that of their smallest element."""
    return min(SIZES[o.dtype] for o in spec.operands)


def _index(operands: tuple[Any, ...], name: str) -> int:
    return next(i for i, o in enumerate(operands) if o.name == name)
