"""optgen: optimizer updates as compiled, versioned, multi-target artifacts.

``import optgen`` needs numpy alone; JAX, torch and the compiler are imported by what uses them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from optgen._version import __version__ as __version__

if TYPE_CHECKING:
    from optgen import train as train
    from optgen.arrays import Array as Array
    from optgen.arrays import Container as Container
    from optgen.arrays import adam_step as adam_step
    from optgen.arrays import adam_update as adam_update
    from optgen.arrays import array as array
    from optgen.arrays import gradient_descent_update as gradient_descent_update
    from optgen.arrays import optimizer_update as optimizer_update
    from optgen.arrays import set_array_decimal_values as set_array_decimal_values
    from optgen.arrays import set_array_significant_figures as set_array_significant_figures
    from optgen.arrays import zeros as zeros
    from optgen.arrays import zeros_like as zeros_like
    from optgen.artifact import Bundle as Bundle
    from optgen.artifact import read_bundle as read_bundle
    from optgen.artifact import write_bundle as write_bundle
    from optgen.compiler import compile as compile
    from optgen.dsl import Rule as Rule
    from optgen.dsl import chain as chain
    from optgen.dsl import rule as rule
    from optgen.errors import OptgenError as OptgenError
    from optgen.native import compile_c as compile_c
    from optgen.rules import get_rule as get_rule
    from optgen.rules.around import accumulate as accumulate
    from optgen.rules.around import add_decayed_weights as add_decayed_weights
    from optgen.rules.around import clip_by_global_norm as clip_by_global_norm
    from optgen.rules.around import clip_by_norm as clip_by_norm
    from optgen.rules.around import clip_by_value as clip_by_value
    from optgen.rules.around import ema as ema
    from optgen.rules.around import polyak as polyak
    from optgen.rules.around import scale_by_loss as scale_by_loss
    from optgen.rules.around import schedule as schedule
    from optgen.rules.around import skip_not_finite as skip_not_finite
    from optgen.runtime import Optimizer as Optimizer
    from optgen.runtime import list_devices as list_devices
    from optgen.runtime import load as load
    from optgen.runtime import load_state as load_state
    from optgen.runtime import prebuilt as prebuilt
    from optgen.runtime import save_state as save_state

_HOMES = {
    "optgen.arrays": (
        "Array", "Container", "adam_step", "adam_update", "array", "gradient_descent_update", "optimizer_update",
        "set_array_decimal_values", "set_array_significant_figures", "zeros", "zeros_like",
    ),
    "optgen.artifact": ("Bundle", "read_bundle", "write_bundle"),
    "optgen.compiler": ("compile",),
    "optgen.dsl": ("Rule", "chain", "rule"),
    "optgen.errors": ("OptgenError",),
    "optgen.native": ("compile_c",),
    "optgen.rules": ("get_rule",),
    "optgen.rules.around": (
        "accumulate", "add_decayed_weights", "clip_by_global_norm", "clip_by_norm", "clip_by_value", "ema", "polyak",
        "scale_by_loss", "schedule", "skip_not_finite",
    ),
    "optgen.runtime": ("Optimizer", "list_devices", "load", "load_state", "prebuilt", "save_state"),
}  # fmt: skip
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    # `optgen.arrays` is a package as well as a function: the function is what users mean, so it is put in the
    # package's place once that has been imported.
    if name == "train":
        return importlib.import_module("optgen.train")
    if name not in _WHERE:
        raise AttributeError(f"module 'optgen' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
