"""Verification: bundles that are right pass, on every module; those that were tampered with do not."""

from __future__ import annotations

import ctypes
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from optgen.artifact import Bundle
from optgen.dtypes import from_float64
from optgen.errors import BundleError, BundleVersionError, DeviceError
from optgen.runtime import get_device, verify
from optgen.runtime.execute import StagesCall
from optgen.runtime.loading import prebuilt_bundle
from optgen.runtime.select import unfit
from optgen.runtime.verify import VerifyResult, bound_for, error_in_ulp, verify_bundle


def with_files(bundle: Bundle, **files: bytes) -> Bundle:
    """``bundle`` with other contents under the names given (``__`` for a slash), and hashes that say so."""
    named = {name.replace("__", "/") + (".npz" if "probes" in name else ".vmfb"): data for name, data in files.items()}
    assert named.keys() <= bundle.files.keys()
    return Bundle.of(bundle.manifest, {**bundle.files, **named})


def with_probes(bundle: Bundle, change: Callable[[dict[str, np.ndarray]], None]) -> Bundle:
    """``bundle`` with the probes of its f32 kernel changed."""
    arrays = bundle.probes(bundle.manifest.kernels[0])
    change(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return with_files(bundle, probes__f32=buffer.getvalue())


def with_kernels(bundle: Bundle, **changes: Any) -> Bundle:
    """``bundle`` with its f32 kernel alone, changed."""
    kernel = dataclasses.replace(bundle.manifest.kernels[0], **changes)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, kernels=(kernel,)))


def f32(results: list[VerifyResult]) -> list[VerifyResult]:
    return [result for result in results if result.kernel == "f32"]


@pytest.mark.parametrize("name", ["sgd", "sgd-momentum-nesterov", "adam", "adamw", "adam.ivy"])
def test_prebuilt_bundles_pass_with_every_module_that_may_run(name: str, device: str) -> None:
    bundle = prebuilt_bundle(name)
    results = verify_bundle(bundle, [device])
    assert [r for r in results if not r.ok] == []
    assert all(r.in_place for r in results)
    here = get_device(device)
    expected = {
        (kernel.name, module.target, output.name)
        for kernel in bundle.manifest.kernels
        for module in kernel.modules
        for output in kernel.operands
        if output.role != "input" and not unfit(module, here)
    }
    assert {(r.kernel, r.target, r.output) for r in results} == expected
    assert expected


def test_all_devices_that_are_present_by_default() -> None:
    results = verify_bundle(with_kernels(prebuilt_bundle("sgd")))
    assert {"local-sync", "local-task"} <= {r.device for r in results}


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="local-sync"):
        verify_bundle(prebuilt_bundle("sgd"), ["abacus"])


def test_no_results_where_no_module_may_run() -> None:
    bundle = prebuilt_bundle("sgd")
    modules = tuple(m for m in bundle.manifest.kernels[0].modules if m.backend == "cuda")
    assert verify_bundle(with_kernels(bundle, modules=modules), ["local-sync"]) == []


def test_a_runtime_that_is_too_old() -> None:
    bundle = prebuilt_bundle("sgd")
    manifest = dataclasses.replace(bundle.manifest, min_runtime="99.0")
    with pytest.raises(BundleVersionError, match=r"99\.0"):
        verify_bundle(dataclasses.replace(bundle, manifest=manifest), ["local-sync"])


def test_another_rules_module_fails() -> None:
    # Nesterov's momentum has the very signature of the heavy ball's: nothing but the numbers can tell them apart.
    right, wrong = prebuilt_bundle("sgd-momentum"), prebuilt_bundle("sgd-momentum-nesterov")
    modules = {name: data for name, data in wrong.files.items() if name.startswith("modules/f32/")}
    results = f32(verify_bundle(Bundle.of(right.manifest, {**right.files, **modules}), ["local-sync"]))
    assert {r.output: r.ok for r in results} == {"w": False, "m": True}
    assert all(r.problem == "error over its bound" for r in results if not r.ok)
    assert min(r.max_ulp for r in results if not r.ok) > 1000


def test_a_probe_that_was_changed_fails() -> None:
    def nudge(arrays: dict[str, np.ndarray]) -> None:
        arrays["1.out.w"][5] *= 1 + 2.0**-20

    results = verify_bundle(with_probes(prebuilt_bundle("sgd"), nudge), ["local-sync"])
    assert not any(r.ok for r in f32(results))
    assert all(r.ok for r in results if r.kernel != "f32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("1.term.w"), r"'1\.term\.w'.*\(it has nothing\)"),
        (lambda arrays: arrays.update({"0.in.g": np.zeros(9, np.float32)}), r"shape \(9,\)"),
        (lambda arrays: arrays.update({"2.in.w": arrays["2.in.w"].astype(np.float64)}), "float64"),
    ],
)
def test_probes_that_do_not_fit(change: Callable[[dict[str, np.ndarray]], None], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        verify_bundle(with_probes(prebuilt_bundle("sgd"), change), ["local-sync"])


def test_probes_that_are_no_npz_file() -> None:
    with pytest.raises(BundleError, match=r"probes/f32\.npz"):
        verify_bundle(with_files(prebuilt_bundle("sgd"), probes__f32=b"PK not really"), ["local-sync"])


def test_a_kernel_without_probes() -> None:
    with pytest.raises(BundleError, match="has no probes"):
        verify_bundle(with_kernels(prebuilt_bundle("sgd"), cases=()), ["local-sync"])


def test_a_hyperparameter_that_a_probe_lacks() -> None:
    bundle = prebuilt_bundle("sgd")
    case = bundle.manifest.kernels[0].cases[0]
    with pytest.raises(BundleError, match="'lr'"):
        verify_bundle(with_kernels(bundle, cases=(dataclasses.replace(case, hypers={}),)), ["local-sync"])


def test_a_module_that_is_none() -> None:
    bundle = prebuilt_bundle("sgd")
    kernel = bundle.manifest.kernels[0]
    module = next(m for m in kernel.modules if not unfit(m, get_device("local-sync")))
    damaged = Bundle.of(bundle.manifest, {**bundle.files, module.file: b"nothing of the kind"})
    with pytest.raises(BundleError, match="cannot be loaded"):
        verify_bundle(damaged, ["local-sync"])


def test_a_module_that_copies_fails_if_the_manifest_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Copying(StagesCall):
        def run(self, scalars: Any) -> bool:
            super().run(scalars)
            return False

    monkeypatch.setattr(verify, "prepare", Copying)
    bundle = with_kernels(prebuilt_bundle("sgd"))
    results = verify_bundle(bundle, ["local-sync"])
    assert {r.problem for r in results} == {"not in place, against the manifest"}
    honest = tuple(dataclasses.replace(m, in_place=False, copies=1) for m in bundle.manifest.kernels[0].modules)
    assert all(r.ok and not r.in_place for r in verify_bundle(with_kernels(bundle, modules=honest), ["local-sync"]))


@pytest.mark.parametrize(
    ("operand", "offset", "problem"),
    [(1, 0, "input 'g' overwritten"), (0, -1, "memory beside 'w' overwritten")],
)
def test_a_module_that_writes_where_it_must_not(
    operand: int, offset: int, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Careless(StagesCall):
        def run(self, scalars: Any) -> bool:
            same = super().run(scalars)
            ctypes.memset(self.arrays[0][operand].ctypes.data + offset, 7, 1)
            return same

    monkeypatch.setattr(verify, "prepare", Careless)
    results = verify_bundle(with_kernels(prebuilt_bundle("sgd")), ["local-sync"])
    assert {r.problem for r in results} == {problem}
    assert not any(r.ok for r in results)


def test_errors_in_ulp() -> None:
    one = np.array([1.0])
    assert error_in_ulp(np.float32([1.0]), one, one, "f32") == 0
    assert error_in_ulp(np.nextafter(np.float32([1.0]), np.float32(2)), one, one, "f32") == 1
    assert error_in_ulp(np.float64([1 + 2.0**-51]), one, one, "f64") == 2
    assert error_in_ulp(from_float64(np.array([1 + 2.0**-7]), "bf16"), one, one, "bf16") == 1
    # Where terms of size 1 cancel, an error of 2^-24 is half an ulp, however small the result.
    assert error_in_ulp(np.float32([2.0**-24]), np.array([0.0]), one, "f32") == 0.5


def test_errors_in_ulp_of_what_is_not_finite() -> None:
    nan, infinity, one = np.array([np.nan]), np.array([np.inf]), np.array([1.0])
    assert error_in_ulp(np.float32([np.nan]), one, one, "f32") == np.inf
    assert error_in_ulp(np.float32([np.nan]), nan, nan, "f32") == 0
    assert error_in_ulp(np.float32([1.0]), nan, nan, "f32") == np.inf
    assert error_in_ulp(np.float32([np.inf]), infinity, infinity, "f32") == 0
    assert error_in_ulp(np.float32([-np.inf]), infinity, infinity, "f32") == np.inf
    huge = np.array([1e6])  # beyond f16: infinity is what rounding gives
    assert error_in_ulp(np.float16([np.inf]), huge, huge, "f16") == 0


def test_bounds() -> None:
    """Rounded once where arithmetic is wider than the output, else at every operation."""
    exact, working = prebuilt_bundle("adam").manifest.kernels[0], prebuilt_bundle("adam").manifest.kernels[2]
    assert (exact.dtypes["compute"], working.dtypes["compute"]) == ("f64", "f32")
    assert [bound_for(exact, dtype) for dtype in ("f32", "f64")] == [1, 8]
    assert [bound_for(working, dtype) for dtype in ("bf16", "f32")] == [1, 8]
    assert bound_for(dataclasses.replace(exact, in_place=False), "f32") == 8
