"""Probe vectors: inputs and, from a float64 evaluation of the rule, what a module must answer."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np

from optgen.artifact import ProbeCase
from optgen.dsl.trace import reference_spec, trace
from optgen.dsl.variant import KernelSpec
from optgen.dtypes import from_float64, to_float64
from optgen.hyper import Part, part
from optgen.lower import PLACEHOLDERS, Kernel, graph_of, rounded
from optgen.lower.evaluate import evaluate

#: Values for hyperparameters by kind, other than any default, so that no constant can stand in for an argument.
_STEPS = (1, 2, 1000)
_SIZES = (1, 37, 70)

#: Runs of rules without a graph, by the seeds of their noise.
_RUNS = (0, 2, 4, 6)
#: One rounding of f64, how many bits of a result of such a rule are kept, and what keeps terms from powers of two.
_ROUNDING, _BITS, _ASIDE = 2.0**-53, 28, 1.0137
#: Where the tails of numpy's normal distribution begin.
_TAIL = 3.65


def make_probes(kernel: Kernel) -> tuple[bytes, tuple[ProbeCase, ...]]:
    """Probes for ``kernel``: an npz file, and the hyperparameters of each case.

    For case ``i`` the file holds ``i.in.NAME`` for each operand (in its dtype, bf16 as uint16 bits), and for each
    result ``i.out.NAME`` (float64) and ``i.term.NAME``, the magnitude of its largest term (float64). Scalar state has
    both too, as arrays of one element.
    """
    spec = kernel.spec
    shape = PLACEHOLDERS[0] if kernel.shape is None else kernel.shape
    graph = None
    if kernel.graph is not None:
        reference = reference_spec(spec)
        texts = [trace(reference, s, locations=True) for s in PLACEHOLDERS]
        graph = graph_of(texts[0], PLACEHOLDERS[0], (texts[1], PLACEHOLDERS[1]))
    arrays: dict[str, np.ndarray] = {}
    cases = []
    rng = np.random.Generator(np.random.PCG64(20261101))
    for index, (step, size) in enumerate(zip(_STEPS, _SIZES, strict=True)):
        if kernel.shape is not None:
            size = int(np.prod(shape))
        hypers = _hypers(spec, step, index)
        inputs = []
        for operand in spec.operands:
            values = _normal(rng, size if operand.shape is None else math.prod(operand.shape_for(shape)))
            if operand.role == "state":  # whatever a state holds, its square root may be taken
                values = np.abs(values) * 0.1
            elif operand.name in spec.variant.per_element:
                values = np.abs(values) * 0.01
            stored = from_float64(values, operand.dtype)
            arrays[f"{index}.in.{operand.name}"] = stored
            inputs.append(to_float64(stored, operand.dtype))
        numbers = [_scalar(hypers[s.hyper], s.part) for s in spec.scalars]
        if graph is not None:
            outputs, terms = evaluate(graph, [*inputs, *numbers])
        else:
            outputs, terms = _run_traced(spec, shape, inputs, numbers)
        names = [operand.name for operand in spec.results]
        for name, output, term in zip([*names, *spec.returned], outputs, terms, strict=True):
            arrays[f"{index}.out.{name}"] = output if name in names else output[:1]
            arrays[f"{index}.term.{name}"] = term if name in names else term[:1]
        cases.append(ProbeCase(hypers, size))
    return _npz(arrays), tuple(cases)


def _normal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Numbers of a normal distribution without its tails, which numpy takes from the C library's logarithm, whose last
    bit depends on the processor."""
    return np.clip(rng.standard_normal(size), -_TAIL, _TAIL)


def _scalar(value: float, which: Part) -> float:
    """A part of a hyperparameter, with a logarithm that is the same on every processor."""
    return float(rounded.log(value)) if which == "log" and value > 0 else part(value, which)


def _hypers(spec: KernelSpec, step: int, index: int) -> dict[str, float]:
    """Hyperparameters of one case. Defaults where there are, moved a little from the second case on."""
    values: dict[str, float] = {}
    for hyper in spec.variant.hypers:
        if hyper.name in spec.variant.per_element:
            continue
        if hyper.kind == "step":
            values[hyper.name] = step
        elif hyper.kind == "seed":
            values[hyper.name] = 20261101 + 65537 * index
        elif hyper.default is None:
            values[hyper.name] = {"lr": 0.05, "momentum": 0.9}.get(hyper.name, 0.1) * (1 - 0.25 * index)
        elif hyper.kind == "decay":
            values[hyper.name] = hyper.default * (1 - 0.01 * index)
        else:
            values[hyper.name] = hyper.default if index == 0 else hyper.default * 1.5 + 0.01
    for name, first in spec.variant.rule.scalars.items():
        values[name] = first if index == 0 else first * 0.5 + 0.25
    return values


def _run_traced(
    spec: KernelSpec, shape: tuple[int, ...], inputs: list[np.ndarray], numbers: list[float]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The reference for a rule that has no graph: its trace, in float64.

    The largest term of a result is at least its old value and its new one, and what one rounding of each operation may
    amount to in it, as runs in stochastic arithmetic show: sums over many elements are as exact as their terms. Results
    are rounded to what decides about types narrower than f64, since the last bits of f64 depend on the processor.
    """
    from optgen.dsl.trace import import_jax, traceable
    from optgen.probes.interpret import interpret
    from optgen.probes.noise import AMPLITUDE, Noise

    jax = import_jax()
    with jax.enable_x64(True):
        tensors = [x.reshape(o.shape_for(shape)) for x, o in zip(inputs, spec.operands, strict=True)]
        arguments = [*tensors, *(np.float64(number) for number in numbers)]
        closed = jax.make_jaxpr(traceable(reference_spec(spec)))(*arguments)
        found = [interpret(closed, arguments, Noise(seed)) for seed in _RUNS]
    runs = [np.stack([np.asarray(run[k], np.float64).ravel() for run in found]) for k in range(len(found[0]))]
    old = [x for x, o in zip(inputs, spec.operands, strict=True) if o.role != "input"]
    outputs, terms = [], []
    for values, was in zip(runs, old, strict=True):
        mean = values.mean(0)
        rounding = np.abs(values - mean).max(0) / (AMPLITUDE["f64"] * _ROUNDING)
        term = np.maximum(np.maximum(np.abs(mean), np.abs(was)), rounding)
        if spec.dtypes.compute != "f64":
            grid = np.ldexp(1.0, np.frexp(np.maximum(term, 1e-300))[1] - _BITS)
            mean = np.rint(mean / grid) * grid
        outputs.append(mean)
        terms.append(_coarse(term))
    return outputs, terms


def _coarse(term: np.ndarray) -> np.ndarray:
    """The next power of two: an error's unit is one in the last place, which depends on nothing else."""
    return np.where(term > 0, np.ldexp(1.0, np.frexp(term * _ASIDE)[1]), 0.0)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """``np.savez`` with fixed dates, so that equal arrays are equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return buffer.getvalue()
