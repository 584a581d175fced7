"""What was measured, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optgen.bench.measure import Result, Spread
from optgen.bench.peers import PEERS
from optgen.bench.work import OUT_OF_SCOPE
from optgen.cli.output import table

#: What the tables compare with.
LIMIT, REFERENCE = "limit", "torch-fused"


def write_json(path: Path, machine: dict[str, Any], settings: dict[str, Any], results: Sequence[Result]) -> None:
    """Writes ``results.json``."""
    document = {
        "format": 1, "machine": machine, "settings": settings, "out_of_scope": list(OUT_OF_SCOPE),
        "cases": [result.as_json() for result in results],
    }  # fmt: skip
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def case_table(result: Result) -> Any:
    """A line for each peer of a case, the fastest first; :func:`untimed` has the others."""
    columns = ("peer", "time", "quartiles", "GB/s", "of the limit", "time / torch fused", "error")
    rows = table(*columns, right=columns[1:])
    order = sorted(result.outcomes, key=lambda n: s.median if (s := result.spread(n)) else float("inf"))
    for name in order:
        outcome, spread = result.outcomes[name], result.spread(name)
        label = PEERS[name].label
        if spread is None:
            continue
        rows.add_row(
            label,
            duration(spread.median),
            f"{duration(spread.low)} to {duration(spread.high)}",
            f"{result.case.bytes / spread.median / 1e9:.2f}",
            _fraction(result.ratio(LIMIT, name)),
            _ratio(result.ratio(name, REFERENCE)),
            f"{outcome.error:.0e}",
            style="bold" if name.startswith("optgen") else None,
        )
    return rows


def untimed(result: Result) -> list[str]:
    """A line for each reason why peers of a case were not timed."""
    reasons: dict[str, list[str]] = {}
    for name, outcome in result.outcomes.items():
        if not outcome.times:
            reasons.setdefault(f"{outcome.status}: {outcome.reason}", []).append(PEERS[name].label)
    return [f"{', '.join(labels)}: {reason}" for reason, labels in reasons.items()]


def title(result: Result) -> str:
    """A case in one line."""
    case, count = result.case, len(result.case.work.shapes)
    leaves = "1 leaf" if count == 1 else f"{count:,} leaves"
    return (
        f"{case.rule.name}, {case.dtype} params, {case.work.name}: {case.work.elements:,} elements in {leaves}, "
        f"{case.bytes / 1e6:,.3g} MB to move"
    )


def duration(seconds: float) -> str:
    """``12.3 us``, ``4.56 ms``, ``1.23 s``."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def _fraction(spread: Spread | None) -> str:
    return "" if spread is None else f"{100 * spread.median:.{0 if spread.median > 0.1 else 1}f} %"


def _ratio(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"
