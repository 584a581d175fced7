"""The check of a plain module: files of flags, with which ``iree-run-module`` compares what it computes by itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from optgen.dtypes import from_float64, to_float64
from optgen.hyper import Scalar, part
from optgen.lower import Kernel
from optgen.lower.plain import plain_scalars

#: Of what is allowed, the part that grows with the result: one rounding to the nearest, and what ``ulp`` is at most.
_RELATIVE = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-23, "f64": 2.0**-52}


def check_flags(kernel: Kernel) -> tuple[str, ...]:
    """A file of flags for each call of the rule's self-test: inputs, numbers, expected outputs and tolerances.

    The tolerances are those of :mod:`optgen.native.rule_selftest`, the largest of each dtype. There is none for rules
    with scalar state, since ``iree-run-module`` says of equal numbers that their types mismatch, nor for f16, which
    modules take as its bits.

    Args:
        kernel: that runs in place.
    """
    from optgen.native.rule_selftest import LENGTH, rule_selftest
    from optgen.probes.generate import filled

    spec = kernel.spec
    if spec.returned or any(o.dtype == "f16" for o in spec.operands):
        return ()
    test = rule_selftest(kernel)
    files = []
    for call, results in zip(test.probe.info.calls, test.probe.results, strict=True):
        lines = ["--device=local-sync", "--function=update"]
        for operand in spec.operands:
            source = test.sources[operand.name]
            assert source.fill is not None
            array = filled(source.fill, (LENGTH,), operand.dtype, call.seed, source.stream)
            lines.append(f"--input={LENGTH}x{operand.dtype}={_numbers(to_float64(array, operand.dtype))}")
        lines += [f"--input={_number(scalar, call.hypers)}" for scalar in plain_scalars(spec)]
        allowed: dict[str, float] = {}
        relative = max(_RELATIVE[o.dtype] for o in spec.results)
        for result, operand in zip(results, spec.results, strict=True):
            rounded = to_float64(from_float64(result.expected, operand.dtype), operand.dtype)
            lines.append(f"--expected_output={LENGTH}x{operand.dtype}={_numbers(rounded)}")
            left = result.tolerance - relative * np.abs(rounded) / 2
            allowed[operand.dtype] = max(allowed.get(operand.dtype, 0.0), float(left.max()))
        lines.append(f"--expected_rtol={relative!r}")
        lines += [f"--expected_{dtype}_threshold={max(most, 0.0)!r}" for dtype, most in allowed.items()]
        files.append("\n".join(lines) + "\n")
    return tuple(files)


def _numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(x)) for x in values)


def _number(scalar: Scalar, hypers: Mapping[str, float]) -> str:
    return repr(float(part(hypers[scalar.hyper], scalar.part)))
