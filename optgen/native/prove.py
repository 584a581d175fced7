"""Running the self-test of generated code here, where this machine can run it.

What cannot run here is not claimed to be proven, and neither is what lacks a C compiler or Node.js.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from optgen import host
from optgen.errors import CompileError, UnprovenWarning, WrongResultError
from optgen.native.target import NativeTarget

_SECONDS = 300

_MAIN = """
#include "{name}_selftest.h"
#include <stdio.h>
#include <stdlib.h>
int main(void)
{{
    {name}_selftest_report r;
    void *memory = malloc({upper}_SELFTEST_BYTES + 64);
    void *aligned = (void *)(((uintptr_t)memory + 63) / 64 * 64);
    int found = memory ? {name}_selftest(aligned, {upper}_SELFTEST_BYTES, NULL, &r) : {upper}_SELFTEST_MEMORY;
    const char *what = found == {upper}_SELFTEST_SUM ? "a sum" : "an element";
    if (found == {upper}_SELFTEST_VALUE || found == {upper}_SELFTEST_SUM)
        printf("%s of '%s' is %.9g at call %d (it must be %.9g, within %.2g)",
               what, r.result, r.got, r.call, r.expected, r.tolerance);
    else if (found == {upper}_SELFTEST_STATUS)
        printf("call %d returns: %s", r.call, {name}_error(r.status));
    else if (found == {upper}_SELFTEST_BESIDE)
        printf("memory beside '%s' is written at call %d", r.result, r.call);
    else if (found == {upper}_SELFTEST_INPUT)
        printf("'%s', which is only to be read, is written at call %d", r.result, r.call);
    else if (found == {upper}_SELFTEST_DIFFERS)
        printf("'%s' has other bits when call %d is made again", r.result, r.call);
    else if (found)
        printf("there is no memory for it");
    return found;
}}
"""


def prove_c(name: str, target: NativeTarget, files: Mapping[str, bytes]) -> str:
    """Compiles generated C for this machine and runs its self-test.

    Args:
        name: what every symbol begins with.
        target: the processor.
        files: by name.

    Returns:
        What it was proven on; empty where it was not: on another processor, or without a C compiler, of which there is
        a warning.

    Raises:
        WrongResultError: if a result is wrong, or differs from call to call.
        CompileError: if the C compiler refuses the files.
    """
    if f"{name}_selftest.c" not in files or not runs_here(target):
        return ""
    if shutil.which(target.compiler) is None:
        _unproven(f"the C for {target.name}", f"C compiler '{target.compiler}'")
        return ""
    with tempfile.TemporaryDirectory(prefix="optgen-") as where:
        folder = Path(where)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        (folder / "main.c").write_text(_MAIN.format(name=name, upper=name.upper()))
        sources = [f"{name}.c", f"{name}_selftest.c", "main.c", f"{name}_kernels.o"]
        command = [
            target.compiler,
            *target.options,
            "-std=c99",
            "-O1",
            "-ffp-contract=off",
            *sources,
            "-lm",
            "-o",
            "test",
        ]
        built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if built.returncode != 0:
            raise CompileError(f"{target.compiler} refuses the C for {target.name}: {built.stderr.strip()[:300]}")
        _judge([str(folder / "test")], folder, f"the C of '{name}'", target.name, host.architecture())
    return f"{host.architecture()}, by {target.compiler}"


def prove_wasm(name: str, files: Mapping[str, bytes]) -> str:
    """Runs the self-test of a package in Node.js.

    Args:
        name: of the package.
        files: by name.

    Returns:
        What it was proven on; empty without Node.js, of which there is a warning.

    Raises:
        WrongResultError: if a result is wrong, or differs from call to call.
    """
    if "selftest.js" not in files:
        return ""
    node = shutil.which("node")
    version = "" if node is None else subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    if node is None or int(version.lstrip("v").partition(".")[0] or 0) < 18:
        _unproven(f"the package '{name}'", "Node.js of 18 or newer")
        return ""
    with tempfile.TemporaryDirectory(prefix="optgen-") as where:
        folder = Path(where)
        for file, data in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(data)
        (folder / "test.mjs").write_text(
            'import { selftest } from "./selftest.js";\n'
            "selftest().then(() => process.exit(0), (e) => (console.log(e.message), process.exit(1)));\n"
        )
        _judge([node, "test.mjs"], folder, f"the package '{name}'", "wasm", "node")
    return f"Node.js {version}"


def runs_here(target: NativeTarget) -> bool:
    """Whether this processor runs a target's code."""
    level, here = target.name.removeprefix("cpu:"), host.architecture()
    if here == "x86_64" and level.startswith("x86-64"):
        return set(host.x86_requirements(level)) <= host.features()
    return here == level


def _unproven(what: str, tool: str) -> None:
    warnings.warn(f"{what} is not proven: there is no {tool} here to run its self-test", UnprovenWarning, stacklevel=4)


def _judge(command: list[str], folder: Path, what: str, target: str, device: str) -> None:
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"the self-test of {what} does not end within {_SECONDS} seconds") from error
    if result.returncode != 0:
        said = (result.stdout + result.stderr).strip() or f"its self-test ends with status {result.returncode}"
        named = re.search(r"'([^']+)'", said)
        raise WrongResultError(
            f"{what} is not right on this machine: {said}. The compiler is at fault: write the operation another way, "
            "or pass check=False to get the code as it is",
            target, device, named[1] if named else "",
        )  # fmt: skip
