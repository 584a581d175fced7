"""docs/programs.md from a log: programs by target and result, and what was wrong or refused, by reason."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: What the programs have found, and what became of it: for the page.
_FOUND = (
    "Found by them and mended, so that no program that is run now shows it: on Vulkan slices, padding and "
    "concatenations that begin in the middle of four numbers (wrong); in C and WebAssembly positions that were sorted "
    "and read again (wrong); on every target equal integers out of order in `argsort` and `top_k` (wrong); "
    "`optax.apply_if_finite` on worker threads (wrong at times); on every target casts of floats that the integers do "
    "not reach, and powers of negative numbers (wrong); f16 in C on 32-bit Arm (all 0) and in WebAssembly (refused); "
    "scatters whose indices have several parts, strided windows that leave elements over, integers of 8, 16 and 64 "
    "bits and truth values on Vulkan, branches, loops and computed slices in C and WebAssembly, long sums on CUDA "
    "(all refused). Records from before a mend stay in the log until they are run again (`--again refused,wrong`). "
    "Probes called some right programs wrong, since they tried rounding where no device rounds, and too few runs "
    "where rounding decides comparisons: mended too. Left: a cast to bf16 or f16 is left out if its opposite is in "
    "the same kernel, which shows where numbers are rounded to integers afterwards."
)

RESULTS = ("right", "wrong", "alarm", "refused", "error", "crashed", "timeout", "skipped")


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log of JSON lines; of one that is there twice, the last."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found[record["program"], record["target"]] = record
    return list(found.values())


def reason(record: dict[str, Any]) -> str:
    """A message without what differs between programs of one fault."""
    text = record.get("message", "").partition("; all of it")[0]
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", text)
    text = re.sub(r"0x[0-9a-f]+|-?\d+(?:\.\d+)?(?:e[-+]?\d+)?", "N", text)
    return re.sub(r"\b(?:Nx)+\w+", "SHAPE", text)[:160]


def table(records: Iterable[dict[str, Any]]) -> str:
    """Programs by target and result."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record["target"]][record["result"]] += 1
    lines = ["| target | programs | " + " | ".join(RESULTS) + " |", "|---" * (len(RESULTS) + 2) + "|"]
    for target in sorted(counts):
        numbers = [counts[target][r] for r in RESULTS]
        lines.append(f"| `{target}` | {sum(numbers)} | " + " | ".join(map(str, numbers)) + " |")
    total = sum(counts.values(), Counter())
    lines.append(f"| all | {sum(total.values())} | " + " | ".join(str(total[r]) for r in RESULTS) + " |")
    return "\n".join(lines)


def kinds(records: Iterable[dict[str, Any]]) -> str:
    """How often each kind of piece was run."""
    counts = Counter(kind for record in records for kind in set(record.get("kinds", ())) if record["result"] == "right")
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


def faults(records: Iterable[dict[str, Any]], result: str) -> str:
    """What has a result, by reason, with the shortest program of each."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record["result"] == result:
            groups[reason(record) if result != "wrong" else "wrong numbers"].append(record)
    lines = []
    for why, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        example = min(members, key=lambda r: len(r.get("text", "")))
        targets = ", ".join(f"{t} {n}" for t, n in sorted(Counter(m["target"] for m in members).items()))
        what = f"{example['program']}: `{example.get('text', '')}`"
        lines.append(f"- {len(members)} ({targets}): {why if result != 'wrong' else example['message']}  \n  {what}")
        if result == "wrong":
            lines += [
                f"- {m['target']}, {m['program']}, {m['rule']}: `{m['text']}`: {m['message']}; "
                f"its probes: {m.get('check', 'none')}"
                for m in sorted(members, key=lambda r: len(r["text"]))[1:40]
            ]
    return "\n".join(lines)


def _effort(records: list[dict[str, Any]]) -> str:
    """What was run, on what, and how long one takes."""
    numbers = {r["program"] for r in records}
    text = f"{len(numbers)} programs, {len(records)} runs of a program on a target:"
    machines: dict[str, list[float]] = defaultdict(list)
    for record in records:
        machines[record.get("machine", "a machine that is not known")].append(float(record.get("seconds", 0.0)))
    for machine, seconds in sorted(machines.items()):
        text += f"\n- {len(seconds)} on {machine}: {sum(seconds) / len(seconds):.0f} s a run, with whatever else it did"
    if len(numbers) < 2000:
        text += f"\n\n2,000 have not been run: {len(numbers)} have."
    return text


def processor() -> str:
    """This machine's, by its name and its vector extensions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    fields = dict(line.split("\t", 1) for line in lines if "\t" in line)
    name = fields.get("model name", platform.machine()).lstrip(":\t ")
    flags = fields.get("flags", "").split()
    has = [label for flag, label in (("avx2", "AVX2"), ("avx512f", "AVX-512")) if flag in flags]
    return f"{name} ({', '.join(has)})" if has else name


def write(log: Path, page: Path) -> None:
    """The page."""
    records = read(log)
    parts = [
        "# Programs nobody thought of",
        "Losses made at random (`tests/programs`), each compiled for a target and compared with JAX's loss and "
        "gradients; most with SGD at a rate of 1, which shows the gradients, some with each of the other rules. The "
        "tolerance is what moving all inputs by a few roundings does to JAX's own answer. `scripts/fuzz` makes this "
        "page; the same number is always the same program.",
        "*right*: within it, and the same from call to call. *wrong*: not. *alarm*: right, but called wrong by the "
        "bundle's own probes. *refused*: by an error of optgen's, before anything ran. *error*: any other exception. "
        "*crashed*, *timeout*: the process died, or did not end. *skipped*: JAX has no finite answer.",
        _effort(records),
        table(records),
        _FOUND,
    ]
    titles = {
        "wrong": "Wrong",
        "alarm": "False alarms",
        "crashed": "Crashed",
        "timeout": "Timeout",
        "error": "Exceptions",
        "refused": "Refused",
    }
    for result, title in titles.items():
        if text := faults(records, result):
            parts += [f"## {title}", text]
    said = Counter(r["check"].partition(":")[0] for r in records if "check" in r)
    parts += ["## What the probes said", ", ".join(f"{what} {n}" for what, n in said.most_common()) + "."]
    if unproven := faults([r | {"result": "unproven", "message": r["check"]} for r in records
                           if r.get("check", "").startswith("unproven")], "unproven"):  # fmt: skip
        parts += [unproven]
    parts += ["## What was right", "Programs that were right, by what was in them: " + kinds(records) + "."]
    page.write_text("\n\n".join(parts) + "\n")
