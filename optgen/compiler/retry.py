"""Known other ways to compile what the compiler refuses: one table, for steps, functions, C and WebAssembly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from optgen.errors import CompileError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Way:
    """Flags with which programs compile that do not without them, at a price.

    Attributes:
        name: what manifests call it.
        backends: of the targets that know the flags.
        flags: for iree-compile.
    """

    name: str
    backends: tuple[str, ...]
    flags: tuple[str, ...]


#: In the order in which they are tried. Only what is known to help, and right, belongs here.
WAYS = (
    # A kernel that is not dealt out among threads: what reads its operand backwards (stablehlo.reverse) and has another
    # result besides cannot be cut into tiles. "inferred input/output operand #0 has shape's dimension"
    Way("undistributed", ("cpu",), ("--iree-llvmcpu-disable-distribution",)),
    # Sums and maxima that each invocation makes alone. "failed to get neutral element for reduction", "failed to
    # distribute". Compiled, not yet run on a GPU: the bundle's probes are what proves it there.
    Way("reductions_by_lanes", ("cuda", "rocm"), ("--iree-codegen-llvmgpu-use-reduction-vector-distribution=false",)),
)


def in_known_ways(attempt: Callable[[tuple[str, ...]], _T], backend: str) -> tuple[_T, tuple[str, ...]]:
    """What ``attempt`` makes with the first flags with which the compiler takes the program.

    Args:
        attempt: compiles with some flags more.
        backend: of the target.

    Returns:
        What it made, and the name of the way; none where it needed no other.

    Raises:
        CompileError: of the first attempt, if all are refused.
    """
    try:
        return attempt(()), ()
    except CompileError as error:
        refusal = error
    for way in WAYS:
        if backend in way.backends:
            try:
                return attempt(way.flags), (way.name,)
            except CompileError:
                continue
    raise refusal
