"""Running iree-compile, with a cache by content in front of it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from optgen.errors import CompileError, CompilerNotFoundError, FileError

_HINT = "pip install 'optgen[compile]' (the prebuilt bundles need no compiler: optgen.prebuilt)"


@cache
def iree_compile() -> str:
    """The path of the iree-compile program.

    Raises:
        CompilerNotFoundError: if iree-base-compiler is not installed.
    """
    # The program itself, where it is: the one on the path is a Python script around it, which takes 0.4 s to start, a
    # third of what a kernel takes to compile.
    try:
        spec = find_spec("iree.compiler")
    except ModuleNotFoundError:
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(folder, "_mlir_libs", "iree-compile")
        for candidate in (program, program.with_suffix(".exe")):
            if candidate.exists():
                return str(candidate)
    found = shutil.which("iree-compile")
    if found is None:
        raise CompilerNotFoundError(f"iree-compile is not installed: {_HINT}")
    return found


def compiler_version() -> str:
    """The version of iree-base-compiler.

    Raises:
        CompilerNotFoundError: if it is not installed.
    """
    try:
        return version("iree-base-compiler")
    except PackageNotFoundError as error:
        raise CompilerNotFoundError(f"iree-base-compiler is not installed: {_HINT}") from error


def cache_folder() -> Path:
    """Where compiled modules are kept: ``$OPTGEN_CACHE``, or the user's cache folder.

    Raises:
        FileError: where there is neither, as for a user without a name and a home.
    """
    if configured := os.environ.get("OPTGEN_CACHE"):
        return Path(configured)
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("optgen", appauthor=False))
    except (RuntimeError, KeyError) as error:
        raise FileError(f"there is no cache folder ({error}): set OPTGEN_CACHE to one") from error


def compile_mlir(mlir: str, flags: Sequence[str], *, use_cache: bool = True) -> bytes:
    """Compiles ``mlir`` with ``flags``.

    The result is cached under the hash of text, flags and compiler version. ``host`` as the CPU is part of the flags,
    so its entry also depends on the machine's CPU flags.

    Args:
        mlir: the module's text.
        flags: for iree-compile, ``-o`` excepted.
        use_cache: whether to look in the cache, and to fill it.

    Returns:
        What iree-compile wrote: a module, or the text of a stage where the flags ask for one.

    Raises:
        CompileError: with the first error of the compiler; the whole of what it said is in a log file.
        CompilerNotFoundError: if iree-compile is not installed.
    """
    return cached([cache_key(mlir, flags)], lambda: _run(mlir, flags), use_cache)[0]


@dataclass(frozen=True)
class Watched:
    """A module, and what the compiler said of it on the way.

    Attributes:
        module: its bytes.
        stream: its buffers and commands as text: what ``--compile-to=stream`` gives.
        printed: the IR that :mod:`optgen.lower.hazard` reads, if it was asked for.
    """

    module: bytes
    stream: str
    printed: str = ""


def compile_and_watch(mlir: str, flags: Sequence[str], *, use_cache: bool = True) -> Watched:
    """Compiles ``mlir`` as :func:`compile_mlir` does, once, and keeps its stream IR on the way.

    Returns:
        The module and its stream IR.
    """
    keys = [cache_key(mlir, flags), cache_key(mlir, [*flags, "--compile-to=stream"])]
    module, stream = cached(keys, lambda: _run(mlir, flags, "stream"), use_cache)
    return Watched(module, stream.decode())


def compile_and_print(mlir: str, flags: Sequence[str], *, use_cache: bool = True) -> Watched:
    """Compiles ``mlir`` as :func:`compile_mlir` does, once, and keeps what is needed to prove that aliasing is safe."""
    from optgen.lower.hazard import PRINT_FLAG

    keys = [cache_key(mlir, [*flags, *extra]) for extra in ([], ["--compile-to=stream"], [PRINT_FLAG])]

    def make() -> list[bytes]:
        printed: list[bytes] = []
        module, stream = _run(mlir, [*flags, PRINT_FLAG], "stream", printed=printed)
        return [module, stream, *printed]

    module, stream, text = cached(keys, make, use_cache)
    return Watched(module, stream.decode(), text.decode())


def cached(keys: Sequence[str], make: Callable[[], list[bytes]], use_cache: bool) -> list[bytes]:
    """What the cache has under ``keys``; where it lacks one, what ``make`` gives, which it then has."""
    if not use_cache:
        return make()
    from filelock import FileLock

    made: list[bytes] | None = None

    def found() -> list[bytes] | None:
        return [entry.read_bytes() for entry in entries] if all(entry.exists() for entry in entries) else None

    try:
        entries = [cache_folder() / key[:2] / f"{key}.bin" for key in keys]
        if (known := found()) is not None:
            return known
        for entry in entries:
            entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entries[0]}.lock"):
            if (known := found()) is not None:
                return known
            try:
                made = make()
            except OSError as error:  # the compiler's own: not the cache's fault
                raise CompileError(f"iree-compile cannot be run: {error}") from error
            for entry, data in zip(entries, made, strict=True):
                with tempfile.NamedTemporaryFile(dir=entry.parent, delete=False) as file:
                    file.write(data)
                os.replace(file.name, entry)
    except (OSError, FileError) as error:
        if not _warned:
            _warned.append(str(error))
            warnings.warn(f"optgen compiles without a cache: {error}", stacklevel=2)
    return make() if made is None else made


_warned: list[str] = []


def cache_key(mlir: str, flags: Sequence[str]) -> str:
    """What :func:`cached` is to know the result of compiling ``mlir`` with ``flags`` by."""
    digest = hashlib.sha256()
    parts = [compiler_version(), *flags, mlir]
    if any("target-cpu=host" in flag for flag in flags):
        from optgen import host

        parts += sorted(host.features())
    for text in parts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _run(mlir: str, flags: Sequence[str], *phases: str, printed: list[bytes] | None = None) -> list[bytes]:
    """The output of iree-compile, and the text of some of its phases. What it prints is added to ``printed``."""
    with tempfile.TemporaryDirectory(prefix="optgen-") as name:
        folder = Path(name)
        extra = ["--dump-compilation-phases-to=phases"] if phases else []
        output = run_in(folder, mlir, [*flags, *extra], printed)
        return [output, *(next((folder / "phases").glob(f"*.{phase}.mlir")).read_bytes() for phase in phases)]


def run_in(folder: Path, mlir: str, flags: Sequence[str], printed: list[bytes] | None = None) -> bytes:
    """The output of iree-compile, run in ``folder``, where what else it writes is left.

    What it prints is added to ``printed``, if given.

    Raises:
        CompileError, CompilerNotFoundError: as :func:`compile_mlir`.
    """
    # The module is named on the command line by a constant, so that no path of this machine reaches its bytes.
    source, output = folder / "module.mlir", folder / "module.out"
    source.write_text(mlir)
    # So are its own temporary files: it hands their names to a linker by way of a shell, without quotes.
    environment = {**os.environ, "TMPDIR": ".", "TMP": ".", "TEMP": "."}
    result = subprocess.run(
        [iree_compile(), source.name, *flags, "-o", output.name],
        cwd=folder, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if result.returncode == 0 and output.exists():
        if printed is not None:
            printed.append(result.stderr.encode())
        return output.read_bytes()
    error = CompileError(_explain(mlir, flags, result))
    error.where = result.stderr[max(result.stderr.find("error:") - 200, 0) :]
    raise error


def dump_assembly(mlir: str, flags: Sequence[str]) -> str:
    """The text nearest to the machine that the compiler makes of ``mlir``.

    Args:
        mlir: the module's text.
        flags: for iree-compile, ``-o`` excepted.

    Returns:
        For CPUs the assembly of the kernels alone, for CUDA the PTX, for ROCm GCN assembly, for Metal its language, for
        Vulkan SPIR-V as MLIR; where there are several kernels, one after the other.

    Raises:
        CompileError: as :func:`compile_mlir`, or where the compiler left no such text.
        CompilerNotFoundError: if iree-compile is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="optgen-") as name:
        folder = Path(name)
        dumps = ["--iree-hal-dump-executable-intermediates-to=dump", "--iree-hal-dump-executable-binaries-to=dump"]
        run_in(folder, mlir, [*flags, *dumps])
        for pattern in ("*.s", "*.ptx", "*.rocmasm", "*.metal", "*.spirv.mlir"):
            if found := sorted((folder / "dump").glob(pattern)):
                return "\n".join(_kernels_alone(file.read_text()) for file in found)
    raise CompileError("iree-compile wrote no assembly for this target")


def _kernels_alone(assembly: str) -> str:
    """Assembly without notes for debuggers, and without the C library that IREE links below each CPU kernel."""
    lines = []
    for line in assembly.splitlines():
        if line.lstrip().startswith(".section\t.text.iree_hal_executable_library_query"):
            break
        if not line.lstrip().startswith((".loc\t", ".cfi_", ".file\t", ".Ltmp", ".Lfunc_begin")):
            lines.append(line)
    return "\n".join(lines) + "\n"


def _explain(mlir: str, flags: Sequence[str], result: subprocess.CompletedProcess[str]) -> str:
    lines = result.stderr.splitlines()
    # Where it crashes it says nothing of the kind; what comes first then may be IR that it was asked to print.
    crashed = "the compiler crashed" if result.returncode < 0 or "crash backtrace" in result.stderr else ""
    first = crashed or (lines[0] if lines else f"exit code {result.returncode}")
    first = next((line for line in lines if "error:" in line), first)
    try:
        log = cache_folder() / "logs" / f"{hashlib.sha256(mlir.encode()).hexdigest()[:16]}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("\n".join([" ".join(flags), "", mlir, "", result.stderr]))
        where = f"; all of it, with the module, is in {log}"
    except (OSError, FileError):
        where = ""
    message = first.partition("error:")[2].strip() or first
    if operation := _operation(mlir, first):
        message = f"{operation}: {message}"
    return f"iree-compile refused the module: {message[:300]}{where}"


def _operation(mlir: str, message: str) -> str:
    """The operation that an error's line of the module holds, ``stablehlo.reverse``; nothing where it says none."""
    at = re.match(r"module\.mlir:(\d+):", message)
    line = "".join(mlir.splitlines()[int(at[1]) - 1 : int(at[1])]) if at else ""
    found = re.search(r"\b(?:stablehlo|chlo|linalg)\.\w+", line)
    return found[0] if found else ""
