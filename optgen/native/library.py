"""Compiling a module to machine code that nothing but its caller needs: an object file and its host program."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optgen.compiler import driver
from optgen.compiler.blame import Sources, blamed
from optgen.compiler.retry import in_known_ways
from optgen.errors import HazardError, LoweringError
from optgen.lower.hazard import PRINT_FLAG, check_own_memory, find_hazards
from optgen.lower.kept_halves import without_halves
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
    mlir: str,
    flags: Sequence[str],
    *,
    alignment: int,
    names: Iterable[str] = (),
    halves: bool = True,
    use_cache: bool = True,
    sources: Sources = (),
) -> Library:
    """Compiles a module with one public function to an object file.

    The module's aliasing (donated arguments, tied dispatches) is analysed on the way, since the compiler does not.

    Args:
        mlir: the module. Its name begins every symbol of the library that is seen from outside.
        flags: of the target, for iree-compile.
        alignment: that the arguments' addresses will have, in bytes: 64, or less for code that assumes less.
        names: of the function's arguments.
        halves: whether casts of f16 may be left to the compiler, whose library functions 32-bit targets call in another
            way than they are made; else the module must be StableHLO, see :mod:`optgen.lower.kept_halves`.
        use_cache: whether the result may come from the cache, and go there.
        sources: where its functions come from, so that refusals name lines.

    Returns:
        The library.

    Raises:
        CompileError: if the compiler refuses the module.
        HazardError: if an argument would be overwritten that something still reads.
        LoweringError: if the host code holds what is not understood, or there is nothing to compute.
    """
    names = tuple(names)

    def attempt(text: str) -> tuple[Library, str]:
        return _library(text, [*flags, *(["--mlir-print-debuginfo"] if text is not mlir else [])], alignment, names,
                        halves, use_cache)  # fmt: skip

    library, printed = blamed(attempt, mlir, sources)
    hazards = find_hazards(printed)
    check_own_memory(hazards)
    if hazards:
        arguments = sorted({h.argument for h in hazards})
        labels = ["memory" if i < 0 else names[i] if i < len(names) else f"argument {i}" for i in arguments]
        raise HazardError(
            f"{', '.join(labels)} would be overwritten while still in use ({hazards[0]}). Do not donate it, or put "
            "lax.optimization_barrier between its last use and the update",
            arguments,
        )
    return library


def _library(
    mlir: str, flags: Sequence[str], alignment: int, names: tuple[str, ...], halves: bool, use_cache: bool
) -> tuple[Library, str]:
    """The library, and what :func:`find_hazards` reads."""
    mlir = straighten(mlir)
    if not halves:
        mlir = without_halves(mlir)
    all_flags = [*flags, f"--iree-stream-resource-min-offset-alignment={alignment}", *_FLAGS]

    def attempt(more: tuple[str, ...]) -> list[bytes]:
        chosen = [*all_flags, *more]
        keys = [driver.cache_key(mlir, [*chosen, part]) for part in ("object", "host", "query", "printed")]
        return driver.cached(keys, lambda: _compile(mlir, chosen), use_cache)

    (code, host, query, printed), retried = in_known_ways(attempt, "cpu")
    text = host.decode()
    program = parse_program(text, json.loads(query), alignment=alignment, names=names, declared=_declared(mlir))
    return Library(code, program, text, retried), printed.decode()


def _declared(mlir: str) -> list[tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each argument of a module's public function; none where one has another type, or no shape
    that is known."""
    from iree.compiler import ir

    with ir.Context() as context:
        for each in ir.Module.parse(mlir, context).body.operations:
            op = each.operation
            if op.name not in ("func.func", "util.func") or "private" in str(op.attributes.get("sym_visibility", "")):
                continue
            types = [str(a.type) for a in op.regions[0].blocks[0].arguments] if op.regions[0].blocks else []
            found = [re.fullmatch(r"tensor<((?:\d+x)*)(u?)(i|bf|f)(\d+)>", t) for t in types]
            known = [t for t in found if t is not None]
            dtypes = ["bool" if t[3] + t[4] == "i1" else f"{t[2] or t[3]}{t[4]}" for t in known]
            shapes = [tuple(int(n) for n in t[1].split("x")[:-1]) for t in known]
            return list(zip(dtypes, shapes, strict=True)) if len(known) == len(types) else []
    return []


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
