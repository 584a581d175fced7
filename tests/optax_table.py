"""The table in docs/optax.md, from compiling the whole catalogue for a CPU and for Vulkan, and comparing it with optax.

As a script, writes it there. With a file as its argument it keeps there what it has found, and goes on from it.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs" / "optax.md"
START, END = "<!-- table: python tests/optax_table.py -->\n", "<!-- end of table -->"
TARGETS = ("cpu", "vulkan")
_HEAD = ["", "| | where | deviation | on Vulkan | why not in place |", "|---|---|---|---|---|"]


@dataclass(frozen=True)
class Found:
    """What became of an entry on one target.

    Attributes:
        kind: ``in place``, ``out of place``, ``partly``, ``refused``.
        where: the same, with how many leaves.
        deviation: from optax; None where it was refused.
        reason: why it was refused, or is not in place.
    """

    kind: str
    where: str
    deviation: float | None
    reason: str


def found_on(entry: Any, target: str) -> Found:
    """Compiles an entry for a target and compares it with optax there."""
    import optax_catalogue as catalogue

    import optgen as og

    try:
        optimizer = og.compile(
            entry.make(),
            entry.wrap(catalogue.params()),
            name=entry.name,
            extra_args=entry.extra,
            grads_like=catalogue.grads(0, entry.examples),
            target=target,
        )
    except og.OptgenError as error:
        return Found("refused", "refused", None, str(error).removeprefix(f"'{entry.name}' ").replace("|", "\\|"))
    deviation = catalogue.compare(entry, optimizer).deviation
    manifest = optimizer.manifest
    outside = [path for path in manifest.out_of_place if path.startswith("params")]
    count = sum(a.tree == "params" for a in manifest.arguments)
    kind = "in place" if not outside else "out of place" if len(outside) == count else "partly"
    where = kind if kind != "partly" else f"{count - len(outside)} of {count} leaves in place"
    reason = f"{outside[0].removeprefix('params/')}: {manifest.out_of_place[outside[0]]}" if outside else ""
    return Found(kind, where, deviation, reason)


def line(name: str, cpu: Found, vulkan: Found) -> str:
    """A line of the table."""
    there = vulkan.reason if vulkan.deviation is None else f"{vulkan.deviation:.0e}"
    if cpu.deviation is None:
        return f"| `{name}` | refused | | {'refused' if vulkan.deviation is None else there} | {cpu.reason} |"
    if vulkan.deviation is not None and vulkan.where != cpu.where:
        there += f" ({vulkan.where})"
    return f"| `{name}` | {cpu.where} | {cpu.deviation:.0e} | {there} | {cpu.reason} |"


def table(kept: Path | None = None) -> str:
    """Markdown: for each heading of the catalogue, a table."""
    import optax_catalogue as catalogue

    known: dict[tuple[str, str], Found] = {}
    if kept is not None and kept.exists():
        for text in kept.read_text().splitlines():
            data = json.loads(text)
            known[data["name"], data["target"]] = Found(**data["found"])
    lines: list[str] = []
    for heading in dict.fromkeys(entry.kind for entry in catalogue.ENTRIES):
        lines += ["", f"**{heading}**", *_HEAD]
        for entry in catalogue.ENTRIES:
            if entry.kind != heading:
                continue
            for target in TARGETS:
                if (entry.name, target) not in known:
                    known[entry.name, target] = found = found_on(entry, target)
                    if kept is not None:
                        with kept.open("a") as log:
                            data = {"name": entry.name, "target": target, "found": asdict(found)}
                            log.write(json.dumps(data) + "\n")
            lines.append(line(entry.name, *(known[entry.name, target] for target in TARGETS)))
            print(lines[-1], file=sys.stderr)
    first = [known[e.name, "cpu"] for e in catalogue.ENTRIES]
    second = [known[e.name, "vulkan"].deviation for e in catalogue.ENTRIES]
    order = ("in place", "partly", "out of place", "refused")
    total = ", ".join(f"{sum(f.kind == k for f in first)} {'partly in place' if k == 'partly' else k}" for k in order)
    there = [d for d in second if d is not None]
    head = (
        f"{len(first)} entries: {total}. On Vulkan (Mesa's lavapipe) {len(there)} run and {second.count(None)} are "
        f"refused; the largest deviation there is {max(there):.0e}."
    )
    return "\n".join([head, *lines]) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    made = table(Path(sys.argv[1]) if sys.argv[1:] else None)
    before, rest = DOCS.read_text().split(START)
    DOCS.write_text(before + START + made + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
