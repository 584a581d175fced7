"""The entry point ``update`` for callers without Python: one leaf as plain tensors, hyperparameters as numbers."""

from __future__ import annotations

from collections.abc import Iterable

from optgen.dsl.variant import KernelSpec, Operand
from optgen.errors import LoweringError
from optgen.hyper import LOG_OF_ZERO, Scalar
from optgen.lower.graph import Graph
from optgen.lower.leaf import emit_leaf
from optgen.lower.ops import constant
from optgen.lower.plan import Plan
from optgen.lower.style import Style, module_name, operands_in_memory, render


def emit_plain(spec: KernelSpec, graph: Graph, plan: Plan, style: Style) -> str:
    """The module that updates one leaf in place, with the entry point ``update``.

    Raises:
        LoweringError: for a rule that needs more than one leaf and numbers.
    """
    if spec.random:
        raise LoweringError("a plain module cannot round at random: that needs the place of a leaf in its tree")
    leaf = emit_leaf(spec, graph, plan, name="leaf", halves=style.halves)
    operands = operands_in_memory(spec)
    entry = render(
        "plain.mlir.j2",
        operands=operands,
        results=[i for i, o in enumerate(operands) if o.role != "input"],
        arguments=[f"%{s.name}" for s in plain_scalars(spec)],
        scalars=[f"%{s.name}" for s in spec.scalars],
        compute=spec.dtypes.compute,
        derived=derived(spec),
        returned=spec.returned,
        declaration=declaration(spec, operands),
    )
    leaf = leaf.replace("module @leaf {", f"module @{module_name(spec)} {{", 1)
    leaf = leaf.replace("util.func public @leaf(", "util.func private @leaf(", 1)
    end = leaf.rindex("}")
    return leaf[:end] + entry + leaf[end:]


def plain_scalars(spec: KernelSpec) -> tuple[Scalar, ...]:
    """The numbers that ``update`` takes after its tensors.

    In f64 arithmetic each hyperparameter is one: the module computes ``1 - beta`` and ``log beta`` from it as a
    :class:`Scalar`'s caller would. In f32, where that would lose digits, they are those of the other entry points.
    """
    if spec.dtypes.compute != "f64":
        return spec.scalars
    return tuple(Scalar(name) for name in dict.fromkeys(s.hyper for s in spec.scalars))


def derived(spec: KernelSpec) -> list[str]:
    """The scalars of the other entry points, of those that ``update`` takes."""
    given = {s.name for s in plain_scalars(spec)}
    lines: list[str] = []
    for scalar in spec.scalars:
        if scalar.name in given:
            continue
        name, source = f"%{scalar.name}", f"%{Scalar(scalar.hyper).name}"
        if scalar.part == "complement":
            lines += [constant(f"{name}_one", 1.0, "f64"), f"{name} = arith.subf {name}_one, {source} : f64"]
        elif scalar.part == "log":
            lines += [
                constant(f"{name}_zero", 0.0, "f64"),
                constant(f"{name}_least", LOG_OF_ZERO, "f64"),
                f"{name}_positive = arith.cmpf ogt, {source}, {name}_zero : f64",
                f"{name}_found = math.log {source} : f64",
                f"{name} = arith.select {name}_positive, {name}_found, {name}_least : f64",
            ]
        else:
            raise ValueError(f"there is no {scalar.part} in plain modules")
    return lines


def declaration(spec: KernelSpec, memory: Iterable[Operand]) -> str:
    """How ``iree-dump-module`` shows the entry point: names and types."""
    compute = spec.dtypes.compute
    types = {o.name: f"tensor<?x{m.dtype}>" for o, m in zip(spec.operands, memory, strict=True)}
    taken = [*types.items(), *((s.name.removeprefix("h_"), compute) for s in plain_scalars(spec))]
    given = [*((o.name, types[o.name]) for o in spec.results), *((name, compute) for name in spec.returned)]
    shown = [", ".join(f"%{name}: {kind}" for name, kind in each) for each in (taken, given)]
    return f"sync func @update({shown[0]}) -> ({shown[1]})"
