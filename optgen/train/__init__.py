"""Compiled training: functions beside rules, or whole steps, to be run without JAX or a compiler.

:func:`compile_step`, its forms without a runtime, and :func:`compile_function` need both; :class:`TrainStep`,
:func:`load_function` and what it returns need numpy and iree.runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from optgen.runtime.function import CompiledFunction as CompiledFunction
from optgen.runtime.function import load_function as load_function
from optgen.runtime.step import TrainStep as TrainStep

if TYPE_CHECKING:
    from optgen.train.compile import compile_function as compile_function
    from optgen.train.native import compile_step_c as compile_step_c
    from optgen.train.native import compile_step_wasm as compile_step_wasm
    from optgen.train.program import StepProgram as StepProgram
    from optgen.train.program import lower_step as lower_step
    from optgen.train.program import step_flags as step_flags
    from optgen.train.step import compile_step as compile_step

_LATE = {
    "compile_function": "compile", "compile_step": "step", "compile_step_c": "native", "compile_step_wasm": "native",
    "lower_step": "program", "StepProgram": "program", "step_flags": "program",
}  # fmt: skip

__all__ = [
    "CompiledFunction", "StepProgram", "TrainStep", "compile_function", "compile_step", "compile_step_c",
    "compile_step_wasm", "load_function", "lower_step", "step_flags",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Late, so that a process that only trains never imports what compiles.
    if name in _LATE:
        return getattr(importlib.import_module(f"optgen.train.{_LATE[name]}"), name)
    raise AttributeError(f"module 'optgen.train' has no attribute {name!r}")
