"""Draws a device's log; on any machine that has matplotlib.

python examples/edge/plot.py out/edge/log.csv out/edge/loss.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")


def draw(log: Path, picture: Path) -> None:
    """The loss, and below it time and memory, against steps."""
    import matplotlib.pyplot as plt

    step, loss, ms, memory = np.loadtxt(log, delimiter=",", skiprows=1, ndmin=2).T
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}):
        figure, axes = plt.subplots(3, 1, figsize=(7, 7), sharex=True, height_ratios=(3, 1, 1), layout="constrained")
        for axis, values, label in zip(axes, (loss, ms, memory), ("loss", "ms per step", "MB of memory"), strict=True):
            axis.plot(step, values, "-o", markersize=3, color="#0072B2")
            axis.set_ylabel(label)
        axes[0].set_yscale("log")
        axes[0].set_title(f"{int(step[-1])} steps on the device; loss {loss[0]:.3f} to {loss[-1]:.3f}", loc="left")
        for axis in axes[1:]:
            axis.set_ylim(bottom=0)
        axes[-1].set_xlabel("step")
        figure.savefig(picture, dpi=130)
        plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
