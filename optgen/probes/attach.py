"""Giving a bundle its probes, and running them at once where its modules can run."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optgen.artifact.base import AnyBundle
from optgen.probes.build import Recipe, make_probe, samples_for
from optgen.probes.values import PROBES

#: The part of a bundle that the numbers of its probes may be. Files are stored deflated, which makes a quarter of
#: modules and leaves numbers as they are.
_PART = 1 / 100

B = TypeVar("B", bound=AnyBundle[Any])


def attach(bundle: B, recipes: Callable[[], Sequence[Recipe]]) -> B:
    """``bundle`` with the probes of its programs.

    Where the reference cannot be evaluated the bundle has none: the manifest says why under ``unprobed``, and so does a
    warning.

    Args:
        bundle: a step, a function or a transformation.
        recipes: gives what its programs compute.
    """
    try:
        found = recipes()
        samples = samples_for(int(bundle.size * _PART), [(len(r.hypers), r.results) for r in found])
        made = [make_probe(recipe, samples) for recipe in found]
    except Exception as error:  # whatever JAX or numpy has against one of the user's operations
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        reason = f"its reference cannot be computed: {type(error).__name__}: {reason}"[:300]
        warnings.warn(f"'{bundle.manifest.label}' carries no probes, so nothing proves it: {reason}", stacklevel=3)
        return type(bundle).of(dataclasses.replace(bundle.manifest, unprobed=reason), bundle.files)
    manifest = dataclasses.replace(bundle.manifest, probes=tuple(probe.info for probe, _ in made))
    return type(bundle).of(manifest, {**bundle.files, PROBES: b"".join(data for _, data in made)})
