"""Running what was just compiled: on every device of this machine that one of its modules is for."""

from __future__ import annotations

from typing import Any

from optgen.artifact.base import AnyBundle
from optgen.errors import BundleError, WrongResultError
from optgen.runtime.device import BACKENDS, list_devices
from optgen.runtime.verify import VerifyResult, verify_bundle


def check_bundle(bundle: AnyBundle[Any]) -> list[VerifyResult]:
    """Runs the probes of ``bundle`` wherever it can run here.

    Returns:
        What was found; nothing where no module can run here, or there are no probes.

    Raises:
        WrongResultError: naming target, device, result and what is wrong with it.
    """
    backends = {m.backend for compiled in bundle.manifest.compiled for m in compiled.modules}
    drivers = [name for name in BACKENDS if BACKENDS[name] in backends and name not in ("cpu", "cpu-workers")]
    devices = [driver for driver in drivers for _ in list_devices(driver)[:1]]
    try:
        results = verify_bundle(bundle, devices) if devices else []
    except BundleError as error:
        raise WrongResultError(f"{error}. Pass check=False to get the bundle for other devices") from error
    wrong = [result for result in results if not result.ok]
    if wrong:
        raise WrongResultError(_message(bundle, wrong), wrong[0].target, wrong[0].device, wrong[0].output)
    return results


def _message(bundle: AnyBundle[Any], wrong: list[VerifyResult]) -> str:
    first = wrong[0]
    others = len({(w.target, w.device, w.kernel, w.output) for w in wrong}) - 1
    more = f"; so are {others} more" if others > 1 else "; so is another" if others else ""
    what = (
        f"{first.problem}: {first.worst}"
        if first.worst
        else f"{first.problem} (error {first.max_ulp:.3g}, allowed {first.bound:g})"
    )
    return (
        f"'{bundle.manifest.label}' for {first.target} is not right on {first.device}: {first.kernel} gives "
        f"'{first.output}', which is {what}{more}. The compiler or the device's driver is at fault: leave the target "
        "out, write the operation in another way, or pass check=False to get the bundle as it is"
    )
