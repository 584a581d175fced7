"""Which vector width and row length suit which CPU level: bytes per second of AdamW, measured interleaved.

``python benchmarks/sweep.py [--out FILE]``; levels that this processor lacks are left out. The winners are in
``optgen/targets/target.py`` and ``optgen/runtime/rows.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np

from optgen import host
from optgen.compiler.build import build_bundle
from optgen.dsl import Dtypes, Variant
from optgen.hyper import part
from optgen.rules import get_rule
from optgen.runtime import Optimizer, execute, get_device, memory, rows
from optgen.targets import get_target

SIZES = (65_536, 1 << 20, 1 << 24)
WIDTHS = (4, 8, 16, 32, 64)
HYPERS = {"lr": 1e-3, "step": 3.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}


def call_for(level: str, width: int, dtypes: Dtypes, size: int, row: int) -> Callable[[], None]:
    """A prepared update of one leaf."""
    target = get_target(f"cpu:{level}")
    target = dataclasses.replace(target, style=dataclasses.replace(target.style, vector=width))
    opt = Optimizer(build_bundle(Variant.of(get_rule("adamw")), [dtypes], [target]))
    kernel = opt.manifest.kernels[0]
    device = get_device("cpu")
    arrays = []
    for operand in kernel.operands:
        array = memory.empty((size,), operand.dtype)
        array.view(np.uint8)[:] = 0
        arrays.append(array)
    rows.ROW = row
    call = execute.prepare(device, *opt.module(kernel, device), kernel, [arrays])
    scalars = [part(HYPERS[s.hyper], s.part) for s in kernel.scalars]
    return lambda: call.run(scalars) and None


def measure(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if index:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    out = parser.parse_args().out
    lines = [
        f"AdamW, GB/s, one leaf, {host.architecture()}; rows of 16384 elements",
        "",
        "| level | params, arithmetic | elements | " + " | ".join(f"vector {w}" for w in WIDTHS) + " |",
        "|---|---|---|" + "---|" * len(WIDTHS),
    ]
    levels = [name for name in list(host.X86_LEVELS)[1:] if set(host.x86_requirements(name)) <= host.features()]
    for level in levels:
        for dtypes, moved in (
            (Dtypes.of("f32"), 28),
            (Dtypes.of("f32", compute="f32"), 28),
            (Dtypes.of("bf16"), 22),
            (Dtypes.of("f16"), 22),
        ):
            for size in SIZES:
                calls = {str(w): call_for(level, w, dtypes, size, 16_384) for w in WIDTHS}
                found = measure(calls, 9 if size > 1 << 20 else 60)
                cells = " | ".join(f"{moved * size / found[str(w)] / 1e9:.1f}" for w in WIDTHS)
                lines.append(f"| {level} | {dtypes.param}, {dtypes.compute} | {size} | {cells} |")
                print(lines[-1], flush=True)
    lines += ["", "| rows of | " + " | ".join(str(s) for s in SIZES) + " |", "|---|" + "---|" * len(SIZES)]
    best = levels[-1]
    for row in (2048, 4096, 8192, 16_384, 32_768, 65_536):
        cells = []
        for size in SIZES:
            found = measure({"x": call_for(best, 16, Dtypes.of("f32"), size, row)}, 9 if size > 1 << 20 else 60)
            cells.append(f"{28 * size / found['x'] / 1e9:.1f}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if out:
        with open(out, "w") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
