"""Verifying bundles of any kind: every module that can run here, on the probes that its bundle carries.

A bundle's hashes prove that it is what was compiled; the probes prove that what was compiled is right on this
machine, with its driver and its runtime. Needs numpy and ``iree.runtime`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.artifact import Bundle, KernelInfo, ModuleInfo, ProbeCase
from optgen.artifact.base import AnyBundle
from optgen.dtypes import SIZES, from_float64, storage_dtype, to_float64, ulp
from optgen.errors import BundleError
from optgen.hyper import part
from optgen.runtime import memory
from optgen.runtime.device import Device, get_device, list_devices
from optgen.runtime.execute import prepare
from optgen.runtime.leaves import ListCall
from optgen.runtime.module import LoadedModule, check_runtime
from optgen.runtime.select import unfit

#: Elements before and after each probe's leaf that must stay as they are. An odd number, so that the leaf does not
#: start where memory is best aligned: leaves that are slices do not either.
_GUARD = 3


@dataclass(frozen=True)
class VerifyResult:
    """How one module answered its probes, for one of its outputs.

    Attributes:
        kernel: name of the kernel; of others than rules the program, ``step``, ``evaluate``, ``main``, ``update``...
        target: what the module was compiled for.
        device: what it ran on.
        output: the operand that was updated; the name of the result, ``params/w`` or ``loss``.
        max_ulp: the largest error; infinite where a result is NaN or infinite and should not be. Of rules in units in
            the last place of the largest term, of others in tolerances.
        bound: the largest error that is allowed.
        in_place: whether the result lay in the memory of its operand.
        ok: whether all is as it should be.
        problem: what is not; empty where ``ok``.
        proven: False where the tolerances are so wide that a wrong result could not be told from a right one.
        worst: for what is wrong, the element that is most so, with what it must be and what it is.
    """

    kernel: str
    target: str
    device: str
    output: str
    max_ulp: float
    bound: float
    in_place: bool
    ok: bool
    problem: str = ""
    proven: bool = True
    worst: str = ""


def verify_bundle(bundle: AnyBundle[Any], devices: Iterable[str] | None = None) -> list[VerifyResult]:
    """Runs a bundle's probes on every device, with every module that may run there.

    Rules answer kernel by kernel. Steps, functions and transformations run as they are used, with arrays of numpy that
    lie between guards, and twice from the same inputs.

    Args:
        bundle: what :func:`optgen.read_bundle` returned; it has checked the hashes.
        devices: names as ``local-task`` or ``vulkan``; by default all that are present.

    Returns:
        A result for each kernel or program, module, device and output; none at all where no module can run, or where
        the bundle carries no probes, as those of older formats.

    Raises:
        DeviceError: if a device is not there.
        BundleVersionError: if the installed runtime is too old.
        BundleError: if a module cannot be loaded, or probes are missing or malformed.
    """
    check_runtime(bundle.manifest.min_runtime)
    names = dict.fromkeys(devices if devices is not None else (name for name, _ in list_devices()))
    present = [get_device(name) for name in names]
    if not isinstance(bundle, Bundle):
        from optgen.runtime.verify_programs import verify_programs

        return verify_programs(bundle, present)
    results = []
    for kernel in bundle.manifest.all_kernels:
        probes = _Probes(bundle, kernel)
        for device in present:
            for info in kernel.modules:
                if not unfit(info, device):
                    label = f"{bundle.manifest.variant} {kernel.name} for {info.target}"
                    module = LoadedModule(device, bundle.module(info), label)
                    results += _verify_module(kernel, info, device, module, probes)
    return results


def bound_for(kernel: KernelInfo, dtype: str, rounding: str = "nearest") -> float:
    """The error in ulp that an output of type ``dtype`` may have.

    Where arithmetic is wider than the output, that is rounded once; else each operation rounds, and so it does out of
    place, where the compiler fuses as it sees fit. What is rounded at random is one of its two neighbours: less than an
    ulp away, and what arithmetic adds.
    """
    if rounding == "stochastic":
        return 1.01
    return 1.0 if kernel.in_place and SIZES[kernel.dtypes["compute"]] > SIZES[dtype] else 8.0


def error_in_ulp(result: np.ndarray, expected: np.ndarray, term: np.ndarray, dtype: str) -> float:
    """The largest error of ``result`` (bf16 as uint16).

    Args:
        result: elements of type ``dtype``.
        expected: float64.
        term: float64, the magnitude of the largest term that each element is the sum of.
        dtype: the name of a type.
    """
    actual = to_float64(result, dtype)
    with np.errstate(all="ignore"):  # infinities and NaN are dealt with below
        rounded = to_float64(from_float64(expected, dtype), dtype)
        error = np.abs(actual - expected) / ulp(term, dtype)
    same = (actual == rounded) | (np.isnan(actual) & np.isnan(rounded))
    error = np.where(~np.isfinite(error), np.where(same, 0.0, np.inf), error)
    return float(error.max(initial=0.0))


class _Probes:
    """The probe vectors of a kernel; each array checked where it is used."""

    def __init__(self, bundle: Bundle, kernel: KernelInfo) -> None:
        self._file = kernel.probes
        try:
            self._arrays = bundle.probes(kernel)
        except Exception as error:  # a damaged zip file, header or array: numpy raises half a dozen types for them
            raise BundleError(f"the bundle is damaged: '{kernel.probes}' cannot be read: {error}") from error

    def get(self, name: str, size: int, dtype: np.dtype[Any]) -> np.ndarray:
        array = self._arrays.get(name)
        if array is None or array.shape != (size,) or array.dtype != dtype:
            found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
            raise BundleError(
                f"the bundle is damaged: '{self._file}' must have '{name}', {dtype} of shape ({size},) (it has {found})"
            )
        return array


@dataclass
class _Outcome:
    """What one output has shown so far."""

    max_ulp: float = 0.0
    in_place: bool = True
    problem: str = ""


def _verify_module(
    kernel: KernelInfo, info: ModuleInfo, device: Device, module: LoadedModule, probes: _Probes
) -> list[VerifyResult]:
    outcomes = {o.name: _Outcome() for o in kernel.operands if o.role != "input"}
    outcomes |= {name: _Outcome() for name in kernel.returned}
    if not kernel.cases:
        raise BundleError(f"the bundle is damaged: kernel {kernel.name} has no probes")
    for index, case in enumerate(kernel.cases):
        _run_case(kernel, device, info, module, probes, index, case, outcomes)
    results = []
    for name, outcome in outcomes.items():
        if name in kernel.returned:
            bound = bound_for(kernel, kernel.dtypes["compute"])
        else:
            bound = bound_for(kernel, kernel.operand(name).dtype, kernel.operand(name).rounding)
        problem = outcome.problem
        if not outcome.max_ulp <= bound:
            problem = "error over its bound"
        elif info.in_place and not outcome.in_place:
            problem = problem or "not in place, against the manifest"
        results.append(
            VerifyResult(
                kernel.name, info.target, device.uri, name,
                outcome.max_ulp, bound, outcome.in_place, not problem, problem,
            )
        )  # fmt: skip
    return results


def _run_case(
    kernel: KernelInfo,
    device: Device,
    info: ModuleInfo,
    module: LoadedModule,
    probes: _Probes,
    index: int,
    case: ProbeCase,
    outcomes: dict[str, _Outcome],
) -> None:
    sizes = [case.size if o.shape is None else math.prod(o.shape) for o in kernel.operands]
    spans = [slice(_GUARD, _GUARD + size) for size in sizes]
    whole, before = [], []
    for operand, size, span in zip(kernel.operands, sizes, spans, strict=True):
        array = memory.empty((size + 2 * _GUARD,), operand.dtype)
        array.view(np.uint8)[:] = 0x5A
        array[span] = probes.get(f"{index}.in.{operand.name}", size, storage_dtype(operand.dtype))
        whole.append(array)
        before.append(array.copy())
    try:
        scalars = [part(case.hypers[s.hyper], s.part) for s in kernel.scalars]
    except KeyError as error:
        raise BundleError(f"the bundle is damaged: probe {index} of {kernel.name} lacks {error}") from error
    call = prepare(device, info, module, kernel, [[array[span] for array, span in zip(whole, spans, strict=True)]])
    in_place = call.run(scalars)
    bindings = [b for [b] in call.bindings] if isinstance(call, ListCall) else []

    for name, number in zip(kernel.returned, call.returned, strict=True):
        expected = probes.get(f"{index}.out.{name}", 1, np.dtype(np.float64))
        term = probes.get(f"{index}.term.{name}", 1, np.dtype(np.float64))
        dtype = kernel.dtypes["compute"]
        found = error_in_ulp(np.array([number], storage_dtype(dtype)), expected, term, dtype)
        outcomes[name].max_ulp = max(outcomes[name].max_ulp, found)

    overwritten = ""  # what the module had no business to write
    for i, (operand, array, old) in enumerate(zip(kernel.operands, whole, before, strict=True)):
        now = array
        if operand.role == "input" and bindings and bindings[i].staged:
            now = old.copy()
            device.read(bindings[i].view, now[spans[i]])
        if operand.role == "input" and _differs(now, old):
            overwritten = f"input '{operand.name}' overwritten"
        elif _differs(now[:_GUARD], old[:_GUARD]) or _differs(now[spans[i].stop :], old[spans[i].stop :]):
            overwritten = f"memory beside '{operand.name}' overwritten"
    for i, operand in enumerate(kernel.operands):
        if operand.role == "input":
            continue
        result = whole[i][spans[i]]
        outcome = outcomes[operand.name]
        expected = probes.get(f"{index}.out.{operand.name}", sizes[i], np.dtype(np.float64))
        term = probes.get(f"{index}.term.{operand.name}", sizes[i], np.dtype(np.float64))
        outcome.max_ulp = max(outcome.max_ulp, error_in_ulp(result, expected, term, operand.dtype))
        # On the CPU by address; elsewhere by what now lies in the argument's memory.
        there = result.copy()
        if bindings and bindings[i].staged:
            device.read(bindings[i].view, there)
        outcome.in_place &= in_place and not _differs(there, result)
        outcome.problem = outcome.problem or overwritten


def _differs(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() != b.tobytes()  # bits, since NaN is not equal to itself
