"""On the device: trains with batches as they arrive, and goes on where it was after a power cut.

    python examples/edge/device.py --folder out/edge

needs numpy, iree-base-runtime and optgen; neither JAX nor a compiler.

Everything that the next step depends on, and how far the spool and the log have come, is in ONE file,
``state.safetensors``, which is written beside its place, put on disk and then moved there. So whenever the power goes,
the file is that of a step: what was trained after it is trained again, to the same bits.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import resource
import signal
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType

# Else numpy's BLAS, which is not used here, sets memory aside for each core. It is read when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from step import Step

from optgen.errors import FileError, OptgenError
from optgen.runtime import read_arrays, write_arrays

HEAD = "step,loss,ms_per_step,rss_mb\n"


class Training:
    """A run that can be cut off at any moment.

    Args:
        folder: what ``prepare.py`` wrote; state and log are kept there, too.
        every: steps between two states on disk, each with a line in the log.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self._state, self._log = folder / "state.safetensors", folder / "log.csv"
        self.work = Step(folder)
        self.done = 0  # batches: the cursor into the spool
        self._recent: deque[tuple[float, float]] = deque(maxlen=every)
        length = 0
        for unfinished in folder.glob(f".{self._state.name}.*"):  # of a state that was being written
            unfinished.unlink()
        if self._state.exists():
            saved = read_arrays(self._state)
            self.done, length = int(saved.pop("done")), int(saved.pop("log_length"))
            self.work.restore(saved)
        # Lines after the last state are those of steps that are about to be made again.
        with self._log.open("ab") as log:
            log.truncate(length)
            if length == 0:
                log.write(HEAD.encode())

    def next_batch(self) -> Path:
        """Where the next batch is, or will be."""
        return self.folder / "spool" / f"{self.done:06}.safetensors"

    def step(self) -> float:
        """Trains with the next batch; where it is time, writes log and state."""
        start = time.perf_counter()
        loss = self.work.step(read_arrays(self.next_batch()))
        self.done += 1
        self._recent.append((loss, time.perf_counter() - start))
        if self.done % self.every == 0:
            self.save()
        return loss

    def save(self) -> None:
        """Puts a line of the log on disk, and then the state that says that it is there."""
        with self._log.open("ab") as log:
            if self._recent:
                loss, seconds = np.mean(self._recent, axis=0)
                log.write(f"{self.done},{loss:.9g},{1e3 * seconds:.2f},{memory_mb():.0f}\n".encode())
                self._recent.clear()
            length = log.tell()
            log.flush()
            os.fsync(log.fileno())
        counters = {"done": np.array(self.done, np.int64), "log_length": np.array(length, np.int64)}
        write_arrays(self._state, {**self.work.arrays(), **counters})


def memory_mb() -> float:
    """The most memory that this process has had at once, in MB."""
    # Not getrusage: there Linux counts the parent's until exec, too.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def hold_memory(ceiling: int) -> None:
    """Lets the kernel refuse whatever this process would allocate beyond ``ceiling`` MB of data."""
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling << 20, ceiling << 20))


class Bar:
    """How far the run is, on one line of a terminal; nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self._total, self._shown = total, 0.0

    def show(self, done: int, loss: float) -> None:
        """Draws it anew, ten times a second at most."""
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - self._shown < 0.1 and done < self._total):
            return
        self._shown, filled = now, 30 * done // max(self._total, 1)
        bar = "#" * filled + "." * (30 - filled)
        end = "\n" if done == self._total else ""
        print(f"\r[{bar}] {done}/{self._total}  loss {loss:.4f}  {memory_mb():.0f} MB ", end=end, file=sys.stderr)


def run(folder: Path, *, steps: int, every: int, wait: float, ceiling: int) -> int:
    """Trains until ``steps`` batches are done, none has come for ``wait`` seconds, or it is told to stop.

    Returns:
        0; 1 if it needed more memory than ``ceiling`` MB.
    """
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    training, bar = Training(folder, every), Bar(steps)
    print(f"at step {training.done} of {steps}, at most {ceiling} MB", flush=True)
    patience = time.monotonic() + wait
    while training.done < steps and not stopped:
        if not training.next_batch().exists():
            if time.monotonic() > patience:
                break
            time.sleep(0.02)
            continue
        loss = training.step()
        bar.show(training.done, loss)
        if memory_mb() > ceiling:
            print(f"error: {memory_mb():.0f} MB of memory, more than {ceiling}", file=sys.stderr)
            return 1
        patience = time.monotonic() + wait
    training.save()
    print(f"stopped at step {training.done}, {memory_mb():.0f} MB at most", flush=True)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train with batches as they arrive; can be cut off at any moment.")
    parser.add_argument("--folder", type=Path, default=Path("out/edge"), help="what prepare.py wrote")
    parser.add_argument("--steps", type=int, default=264, help="batches to train with in all (default: %(default)s)")
    parser.add_argument("--every", type=int, default=10, help="steps between two states on disk (default: %(default)s)")
    parser.add_argument("--wait", type=float, default=5.0, help="seconds without a batch to stop after")
    parser.add_argument("--memory", type=int, default=128, help="ceiling in MB (default: %(default)s)")
    given = parser.parse_args()
    try:
        hold_memory(given.memory)
        if not given.folder.is_dir():
            raise FileError(f"there is no folder {given.folder}: run prepare.py first")
        with (given.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return run(given.folder, steps=given.steps, every=given.every, wait=given.wait, ceiling=given.memory)
    except BlockingIOError:
        error: Exception = FileError(f"{given.folder} is being trained by another process")
    except (MemoryError, ImportError, RuntimeError) as failed:
        # Where memory is short, libraries are not found, or IREE says that its resources are exhausted.
        error = failed if isinstance(failed, OptgenError) else MemoryError(f"{failed} (with {given.memory} MB at most)")
    except (OptgenError, OSError, ValueError, KeyError) as failed:
        error = failed
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
