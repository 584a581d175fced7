"""Hyperparameters that no step reads: whoever gives one to a step is told so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from optgen.artifact import Bundle
from optgen.errors import HyperparameterError

_ARGUMENT = re.compile(r"%arg(\d+)\b")


def idle_hypers(bundle: Bundle) -> frozenset[str]:
    """The hyperparameters of a rule that none of a bundle's kernels reads, by what was traced.

    Such are those that state starts with (Rprop's ``lr``), and those that other structure has no use for (SGD's
    ``dampening`` without momentum).
    """
    manifest = bundle.manifest
    read = {"step", *(h.name for h in manifest.hypers if h.kind == "seed")}  # kernels round by it; no trace has it
    if manifest.micro is not None:
        read.add(manifest.micro.every)
    for kernel in manifest.kernels:
        text = bundle.files[kernel.stablehlo].decode()
        begin = text.find("@main(")
        if begin < 0:
            return frozenset()
        end = text.find("func.func", begin)
        counts: dict[int, int] = {}
        for found in _ARGUMENT.findall(text, begin, len(text) if end < 0 else end):
            counts[int(found)] = counts.get(int(found), 0) + 1
        first = len(kernel.operands)
        read |= {scalar.hyper for i, scalar in enumerate(kernel.scalars) if counts.get(first + i, 0) != 1}
    read |= set(manifest.per_element)
    # What has no default must be given, so it cannot be refused; but for what state starts with.
    read |= {h.name for h in manifest.hypers if h.default is None and h.name not in manifest.init.values()}
    return frozenset(h.name for h in manifest.hypers if h.name not in read)


def refuse_idle(idle: frozenset[str], given: Mapping[str, Any], starts: Mapping[str, Any], rule: str) -> None:
    """Refuses hyperparameters for a step that would have no effect.

    Args:
        idle: those that no step reads.
        given: what a step was given.
        starts: what state starts with, by its name.
        rule: what to call the optimizer.

    Raises:
        HyperparameterError: naming the first, and what to do.
    """
    for name in given:
        if name in idle:
            state = next((slot for slot, start in starts.items() if start == name), None)
            raise HyperparameterError(
                f"'{name}' has no effect on a step of '{rule}'"
                + (f": its state '{state}' starts with it. Give it to init" if state else " as it was compiled")
            )
