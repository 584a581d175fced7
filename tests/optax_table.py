"""The table in docs/optax.md, from compiling and comparing the whole catalogue. As a script, writes it there."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs" / "optax.md"
START, END = "<!-- table: python tests/optax_table.py -->\n", "<!-- end of table -->"


def row(entry: Any) -> tuple[str, str]:
    """What became of an entry (``in place``, ``out of place``, ``partly``, ``refused``), and its line."""
    import optax_catalogue as catalogue

    import optgen as og

    try:
        optimizer = og.compile(
            entry.make(),
            entry.wrap(catalogue.params()),
            name=entry.name,
            extra_args=entry.extra,
            grads_like=catalogue.grads(0, entry.examples),
        )
    except og.OptgenError as error:
        reason = str(error).removeprefix(f"'{entry.name}' ").replace("|", "\\|")
        return "refused", f"| `{entry.name}` | refused | | {reason} |"
    found = catalogue.compare(entry, optimizer)
    manifest = optimizer.manifest
    outside = [path for path in manifest.out_of_place if path.startswith("params")]
    count = sum(a.tree == "params" for a in manifest.arguments)
    kind = "in place" if not outside else "out of place" if len(outside) == count else "partly"
    cell = kind if kind != "partly" else f"{count - len(outside)} of {count} leaves in place"
    reason = f"{outside[0].removeprefix('params/')}: {manifest.out_of_place[outside[0]]}" if outside else ""
    return kind, f"| `{entry.name}` | {cell} | {found.deviation:.0e} | {reason} |"


def table() -> str:
    """Markdown: for each heading of the catalogue, a table."""
    import optax_catalogue as catalogue

    lines: list[str] = []
    counts: dict[str, int] = {}
    for heading in dict.fromkeys(entry.kind for entry in catalogue.ENTRIES):
        lines += ["", f"**{heading}**", "", "| | where | deviation | why not in place |", "|---|---|---|---|"]
        for entry in catalogue.ENTRIES:
            if entry.kind == heading:
                kind, line = row(entry)
                counts[kind] = counts.get(kind, 0) + 1
                lines.append(line)
                print(line, file=sys.stderr)
    order = ("in place", "partly", "out of place", "refused")
    total = ", ".join(f"{counts.get(k, 0)} {'partly in place' if k == 'partly' else k}" for k in order)
    return "\n".join([f"{sum(counts.values())} entries: {total}.", *lines]) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    text = DOCS.read_text()
    before, rest = text.split(START)
    DOCS.write_text(before + START + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
