"""The training process of the demo: bundles, numpy and iree.runtime; neither JAX nor the compiler.

``python -m optgen.train.digits --out out`` trains from the bundles in ``out/bundles``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from optgen.runtime import list_devices, load
from optgen.train import load_function, recipe

_FORBIDDEN = ("jax", "iree.compiler")


@dataclass
class Run:
    """One training run: a rule on a device."""

    rule: str
    target: str
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    ms_per_update: float = 0.0
    artifact_bytes: int = 0

    @property
    def final_loss(self) -> float:
        """The mean over the last epoch's batches: single batches scatter."""
        return float(np.mean(self.losses[-(recipe.TRAIN // recipe.BATCH) :]))


def check_imports(console: Console, when: str) -> None:
    """Raises if JAX or the compiler is in this process; says so if not."""
    if loaded := [name for name in _FORBIDDEN if name in sys.modules]:
        raise RuntimeError(f"{when}: {' and '.join(loaded)} must not be imported in the process that trains")
    console.print(f"[dim]{when}: neither {' nor '.join(_FORBIDDEN)} is imported in this process[/dim]")


def load_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits, 8 x 8 pixels in [0, 1]: images and classes to train with, and to test with."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32), classes[order].astype(np.int32)
    return x[: recipe.TRAIN], y[: recipe.TRAIN], x[recipe.TRAIN :], y[recipe.TRAIN :]


def train(folder: Path, rule: str, target: str, epochs: int, progress: Progress) -> Run:
    """Trains once; every rule and target sees the same batches and begins with the same params."""
    opt = load(folder / f"{rule}.optgen", target)
    loss_and_grad = load_function(folder / "loss_and_grad.optgen", target)
    predict = load_function(folder / "predict.optgen", target)
    x, y, test_x, test_y = load_data()
    params = recipe.load_params(str(folder / "params.npz"))
    state = opt.init(params)
    run = Run(rule, target, artifact_bytes=(folder / f"{rule}.optgen").stat().st_size)
    rng, times = np.random.default_rng(1), []
    batches = len(x) // recipe.BATCH
    task = progress.add_task(f"{rule} on {target}", total=epochs * batches, accuracy="")
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for batch in np.split(order[: batches * recipe.BATCH], batches):
            loss, grads = loss_and_grad(params, x[batch], y[batch])
            start = time.perf_counter()
            params, state = opt.step(params, grads, state)
            times.append(time.perf_counter() - start)
            run.losses.append(float(loss))
            progress.advance(task)
        run.accuracies.append(float(np.mean(predict(params, test_x).argmax(axis=1) == test_y)))
        progress.update(task, accuracy=f"{run.accuracies[-1]:.1%}")
    run.ms_per_update = 1e3 * float(np.median(times))
    return run


def differences(runs: list[Run]) -> dict[str, np.ndarray]:
    """For each rule that ran on two devices, how far apart their losses are at each step."""
    found = {}
    for rule in dict.fromkeys(run.rule for run in runs):
        losses = [np.array(run.losses) for run in runs if run.rule == rule]
        if len(losses) == 2:
            found[rule] = np.abs(losses[0] - losses[1])
    return found


def failures(runs: list[Run], min_accuracy: float) -> list[str]:
    """What is wrong with the results, a sentence each."""
    found = [
        f"{run.rule} on {run.target} reached {run.accuracies[-1]:.1%} of the test set, below {min_accuracy:.0%}"
        for run in runs
        if not run.accuracies[-1] >= min_accuracy
    ]
    for rule, difference in differences(runs).items():
        if not np.all(difference <= recipe.MAX_DIFFERENCE):
            step = int(np.argmax(~(difference <= recipe.MAX_DIFFERENCE)))
            found.append(
                f"{rule}: the losses of CPU and Vulkan differ by {difference[step]:.1e} at step {step}, more than "
                f"{recipe.MAX_DIFFERENCE:.0e}"
            )
    return found


def main(out: str | Path, *, epochs: int, min_accuracy: float) -> int:
    """Trains every rule on every device that is there.

    Returns:
        0; 1 if a run is not accurate enough, or devices disagree.
    """
    console, folder = Console(), Path(out)
    check_imports(console, "start")
    has_vulkan = bool(list_devices("vulkan"))
    targets = [t for t in recipe.TARGETS if t != "vulkan" or has_vulkan]
    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("test {task.fields[accuracy]}"))  # fmt: skip
    with Progress(*columns, console=console) as progress:
        runs = [
            train(folder / "bundles", each.rule, target, epochs, progress)
            for each in recipe.RECIPES
            for target in targets
        ]
    console.print(_table(runs, has_vulkan))
    for rule, difference in differences(runs).items():
        console.print(f"{rule:6} CPU and Vulkan losses differ by at most {difference.max():.1e} over all steps")
    if not has_vulkan:
        console.print("There is no Vulkan device here: trained on the CPU alone, so nothing was compared.")
    devices = {t: dict(list_devices("local-sync" if t == "cpu" else t)) for t in targets}
    results = {
        "devices": {t: next(iter(found.values())) for t, found in devices.items()},
        "max_difference": {rule: float(d.max()) for rule, d in differences(runs).items()},
        "runs": [{**asdict(run), "final_loss": run.final_loss} for run in runs],
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    from optgen.train.plot import draw

    draw(runs, differences(runs), folder / "training.png")
    console.print(f"Wrote {folder / 'training.png'} and {folder / 'results.json'}")
    check_imports(console, "end")
    wrong = failures(runs, min_accuracy)
    for sentence in wrong:
        console.print(f"[red]FAILED[/red] {sentence}")
    return 1 if wrong else 0


def _table(runs: list[Run], has_vulkan: bool) -> Table:
    table = Table("rule", "target", title="Handwritten digits, MLP 64-128-10", title_justify="left")
    for name in ("final loss", "test accuracy", "ms per update", "artifact KB"):
        table.add_column(name, justify="right")
    for rule in dict.fromkeys(run.rule for run in runs):
        for run in (r for r in runs if r.rule == rule):
            table.add_row(
                run.rule, run.target, f"{run.final_loss:.4f}", f"{run.accuracies[-1]:.1%}",
                f"{run.ms_per_update:.2f}", f"{run.artifact_bytes / 1024:.1f}",
            )  # fmt: skip
        if not has_vulkan:
            table.add_row(rule, "vulkan", "no device", "", "", "")
    return table


if __name__ == "__main__":
    from optgen.train.demo import arguments

    given = arguments("Train with the bundles that the demo compiled.")
    sys.exit(main(given.out, epochs=given.epochs, min_accuracy=given.min_accuracy))
