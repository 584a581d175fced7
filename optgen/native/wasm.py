"""Linking object files of WebAssembly, by the linker that ships with the compiler."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from optgen.compiler.driver import compiler_version
from optgen.errors import CompileError, CompilerNotFoundError
from optgen.native.wasm_math import math_object, missing

#: What a kernel may use of the stack, in bytes: twice what the compiler allows itself.
STACK = 65536
#: What modules with threads begin with and may have at most, in bytes: shared memory must say so.
INITIAL_MEMORY, MOST_MEMORY = 1 << 20, 1 << 30

_FLAGS = (
    "-flavor", "wasm", "--no-entry", "--export-table", "--growable-table", "--export=__heap_base",
    "--gc-sections", "--strip-all", "--stack-first", "-z", f"stack-size={STACK}",
)  # fmt: skip
# Each thread is an instance of its own on one memory: it has its own stack, and says where.
_SHARED = (
    "--shared-memory", "--import-memory", "--export=__stack_pointer", f"--initial-memory={INITIAL_MEMORY}",
    f"--max-memory={MOST_MEMORY}",
)  # fmt: skip
# What the linker asks of every object that is to share memory.
_SHARED_FEATURES = ("atomics", "bulk-memory", "mutable-globals")


@cache
def linker() -> str:
    """The path of iree-lld.

    Raises:
        CompilerNotFoundError: if iree-base-compiler is not installed, or came without it.
    """
    compiler_version()  # says what to install where it is missing
    import iree.compiler

    for folder in iree.compiler.__path__:
        for found in sorted(Path(folder).glob("_mlir_libs/iree-lld*")):
            return str(found)
    raise CompilerNotFoundError("iree-base-compiler is installed without its linker, iree-lld: reinstall it")


def link_wasm(code: bytes, query: str, *, threads: bool = False) -> bytes:
    """Links an object file to a module that imports nothing, or with ``threads`` its memory alone.

    It exports its memory, the table of its functions, where the heap begins, and the library's query function. The
    stack lies below everything else, so that to overflow it is a trap.

    Args:
        code: the object file.
        query: the symbol that the library is asked for by.
        threads: whether instances share memory; the object's target must have ``+atomics`` then.

    Returns:
        The .wasm; equal objects give equal bytes.

    Raises:
        CompileError: if it cannot be linked.
        CompilerNotFoundError: if the compiler is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="optgen-") as name:
        folder = Path(name)
        (folder / "library.o").write_bytes(code)
        memory = _SHARED if threads else ("--export-memory",)
        objects = ["library.o"]
        if names := missing(code):
            (folder / "math.o").write_bytes(math_object(names, _SHARED_FEATURES if threads else ()))
            objects.append("math.o")
        command = [linker(), *_FLAGS, *memory, f"--export={query}", *objects, "-o", "library.wasm"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if "error:" in line]
            raise CompileError(f"iree-lld cannot link the module: {(lines or [result.stderr])[0].strip()[:300]}")
        return (folder / "library.wasm").read_bytes()
