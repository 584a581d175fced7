"""A folder of C: the object file, the source that drives it, and how to build them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optgen._version import __version__
from optgen.artifact.storage import MANIFEST, digest, write_files
from optgen.compiler.driver import compiler_version
from optgen.errors import LoweringError
from optgen.lower.style import render
from optgen.native.abi import VERSION
from optgen.native.c import Body
from optgen.native.c_selftest import Proof, write_selftest
from optgen.native.elf import ObjectLibrary
from optgen.native.library import Library
from optgen.native.prove import prove_c
from optgen.native.target import NativeTarget, get_native_target

ERRORS = {
    "NULL": "a pointer is NULL",
    "ALIGNMENT": "an address is not a multiple of what it must be",
    "OVERLAP": "what is written overlaps something else",
    "SIZE": "n is too large",
    "STEP": "the number of the step, or a count of steps, is out of range",
    "HYPER": "a hyperparameter is not set, not finite or out of range",
    "WORKSPACE": "the workspace is too small",
    "THREADS": "threads has no function, or a count of 0",
    "LIBRARY": "the object file is not the one that the source was written for",
    "KERNEL": "a kernel has failed",
    "STATE": "scalar state is not finite",
}


@dataclass(frozen=True)
class CBundle:
    """Generated C.

    Attributes:
        name: what every symbol begins with.
        target: the processor.
        files: by name.
        workspace: bytes that a call needs besides.
        proven: what its self-test has run on when it was compiled; empty where it has not. It is no part of the files,
            which are the same on every machine.
    """

    name: str
    target: NativeTarget
    files: Mapping[str, bytes] = field(repr=False)
    workspace: int = 0
    proven: str = field(default="", compare=False)

    @property
    def object(self) -> bytes:
        """The object file."""
        return self.files[f"{self.name}_kernels.o"]

    def prove(self) -> CBundle:
        """Runs the self-test, if this machine can: see :func:`optgen.native.prove.prove_c`.

        Raises:
            WrongResultError: if a result is wrong.
        """
        return replace(self, proven=prove_c(self.name, self.target, self.files))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the folder, whole or not at all; one that optgen wrote is replaced.

        Raises:
            BundleError: if there is something else at ``path``.
        """
        return write_files(path, self.files)


def c_target(name: str) -> NativeTarget:
    """The target of that name, if C is written for it.

    Raises:
        UnknownTargetError: if there is none.
        LoweringError: for WebAssembly.
    """
    target = get_native_target(name)
    if target.name.startswith("wasm"):
        raise LoweringError(f"C is not written for {name}: WebAssembly has a form of its own (--emit wasm)")
    return target


def assemble(
    name: str,
    target: NativeTarget,
    library: Library,
    checked: ObjectLibrary,
    body: Body,
    proof: Proof | None,
    *,
    title: str,
    **context: Any,
) -> CBundle:
    """Fills in the templates.

    Args:
        name: what every symbol begins with.
        target: the processor.
        library: the compiled code.
        checked: what its object file says, from :func:`check_object`.
        body: the host program as C.
        proof: how it tests itself; None where it cannot.
        title: one line about it.
        context: what the templates want besides.
    """
    program = library.program
    values = {
        "name": name,
        "upper": name.upper(),
        "title": title,
        "target": target,
        "version": __version__,
        "compiler": compiler_version(),
        "abi": VERSION,
        "errors": list(ERRORS.items()),
        "workspace": program.workspace,
        "alignment": program.alignment,
        "query": program.query,
        "exports": checked.exports,
        "libm": [symbol for symbol in checked.undefined if not symbol.startswith("__")],
        "helpers": [symbol for symbol in checked.undefined if symbol.startswith("__")],
        "body": body.lines,
        "bitcasts": sorted(body.bitcasts),
        "extrema": sorted(body.extrema),
        "copies": body.copies,
        "fills": body.fills,
        "constants": program.constants,
        "selftest": proof is not None,
        **context,
    }
    names = {
        f"{name}.h": "c/header.h.j2",
        f"{name}.c": "c/source.c.j2",
        "CMakeLists.txt": "c/CMakeLists.txt.j2",
        "README.md": "c/README.md.j2",
    }
    files = {file: render(template, **values).encode() for file, template in names.items()}
    files[f"{name}_kernels.o"] = library.object
    if proof is not None:
        files |= write_selftest(name, proof, program.workspace, target=target, compiler=compiler_version())
    manifest = {
        "kind": "c", "name": name, "target": target.name, "optgen": __version__, "iree": compiler_version(),
        **({"retried": list(library.retried)} if library.retried else {}),
        "workspace": program.workspace, "sha256": {file: digest(data) for file, data in sorted(files.items())},
    }  # fmt: skip
    files[MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
    return CBundle(name, target, files, program.workspace)
