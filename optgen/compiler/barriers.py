"""Kernels for Vulkan that are right whatever the size of the device's subgroups.

IREE 3.13 takes a workgroup of 64 invocations for one subgroup, and leaves out every barrier between what one invocation
writes and another reads; also where it is told of a chip with subgroups of 16 or 32. So what it has compiled is read
again (:mod:`optgen.lower.races`). Where a kernel is not proven, barriers are put between the loops that it consists of
and, where that is not enough, its workgroups are made of one invocation, which has nobody to wait for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from optgen.compiler.driver import compile_mlir
from optgen.errors import CompileError
from optgen.lower.races import Fault, find_faults
from optgen.targets import Target

_TARGETS, _SOURCES = "executable-targets", "executable-sources"
_BARRIER = "spirv.ControlBarrier <Workgroup>, <Workgroup>, <AcquireRelease|WorkgroupMemory>"
_SHARED = re.compile(r'"Workgroup"|, Workgroup>')
_STORE, _LOAD = 'spirv.Store "Workgroup"', 'spirv.Load "Workgroup"'
_FUNCTION = re.compile(r"( *)spirv\.func @")
_EXECUTABLE = re.compile(r"^  hal\.executable private @\S+ \{$.*?^  \}$", re.MULTILINE | re.DOTALL)
_SIZES = re.compile(r"subgroup_size_choices = \[[\d, ]*\]")


def proven(mlir: str, target: Target, flags: Sequence[str], module: bytes, *, use_cache: bool = True) -> bytes:
    """``module``, where it is right for every size of subgroups; else the same program compiled so that it is.

    Args:
        mlir: the module's text.
        target: what for. Modules for others than Vulkan are given back.
        flags: for iree-compile, those that ``module`` was compiled with.
        module: what it made.
        use_cache: whether to look in the cache, and to fill it.

    Raises:
        CompileError: naming the kernel that cannot be proven.
    """
    if target.backend != "vulkan":
        return module
    # What is compiled for one chip may use its subgroups; it is refused by others when it is loaded.
    chip = ":" in target.name
    faults = find_faults(module, subgroups=chip)
    if not faults:
        return module

    def compiled(source: str, *stage: str) -> bytes:
        return compile_mlir(source, [*flags, *stage], use_cache=use_cache)

    text = compiled(mlir, f"--compile-to={_TARGETS}")
    module = compiled(with_barriers(text.decode()), f"--compile-from={_TARGETS}")
    if faults := find_faults(module, subgroups=chip):
        text = compiled(mlir, f"--compile-to={_SOURCES}")
        alone = with_lone_invocations(text.decode(), {fault.kernel for fault in faults})
        text = compiled(alone, f"--compile-from={_SOURCES}", f"--compile-to={_TARGETS}")
        module = compiled(with_barriers(text.decode()), f"--compile-from={_TARGETS}")
        faults = find_faults(module, subgroups=chip)
    if not faults:
        return module
    raise CompileError(_message(target, faults))


def _message(target: Target, faults: Sequence[Fault]) -> str:
    return (
        f"target '{target.name}': a kernel is not proven right for every size of subgroups: {faults[0]}"
        f"{f' (and {len(faults) - 1} more)' if faults[1:] else ''}. Compile the function in smaller parts, or for cuda"
    )


def with_lone_invocations(sources: str, kernels: set[str]) -> str:
    """``sources``, a module as ``--compile-to=executable-sources`` gives it, with ``kernels`` for a device whose
    subgroups have one invocation: the compiler then makes workgroups of one."""

    def change(match: re.Match[str]) -> str:
        text = match[0]
        exported = re.findall(r"hal\.executable\.export public @(\S+)", text)
        return _SIZES.sub("subgroup_size_choices = [1]", text) if kernels & set(exported) else text

    return _EXECUTABLE.sub(change, sources)


def with_barriers(text: str) -> str:
    """``text``, a module as ``--compile-to=executable-targets`` gives it, with barriers in its kernels.

    They stand where every invocation comes by: between the loops and conditions of a kernel's outermost level that use
    workgroup memory.
    """
    return "\n".join(_lines(text.split("\n")))


def _lines(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        yield lines[at]
        found = _FUNCTION.match(lines[at])
        at += 1
        if found is None:
            continue
        end = next(i for i in range(at, len(lines)) if lines[i] == f"{found[1]}}}")
        yield from _body(lines[at:end], found[1] + "  ")
        at = end


def _body(lines: list[str], indent: str) -> Iterator[str]:
    """The statements of one function, those of several lines as a whole."""
    if any(line.startswith(f"{indent[:-2]}^bb") for line in lines):
        yield from lines  # of several blocks: there is no outermost level
        return
    touched = ""  # how workgroup memory has been used since the last barrier
    at = 0
    while at < len(lines):
        end = at + 1
        if lines[at].endswith("{"):
            while not (lines[end - 1].startswith(f"{indent}}}") and end - 1 > at):
                end += 1
        statement = lines[at:end]
        how = _use(statement)
        # Stores after stores and loads after loads need none.
        if touched and how and (how, touched) not in (("store", "store"), ("load", "load")):
            yield indent + _BARRIER
            touched = ""
        if how:
            touched = how if touched in ("", how) else "both"
        yield from statement
        at = end


def _use(statement: list[str]) -> str:
    """How a statement uses workgroup memory: ``store``, ``load``, ``both``; empty where it does not."""
    shared = [line for line in statement if _SHARED.search(line)]
    if len(statement) == 1:
        if not shared or "spirv.AccessChain" in shared[0] or "addressof" in shared[0]:
            return ""
        return "store" if _STORE in shared[0] else "load" if _LOAD in shared[0] else "both"
    return "both" if any("AccessChain" not in line for line in shared) else ""
