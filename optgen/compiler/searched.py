"""Compiling programs of several kernels, which JAX wrote: steps, functions, heads of optax transformations.

The kernels of rules are proven one by one. A program of many is searched after it is compiled and before anything runs
it, for what the compiler is known to get wrong: memory that is written over too soon, and on Vulkan barriers that are
left out, vectors that begin in the middle of four numbers, narrow elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optgen.artifact.manifest import LeafInfo
from optgen.compiler.barriers import proven
from optgen.compiler.blame import Sources, blamed
from optgen.compiler.driver import Watched
from optgen.compiler.retry import in_known_ways
from optgen.compiler.variants import compile_for
from optgen.dtypes import storage_dtype
from optgen.lower.hazard import Hazard, check_own_memory, find_hazards
from optgen.targets import Target
from optgen.train.limits import check_stored, check_vectors, for_vulkan


def program_flags(target: Target, leaves: Sequence[LeafInfo]) -> tuple[str, ...]:
    """The compiler's flags for a program that takes ``leaves``."""
    if target.backend == "cpu":
        # Else the code assumes 64-byte alignment and crashes on memory that numpy or a slice of it gives.
        alignment = min((storage_dtype(leaf.dtype).itemsize for leaf in leaves), default=64)
        return (*target.flags, f"--iree-stream-resource-min-offset-alignment={alignment}")
    if target.backend == "vulkan":
        # With recorded command buffers a program was seen to give NaN from its third call.
        return (*target.flags, "--iree-hal-indirect-command-buffers=false")
    return target.flags


@dataclass(frozen=True)
class Searched:
    """A compiled program, and what was found in it.

    Attributes:
        source: the program as the compiler was given it.
        made: the module, and the compiler's IR.
        flags: that it was compiled with, ``retried`` and all.
        retried: the other ways in which it had to be compiled; see :mod:`optgen.compiler.retry`.
        hazards: of the arguments that it overwrites.
    """

    source: str
    made: Watched
    flags: tuple[str, ...]
    retried: tuple[str, ...]
    hazards: tuple[Hazard, ...]


def search(
    mlir: str, target: Target, leaves: Sequence[LeafInfo], *, sources: Sources = (), use_cache: bool = True
) -> Searched:
    """Compiles a program for a target and searches it for memory that is overwritten while it is still read.

    Args:
        mlir: the program.
        target: what for.
        leaves: what it takes.
        sources: where its functions come from, so that refusals name lines.
        use_cache: whether to look in the cache, and to fill it.

    Raises:
        CompileError: if the compiler refuses the program in every known way.
        UnsupportedTargetError: if it has an operation that Vulkan has no form for.
        HazardError: if the compiler would write over the program's own memory too soon. What it writes over of its
            arguments is for the caller to judge.
    """
    flags = program_flags(target, leaves)

    def compiled(text: str) -> Searched:
        source = for_vulkan(target, text)

        def attempt(more: tuple[str, ...]) -> tuple[Watched, tuple[str, ...]]:
            given = (*flags, *more)
            return compile_for(source, target, given, search=True, use_cache=use_cache), given

        (made, used), retried = in_known_ways(attempt, target.backend)
        return Searched(source, made, used, retried, tuple(find_hazards(made.printed, movable=target.backend != "cpu")))

    searched = blamed(compiled, mlir, sources)
    check_own_memory(searched.hazards)
    return searched


def prove(searched: Searched, target: Target, *, use_cache: bool = True) -> bytes:
    """The module of a program whose hazards are met, where it is right on whatever device its target means.

    Raises:
        UnsupportedTargetError: for Vulkan, if its kernels store narrow elements, or read vectors that begin in the
            middle of four numbers.
        CompileError: naming the kernel that cannot be proven for every size of subgroups.
    """
    if target.backend != "vulkan":
        return searched.made.module
    check_stored(target, searched.made.printed)
    check_vectors(target, searched.made.printed, searched.made.stream)
    return proven(searched.source, target, searched.flags, searched.made.module, use_cache=use_cache)


def compile_reading(
    mlir: str, target: Target, leaves: Sequence[LeafInfo], *, sources: Sources = (), use_cache: bool = True
) -> tuple[bytes, tuple[str, ...]]:
    """Compiles a program that overwrites none of its arguments.

    Args:
        mlir, target, leaves, sources, use_cache: as for :func:`search`.

    Returns:
        The module, and the other ways in which it had to be compiled.

    Raises:
        CompileError, UnsupportedTargetError, HazardError: as :func:`search` and :func:`prove`.
    """
    searched = search(mlir, target, leaves, sources=sources, use_cache=use_cache)
    return prove(searched, target, use_cache=use_cache), searched.retried
