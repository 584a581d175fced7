"""``scripts/gpu_check``: compiles for GPUs, and runs the bundles' probes and a benchmark on every GPU of this machine.

Run it wherever a GPU is at hand: neither CI nor most workplaces have one, so that CUDA modules are otherwise compiled
and inspected but not run. Without the compiler the prebuilt bundles are checked all the same.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from optgen.bench.gpu import TREES, measure
from optgen.cli.verify import verify_command
from optgen.errors import CompilerNotFoundError, OptgenError
from optgen.runtime.device import list_devices
from optgen.runtime.loading import prebuilt_bundle, prebuilt_names
from optgen.runtime.verify import VerifyResult, verify_bundle

_QUICK = ("1M", "1000x128")
#: What is compiled: an elementwise rule, and one with norms of leaves.
COMPILED_RULES = ("adamw", "lamb")
COMPILED_TARGETS = ("cuda", "vulkan", "rocm:gfx942", "metal")
_SOFTWARE = ("llvmpipe", "lavapipe", "swiftshader")


def gpus(*, software: bool = False) -> list[tuple[str, str]]:
    """Driver and description of each GPU; software that poses as one only where asked for."""
    found = [d for d in list_devices() if d[0] in ("cuda", "vulkan", "hip", "metal")]
    if software:
        return found
    return [d for d in found if not any(word in d[1].lower() for word in _SOFTWARE)]


def check(device: str) -> list[tuple[str, VerifyResult]]:
    """The results of every prebuilt bundle on ``device``."""
    return [(name, r) for name in prebuilt_names() for r in verify_bundle(prebuilt_bundle(name), [device])]


def summary(results: Sequence[tuple[str, VerifyResult]]) -> list[dict[str, Any]]:
    """One row for each bundle and kernel: outputs checked, the largest error, and what failed."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, result in results:
        row = rows.setdefault(
            (name, result.kernel),
            {"bundle": name, "kernel": result.kernel, "outputs": 0, "max_ulp": 0.0, "in_place": True, "failed": []},
        )
        row["outputs"] += 1
        row["max_ulp"] = max(row["max_ulp"], result.max_ulp)
        row["in_place"] &= result.in_place
        if not result.ok:
            row["failed"].append(f"{result.output}: {result.problem}")
    return list(rows.values())


def compiled() -> list[dict[str, Any]]:
    """One row for each of :data:`COMPILED_RULES` and :data:`COMPILED_TARGETS`: bytes, copies, seconds.

    Raises:
        CompilerNotFoundError: if JAX or the compiler is not installed.
    """
    from optgen.compiler.build import compile_kernel
    from optgen.compiler.driver import compiler_version
    from optgen.dsl import Variant
    from optgen.lower import lower
    from optgen.rules import get_rule
    from optgen.targets import get_target

    compiler_version()  # JAX may be there alone, and then the failure would come from deep inside
    rows = []
    for rule in COMPILED_RULES:
        variant = Variant.of(get_rule(rule))
        (kernel,) = lower(variant.kernel(variant.dtypes("f32")))
        for name in COMPILED_TARGETS:
            start = time.perf_counter()
            module, copies = compile_kernel(kernel, get_target(name), use_cache=False)
            seconds = round(time.perf_counter() - start, 2)
            rows.append({"rule": rule, "target": name, "bytes": len(module), "copies": copies, "seconds": seconds})
    return rows


def modules(rows: Sequence[dict[str, Any]]) -> Table:
    """One row for each rule and target that was compiled."""
    table = Table("rule", "target", "bytes", "copies of leaves", "seconds", title="compiled here, in f32")
    for row in rows:
        table.add_row(row["rule"], row["target"], *(str(row[key]) for key in ("bytes", "copies", "seconds")))
    return table


def timings(times: Sequence[dict[str, Any]], title: str) -> Table:
    """One row for each tree."""
    peers = list(dict.fromkeys(peer for row in times for peer in row["ms"]))
    table = Table("tree", *peers, "optgen GB/s", title=title)
    for row in times:
        cells = [f"{row['ms'][peer]:.3f}" if peer in row["ms"] else "-" for peer in peers]
        table.add_row(row["tree"], *cells, f"{row['gb_per_s']:.1f}")
    return table


def bundles(arguments: Sequence[str]) -> list[str]:
    """The arguments that are neither options nor the folder of ``--out``."""
    folders = {i + 1 for i, argument in enumerate(arguments) if argument == "--out"}
    return [a for i, a in enumerate(arguments) if not a.startswith("--") and i not in folders]


def verify_given(console: Console, names: Sequence[str], found: Sequence[tuple[str, str]]) -> int:
    """Verifies bundles as ``optgen verify`` does, one after the other, on each GPU.

    Returns:
        0 if all is well, 1 if one of them is wrong or cannot run, or where there is no GPU: then nothing is proven.
    """
    if not found:
        console.print("There is no GPU here (no CUDA driver, no Vulkan device but software): nothing was verified.")
        return 1
    bad = 0
    for driver, description in found:
        console.print(f"{driver}: {description}")
        for name in names:
            try:
                verify_command([name], [driver])
            except typer.Exit as end:
                bad += end.exit_code != 0
            except (OptgenError, RuntimeError) as error:
                console.print(f"[red]{name} on {driver} failed: {error}[/]")
                bad += 1
    return 1 if bad else 0


def main(arguments: Sequence[str]) -> int:
    """Compiles, then checks and times every GPU, prints tables, and with ``--out FOLDER`` writes them there as dated
    JSON.

    ``--software`` takes software drivers for GPUs, to try the check itself; ``--quick`` times small trees alone. With
    paths of bundles, of any kind and compiled elsewhere, it verifies those on every GPU, and does nothing else.

    Returns:
        0 if all is well or there is no GPU, 1 if a result is wrong or a device fails.
    """
    console = Console()
    if given := bundles(arguments):
        return verify_given(console, given, gpus(software="--software" in arguments))
    made: list[dict[str, Any]] = []
    try:
        made = compiled()
        console.print(modules(made))
    except CompilerNotFoundError as error:
        console.print(f"Nothing was compiled, the prebuilt bundles are checked alone: {error}")
    bad = sum(row["copies"] > 0 for row in made)
    found = gpus(software="--software" in arguments)
    if not found:
        console.print("There is no GPU here (no CUDA driver, no Vulkan device but software): nothing was run.")
        return 1 if bad else 0
    for driver, description in found:
        try:
            rows = summary(check(driver))
        except (OptgenError, RuntimeError) as error:
            console.print(f"[red]{driver} ({description}) failed: {error}[/]")
            bad += 1
            continue
        table = Table("bundle", "kernel", "outputs", "max ulp", "in place", "", title=f"{driver}: {description}")
        for row in rows:
            bad += len(row["failed"])
            state = "[red]" + "; ".join(row["failed"]) + "[/]" if row["failed"] else "ok"
            table.add_row(
                row["bundle"], row["kernel"], str(row["outputs"]), f"{row['max_ulp']:.3f}",
                "yes" if row["in_place"] else "no", state,
            )  # fmt: skip
        console.print(table)
        times = measure(driver, [n for n in TREES if "--quick" not in arguments or n in _QUICK])
        console.print(timings(times, f"AdamW in f32 on {driver}, milliseconds for a step"))
        if "--out" in arguments:
            date = datetime.date.today().isoformat()
            folder = Path(arguments[arguments.index("--out") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"gpu-{driver}-{date}.json"
            file.write_text(
                json.dumps(
                    {"date": date, "driver": driver, "device": description, "compiled": made, "results": rows,
                     "times": times}, indent=1,
                ) + "\n"
            )  # fmt: skip
            console.print(f"written to {file}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
