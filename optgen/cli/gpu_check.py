"""``scripts/gpu_check``: the prebuilt bundles' probes on every GPU of this machine.

Run it wherever a GPU is at hand: neither CI nor most workplaces have one, so that CUDA modules are otherwise compiled
and inspected but not run.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from optgen.errors import OptgenError
from optgen.runtime.device import list_devices
from optgen.runtime.loading import prebuilt_bundle, prebuilt_names
from optgen.runtime.verify import VerifyResult, verify_bundle

_SOFTWARE = ("llvmpipe", "lavapipe", "swiftshader")


def gpus() -> list[tuple[str, str]]:
    """Driver and description of each GPU; software that poses as one is not."""
    found = [d for d in list_devices() if d[0] in ("cuda", "vulkan", "hip")]
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


def main(arguments: Sequence[str]) -> int:
    """Checks every GPU, prints a table, and with ``--out FOLDER`` writes it there as dated JSON.

    Returns:
        0 if all is well or there is no GPU, 1 if a result is wrong or a device fails.
    """
    console = Console()
    found = gpus()
    if not found:
        console.print("There is no GPU here (no CUDA driver, no Vulkan device but software): nothing was checked.")
        return 0
    bad = 0
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
        if "--out" in arguments:
            date = datetime.date.today().isoformat()
            folder = Path(arguments[arguments.index("--out") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"gpu-{driver}-{date}.json"
            file.write_text(json.dumps({"date": date, "device": description, "results": rows}, indent=1) + "\n")
            console.print(f"written to {file}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
