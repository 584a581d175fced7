"""The demo: compile a model and three rules, then train in a process that has neither JAX nor the compiler.

``python -m optgen.train.demo --out out`` (``scripts/run``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from optgen.train import recipe


def main(out: str | Path = "out", *, epochs: int = recipe.EPOCHS, min_accuracy: float = recipe.MIN_ACCURACY) -> int:
    """Compiles into ``out/bundles`` and trains from there.

    Args:
        out: where bundles, picture and results go.
        epochs: of training.
        min_accuracy: below which a run fails.

    Returns:
        0, or the exit code of the process that trains: 1 if it missed its accuracy, or devices disagreed.
    """
    folder, console = Path(out), Console()
    (folder / "bundles").mkdir(parents=True, exist_ok=True)
    recipe.save_params(str(folder / "bundles" / "params.npz"), recipe.init_params())
    compile_all(folder / "bundles", console)
    command = [sys.executable, "-m", "optgen.train.digits", "--out", str(folder)]
    command += ["--epochs", str(epochs), "--min-accuracy", str(min_accuracy)]
    return subprocess.run(command, check=False).returncode


def compile_all(folder: Path, console: Console) -> None:
    """Compiles the model's two functions and the rules for every target, and prints what came out."""
    from optgen.compiler import compile as compile_rule
    from optgen.train import mlp
    from optgen.train.compile import compile_function

    params = recipe.init_params()
    x, y = np.zeros((recipe.BATCH, recipe.LAYERS[0]), np.float32), np.zeros(recipe.BATCH, np.int32)
    test = np.zeros((recipe.TEST, recipe.LAYERS[0]), np.float32)
    jobs: list[tuple[str, Any]] = [
        ("loss_and_grad", lambda told: compile_function(
            mlp.loss_and_grad, params, x, y, targets=recipe.TARGETS, progress=told
        ).save(folder / "loss_and_grad.optgen")),
        ("predict", lambda told: compile_function(
            mlp.predict, params, test, targets=recipe.TARGETS, progress=told
        ).save(folder / "predict.optgen")),
    ]  # fmt: skip
    for each in recipe.RECIPES:

        def rule(told: Any, each: recipe.Recipe = each) -> Path:
            settings: dict[str, Any] = {**each.structure, **each.hypers}
            opt = compile_rule(each.rule, target=recipe.TARGETS, progress=told, **settings)
            return opt.save(folder / f"{each.rule}.optgen")

        jobs.append((each.rule, rule))
    table = Table("bundle", *recipe.TARGETS, "file", "seconds", title="Compiled (KB)", title_justify="left")
    with Progress(
        TextColumn("{task.description:32}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("importing JAX", total=len(jobs) * len(recipe.TARGETS))
        for name, job in jobs:
            sizes: dict[str, int] = {}

            def told(_: str, target: str, size: int | None, name: str = name, sizes: dict[str, int] = sizes) -> None:
                progress.update(task, description=f"{name} for {target}", advance=0 if size is None else 1)
                if size is not None:
                    sizes[target] = size

            start = time.perf_counter()
            path = job(told)
            cells = [f"{sizes[t] / 1024:.1f}" for t in recipe.TARGETS]
            size = path.stat().st_size / 1024
            table.add_row(name, *cells, f"{size:.1f}", f"{time.perf_counter() - start:.1f}")
    console.print(table)


def arguments(description: str) -> argparse.Namespace:
    """The command line that both processes take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", default="out", help="folder for bundles, picture and results (default: out)")
    parser.add_argument("--epochs", type=int, default=recipe.EPOCHS, help="epochs of training (default: %(default)s)")
    parser.add_argument(
        "--min-accuracy", type=float, default=recipe.MIN_ACCURACY, help="fail below this (default: %(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments("Compile optimizer rules and a model, then train with them.")
    sys.exit(main(given.out, epochs=given.epochs, min_accuracy=given.min_accuracy))
