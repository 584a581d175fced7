"""The README's tables: of the rules, and of bundles x targets x dtypes. As a script, writes them there."""

from __future__ import annotations

from pathlib import Path

from optgen.cli.rules import other_names
from optgen.rules import RULES, get_rule
from optgen.runtime.loading import prebuilt_bundle, prebuilt_names
from optgen.targets import PREBUILT_TARGETS

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- table: python tests/readme_table.py -->\n", "<!-- end of table -->"
RULES_START, RULES_END = "<!-- rules: python tests/readme_table.py -->\n", "<!-- end of rules -->"


def rules_table() -> str:
    """Markdown: for each rule its conventions, the default first, its state, and where it comes from."""
    lines = ["| rule | conventions | state | source |", "|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in RULES):
        default = get_rule(name)
        others = [c for (n, _), rule in RULES.items() if n == name and rule is not default for c in other_names(rule)]
        slots = [f"({slot.name})" if slot.needs else slot.name for slot in default.state]
        state = " ".join([*slots, *(f"*{scalar}*" for scalar in default.scalars)]) or "-"
        source = default.source.rpartition(";")[0] or default.source
        lines.append(f"| `{name}` | {' '.join([*other_names(default), *others])} | {state} | {source} |")
    return "\n".join(lines) + "\n"


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
    for start, end, make in ((START, END, table), (RULES_START, RULES_END, rules_table)):
        before, rest = text.split(start)
        text = before + start + make() + end + rest.split(end)[1]
    README.write_text(text)


if __name__ == "__main__":
    main()
