"""From a file to an optimizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from optgen import resources
from optgen.artifact import Bundle, read_bundle
from optgen.artifact.base import kind_of_bundle
from optgen.artifact.kinds import SomeBundle, read_any
from optgen.artifact.step import StepBundle
from optgen.artifact.storage import MANIFEST, read_files
from optgen.artifact.transform import TransformBundle
from optgen.errors import BundleNotFoundError, HyperparameterError
from optgen.runtime.optimizer import Optimizer
from optgen.runtime.step import TrainStep
from optgen.runtime.transform import TreeOptimizer


def load(
    path: str | os.PathLike[str],
    device: str | None = None,
    *,
    compute_dtype: Any = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    **defaults: Any,
) -> Any:
    """Loads and verifies a bundle.

    Args:
        path: a directory, or a file that ends in ``.optgen``.
        device, compute_dtype, groups: see :class:`Optimizer`.
        defaults: hyperparameters for steps that do not give them.

    Returns:
        An :class:`Optimizer`; a :class:`TreeOptimizer` from the bundle of an optax transformation; a
        :class:`TrainStep` from that of a whole training step.

    Raises:
        BundleNotFoundError, BundleError, BundleVersionError: if there is none, or it is damaged or too new.
        DeviceError: if the device is not there, or the bundle has no module for it.
        HyperparameterError: if a default is unknown or out of range, or given to a transformation.
    """
    files = read_files(path)
    kind = kind_of_bundle(files[MANIFEST])
    others = {"compute_dtype": compute_dtype, "groups": groups}
    if kind == "step":
        if wrong := [name for name, value in others.items() if value is not None]:
            raise HyperparameterError(f"'{wrong[0]}' must not be given with a training step: it is compiled in")
        return TrainStep(StepBundle.from_files(path, files), device, defaults)
    if kind == "transform":
        if given := [*defaults, *(name for name, value in others.items() if value is not None)]:
            raise HyperparameterError(
                f"'{given[0]}' must not be given with an optax transformation: it is compiled in, or in the state"
            )
        return TreeOptimizer(TransformBundle.from_files(path, files), device)
    return Optimizer(Bundle.from_files(path, files), device, defaults, compute_dtype=compute_dtype, groups=groups)


@lru_cache(maxsize=64)
def prebuilt_bundle(name: str) -> Bundle:
    """One of the bundles that come with optgen, by the name of its variant.

    Raises:
        BundleNotFoundError: if there is none; the message lists those there are.
    """
    path = resources.artifacts() / f"{name}.optgen"
    if not path.exists():
        raise BundleNotFoundError(f"there is no prebuilt bundle {name!r}; there are {', '.join(prebuilt_names())}")
    return read_bundle(path)


def open_bundle(text: str) -> Bundle:
    """The bundle of a rule at that path; where there is nothing, the prebuilt one of that name.

    Raises:
        BundleNotFoundError: if there is neither; the message lists the prebuilt ones.
        BundleError: if it is damaged, or holds something else.
    """
    return prebuilt_bundle(text) if _is_prebuilt(text) else read_bundle(text)


def open_any(text: str) -> SomeBundle:
    """As :func:`open_bundle`, whatever the bundle holds."""
    return prebuilt_bundle(text) if _is_prebuilt(text) else read_any(text)


def _is_prebuilt(text: str) -> bool:
    """Whether ``text`` is the name of a prebuilt bundle, and not the path of one.

    Raises:
        BundleNotFoundError: if it can be neither.
    """
    if Path(text).exists():
        return False
    if text in prebuilt_names():
        return True
    if text.endswith(".optgen"):
        return False
    known = ", ".join(prebuilt_names()) or "none"
    raise BundleNotFoundError(f"there is no bundle at {text}, and no prebuilt one of that name; there are {known}")


def prebuilt_names() -> list[str]:
    """The names of the prebuilt bundles."""
    return sorted(p.name.removesuffix(".optgen") for p in resources.artifacts().glob("*.optgen"))


def prebuilt(
    rule: str,
    device: str | None = None,
    *,
    convention: str | None = None,
    compute_dtype: Any = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Optimizer:
    """An optimizer from the bundles that come with optgen: no compiler, no JAX.

    Args:
        rule: name of the rule.
        device, compute_dtype, groups: see :class:`Optimizer`.
        convention: whose arithmetic; by default torch's, or optax's where torch has no such rule.
        settings: structure (``nesterov=True``) and defaults for hyperparameters.

    Raises:
        BundleNotFoundError: if no such bundle comes with optgen.
        DeviceError, HyperparameterError: as :func:`load`.

    Example:
        >>> prebuilt("sgd", momentum=0.9, nesterov=True).manifest.variant
        'sgd-momentum-nesterov'
    """
    from optgen.dsl.variant import Variant
    from optgen.rules import get_rule

    found = get_rule(rule, convention)
    structure, defaults = split_settings(found.flags, found.optional, settings)
    variant = Variant.of(found, structure=structure)
    return Optimizer(prebuilt_bundle(variant.name), device, defaults, compute_dtype=compute_dtype, groups=groups)


def split_settings(
    flags: Mapping[str, bool], optional: frozenset[str], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings as structure and as values: an optional hyperparameter counts as both."""
    structure = {n: v for n, v in settings.items() if n in flags or n in optional}
    values = {n: v for n, v in settings.items() if n not in flags and v is not None}
    return structure, values
