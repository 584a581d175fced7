"""Compiled functions beside compiled rules: a whole training loop without JAX or a compiler.

:func:`compile_function` needs both; :func:`load_function` and what it returns need numpy and iree.runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from optgen.runtime.function import CompiledFunction as CompiledFunction
from optgen.runtime.function import load_function as load_function

if TYPE_CHECKING:
    from optgen.train.compile import compile_function as compile_function

__all__ = ["CompiledFunction", "compile_function", "load_function"]


def __getattr__(name: str) -> Any:
    # Late, so that a process that only trains never imports what compiles.
    if name == "compile_function":
        return importlib.import_module("optgen.train.compile").compile_function
    raise AttributeError(f"module 'optgen.train' has no attribute {name!r}")
