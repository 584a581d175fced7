"""Giving a bundle its probes, and running them at once where its modules can run."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optgen.artifact.base import AnyBundle
from optgen.probes.build import Recipe, make_probe, samples_for
from optgen.probes.values import PROBES

#: The part of a bundle's files that its probes may take as they are stored: files are deflated to between a third and a
#: quarter, of which this is less than a twentieth.
_PART = 0.0125

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
        samples, projections = samples_for(bundle.size * _PART, found)
        made = [make_probe(recipe, samples, projections) for recipe in found]
    except Exception as error:  # whatever JAX or numpy has against one of the user's operations
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        reason = f"its reference cannot be computed: {type(error).__name__}: {reason}"[:300]
        warnings.warn(f"'{bundle.manifest.label}' carries no probes, so nothing proves it: {reason}", stacklevel=3)
        return type(bundle).of(dataclasses.replace(bundle.manifest, unprobed=reason), bundle.files)
    manifest = dataclasses.replace(bundle.manifest, probes=tuple(probe.info for probe, _ in made))
    return type(bundle).of(manifest, {**bundle.files, PROBES: b"".join(data for _, data in made)})
