"""The benchmark's pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from optgen.bench.measure import Result
from optgen.bench.peers import PEERS

mpl.use("Agg")

_COLORS = {
    "limit": "black", "optgen": "#56B4E9", "optgen-bound": "#0072B2", "optgen-fast": "#009E73",
    "optgen-packed": "#CC79A7", "torch-fused": "#D55E00", "torch-foreach": "#E69F00", "torch-compile": "#8C564B",
    "torch-composed": "#D55E00",
    "optax": "#7A5FB5", "deepspeed": "#B22222", "mlx": "0.45", "tvm": "0.6", "numpy": "0.7",
}  # fmt: skip
_MARKERS = {"optgen": "o", "optgen-bound": "o", "optgen-fast": "s", "optgen-packed": "D"}
#: Leaves of more elements than this wait for memory, not for the call: they tell nothing about leaves.
_SMALL = 128
_STYLE: Any = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 13,
}  # fmt: skip

Point = tuple[float, float]


def draw(results: Sequence[Result], out: Path, machine: dict[str, Any]) -> list[Path]:
    """Draws what there is: ``bandwidth.png`` against size and ``leaves.png`` against the number of leaves.

    Of several rules the one with the most state is drawn, with f32 params.
    """
    plain = [r for r in results if r.case.dtype == "f32"] or list(results)
    if not plain:
        return []
    rule = max((r.case.rule for r in plain), key=lambda rule: (len(rule.slots), rule.name)).name
    plain = [r for r in plain if r.case.rule.name == rule]
    one = [r for r in plain if len(r.case.work.shapes) == 1]
    small = [r for r in plain if max(r.case.work.sizes) <= _SMALL]
    where = f"{machine['processor']}, {machine['threads']} threads"
    paths = []
    if one:
        lines = _lines(one, lambda r: r.case.work.elements, lambda r, t: r.case.bytes / t / 1e9)
        labels = "elements of one leaf", "GB/s"
        text = f"{rule}: what of the memory's speed an update reaches"
        paths.append(_figure(lines, labels, text, where, out / "bandwidth.png", best_first=True))
    if small:
        lines = _lines(small, lambda r: len(r.case.work.shapes), lambda r, t: t * 1e6)
        labels = f"leaves of at most {_SMALL} elements", "microseconds for a step"
        text = f"{rule}: what many small leaves cost"
        paths.append(_figure(lines, labels, text, where, out / "leaves.png", best_first=False))
    return paths


def _lines(
    results: Sequence[Result], x: Callable[[Result], float], y: Callable[[Result, float], float]
) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for result in sorted(results, key=x):
        for name in result.outcomes:
            if (spread := result.spread(name)) is not None:
                lines.setdefault(name, []).append((x(result), y(result, spread.median)))
    return lines


def _figure(
    lines: dict[str, list[Point]], labels: tuple[str, str], text: str, where: str, path: Path, *, best_first: bool
) -> Path:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    # The legend stands in the order of the lines' right ends.
    order = sorted(lines, key=lambda n: lines[n][-1][::-1] if lines[n] else (0.0, 0.0), reverse=True)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(10.5, 6), layout="constrained")
        for name in order:
            limit, ours = name == "limit", name.startswith("optgen")
            axes.plot(
                *zip(*lines[name], strict=True),
                label=PEERS[name].label,
                color=_COLORS.get(name, "0.5"),
                linestyle=(0, (5, 2)) if limit else "-",
                linewidth=2.6 if ours or limit else 1.6,
                marker="" if limit and len(lines[name]) > 1 else _MARKERS.get(name, "."),
                markersize=6 if ours else 8,
                zorder=4 if limit else 3 if ours else 2,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(f"{text} ({'higher' if best_first else 'lower'} is better)")
        figure.legend(loc="outside right center", frameon=False)
        figure.text(0.995, 0.005, where, ha="right", va="bottom", fontsize=8, color="0.4")
        figure.savefig(path, dpi=130)
        plt.close(figure)
    return path


def _number(value: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}"
