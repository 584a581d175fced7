"""The README's table of rules x targets x dtypes, from the prebuilt bundles. As a script, writes it there."""

from __future__ import annotations

from pathlib import Path

from optgen.runtime.loading import prebuilt_bundle, prebuilt_names
from optgen.targets import PREBUILT_TARGETS

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- table: python tests/readme_table.py -->\n", "<!-- end of table -->"


def table() -> str:
    """Markdown: for each bundle and target, the dtypes of params that it updates in place."""
    lines = [
        "| bundle | " + " | ".join(PREBUILT_TARGETS) + " | KB |",
        "|---|" + "---|" * (len(PREBUILT_TARGETS) + 1),
    ]
    for name in prebuilt_names():
        bundle = prebuilt_bundle(name)
        cells = []
        for target in PREBUILT_TARGETS:
            kernels = bundle.manifest.kernels
            found = [k.dtypes["param"] for k in kernels if any(m.target == target and m.in_place for m in k.modules)]
            cells.append(" ".join(dict.fromkeys(found)) or "-")
        lines.append(f"| `{name}` | {' | '.join(cells)} | {bundle.size // 1024} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    text = README.read_text()
    before, rest = text.split(START)
    README.write_text(before + START + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
