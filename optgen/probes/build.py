"""Probes from a program's reference: several runs in stochastic arithmetic give what is expected, and how exactly.

What is expected is the mean of the runs and not a run without noise: where a result hangs on rounding alone (the sign
of a gradient that cancels) such a run would depend on the last bits of f64, in which processors differ. The tolerance
is several times the largest deviation, so what is ill-conditioned, and what jumps (a comparison at its very edge), is
given room by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optgen.artifact.manifest import LeafInfo
from optgen.dtypes import from_float64, to_float64
from optgen.probes.generate import Fill, filled, positions, projection
from optgen.probes.info import Probe, ProbeCall, ProbeInfo
from optgen.probes.noise import Noise
from optgen.probes.values import decode, encode, power_of_two

#: Tolerance over the largest deviation that was seen.
_SAFETY = 3.0
#: Roundings of its own type that any result may be off by. No power of two, near which results lie.
_ROUNDINGS = 3.7
#: Keeps tolerances from lying at a power of two, where f64's last bits would say to which they are rounded.
_ASIDE = 1.0137
_ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24, "f64": 2.0**-50}
_TINY = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1000}

#: Runs of programs by the work of a call, the last for all that is more. Fewer runs see less of what there is, so there
#: the tolerance is larger.
_RUNS = ((5_000_000, 8, _SAFETY), (300_000_000, 4, 4.0), (math.inf, 3, 5.0))

#: How many times as many runs are made if results jump: each comparison that rounding decides doubles what may come
#: out, and each must be seen.
_MORE = 3
#: A result jumps if its runs leave a gap of this part of all that they span; eight of anything smooth do so once in 200
#: times. A program does if this part of its results does.
_GAP, _JUMPING = 0.7, 0.03

#: Elements that an operation takes as long as without any.
_EACH = 2000

SAMPLES = 256
PROJECTIONS = 2


@dataclass(frozen=True)
class Recipe:
    """A program to make probes of.

    Attributes:
        entry, compute: as in :class:`ProbeInfo`.
        arguments: name, shape and dtype of all arguments that it takes, by position in the manifest.
        fills: what they hold.
        kept: the names of those that a later call takes as the one before left them, or as they were.
        hypers: of each call, by name; there are as many calls.
        numbers: from hyperparameters to the numbers of the arguments that are made of them, by name.
        begin: from the first call's arguments to its state.
        run: from arguments by name, floats as float64, to results by name.
        results: of the program.
        work: of a call, see :func:`work_of`.
    """

    entry: str
    compute: str
    arguments: Mapping[int, LeafInfo]
    fills: Mapping[int, Fill]
    kept: frozenset[str]
    hypers: tuple[Mapping[str, float], ...]
    numbers: Callable[[Mapping[str, float]], Mapping[str, float]]
    begin: Callable[[Mapping[str, Any], Mapping[str, float], Noise], Mapping[str, Any]]
    run: Callable[[Mapping[str, Any], Noise], Mapping[str, Any]]
    results: tuple[LeafInfo, ...]
    work: int

    @property
    def seeds(self) -> list[int]:
        """Of the calls."""
        return list(range(1, len(self.hypers) + 1))


def make_probe(recipe: Recipe, samples: int = SAMPLES, projections: int = PROJECTIONS) -> tuple[Probe, bytes]:
    """The probe of a program, and its numbers as bundles have them.

    Args:
        recipe: the program.
        samples, projections: see :class:`ProbeInfo`.
    """
    runs, safety = next((runs, safety) for limit, runs, safety in _RUNS if recipe.work <= limit)
    noises = [Noise(seed) for seed in range(_MORE * runs)]
    found = np.stack([_numbers(recipe, noise, samples, projections) for noise in noises[:runs]])
    if _jumps(found):
        more = [_numbers(recipe, noise, samples, projections) for noise in noises[runs:]]
        found = np.concatenate([found, np.stack(more)])
    overflowed = any(noise.overflowed for noise in noises)
    calls = tuple(ProbeCall(s, dict(h)) for s, h in zip(recipe.seeds, recipe.hypers, strict=True))
    info = ProbeInfo(recipe.entry, recipe.compute, samples, projections, dict(recipe.fills), calls, recipe.results, 8)
    parts, at = [], 0
    for _ in calls:
        for leaf, count in zip(recipe.results, info.counts, strict=True):
            columns = found[:, at : at + count]
            parts.append(_tolerances(columns, leaf, max(count - samples, 0), safety, overflowed))
            at += count
    expected, tolerance = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    data, width = encode(expected, tolerance)
    info = replace(info, width=width)
    return Probe.of(info, *decode(data, width, len(expected))), data


def _numbers(recipe: Recipe, noise: Noise, samples: int, projections: int) -> np.ndarray:
    """What one run gives at all positions, and its projections."""
    known: dict[str, Any] = {}
    found: list[np.ndarray] = []
    for index, (seed, hypers) in enumerate(zip(recipe.seeds, recipe.hypers, strict=True)):
        for position, leaf in recipe.arguments.items():
            fill = recipe.fills[position]
            if fill.kind in ("float", "integer", "key") and not (index and leaf.path in recipe.kept):
                known[leaf.path] = _wide(filled(fill, leaf.shape, leaf.dtype, seed, position), leaf.dtype)
        dtypes = {leaf.path: leaf.dtype for leaf in recipe.arguments.values()}
        for name, number in recipe.numbers(hypers).items():  # also those that nothing reads
            dtype = dtypes.get(name, recipe.compute)
            known[name] = _wide(from_float64(np.array(number), dtype), dtype)
        if not index:
            known.update(recipe.begin(known, hypers, noise))
        results = recipe.run(known, noise)
        for number, leaf in enumerate(recipe.results):
            values = np.asarray(results[leaf.path]).astype(np.float64).ravel()
            found.append(values[positions(seed, number, values.size, samples)])
            if values.size > samples:
                found.append(np.array([projection(values, seed, number, k) for k in range(projections)]))
        known.update({name: value for name, value in results.items() if name in recipe.kept})
    return np.concatenate(found)


def _jumps(runs: np.ndarray) -> bool:
    """Whether rounding decides comparisons: then runs fall into a few heaps."""
    with np.errstate(all="ignore"):
        ordered = np.sort(runs, axis=0)
        span = ordered[-1] - ordered[0]
        gaps = np.diff(ordered, axis=0).max(0)
        apart = (gaps > _GAP * span) & np.isfinite(span)
    return int(apart.sum()) > _JUMPING * len(apart)


def _wide(array: np.ndarray, dtype: str) -> np.ndarray:
    return to_float64(array, dtype) if dtype in _ROUNDING else array


def _tolerances(
    runs: np.ndarray, leaf: LeafInfo, projections: int, safety: float, overflowed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What is expected of one result, and its tolerances. The last columns of ``runs`` are projections. Of infinities
    and NaN nothing is expected if a run ``overflowed``: the order of its operations decides which they are."""
    with np.errstate(all="ignore"):
        finite = np.isfinite(runs).all(0)
        expected = np.where(finite, runs.mean(0), runs[0])
        deviation = np.where(finite, np.abs(runs - expected).max(0), 0.0)
    same = finite | np.isnan(runs).all(0) | (np.isinf(runs) & (runs == runs[0])).all(0)
    elements = len(expected) - projections
    size = math.prod(leaf.shape)
    own, sums = deviation[:elements], deviation[elements:]
    moved = own[own > 0]
    if moved.size:
        # A few runs may happen to agree on an element; then what the others do tells. So they may on a sum.
        own = np.where(own > 0, np.maximum(own, np.median(moved)), own)
        sums = np.maximum(sums, math.sqrt(size * float(np.mean(own**2))) / 2)
    else:
        sums = sums + 0.0
    deviation = np.concatenate([own, sums])
    if leaf.dtype in _ROUNDING:
        usual = safety * deviation + _ROUNDINGS * _ROUNDING[leaf.dtype] * np.abs(expected) + 4 * _TINY[leaf.dtype]
        # Each element of a sum is rounded, even where all runs agree on it.
        scale = float(np.sqrt(np.mean(np.where(finite[:elements], expected[:elements], 0.0) ** 2))) if elements else 0.0
        usual[elements:] += _ROUNDINGS * _ROUNDING[leaf.dtype] * math.sqrt(size) * scale
    else:
        usual = safety * deviation + np.where(deviation > 0, 0.25, 0.24)
    # Sums of infinities say nothing.
    told = same & (finite | ((not overflowed) & (np.arange(len(expected)) < elements)))
    usual = np.where(finite, usual, 1.0)  # NaN and infinities are met in kind
    return expected, np.where(told, power_of_two(_ASIDE * usual), np.inf)


def work_of(jaxpr: Any, times: int = 1) -> int:
    """What a call of a jaxpr costs, in elements of intermediate results; loops of unknown length count as one turn."""
    total = 0
    for equation in jaxpr.eqns:
        turns = times * int(equation.params.get("length", 1)) if equation.primitive.name == "scan" else times
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        for each in inner:
            total += work_of(getattr(each, "jaxpr", each), turns)
        if not inner:
            sizes = (math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape"))
            total += turns * (_EACH + sum(sizes))
    return total


#: How many samples and projections there may be of each result, in the order in which room is used.
_CHOICES = ((2, 1), (3, 1), (4, 1), (4, 2), (6, 2), (8, 2), (12, 2), (16, 2), (24, 2), (32, 2), (48, 2), (64, 2),
            (96, 2), (128, 2), (192, 2), (SAMPLES, PROJECTIONS))  # fmt: skip


def samples_for(room: float, recipes: Sequence[Recipe]) -> tuple[int, int]:
    """How many samples and projections of each result fit into a bundle.

    Args:
        room: for the probes of all its programs, in bytes as they are stored.
        recipes: the programs.
    """
    room -= sum(150 + 6 * len(recipe.arguments) for recipe in recipes)  # what the manifest says
    sizes = [(len(r.hypers), math.prod(leaf.shape), leaf.dtype) for r in recipes for leaf in r.results]
    each = 7.5 if any(dtype == "f64" for _, _, dtype in sizes) else 4.6
    best = _CHOICES[0]
    for samples, projections in _CHOICES:
        numbers = sum(calls * (size if size <= samples else samples + projections) for calls, size, _ in sizes)
        if numbers * each <= room:
            best = samples, projections
    return best
