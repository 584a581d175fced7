"""``scripts/fuzz``: checks programs by number, appends a record of each to a log, and writes the page."""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
    parser.add_argument("--workers", type=int, default=1, help="how many are checked at the same time")
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
    left = queue.SimpleQueue[tuple[int, str]]()
    for number in range(given.start, given.start + given.count):
        for target in targets_of(number, targets, given.each):
            if (old := known.get((number, target))) is None or old["result"] in again:
                left.put((number, target))
    given.log.parent.mkdir(parents=True, exist_ok=True)
    start, writing = time.perf_counter(), threading.Lock()

    def work() -> None:
        worker = Worker(given.limit)
        try:
            while time.perf_counter() - start < given.seconds:
                record = worker.check(*left.get_nowait())
                with writing:
                    log.write(json.dumps(record) + "\n")
                    log.flush()
                    _show(record)
                if given.shrink and record["result"] not in ("right", "skipped") and "kept" in record:
                    _show(shrink(worker, record), "  smallest: ")
        except queue.Empty:
            pass
        finally:
            worker.close()

    with given.log.open("a") as log, ThreadPoolExecutor(given.workers) as pool:
        for done in [pool.submit(work) for _ in range(given.workers)]:
            done.result()
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
