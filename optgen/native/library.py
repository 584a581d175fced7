"""Compiling a module to machine code that nothing but its caller needs: an object file and its host program."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optgen.compiler import driver
from optgen.compiler.retry import in_known_ways
from optgen.errors import HazardError, LoweringError
from optgen.lower.hazard import PRINT_FLAG, find_hazards
from optgen.lower.straight import straighten
from optgen.native.parse import parse_program
from optgen.native.program import Program

# Hoisted constants would be state, set up before the first call and kept in writable memory. Tables that a function
# holds become part of its kernels, and so of the object's read-only data.
_FLAGS = (
    "--iree-execution-model=inline-dynamic",
    "--iree-llvmcpu-link-embedded=false",
    "--iree-llvmcpu-link-static",
    "--iree-llvmcpu-static-library-output-path=library.o",
    "--iree-llvmcpu-debug-symbols=false",
    "--iree-opt-const-eval=false",
    "--iree-opt-const-expr-hoisting=false",
    "--iree-flow-inline-constants-max-byte-length=1073741824",
    "--compile-to=hal",
)


@dataclass(frozen=True)
class Library:
    """Machine code and how to drive it.

    Attributes:
        object: an object file: ELF, or WebAssembly.
        program: what its caller must do.
        host: the compiler's host code that ``program`` was read from.
        retried: the other ways in which it had to be compiled; see :mod:`optgen.compiler.retry`.
    """

    object: bytes
    program: Program
    host: str
    retried: tuple[str, ...] = ()


def compile_library(
    mlir: str, flags: Sequence[str], *, alignment: int, names: Iterable[str] = (), use_cache: bool = True
) -> Library:
    """Compiles a module with one public function to an object file.

    The module's aliasing (donated arguments, tied dispatches) is analysed on the way, since the compiler does not.

    Args:
        mlir: the module. Its name begins every symbol of the library that is seen from outside.
        flags: of the target, for iree-compile.
        alignment: that the arguments' addresses will have, in bytes: 64, or less for code that assumes less.
        names: of the function's arguments.
        use_cache: whether the result may come from the cache, and go there.

    Returns:
        The library.

    Raises:
        CompileError: if the compiler refuses the module.
        HazardError: if an argument would be overwritten that something still reads.
        LoweringError: if the host code holds what is not understood, or there is nothing to compute.
    """
    mlir = straighten(mlir)
    all_flags = [*flags, f"--iree-stream-resource-min-offset-alignment={alignment}", *_FLAGS]
    names = tuple(names)

    def attempt(more: tuple[str, ...]) -> list[bytes]:
        chosen = [*all_flags, *more]
        keys = [driver.cache_key(mlir, [*chosen, part]) for part in ("object", "host", "query", "printed")]
        return driver.cached(keys, lambda: _compile(mlir, chosen), use_cache)

    (code, host, query, printed), retried = in_known_ways(attempt, "cpu")
    text = host.decode()
    try:
        program = parse_program(text, json.loads(query), alignment=alignment, names=names)
    except LoweringError as error:
        raise LoweringError(f"{error}{_suspects(mlir)}") from error
    if hazards := find_hazards(printed.decode()):
        arguments = sorted({h.argument for h in hazards})
        labels = ["memory" if i < 0 else names[i] if i < len(names) else f"argument {i}" for i in arguments]
        raise HazardError(
            f"{', '.join(labels)} would be overwritten while still in use ({hazards[0]}). Do not donate it, or put "
            "lax.optimization_barrier between its last use and the update",
            arguments,
        )
    return Library(code, program, text, retried)


#: What JAX's functions become that the host may be left with, and the functions that users write.
_ON_THE_HOST = {
    "while": "a loop (lax.scan, fori_loop, while_loop, map, jnp.searchsorted, digitize)",
    "case": "a branch (lax.cond, lax.switch)",
    "if": "a branch (lax.cond)",
    "dynamic_slice": "a slice that begins at a computed index (lax.dynamic_slice, x[i] of one i; jnp.take has none)",
    "dynamic_update_slice": "a slice that is written at a computed index (lax.dynamic_update_slice)",
}


def _suspects(mlir: str) -> str:
    """What of a program is likely to be left to its caller."""
    found = [what for name, what in _ON_THE_HOST.items() if re.search(rf"\bstablehlo\.{name}\W", mlir)]
    return f". The program has {', '.join(found)}" if found else ""


def _compile(mlir: str, flags: Sequence[str]) -> list[bytes]:
    with tempfile.TemporaryDirectory(prefix="optgen-") as name:
        folder = Path(name)
        printed: list[bytes] = []
        host = driver.run_in(folder, mlir, [*flags, PRINT_FLAG], printed)
        if not (folder / "library.h").exists():
            raise LoweringError("the function computes nothing that a kernel would be needed for: there is no code")
        header = (folder / "library.h").read_text()
        found = re.search(r"(\w+_library_query)\(", header)
        assert found is not None, "iree-compile wrote a header without a query function"
        return [(folder / "library.o").read_bytes(), host, json.dumps(found.group(1)).encode(), *printed]
