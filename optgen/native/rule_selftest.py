"""The self-test of a rule's function: calls of their own, each on leaves that are made from a seed.

What must come of them is a float64 evaluation of the rule's graph, and the tolerance that of
:mod:`optgen.runtime.verify`: one ulp of the largest term where arithmetic is wider than the result, else eight.
"""

from __future__ import annotations

import numpy as np

from optgen.artifact.manifest import LeafInfo
from optgen.dsl.trace import reference_spec, trace
from optgen.dsl.variant import KernelSpec, Operand
from optgen.dtypes import SIZES, to_float64, ulp
from optgen.hyper import Part, part
from optgen.lower import PLACEHOLDERS, Kernel, graph_of, rounded
from optgen.lower.evaluate import evaluate
from optgen.native.selftest import SelfTest, Source
from optgen.probes.generate import Fill, filled
from optgen.probes.info import Probe, ProbeCall, ProbeInfo

#: Elements of each leaf: whole vectors and a rest, on every processor.
LENGTH = 70
_SEED = 20261127
_STEPS = (1, 1000)
#: In [-1, 1), and what a square root may be taken of.
_ANY, _POSITIVE = Fill("float", -(2**23), -23), Fill("float", 1, -27)


def rule_selftest(kernel: Kernel) -> SelfTest:
    """The self-test of a kernel that updates a leaf of any length."""
    spec = kernel.spec
    reference = reference_spec(spec)
    texts = [trace(reference, shape, locations=True) for shape in PLACEHOLDERS]
    graph = graph_of(texts[0], PLACEHOLDERS[0], (texts[1], PLACEHOLDERS[1]))
    calls, expected, tolerance = [], [], []
    fills = {o.name: _fill(spec, o) for o in spec.operands}
    for index, step in enumerate(_STEPS):
        hypers = hypers_of(spec, step, index)
        inputs = [
            to_float64(filled(fills[o.name], (LENGTH,), o.dtype, _SEED + index, stream), o.dtype)
            for stream, o in enumerate(spec.operands)
        ]
        outputs, terms = evaluate(graph, [*inputs, *(_part(hypers[s.hyper], s.part) for s in spec.scalars)])
        dtypes = [o.dtype for o in spec.results] + [spec.dtypes.compute] * len(spec.returned)
        sizes = [LENGTH] * len(spec.results) + [1] * len(spec.returned)
        for output, term, dtype, size in zip(outputs, terms, dtypes, sizes, strict=True):
            bound = 1.0 if SIZES[spec.dtypes.compute] > SIZES[dtype] else 8.0
            expected.append(output[:size])
            tolerance.append(bound * ulp(term[:size], dtype))
        calls.append(ProbeCall(_SEED + index, hypers))
    leaves = [LeafInfo(o.name, (LENGTH,), o.dtype) for o in spec.results]
    leaves += [LeafInfo(name, (), "f64") for name in spec.returned]
    info = ProbeInfo("update", spec.dtypes.compute, LENGTH, 0, {}, tuple(calls), tuple(leaves), 8)
    sources = {o.name: Source(fills[o.name], i, again=True) for i, o in enumerate(spec.operands)}
    sources |= {n: Source(numbers=tuple(c.hypers[n] for c in calls), again=True) for n in spec.returned}
    probe = Probe.of(info, np.concatenate(expected), np.concatenate(tolerance))
    return SelfTest(probe, sources, tuple(leaf.path for leaf in leaves))


def _part(value: float, which: Part) -> float:
    """A part of a hyperparameter, with a logarithm that is the same on every processor."""
    return float(rounded.log(value)) if which == "log" and value > 0 else part(value, which)


def _fill(spec: KernelSpec, operand: Operand) -> Fill:
    """What an operand is made as: state has whatever its square root may be taken of."""
    if operand.role == "state" or operand.name in spec.variant.per_element:
        return _POSITIVE
    return _ANY


def hypers_of(spec: KernelSpec, step: int, index: int) -> dict[str, float]:
    """Numbers of one call, scalar state among them: at the second no defaults, for which constants could stand."""
    values: dict[str, float] = {}
    for hyper in spec.variant.hypers:
        if hyper.name in spec.variant.per_element:
            continue
        if hyper.kind == "step":
            values[hyper.name] = float(step)
        elif hyper.default is None:
            values[hyper.name] = {"lr": 0.0625, "momentum": 0.875}.get(hyper.name, 0.125) * (1 - 0.25 * index)
        elif hyper.kind == "decay":
            values[hyper.name] = hyper.default * (1 - 0.0078125 * index)
        else:
            values[hyper.name] = hyper.default * (1 + 0.5 * index) + 0.0078125 * index
    for name, first in spec.variant.rule.scalars.items():
        values[name] = first if index == 0 else first * 0.5 + 0.25
    return values
