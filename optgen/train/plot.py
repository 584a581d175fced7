"""The demo's picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np

from optgen.train import recipe

if TYPE_CHECKING:
    from optgen.train.digits import Run

mpl.use("Agg")

_COLORS = {"sgd": "#0072B2", "adam": "#D55E00", "adamw": "#009E73"}
_GREY = "0.35"


def draw(runs: Sequence[Run], differences: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws loss, accuracy and the difference between devices, each against training steps."""
    import matplotlib.pyplot as plt

    style: Any = {
        "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 12,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, (losses, accuracy, agreement) = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
        _losses(losses, runs)
        _accuracy(accuracy, runs)
        _agreement(agreement, differences)
        for axes in (losses, accuracy, agreement):
            axes.set_xlabel("training step")
            axes.set_xlim(0, 1.02 * max(len(run.losses) for run in runs))
        figure.suptitle(
            "Handwritten digits: three compiled optimizers, trained without JAX or a compiler", x=0.01, ha="left"
        )
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _losses(axes: Any, runs: Sequence[Run]) -> None:
    for run in runs:
        color = _COLORS.get(run.rule)
        steps = np.arange(1, len(run.losses) + 1)
        if run.target == "cpu":
            axes.plot(steps, run.losses, color=color, alpha=0.15, linewidth=0.7)
            # Wide and pale, so that the dashes of the other device show on top of it.
            axes.plot(steps, smooth(run.losses), color=color, linewidth=5, alpha=0.4, solid_capstyle="butt")
            label = f"{run.rule} {run.final_loss:.3f}"
            axes.plot([], [], color=color, linewidth=3, label=label)
        else:
            axes.plot(steps, smooth(run.losses), color=color, linewidth=1.7, linestyle=(0, (4, 2)))
    axes.plot([], [], color=_GREY, linewidth=5, alpha=0.4, label="CPU")
    if _both(runs):
        axes.plot([], [], color=_GREY, linewidth=1.7, linestyle=(0, (4, 2)), label="Vulkan")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.set_title("Training loss" if _both(runs) else "Training loss (no Vulkan device)")
    axes.legend(frameon=False)


def _accuracy(axes: Any, runs: Sequence[Run]) -> None:
    lowest = 1.0
    for run in runs:
        steps = np.arange(1, len(run.accuracies) + 1) * (len(run.losses) // len(run.accuracies))
        values = 100 * np.array(run.accuracies)
        lowest = min(lowest, values[len(values) // 3 :].min() / 100)
        if run.target == "cpu":
            label = f"{run.rule} {values[-1]:.1f} %"
            axes.plot(steps, values, "-", color=_COLORS.get(run.rule), linewidth=2, label=label)
        else:
            axes.plot(steps, values, "o", markersize=6, color=_COLORS.get(run.rule), markerfacecolor="white")
    if _both(runs):
        axes.plot([], [], "o", markersize=6, color=_GREY, markerfacecolor="white", label="Vulkan")
    axes.axhline(100 * recipe.MIN_ACCURACY, color=_GREY, linestyle=":", linewidth=1.2)
    axes.annotate(
        f"required: {recipe.MIN_ACCURACY:.0%}", (1, 100 * recipe.MIN_ACCURACY), xytext=(0, -4), va="top", ha="right",
        xycoords=("axes fraction", "data"), textcoords="offset points", color=_GREY,
    )  # fmt: skip
    axes.set_ylim(min(90, 100 * lowest - 1), 100)
    axes.set_title("Test accuracy, %")
    axes.legend(frameon=False, loc="lower right")


def _agreement(axes: Any, differences: Mapping[str, np.ndarray]) -> None:
    axes.set_title("|loss on CPU − loss on Vulkan|")
    if not differences:
        axes.text(0.5, 0.5, "no Vulkan device", transform=axes.transAxes, ha="center", color=_GREY)
        return
    for rule, values in differences.items():
        shown = np.where(values == 0, np.nan, values)  # equal to the last bit: no place on a log axis
        equal = np.mean(values == 0)
        label = f"{rule}: at most {values.max():.0e}, and 0 at {equal:.0%} of the steps"
        axes.plot(np.arange(1, len(values) + 1), shown, ".", markersize=4, color=_COLORS.get(rule), label=label)
    axes.axhline(recipe.MAX_DIFFERENCE, color="#CC0000", linewidth=1.5)
    axes.annotate("allowed: 1e-4", (0.02, recipe.MAX_DIFFERENCE), xytext=(0, 4), xycoords=("axes fraction", "data"),
                  textcoords="offset points", color="#CC0000")  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(1e-9, max(1e-2, 10 * max(v.max() for v in differences.values())))
    axes.legend(frameon=False, loc="upper right", fontsize=10)


def smooth(values: Sequence[float], width: int = 15) -> np.ndarray:
    """A centred moving average; at the ends, of what there is."""
    array = np.asarray(values, np.float64)
    ones = np.ones(min(width, len(array)))
    result: np.ndarray = np.convolve(array, ones, "same") / np.convolve(np.ones(len(array)), ones, "same")
    return result


def _both(runs: Sequence[Run]) -> bool:
    return len({run.target for run in runs}) > 1
