"""The bundles that come with optgen: what is in them, and building them.

``python -m optgen.compiler.prebuilt FOLDER`` (``scripts/build_artifacts``) writes them; the same sources and compiler
give the same bytes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from optgen.artifact import Bundle, write_bundle
from optgen.compiler.build import build_bundle
from optgen.dsl.derivative import vjp_rule
from optgen.dsl.variant import Variant
from optgen.rules import OUT_OF_PLACE, get_rule, rule_names
from optgen.targets import PREBUILT_TARGETS, get_target


@dataclass(frozen=True)
class Recipe:
    """One bundle: a variant, the dtypes of its params, its targets, and whether f32 comes in f32 arithmetic too."""

    variant: Variant
    dtypes: tuple[str, ...] = ("f32", "f64", "bf16", "f16")
    targets: tuple[str, ...] = PREBUILT_TARGETS
    fast: bool = False

    def build(self, *, use_cache: bool = True) -> Bundle:
        """Compiles it."""
        return build_bundle(
            self.variant,
            [
                *(self.variant.dtypes(name) for name in self.dtypes),
                *([self.variant.dtypes("f32", compute="f32")] if self.fast else []),
            ],
            [get_target(name) for name in self.targets],
            skip_unsupported=True,
            use_cache=use_cache,
        )


#: Rules, in their default convention, whose bundles also hold f32 arithmetic.
_FAST = ("sgd", "adam", "adamw", "lion", "lamb", "rmsprop", "adagrad")


def recipes() -> Iterator[Recipe]:
    """Every prebuilt bundle: each native rule in its default convention, and the variants that are asked for most."""
    for name in rule_names():
        rule = get_rule(name)
        if rule.convention == "ivy" or name in OUT_OF_PLACE:
            continue
        yield Recipe(Variant.of(rule), fast=name in _FAST)
    sgd, momentum = get_rule("sgd"), {"momentum": True}
    yield Recipe(Variant.of(sgd, structure=momentum), fast=True)
    yield Recipe(Variant.of(sgd, structure={**momentum, "nesterov": True}), fast=True)
    # The functional API: per-element lr, and derivatives for stop_gradients=False (on the CPU, in f32 and f64).
    on_cpu = tuple(t for t in PREBUILT_TARGETS if t.startswith("cpu"))
    for name in ("gradient_descent", "adam"):
        rule = get_rule(name, "ivy")
        yield Recipe(Variant.of(rule))
        yield Recipe(Variant.of(rule, per_element=("lr",)))
        yield Recipe(Variant.of(vjp_rule(rule)), ("f32", "f64"), on_cpu)
    step = get_rule("adam_step", "ivy")
    yield Recipe(Variant.of(step))
    yield Recipe(Variant.of(vjp_rule(step, ())), ("f32", "f64"), on_cpu)


def main(folder: str) -> None:
    """Writes every bundle into ``folder``, and removes those that are no more."""
    from rich.console import Console

    console, made = Console(), set()

    def make(recipe: Recipe) -> tuple[Path, int, float]:
        start = time.perf_counter()
        bundle = recipe.build(use_cache="--no-cache" not in sys.argv)
        path = write_bundle(bundle, Path(folder, f"{recipe.variant.name}.optgen"))
        return path, sum(len(k.modules) for k in bundle.manifest.kernels), time.perf_counter() - start

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # iree-compile runs beside this process
        for path, modules, seconds in pool.map(make, recipes()):
            made.add(path)
            console.print(f"{path.name:40} {modules:3} modules {path.stat().st_size / 1024:7.1f} KB {seconds:6.1f} s")
    for stale in set(Path(folder).glob("*.optgen")) - made:
        stale.unlink()
        console.print(f"{stale.name:40} removed")
    console.print(f"{sum(path.stat().st_size for path in made) / 2**20:.1f} MB in all")


if __name__ == "__main__":
    main(next(a for a in sys.argv[1:] if not a.startswith("-")))
