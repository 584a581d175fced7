"""Programs checked in child processes, so that a crash or an endless loop of one is a record and not the end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

#: Where programs run: processors of this machine, a software GPU, C natively and emulated, JavaScript.
TARGETS = ("cpu:x86-64-v3", "vulkan", "cpu:x86-64-v2", "c:cpu:x86-64-v3", "wasm")
#: What is emulated, and the compiler and emulator that it needs.
RARELY = {
    "c:cpu:aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"),
    "c:cpu:armv7": ("arm-linux-gnueabihf-gcc", "qemu-arm-static"),
    "c:cpu:riscv64": ("riscv64-linux-gnu-gcc", "qemu-riscv64-static"),
}

#: JAX's answers are wanted once: compiling them quickly saves more than running them slowly costs.
#: And what is cast to bf16 is to be rounded, which XLA otherwise leaves out where it is cast back.
_QUICKLY = "--xla_backend_optimization_level=0 --xla_allow_excess_precision=false"

_HERE = Path(__file__).resolve().parent.parent


def targets_of(number: int, targets: Sequence[str], each: int = 1) -> list[str]:
    """Those that a program is run on: in turn, and every 20th on an emulated processor too."""
    found = [targets[(number * each + i) % len(targets)] for i in range(min(each, len(targets)))]
    rarely = [t for t, tools in RARELY.items() if all(map(shutil.which, tools))]
    if tuple(targets) == TARGETS and number % 20 == 7 and rarely:
        found.append(rarely[number // 20 % len(rarely)])
    return found


class Worker:
    """A child process that checks one program after the other."""

    def __init__(self, limit: float = 300.0) -> None:
        self.limit = limit
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, number: int, target: str, **how: Any) -> dict[str, Any]:
        """The record of a program; ``crashed`` or ``timeout`` where the child died or was killed."""
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        start = time.perf_counter()
        record = {"program": number, "target": target, **how}
        try:
            process.stdin.write((json.dumps(record) + "\n").encode())
            process.stdin.flush()
        except BrokenPipeError:
            self.close()
            return self.check(number, target, **how)
        line = b""
        while not line.endswith(b"\n"):
            left = self.limit - (time.perf_counter() - start)
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                self.close()
                return record | {
                    "result": "timeout",
                    "message": f"no answer in {self.limit:.0f} s",
                    "seconds": self.limit,
                }
            more = os.read(process.stdout.fileno(), 1 << 20)
            if not more:
                code = process.wait()
                self.close()
                seconds = round(time.perf_counter() - start, 2)
                return record | {"result": "crashed", "message": f"the process ended with {code}", "seconds": seconds}
            line += more
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            path = os.pathsep.join(filter(None, [str(_HERE), str(_HERE.parent), os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "programs.pool"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "XLA_FLAGS": _QUICKLY},
            )  # fmt: skip
        return self._process

    def close(self) -> None:
        """Ends the child and what it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process = None


def shrink(worker: Worker, record: dict[str, Any]) -> dict[str, Any]:
    """The record of the smallest program with the same fault: pieces are left out one after the other."""
    best, how = record, {"rule": "sgd"}
    if record["rule"] != "sgd":
        simpler = worker.check(record["program"], record["target"], keep=record.get("kept"), rule="sgd")
        if _fault(simpler) == _fault(record):
            best = simpler
        else:
            how = {"rule": record["rule"]}
    for position in list(reversed(best.get("kept", []))):
        keep = [p for p in best["kept"] if p != position]
        found = worker.check(record["program"], record["target"], keep=keep, **how)
        if _fault(found) == _fault(record) and "kept" in found:
            best = found
    return best


def _fault(record: dict[str, Any]) -> tuple[str, str]:
    from programs.report import reason

    return record["result"], reason(record) if record["result"] in ("refused", "error") else ""


def _serve() -> Iterator[dict[str, Any]]:
    from programs.check import Reference, check, reference
    from programs.generate import program
    from programs.machines import may

    cached: tuple[Any, Reference] | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        made = program(asked["program"], asked.get("keep"), asked.get("rule"))
        if not may(made, asked["target"]):
            made = program(asked["program"], asked.get("keep"), "sgd")
        identity = made.number, made.kept
        if cached is None or cached[0] != identity:
            try:
                cached = identity, reference(made)
            except Exception as error:  # of JAX's, or of the generator: nothing of optgen's is in it
                message = f"{type(error).__name__}: {error}"[:300]
                yield {**asked, "text": made.text, "rule": made.rule, "kinds": list(made.kinds),
                       "kept": list(made.kept), "result": "skipped", "message": message, "seconds": 0.0}  # fmt: skip
                continue
        yield check(made, asked["target"], cached[1])


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    for answer in _serve():
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
