"""The tables of docs/targets/README.md: AdamW and a training step on every target. As a script, writes them there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import native_mlp as mlp
import native_table
import numpy as np
import rule_references as ref
from machines import CORE2, CORTEX, HASWELL, NATIVE, NEHALEM, Machine
from native_machine import MACHINES
from wasm_node import Node, encode, find_node

import optgen as og
from optgen.compiler.build import compile_kernel
from optgen.compiler.plain import PlainModule, build_plain
from optgen.dsl import Variant
from optgen.dtypes import ulp
from optgen.lower import lower
from optgen.native import NATIVE_TARGETS, get_native_target, step_package, update_package
from optgen.rules import get_rule
from optgen.runtime.loading import prebuilt_bundle
from optgen.runtime.verify import verify_bundle
from optgen.targets import get_target

DOC = Path(__file__).resolve().parent.parent / "docs" / "targets" / "README.md"
HEAD = "| target | form | executed | error | code, bytes | RAM, bytes |\n|---|---|---|---|---|---|\n"
HYPERS = {"lr": 1e-3, "step": 3, "weight_decay": 0.01}
NOT_RUN = "no: compiled and inspected"

# The memory that a process with numpy and the runtime takes besides: what the command leaves in RSS.
_RSS = """
import sys
import numpy as np
import optgen as og

def rss():
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmRSS")).split()[1])

"""
_BUNDLE = (
    _RSS
    + """
x = {"w": np.ones(1_000_000, np.float32)}
g, state = {"w": np.ones(1_000_000, np.float32)}, og.prebuilt("adamw", "local-sync").init(x)
for tree in (state["m"], state["v"]): tree["w"][...] = 1
before = rss()
step = og.prebuilt("adamw", "local-sync").bind(x, g, state)
for _ in range(20): step.step(lr=1e-3)
print(rss() - before)
"""
)


def leaves(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(size)
    found = {name: rng.standard_normal(size).astype(np.float32) for name in "wgmv"}
    return found | {"v": np.abs(found["v"]) * np.float32(0.1)}


def worst(given: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """The largest error of an AdamW update, in ulp."""
    right = ref.adam(*(given[n].astype(np.float64) for n in "wgmv"), eps=1e-8, **HYPERS)  # type: ignore[arg-type]
    return max(float(np.max(np.abs(found[n] - right[n]) / ulp(right[n], "f32"))) for n in "wmv")


def bundles() -> Iterator[tuple[object, ...]]:
    """Modules for the runtime."""
    bundle = prebuilt_bundle("adamw")
    kernel = next(k for k in bundle.manifest.kernels if k.name == "f32")
    found = [r for r in verify_bundle(bundle) if r.kernel == "f32"]
    ram = int(subprocess.run([sys.executable, "-c", _BUNDLE], capture_output=True, text=True, check=True).stdout)
    for module in kernel.modules:
        size, errors = len(bundle.module(module)), [r.max_ulp for r in found if r.target == module.target]
        if not errors:
            yield module.target, "bundle", NOT_RUN, "-", size, "-"
        elif module.backend == "vulkan":
            yield module.target, "bundle", "on Mesa's lavapipe", f"{max(errors):.3f} ulp", size, "-"
        else:
            yield module.target, "bundle", "natively", f"{max(errors):.3f} ulp", size, ram
    variant = Variant.of(get_rule("adamw"))
    (made,) = lower(variant.kernel(variant.dtypes("f32")))
    for name in ("cpu:riscv64", "rocm:gfx942", "metal"):
        yield name, "bundle", NOT_RUN, "-", len(compile_kernel(made, get_target(name))[0]), "-"


def plain() -> Iterator[tuple[object, ...]]:
    """Modules for ``iree-run-module``."""
    variant = Variant.of(get_rule("adamw"))
    every = [NATIVE, HASWELL, NEHALEM, CORE2, CORTEX]
    for name, machines in (("cpu:aarch64", [CORTEX]), ("cpu:any", every), ("cpu:vmvx", [NATIVE])):
        module = build_plain(variant, variant.dtypes("f32"), get_target(name))
        errors = [_plain(module, machine) for machine in machines]
        where = ", ".join("natively" if m is NATIVE else f"qemu {m.name}" for m in machines)
        yield name, "vmfb", where, f"{max(errors):.3f} ulp", len(module.data), "[3 MB](cpu.md#speed-and-memory)"


def _plain(module: PlainModule, machine: Machine) -> float:
    given = leaves(10_007)
    with tempfile.TemporaryDirectory() as name:
        done = machine.update(Path(name), module, given, **HYPERS)
        assert done.returncode == 0, done.stderr
        return worst(given, {n: np.load(Path(name) / f"{n}.npy") for n in module.results})


def native() -> Iterator[tuple[object, ...]]:
    """C."""
    for name, machine in MACHINES.items():
        usual = NATIVE_TARGETS[name].compute
        for compute in dict.fromkeys((usual, "f64")):
            found: dict[str, Any] = native_table.adamw(machine, compute)
            off = f"{found['ulp']:.3f} ulp" if compute == "f64" else f"{found['largest']:.3f} ulp of the largest term"
            ram = found["data"] + (found["stack"] or 0)
            libraries = found["libraries"] if machine.bare else 0
            yield (
                name,
                f"C, {compute}",
                native_table.how(machine),
                off,
                found["kernels"] + found["driver"] + libraries,
                f"{ram}{' with its stack' if found['stack'] else ''}",
            )


def web(node: Node) -> Iterator[tuple[object, ...]]:
    variant = Variant.of(get_rule("adamw"))
    for name in ("wasm", "wasm:scalar"):
        package = update_package(variant, variant.dtypes("f32"), get_native_target(name))
        given = leaves(100_003)
        with tempfile.TemporaryDirectory() as text:
            folder = package.write(Path(text) / "adamw")
            found, _ = node.update(folder, given, HYPERS)
            memory = node.js(folder, "return (await package_.load()).memoryBytes")["value"]
        yield name, "npm package", "Node.js", f"{worst(given, found):.3f} ulp", len(package.wasm), memory


def steps(node: Node | None) -> Iterator[tuple[object, ...]]:
    """The MLP's training step, by the runtime, as C, as WebAssembly."""
    losses = mlp.expected()[0]
    yield from _by_runtime(losses)
    for machine in MACHINES.values():
        with tempfile.TemporaryDirectory() as folder:
            row = native_table.mlp_row(machine, Path(folder))
        ram = row["workspace"] + row["data"] + row["stack"]
        yield (
            machine.target,
            "C, f32",
            native_table.how(machine),
            f"{row['error']:.1e}",
            row["kernels"] + row["driver"] + (row["libraries"] if machine.bare else 0),
            ram,
        )
    if node is not None:
        yield from _in_web(node, losses)


def _loss(params: Any, batch: Any) -> Any:
    return mlp.loss(params, batch["x"], batch["y"])


def _by_runtime(losses: np.ndarray) -> Iterator[tuple[object, ...]]:
    params, x, y = mlp.data()
    targets = ["cpu:x86-64-v2", "cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:aarch64", "vulkan", "cuda"]
    settings: dict[str, Any] = {"weight_decay": 1e-2}
    example = {"x": x[0], "y": y[0]}
    every = og.train.compile_step(_loss, params, example, "adamw", targets=targets, **settings)
    for module in every.manifest.modules:
        size = len(every.module(module))
        one = og.train.compile_step(_loss, params, example, "adamw", targets=[module.target], **settings)
        try:
            step = og.train.TrainStep(one, "vulkan" if module.backend == "vulkan" else "local-sync")
        except og.errors.DeviceError:
            yield module.target, "step bundle", "no: compiled", "-", size, "-"
            continue
        mine = {name: p.copy() for name, p in params.items()}
        state = step.init(mine)
        found = [step.step(mine, state, {"x": x[i], "y": y[i]}, lr=1e-2)[0] for i in range(mlp.STEPS)]
        where = "on Mesa's lavapipe" if module.backend == "vulkan" else "natively"
        yield module.target, "step bundle", where, f"{np.abs(np.array(found) - losses).max():.1e}", size, "-"


def _in_web(node: Node, losses: np.ndarray) -> Iterator[tuple[object, ...]]:
    params, x, y = mlp.data()
    for name in ("wasm", "wasm:scalar"):
        package = step_package(mlp.module(), get_native_target(name), name="mlp", arguments=mlp.ARGUMENTS,
                               results=mlp.RESULTS)  # fmt: skip
        with tempfile.TemporaryDirectory() as text:
            folder = package.write(Path(text) / "mlp")
            calls = [{"x": encode(x[i]), "y": encode(y[i]), "step": i + 1} for i in range(mlp.STEPS)]
            start = {f"param_{n}": encode(p) for n, p in params.items()}
            answer = node.call(folder, "run", set=start, calls=calls)
            memory = node.js(folder, "return module.memoryBytes")["value"]
        off = np.abs(np.array([r["loss"] for r in answer["results"]]) - losses).max()
        yield name, "npm package", "Node.js", f"{off:.1e}", len(package.wasm), memory


def table(rows: Iterator[tuple[object, ...]]) -> str:
    lines = []
    for target, *rest in rows:
        cells = [f"{c:,}" if isinstance(c, int) else str(c) for c in rest]
        lines.append(f"| `{target}` | {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    program = find_node()
    node = None if program is None else Node(program)
    text = DOC.read_text()

    def adamw() -> Iterator[tuple[object, ...]]:
        yield from bundles()
        yield from plain()
        yield from native()
        if node is not None:
            yield from web(node)

    for name, rows in (("adamw", adamw()), ("mlp", steps(node))):
        start, end = f"<!-- {name}: python tests/targets_table.py -->\n", f"<!-- end of {name} -->"
        head, rest = text.split(start)
        text = head + start + table(rows) + end + rest.split(end)[1]
    DOC.write_text(text)
    if node is not None:
        node.close()


if __name__ == "__main__":
    main()
