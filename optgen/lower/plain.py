"""The entry point ``update`` for callers without Python: one leaf as plain tensors, hyperparameters as numbers."""

from __future__ import annotations

from collections.abc import Iterable

from optgen.dsl.variant import KernelSpec, Operand
from optgen.hyper import LOG_OF_ZERO, Scalar
from optgen.lower.ops import constant


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
