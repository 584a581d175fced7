"""What :func:`optgen.chain` puts around a rule. Each file has one family of parts, a few lines of mathematics each."""

from __future__ import annotations

from typing import Any

from optgen.rules.around import schedule as schedule
from optgen.rules.around.accumulate import accumulate as accumulate
from optgen.rules.around.average import ema as ema
from optgen.rules.around.average import polyak as polyak
from optgen.rules.around.clip import clip_by_global_norm as clip_by_global_norm
from optgen.rules.around.clip import clip_by_norm as clip_by_norm
from optgen.rules.around.clip import clip_by_value as clip_by_value
from optgen.rules.around.decay import add_decayed_weights as add_decayed_weights
from optgen.rules.around.loss_scale import scale_by_loss as scale_by_loss
from optgen.rules.around.loss_scale import skip_not_finite as skip_not_finite

#: Parts by the name that they have in text, as on the command line; each can be called without numbers.
PARTS: dict[str, Any] = {
    "clip_by_value": clip_by_value(),
    "clip_by_norm": clip_by_norm(),
    "clip_by_global_norm": clip_by_global_norm(),
    "add_decayed_weights": add_decayed_weights(),
    "ema": ema(),
    "polyak": polyak(),
    "scale_by_loss": scale_by_loss(),
    "skip_not_finite": skip_not_finite(),
    "accumulate": accumulate(),
}

#: Schedules by name, likewise. A piecewise one needs its boundaries: it is no name alone.
SCHEDULES: dict[str, Any] = {
    name: getattr(schedule, name)
    for name in (
        "constant", "linear", "polynomial", "exponential", "cosine", "warmup_cosine", "one_cycle", "inverse_sqrt",
    )
}  # fmt: skip
