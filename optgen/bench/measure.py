"""Timing: peers by turns, round after round, each verified before."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import numpy as np

from optgen.bench.data import Data
from optgen.bench.peers import AbsentError, Peer, PeerKind
from optgen.bench.work import Case

#: The largest error, relative to the change that the updates make.
TOLERANCE = 1e-3
_CHECKED_STEPS = 2
#: Seconds that a measurement takes at least, by repeating short steps.
_SHORTEST = 2e-3
#: Seconds between peers, in which the threads of the one before go to sleep.
_PAUSE = 1e-2


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """The spread of some numbers."""
        low, median, high = (float(q) for q in np.quantile(list(values), (0.25, 0.5, 0.75)))
        return Spread(median, low, high)


@dataclass
class Outcome:
    """What came of one peer.

    Attributes:
        status: ``ok``, ``absent``, ``wrong`` or ``failed``.
        reason: why, if it is not ``ok``.
        error: of its update, relative to the change.
        repeats: steps in each measurement.
        times: seconds for a step, in each round.
    """

    status: str
    reason: str = ""
    error: float = math.nan
    repeats: int = 0
    times: list[float] = field(default_factory=list)


@dataclass
class Result:
    """A case, measured."""

    case: Case
    outcomes: dict[str, Outcome]

    def spread(self, name: str) -> Spread | None:
        """Seconds for a step of a peer."""
        outcome = self.outcomes.get(name)
        return Spread.of(outcome.times) if outcome is not None and outcome.times else None

    def ratio(self, a: str, b: str) -> Spread | None:
        """The time of ``a`` over that of ``b``, round by round."""
        if any(n not in self.outcomes or not self.outcomes[n].times for n in (a, b)):
            return None
        pairs = zip(self.outcomes[a].times, self.outcomes[b].times, strict=True)
        return Spread.of(x / y for x, y in pairs)

    def as_json(self) -> dict[str, object]:
        """With every median, quartile and ratio."""
        case, peers = self.case, {}
        for name, outcome in self.outcomes.items():
            peer: dict[str, object] = {k: v for k, v in asdict(outcome).items() if v == v and v != math.inf}
            spread = self.spread(name)
            if spread is not None:
                peer["seconds"] = asdict(spread)
                peer["gigabytes_per_second"] = case.bytes / spread.median / 1e9
                ratios = {b: self.ratio(name, b) for b in self.outcomes if b != name}
                peer["time_over"] = {b: asdict(ratio) for b, ratio in ratios.items() if ratio is not None}
            peers[name] = peer
        return {
            "work": case.work.name, "rule": case.rule.name, "dtype": case.dtype, "leaves": len(case.work.shapes),
            "elements": case.work.elements, "bytes": case.bytes, "peers": peers,
        }  # fmt: skip


def measure(
    case: Case, kinds: Iterable[PeerKind], *, rounds: int, threads: int, say: Callable[[str], None] = lambda text: None
) -> Result:
    """Measures a case.

    Args:
        case: what to update.
        kinds: by which peers.
        rounds: that count; one more comes before them.
        threads: for each peer.
        say: is told what goes on.
    """
    data = Data(case)
    outcomes: dict[str, Outcome] = {}
    peers: dict[str, Peer] = {}
    for kind in kinds:
        say(f"{case.rule.name} {case.dtype} {case.work.name}: {kind.label}")
        outcomes[kind.name] = _prepare(kind, case, data, threads, peers)
    say(f"{case.rule.name} {case.dtype} {case.work.name}: {rounds + 1} rounds")
    names = list(peers)
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds + 1):
            first = number % len(names) if names else 0
            for name in names[first:] + names[:first]:
                seconds = _time(peers[name], outcomes[name].repeats)
                if number:
                    outcomes[name].times.append(seconds)
    finally:
        gc.enable()
    return Result(case, outcomes)


def _prepare(kind: PeerKind, case: Case, data: Data, threads: int, peers: dict[str, Peer]) -> Outcome:
    """Makes a peer, and lets it make some updates, which are verified."""
    data.reset()
    try:
        peer = kind.make(case, data, threads)
        for _ in range(_CHECKED_STEPS):
            peer.step()
        error = data.error(peer.params(), _CHECKED_STEPS)
        if not error <= TOLERANCE:
            return Outcome("wrong", f"its update is off by {error:.1e} of the change", error)
        repeats = _repeats(peer)
    except AbsentError as reason:
        return Outcome("absent", str(reason))
    except Exception as problem:  # whatever a peer raises: the others go on, and the report says so
        text = (str(problem).splitlines() or [""])[0][:150]
        return Outcome("failed", f"{type(problem).__name__}: {text}")
    peers[kind.name] = peer
    return Outcome("ok", error=error, repeats=repeats)


def _repeats(peer: Peer) -> int:
    """Steps that take long enough to be measured."""
    repeats = 1
    while True:
        start = time.perf_counter()
        for _ in range(repeats):
            peer.step()
        seconds = time.perf_counter() - start
        if seconds >= _SHORTEST:
            return max(1, min(repeats, math.ceil(repeats * 1.5 * _SHORTEST / seconds)))
        repeats = min(4 * repeats, math.ceil(1.5 * repeats * _SHORTEST / max(seconds, 1e-7)) + 1)


def _time(peer: Peer, repeats: int) -> float:
    """Seconds for a step, after one that fills the caches and wakes the threads."""
    time.sleep(_PAUSE)
    step = peer.step
    start = time.perf_counter()
    step()
    if time.perf_counter() - start > 1:
        return time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats
