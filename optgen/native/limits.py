"""What the numbers that a whole program takes must be: hyperparameters, counts of steps, scalar state.

The checks are those of :meth:`optgen.hyper.Hyper.check` and of the runtime's steps, written for callers that have
nothing but memory. A decay rate travels in parts (``beta``, ``1 - beta``, ``log beta``); that these are parts of one
number is checked as well, without a logarithm: ``1 - b <= -log b <= (1 - b) / b``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optgen.hyper import Hyper, Part

#: How far parts of one number may be from each other, by the type that they have been rounded to.
_APART = {"f32": 2.0**-23, "f64": 2.0**-52}
_LOG_APART = {"f32": 2.0**-20, "f64": 2.0**-48}
#: The largest count of steps is one less, so that the next one still fits.
MOST_STEPS = 2**31 - 1


@dataclass(frozen=True)
class Limit:
    """What an argument of a whole program must be.

    Attributes:
        kind: ``hyper``; ``count``, a number of steps; ``scalar``, scalar state; ``state``, any array.
        first: what it is before the first step, if that is one number; None where a caller must say.
        hyper: the hyperparameter.
        part: which part of it the argument is.
    """

    kind: Literal["hyper", "count", "scalar", "state"]
    first: float | None = None
    hyper: Hyper | None = None
    part: Part = "value"

    @property
    def zeros(self) -> bool:
        """Whether there is nothing to check, and zeros to begin with."""
        return self.kind == "state" and self.first == 0

    def to_json(self) -> dict[str, Any]:
        """For generated code; see ``templates/js/lib/limits.js``."""
        found: dict[str, Any] = {"kind": self.kind, "first": self.first}
        if self.hyper is not None:
            found |= {"hyper": self.hyper.name, "part": self.part}
            flags = {"decay": self.hyper.kind == "decay", "signed": self.hyper.signed, "closed": self.hyper.closed}
            found |= {name: True for name, flag in flags.items() if flag}
        return found


@dataclass(frozen=True)
class Test:
    """A condition in C, and the error where it does not hold: ``HYPER``, ``STEP`` or ``STATE``."""

    condition: str
    code: str


def c_tests(limits: Mapping[str, Limit], places: Mapping[str, str], dtypes: Mapping[str, str]) -> list[Test]:
    """The conditions on arguments in memory.

    Args:
        limits: by argument.
        places: the C expression of each argument's number.
        dtypes: of each argument.
    """
    tests = []
    parts: dict[str, dict[str, str]] = {}
    for name, limit in limits.items():
        if name not in places:
            continue
        x = places[name]
        if limit.kind == "count":
            tests.append(Test(f"{x} >= 0 && {x} < {MOST_STEPS}", "STEP"))
        elif limit.kind == "scalar":
            tests.append(Test(f"isfinite({x})", "STATE"))
        elif limit.hyper is not None:
            tests.append(Test(range_of(limit.hyper, limit.part, x), "HYPER"))
            parts.setdefault(limit.hyper.name, {"dtype": dtypes[name]})[limit.part] = x
    return tests + [Test(text, "HYPER") for found in parts.values() for text in _relations(found)]


def range_of(hyper: Hyper, part: Part, x: str) -> str:
    """The condition in C that ``x`` is that part of an allowed value; NaN is none."""
    if hyper.kind == "decay":
        end = "<=" if hyper.closed else "<"
        if part == "log":
            return f"{x} <= 0 && isfinite({x})"
        return f"{x} >= 0 && {x} {end} 1" if part == "value" else f"0 {end} {x} && {x} <= 1"
    return f"isfinite({x})" if hyper.signed else f"isfinite({x}) && {x} >= 0"


def _relations(parts: Mapping[str, str]) -> Sequence[str]:
    suffix = "f" if parts["dtype"] == "f32" else ""
    apart, log_apart = _APART[parts["dtype"]], _LOG_APART[parts["dtype"]]
    found = []
    value, complement, log = (parts.get(p) for p in ("value", "complement", "log"))
    if value and complement:
        rest = f"1.0{suffix} - {value}"
        tolerance = f"{apart!r}{suffix}"
        found += [f"{complement} >= {rest} - {tolerance}", f"{complement} <= {rest} + {tolerance}"]
    if complement and log:
        found.append(f"-{log} >= {complement} * {1 - log_apart!r}{suffix}")
        if value:
            found.append(f"-{log} * {value} <= {complement} * {1 + log_apart!r}{suffix}")
    return found
