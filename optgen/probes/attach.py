"""Giving a bundle its probes, and running them at once where its modules can run."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optgen.artifact.base import AnyBundle
from optgen.errors import UnprovenWarning
from optgen.probes.build import Recipe, make_probe, samples_for
from optgen.probes.values import PROBES

#: The part of a bundle's files that its probes may take as they are stored: files are deflated to between a third and a
#: quarter, of which this is less than a twentieth.
_PART = 0.0125

B = TypeVar("B", bound=AnyBundle[Any])


def unproven(what: str, error: Exception, *, stacklevel: int) -> str:
    """Warns that nothing proves an artifact, since its reference cannot be computed.

    Args:
        what: ``'loss' carries no probes``.
        error: why.
        stacklevel: as of :func:`warnings.warn`.

    Returns:
        The reason, in one line.
    """
    reason = next(iter(str(error).strip().splitlines()), "")
    reason = f"its reference cannot be computed: {type(error).__name__}: {reason}"[:300].rstrip(": ")
    warnings.warn(f"{what}, so nothing proves it: {reason}", UnprovenWarning, stacklevel=stacklevel)
    return reason


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
        reason = unproven(f"'{bundle.manifest.label}' carries no probes", error, stacklevel=4)
        return type(bundle).of(dataclasses.replace(bundle.manifest, unprobed=reason), bundle.files)
    manifest = dataclasses.replace(bundle.manifest, probes=tuple(probe.info for probe, _ in made))
    return type(bundle).of(manifest, {**bundle.files, PROBES: b"".join(data for _, data in made)})
