"""The tables of docs/targets/gpu.md, from what ``scripts/gpu_check --out benchmarks/results`` has left there. As a
script, writes them into the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "targets" / "gpu.md"
START, END = "<!-- tables: python tests/gpu_table.py -->\n", "<!-- end of tables -->"


def results() -> list[dict[str, Any]]:
    """What was found on each device, the newest of each alone."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for file in sorted((ROOT / "benchmarks" / "results").glob("gpu-*.json")):
        found = json.loads(file.read_text())
        key = found["driver"], found["device"]
        if key not in newest or newest[key]["date"] <= found["date"]:
            newest[key] = found
    return [newest[key] for key in sorted(newest)]


def tables(found: list[dict[str, Any]]) -> str:
    """Markdown: of devices; of what was compiled; of times."""
    lines = [
        "| date | driver | device | kernels | outputs | wrong | largest error in f32, ulp | in 16 bits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        rows = each["results"]
        exact = [r["max_ulp"] for r in rows if r["kernel"] == "f32"]
        halves = [r["max_ulp"] for r in rows if r["kernel"] in ("bf16", "f16")]
        outputs, wrong = sum(r["outputs"] for r in rows), sum(len(r["failed"]) for r in rows)
        lines.append(
            f"| {each['date']} | {each['driver']} | {each['device']} | {len(rows)} | {outputs} | {wrong} | "
            f"{max(exact, default=0):.3f} | {max(halves, default=0):.3f} |"
        )
    lines += ["", "| rule | target | bytes | copies of leaves | seconds to compile |", "|---|---|---|---|---|"]
    with_compiler = [each for each in found if each["compiled"]]  # machines with GPUs may have none
    for row in max(with_compiler, key=lambda each: each["date"])["compiled"] if with_compiler else []:
        lines.append(f"| {row['rule']} | `{row['target']}` | {row['bytes']} | {row['copies']} | {row['seconds']} |")
    lines += ["", "| device | tree | peer | ms for a step of AdamW in f32 |", "|---|---|---|---|"]
    for each in found:
        for row in each["times"]:
            for peer, ms in row["ms"].items():
                lines.append(f"| {each['device']} | {row['tree']} | {peer} | {ms:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + tables(results()) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
