"""One module for several processors, of which the runtime chooses when it loads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from optgen.compiler.barriers import proven
from optgen.compiler.driver import Watched, compile_and_print, compile_and_watch, compile_mlir
from optgen.compiler.guard import guard, load_first
from optgen.errors import CompileError
from optgen.targets import TARGETS, Target

#: The least that goes through the compiler as far as its description of a device.
_NOTHING = "util.func public @nothing(%x: tensor<1xf32>) -> tensor<1xf32> { util.return %x : tensor<1xf32> }"
_SOURCES = "executable-sources"


def compile_for(
    mlir: str,
    target: Target,
    flags: Sequence[str],
    *,
    guarded: bool = False,
    search: bool = False,
    use_cache: bool = True,
) -> Watched:
    """Compiles ``mlir`` for ``target``, whether that is one processor or several.

    Args:
        mlir: the module's text.
        target: what for.
        flags: for iree-compile; the target's own are among them.
        guarded: whether the module is to refuse, when it is loaded, processors that lack what its code needs. Modules
            for several always do.
        search: whether its IR is kept for :func:`optgen.lower.hazard.find_hazards`. What is compiled for Vulkan is then
            given as the compiler made it, for the caller to search and prove.
        use_cache: whether to look in the cache, and to fill it.

    Returns:
        The module, its stream IR, and if ``search`` the IR of its hazards.

    Raises:
        CompileError: if the compiler refuses the module.
    """
    if target.variants:
        mlir = _for_devices(mlir, target)
    elif not (guarded or target.guarded):
        if search:
            return compile_and_print(mlir, flags, use_cache=use_cache)
        made = compile_and_watch(mlir, flags, use_cache=use_cache)
        return replace(made, module=proven(mlir, target, flags, made.module, use_cache=use_cache))
    watch = compile_and_print if search else compile_and_watch
    made = watch(mlir, [*flags, f"--compile-to={_SOURCES}"], use_cache=use_cache)
    sources, between = guard(made.module.decode()), [f"--compile-from={_SOURCES}", "--compile-to=hal"]
    text = compile_mlir(sources, [*flags, *between], use_cache=use_cache)
    module = compile_mlir(load_first(text.decode()), [*flags, "--compile-from=hal"], use_cache=use_cache)
    return replace(made, module=module)


def _for_devices(mlir: str, target: Target) -> str:
    """``mlir`` with the device that it is for as an attribute, its processors in the order in which they are tried."""
    listed = [_executable(TARGETS[name].flags) for name in target.variants]
    device = f'hal.device.targets = [#hal.device.target<"local", [{", ".join(listed)}]>]'
    head = re.search(r"^module @\S+ (attributes \{)?", mlir, re.MULTILINE)
    if head is None:
        raise CompileError("the module has no name, and so no place for its targets")
    has = head[1] is not None
    return mlir[: head.end()] + (f"{device}, " if has else f"attributes {{{device}}} ") + mlir[head.end() :]


def _executable(flags: Sequence[str]) -> str:
    """What the compiler calls the processor that ``flags`` mean."""
    known = "--iree-hal-target-device=local"
    flags = [known, *(f for f in flags if f != known)]
    text = compile_mlir(_NOTHING, [*flags, "--compile-to=flow"]).decode()
    found = re.search(r'#hal\.device\.target<"local", \[(#hal\.executable\.target<.*>)\]>', text)
    if found is None:
        raise CompileError(f"iree-compile does not say what {' '.join(flags)} means")
    return found[1]
