"""One function of arrays, to one vector, on every kind of target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_machine import MACHINES
from wasm_node import Node, decode, encode, find_node

import optgen as og
from optgen.lower.repair import stablehlo_of
from optgen.native import compile_c_function, get_native_target, step_package

TARGETS = ("cpu", "vulkan", "c", "wasm")


def flat(results: Any) -> Any:
    """Results of any shapes and dtypes as one vector."""
    import jax
    import jax.numpy as jnp

    return jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(results)])


def run(
    target: str, function: Callable[..., Any], arguments: Mapping[str, np.ndarray], folder: Path, request: Any
) -> np.ndarray:
    """The vector that ``function`` makes of ``arguments`` (f32 and i32) there: on one of ``TARGETS``, or in C on an
    emulated processor (``c:cpu:armv7``). Skips the test where nothing runs it."""
    if target == "vulkan":
        request.getfixturevalue("vulkan")
    if target in ("cpu", "vulkan"):
        bundle = og.train.compile_function(function, *arguments.values(), name="f", targets=target)
        return np.asarray(og.train.CompiledFunction(bundle, None if target == "cpu" else target)(*arguments.values()))
    import jax

    traced = jax.jit(function, keep_unused=True).trace(*arguments.values())
    text, out = stablehlo_of(traced), np.zeros(traced.out_info.shape, np.float32)
    if target == "wasm":
        return _in_wasm(text, arguments, out, folder)
    return _in_c(text, arguments, out, folder, target.partition(":")[2] or "cpu:x86-64")


def _in_c(text: str, arguments: Mapping[str, np.ndarray], out: np.ndarray, folder: Path, name: str) -> np.ndarray:
    machine = MACHINES[name]
    machine.need()
    bundle = compile_c_function(text, machine.target, name="f", arguments=list(arguments), results=["out"])
    kinds = {n: "float" if a.dtype == np.float32 else "int32_t" for n, a in arguments.items()}
    lines = [f"static {kinds[n]} {n}[{a.size}];" for n, a in arguments.items()]
    loads = [f'load("{n}", {n}, sizeof {n});' for n in arguments]
    main = "\n".join([
        '#include "f.h"', '#include "io.h"', *lines, f"static float out[{out.size}];",
        "static unsigned char workspace[F_WORKSPACE_BYTES] __attribute__((aligned(64)));",
        "int main(void)", "{", f"    f_args args = {{{', '.join(arguments)}, out}};", *loads,
        "    if (f(&args, workspace, sizeof workspace, NULL))", "        return 1;",
        '    store("out", out, sizeof out);', "    return 0;", "}", "",
    ])  # fmt: skip
    machine.build(folder, [bundle], main)
    for name, array in arguments.items():
        (folder / name).write_bytes(array.tobytes())
    machine.run(folder)
    return np.frombuffer((folder / "out").read_bytes(), np.float32)


def _in_wasm(text: str, arguments: Mapping[str, np.ndarray], out: np.ndarray, folder: Path) -> np.ndarray:
    program = find_node()
    if program is None:
        pytest.skip("no Node.js of version 18 or later is here")
    package = step_package(
        text, get_native_target("wasm"), name="f", arguments=list(arguments), results=["out"], title="a test"
    )
    node = Node(program)
    try:
        call = {name: encode(array.reshape(-1)) for name, array in arguments.items()}
        answer = node.call(package.write(folder / "f"), "run", set={}, calls=[call])
        return decode(answer["results"][0]["out"], out)
    finally:
        node.close()
