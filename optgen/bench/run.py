"""The benchmark from beginning to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optgen.bench import machine, memory, peer_optgen, report, work
from optgen.bench.measure import TOLERANCE, Result, measure
from optgen.bench.peers import PEERS
from optgen.cli.output import console, size, table


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Attributes:
        works, rules, peers: names; none means all, or the quick ones.
        quick: few cases and rounds.
        threads: for each peer.
        memory: also measure the memory of first steps.
    """

    works: Sequence[str] = ()
    rules: Sequence[str] = ()
    peers: Sequence[str] = ()
    quick: bool = False
    threads: int = 1
    memory: bool = False

    @property
    def rounds(self) -> int:
        """That count."""
        return 5 if self.quick else 9


def run(settings: Settings, out: Path) -> list[Path]:
    """Measures, prints tables, and writes ``results.json`` and the pictures, all of it anew after each case.

    Returns:
        The files.
    """
    about = machine.describe(settings.threads)
    machine.use_threads(settings.threads)
    cases = work.choose(settings.works, settings.rules, quick=settings.quick, memory=machine.free_memory())
    kinds = [PEERS[n] for n in settings.peers] or [k for k in PEERS.values() if not (settings.quick and k.slow)]
    show, tell = console(), console(stderr=True)
    show.print(f"{about['processor']}, {settings.threads} of {about['cores']} cores, {about['date']}")
    out.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {
        "quick": settings.quick, "rounds": settings.rounds, "tolerance": TOLERANCE, "peers": [k.name for k in kinds],
    }  # fmt: skip
    results: list[Result] = []
    for case in cases:
        results.append(
            measure(case, kinds, rounds=settings.rounds, threads=settings.threads, say=lambda text: tell.print(text))
        )
        show.print(f"\n{report.title(results[-1])}")
        show.print(report.case_table(results[-1]))
        for line in report.untimed(results[-1]):
            show.print(f"- {line}")
        report.write_json(out / "results.json", about, how, results)
    if settings.memory and cases:
        largest = max((c for c in cases if c.dtype == "f32"), key=lambda c: c.resident, default=cases[0])
        how["memory"] = {k.name: memory.first_step(largest, k.name, settings.threads) for k in kinds}
        rows = table("peer", "beyond the tensors, first step", "note", right=["beyond the tensors, first step"])
        for name, answer in how["memory"].items():
            rows.add_row(PEERS[name].label, size(answer["extra"]) if "extra" in answer else "-", answer.get("reason"))
        show.print(f"\nmemory: {largest.rule.name}, {largest.work.name}, tensors {size(largest.resident)}")
        show.print(rows)
        report.write_json(out / "results.json", about, how, results)
    for text in work.OUT_OF_SCOPE:
        show.print(f"not measured: {text}")
    from optgen.bench.plot import draw

    # Once torch's compiler has been imported, what modules still hold at the end is not freed in order.
    peer_optgen.forget()
    return [out / "results.json", *draw(results, out, about)]
