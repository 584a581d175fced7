"""Memory that the first step takes beyond the tensors, each peer in a process of its own. Linux alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from optgen.bench.data import Data
from optgen.bench.machine import use_threads
from optgen.bench.peers import PEERS, AbsentError
from optgen.bench.work import RULES, WORKS, Case


def first_step(case: Case, peer: str, threads: int) -> dict[str, Any]:
    """Bytes, measured in a fresh process: ``tensors`` that the case has, and ``extra`` at the peak of the first step.

    Returns:
        With ``reason`` instead where a peer cannot be measured.
    """
    arguments = [case.work.name, case.rule.name, case.dtype, peer, str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "optgen.bench.memory", *arguments], capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"reason": (done.stderr.strip().splitlines() or ["no answer"])[-1][:150]}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _measure(work: str, rule: str, dtype: str, name: str, threads: str) -> dict[str, Any]:
    if not Path("/proc/self/clear_refs").exists():
        return {"reason": "only Linux tells a process its peak"}
    use_threads(int(threads))
    case = Case(WORKS[work], RULES[rule], dtype)
    data = Data(case)
    try:
        peer = PEERS[name].make(case, data, int(threads))
    except AbsentError as error:
        return {"reason": str(error)}
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    peer.step()
    answer: dict[str, Any] = {"tensors": case.resident, "extra": _status("VmHWM") - before}
    if name.startswith("optgen"):
        answer["iree"] = _iree()
    return answer


def _iree() -> dict[str, Any]:
    """What IREE's allocators have allocated themselves, by device; imported memory is none of it."""
    from optgen.runtime import device

    return {uri: str(made.hal.allocator.statistics) for uri, made in device._devices.items()}


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:])))
