"""``scripts/fuzz``: checks programs by number, appends a record of each to a log, and writes the page."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from programs.pool import TARGETS, Worker, shrink, targets_of
from programs.report import read, table, write


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.partition(": ")[2])
    parser.add_argument("--start", type=int, default=0, help="the first program's number")
    parser.add_argument("--count", type=int, default=100, help="how many programs")
    parser.add_argument("--targets", default=",".join(TARGETS), help="in turn: cpu:..., vulkan..., c:cpu:..., wasm...")
    parser.add_argument("--each", type=int, default=1, help="on how many of them each program is run")
    parser.add_argument("--seconds", type=float, default=1e9, help="when to stop; what is in the log is not run again")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one program on one target")
    parser.add_argument("--log", type=Path, default=Path("build/programs.jsonl"), help="JSON lines, appended to")
    parser.add_argument("--page", type=Path, help="where to write the table, such as docs/programs.md")
    parser.add_argument("--again", default="", help="results whose programs are run again: wrong,error,refused")
    parser.add_argument("--shrink", action="store_true", help="leave pieces out as long as the fault stays")
    given = parser.parse_args()

    known = {(r["program"], r["target"]): r for r in read(given.log)}
    again = set(filter(None, given.again.split(",")))
    targets = given.targets.split(",")
    given.log.parent.mkdir(parents=True, exist_ok=True)
    worker, start = Worker(given.limit), time.perf_counter()
    try:
        with given.log.open("a") as log:
            for number in range(given.start, given.start + given.count):
                for target in targets_of(number, targets, given.each):
                    old = known.get((number, target))
                    if time.perf_counter() - start > given.seconds or (old and old["result"] not in again):
                        continue
                    record = worker.check(number, target)
                    log.write(json.dumps(record) + "\n")
                    log.flush()
                    _show(record)
                    if given.shrink and record["result"] not in ("right", "skipped") and "kept" in record:
                        _show(shrink(worker, record), "  smallest: ")
    finally:
        worker.close()
    if given.page:
        write(given.log, given.page)
    print(table(read(given.log)))


def _show(record: dict[str, Any], before: str = "") -> None:
    shown = f"{before}{record['program']} {record['target']} {record['result']} {record.get('seconds', 0):.0f} s"
    if record["result"] not in ("right", "skipped"):
        shown += f": {record.get('message', '')[:200]}\n    {record.get('rule', '')}: {record.get('text', '')}"
    print(shown, flush=True)


if __name__ == "__main__":
    main()
