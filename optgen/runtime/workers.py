"""Keeping worker threads off the core that their caller runs on.

The caller works too while its workers do, and then looks whether they are done. IREE's threads sleep and wake; a
scheduler that wakes one on the caller's own core lets it wait there until the caller sleeps, which it does not:
calls of 50 us took 500. So before a call, where the caller has moved, the workers are told to use the other cores.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_TASKS = Path("/proc/self/task")
_T = TypeVar("_T")


class Aside:
    """The threads of a pool, and where they may run. Does nothing on systems that cannot tell."""

    def __init__(self) -> None:
        self._started: set[int] = set()
        self._core = -1
        self._current: Callable[[], int] | None = None
        self._cores: set[int] = set()

    def watch(self, make: Callable[[], _T]) -> _T:
        """Calls ``make``, and takes the threads that are there afterwards for those of the pool."""
        before = _threads()
        made = make()
        self._started = _threads() - before
        if self._started and hasattr(os, "sched_getaffinity"):
            self._cores = os.sched_getaffinity(0)
            self._current = getattr(ctypes.CDLL(None), "sched_getcpu", None)
        return made

    @property
    def threads(self) -> list[int]:
        """The system's numbers of the pool's threads."""
        return sorted(self._started)

    def step(self) -> None:
        """Moves the pool off the caller's core, if it is not yet."""
        if self._current is None or (core := self._current()) == self._core:
            return
        self._core = core
        if others := self._cores - {core}:
            try:
                for thread in self._started:
                    os.sched_setaffinity(thread, others)
            except OSError:  # a sandbox that forbids it, or cores that were taken away: they run where they may
                self._current = None


def _threads() -> set[int]:
    try:
        return {int(entry.name) for entry in _TASKS.iterdir()}
    except OSError:
        return set()
