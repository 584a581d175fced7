"""Hyperparameters: what a rule declares, and the scalars that a module receives for one.

A scalar travels as one number. A decay rate ``beta`` travels as three, ``(beta, 1 - beta, log beta)``, each
computed in float64 and rounded once to the kernel's arithmetic, because ``1 - beta`` and ``1 - beta**t`` formed
in f32 lose up to 2e-5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optgen.errors import HyperparameterError

Kind = Literal["scalar", "decay", "step", "seed"]
Part = Literal["value", "complement", "log", "low", "high"]

PARTS: dict[Kind, tuple[Part, ...]] = {
    "scalar": ("value",),
    "step": ("value",),
    "decay": ("value", "complement", "log"),
    "seed": ("low", "high"),
}

#: Whole numbers below this are a seed; the two halves of its bits, or a step's, are exact in any arithmetic.
SEEDS = 2**32
_HALF = 2**16

#: Stands for log 0: finite, so that ``0 * log`` is 0, and so low that ``exp`` of any multiple is 0 in f64.
LOG_OF_ZERO = -1.0e4


@dataclass(frozen=True)
class Hyper:
    """One run-time hyperparameter of a rule.

    Attributes:
        name: as in the rule's signature.
        kind: ``scalar``, ``decay`` (a rate in [0, 1]), ``step`` (the 1-based number of the update) or ``seed`` (of
            random rounding).
        default: used where the caller gives none; None means that the caller must give one.
        signed: whether negative values are allowed (a decay rate never is).
        closed: for a decay rate, whether 1 itself is allowed.
    """

    name: str
    kind: Kind = "scalar"
    default: float | None = None
    signed: bool = False
    closed: bool = False

    def check(self, value: Any) -> float:
        """``value`` as a float, if the rule allows it.

        Raises:
            HyperparameterError: where it is no number, NaN or infinite, or out of range.
        """
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise HyperparameterError(f"'{self.name}' must be a number (got {value!r})") from error
        if not math.isfinite(number):
            raise HyperparameterError(f"'{self.name}' must be finite (got {number})")
        if self.kind == "step":
            if number < (0 if self.closed else 1) or number != math.floor(number):
                raise HyperparameterError(
                    f"'{self.name}' must be a whole number of at least {0 if self.closed else 1} (got {value!r})"
                )
        elif self.kind == "seed":
            if number != math.floor(number) or not 0 <= number < SEEDS:
                raise HyperparameterError(f"'{self.name}' must be a whole number in [0, 2**32) (got {value!r})")
        elif self.kind == "decay":
            if number < 0 or number > 1 or (number == 1 and not self.closed):
                raise HyperparameterError(f"'{self.name}' must be in [0, 1{']' if self.closed else ')'} (got {number})")
        elif number < 0 and not self.signed:
            raise HyperparameterError(f"'{self.name}' must be at least 0 (got {number})")
        return number

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Hyper:
        """From the manifest's form."""
        return cls(data["name"], data["kind"], data["default"], data["signed"], data["closed"])


def part(value: float, which: Part) -> float:
    """One of the scalars that hyperparameter value ``value`` travels as, in float64."""
    if which == "value":
        return value
    if which == "complement":
        return 1.0 - value
    if which in ("low", "high"):
        high, low = divmod(int(value), _HALF)
        return float(low if which == "low" else high % _HALF)
    return math.log(value) if value > 0 else LOG_OF_ZERO


@dataclass(frozen=True)
class Scalar:
    """One scalar argument of a module: a part of a hyperparameter or of the step, or a piece of scalar state."""

    hyper: str
    part: Part = "value"

    @property
    def name(self) -> str:
        """An MLIR identifier that no template uses: ``h_beta1``, ``h_beta1_complement``, ``h_beta1_log``."""
        return f"h_{self.hyper}" if self.part == "value" else f"h_{self.hyper}_{self.part}"
