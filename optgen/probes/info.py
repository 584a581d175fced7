"""What a bundle's probes say: calls, inputs, and for each result the expected numbers with their tolerances.

The manifest has the inputs (a line for each argument); the numbers of all probes of a bundle are in one small file,
see :mod:`optgen.probes.values`. Needs numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.artifact.manifest import LeafInfo
from optgen.errors import BundleError
from optgen.probes.generate import Fill, positions
from optgen.probes.values import PROBES, decode


@dataclass(frozen=True)
class ProbeCall:
    """One call of a probe.

    Attributes:
        seed: of what is made for this call: of all arguments at the first call, of batches and keys at later ones.
        hypers: hyperparameters by name.
    """

    seed: int
    hypers: Mapping[str, float]


@dataclass(frozen=True)
class ProbeInfo:
    """Consecutive calls of one program. Params and state of a call are what the one before it left.

    Attributes:
        entry: the program: ``step``, ``micro``, ``evaluate``, ``init``; ``main`` of functions, ``update`` of
            transformations.
        compute: the arithmetic of the modules that it is for; empty where modules have no choice.
        samples: how many elements of a result are looked at; all of results that have no more.
        projections: how many sums with random signs there are of each result that is not looked at as a whole.
        fills: what each argument holds, by its position in the manifest; of those that the program takes.
        calls: the calls.
        results: name, shape and dtype of each result.
        width: bytes of an expected number in the file of them.
    """

    entry: str
    compute: str
    samples: int
    projections: int
    fills: Mapping[int, Fill]
    calls: tuple[ProbeCall, ...]
    results: tuple[LeafInfo, ...]
    width: int

    @property
    def counts(self) -> list[int]:
        """For each result, how many numbers a call has of it."""
        sizes = [math.prod(leaf.shape) for leaf in self.results]
        return [size if size <= self.samples else self.samples + self.projections for size in sizes]

    @property
    def count(self) -> int:
        """How many numbers it has in all."""
        return len(self.calls) * sum(self.counts)

    def as_json(self) -> dict[str, Any]:
        """The form that manifests have. Results are not in it: the program's are in the manifest already."""
        return {
            "entry": self.entry,
            "compute": self.compute,
            "samples": self.samples,
            "projections": self.projections,
            "fills": {str(i): str(fill) for i, fill in self.fills.items()},
            "calls": [{"seed": call.seed, "hypers": dict(call.hypers)} for call in self.calls],
            "width": self.width,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], results: Sequence[LeafInfo]) -> ProbeInfo:
        """The opposite of :meth:`as_json`."""
        fills = {int(index): Fill.parse(text) for index, text in data["fills"].items()}
        calls = tuple(ProbeCall(c["seed"], dict(c["hypers"])) for c in data["calls"])
        return cls(
            data["entry"], data["compute"], int(data["samples"]), int(data["projections"]), fills, calls,
            tuple(results), int(data["width"]),
        )  # fmt: skip


@dataclass(frozen=True)
class ProbeResult:
    """What one call of a program must give as one of its results.

    Attributes:
        leaf: name, shape, dtype.
        positions: the elements that are looked at.
        expected: what each must be, float64. NaN and infinities must be met in kind.
        tolerance: by how much it may differ; infinite where nothing can be said.
        projections: what the sums of all elements with random signs must be.
        projection_tolerance: by how much each may differ.
    """

    leaf: LeafInfo
    positions: np.ndarray
    expected: np.ndarray
    tolerance: np.ndarray
    projections: np.ndarray
    projection_tolerance: np.ndarray


@dataclass(frozen=True)
class Probe:
    """A probe with its numbers.

    Attributes:
        info: what is called with what.
        results: for each call and result, what must come of it.
    """

    info: ProbeInfo
    results: tuple[tuple[ProbeResult, ...], ...]

    @classmethod
    def of(cls, info: ProbeInfo, expected: np.ndarray, tolerance: np.ndarray) -> Probe:
        """A probe from its numbers in order: by call, result, positions, then projections."""
        made, at = [], 0
        for call in info.calls:
            results = []
            for index, (leaf, count) in enumerate(zip(info.results, info.counts, strict=True)):
                where = positions(call.seed, index, math.prod(leaf.shape), info.samples)
                split = at + where.size
                results.append(
                    ProbeResult(
                        leaf, where, expected[at:split], tolerance[at:split],
                        expected[split : at + count], tolerance[split : at + count],
                    )
                )  # fmt: skip
                at += count
            made.append(tuple(results))
        return cls(info, tuple(made))


def read_probes(infos: Sequence[ProbeInfo], data: bytes) -> list[Probe]:
    """The probes of a bundle, from the file of their numbers, which has them one after the other.

    Raises:
        BundleError: if the file is not of the size that they need.
    """
    found, at = [], 0
    for info in infos:
        size = info.count * (2 + info.width)
        found.append(Probe.of(info, *decode(data[at : at + size], info.width, info.count)))
        at += size
    if at != len(data):
        raise BundleError(f"the bundle is damaged: '{PROBES}' must have {at} bytes (it has {len(data)})")
    return found
