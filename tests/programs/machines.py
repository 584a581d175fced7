"""Running one step of a program: by the runtime, as C in this process or emulated, as WebAssembly in Node.js."""

from __future__ import annotations

import json
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from wasm_node import find_node

from programs.generate import Program

Run = tuple[float, dict[str, np.ndarray]]

#: Runs from the same params, which must agree.
_TIMES = 3
#: Rules whose state begins as zeros, which is all that is made of it in C and JavaScript.
FROM_ZEROS = ("sgd", "adam", "adamw", "amsgrad", "lion", "signsgd", "adabelief", "adan", "lamb")


def may(program: Program, target: str) -> bool:
    """Whether a program's rule can be that of a step at all, with a learning rate, and is run on a target here."""
    from optgen.rules import get_rule

    rule = get_rule(program.rule)
    if len(rule.inputs) > 1 or any(slot.init == "lr" for slot in rule.state):
        return False  # beside the grad they take what a loss does not give, or have the rate in their state
    if program.rule == "muon" and any(w.ndim < 2 for w in program.params.values()):
        return False
    return target.startswith(("cpu", "vulkan", "cuda")) or program.rule in FROM_ZEROS


#: Emulators of what ``gcc`` for a target makes.
EMULATORS = {"cpu:aarch64": "qemu-aarch64-static", "cpu:armv7": "qemu-arm-static", "cpu:riscv64": "qemu-riscv64-static"}


def run_python(program: Program, target: str, notes: dict[str, str]) -> list[Run]:
    """By a bundle and the runtime. ``notes`` gets what the bundle's own probes say: ``check``."""
    import optgen
    from programs.check import SEED, rate

    def build(check: bool) -> Any:
        return optgen.train.compile_step(
            program.loss, program.params, program.batch, program.rule, targets=target, check=check, **_settings(program)
        )

    bundle = _checked(notes, build)
    backend = target.partition(":")[0]
    step = optgen.train.TrainStep(bundle, device=None if backend == "cpu" else backend)
    found = []
    for _ in range(_TIMES):
        params = {name: a.copy() for name, a in program.params.items()}
        state = step.init(params)
        key = {"rng": SEED} if program.random else {}
        loss, _ = step.step(params, state, program.batch, **rate(program.rule), **key)
        found.append((loss, params))
    return found


def _checked(notes: dict[str, str], build: Callable[[bool], Any]) -> Any:
    """What ``build`` makes with its probes run, or without, where they call it wrong."""
    from optgen.errors import WrongResultError

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            made = build(True)
        except WrongResultError as error:
            notes["check"] = f"refused: {error}"[:500]
            return build(False)
    unproven = [str(w.message) for w in said if "proves it" in str(w.message)]
    notes["check"] = f"unproven: {unproven[0]}"[:300] if unproven else "passed"
    return made


def _settings(program: Program) -> dict[str, Any]:
    return {"rng": True} if program.random else {}


def _arguments(program: Program) -> dict[str, np.ndarray]:
    """Leaves by their names in C and JavaScript, without state."""
    import jax

    arrays = {f"params_{n}": a.copy() for n, a in program.params.items()}
    arrays |= {f"batch_{n}": a for n, a in program.batch.items()}
    if program.random:
        from programs.check import SEED

        arrays["rng"] = np.asarray(jax.random.key_data(jax.random.key(SEED)), np.uint32)
    return arrays


def run_c(program: Program, target: str, notes: dict[str, str]) -> list[Run]:
    """As C: a process that reads all arguments from one file and writes params and loss to another."""
    import optgen
    from programs.check import rate

    cpu = target.removeprefix("c:")
    with tempfile.TemporaryDirectory(prefix="program-") as name:
        folder = Path(name)
        bundle = _checked(
            notes,
            lambda check: optgen.train.compile_step_c(
                program.loss, program.params, program.batch, program.rule, cpu, name="m", check=check,
                **_settings(program),
            ),
        )  # fmt: skip
        bundle.save(folder)
        arrays = _arguments(program)
        fields = _fields((folder / "m.h").read_text())
        native = optgen.native.get_native_target(cpu)
        lr = np.array([rate(program.rule).get("lr", 0.0)], np.float64)
        lines, data = [], b""
        for field, kind in fields.items():
            if field == "loss" or field not in (*arrays, "lr"):
                room = max((a.size for a in arrays.values()), default=1)  # of state: zeros, as large as any leaf
                lines.append(f"static {kind} {field}[{room + 2}] __attribute__((aligned(64)));")
                continue
            array = arrays[field] if field != "lr" else lr.astype(np.float64 if kind == "double" else np.float32)
            blob = np.ascontiguousarray(array).tobytes()
            count = max(-(-len(blob) // 64) * 64, 64)
            lines.append(f"static unsigned char {field}[{count}] __attribute__((aligned(64)));")
            data += blob + bytes(count - len(blob))
        given = [f for f in fields if f in (*arrays, "lr") and f != "loss"]
        reads = "".join(f"if (fread({f}, 1, sizeof {f}, in) != sizeof {f}) return 91;" for f in given)
        writes = "".join(f"fwrite({f}, 1, sizeof {f}, out);" for f in given if f.startswith("params_"))
        sets = "".join(f"a.{f} = (void *){f};" for f in fields)
        (folder / "main.c").write_text(
            '#include <stdio.h>\n#include <stdint.h>\n#include "m.h"\n' + "\n".join(lines)
            + "\nstatic unsigned char work[M_WORKSPACE_BYTES + 64] __attribute__((aligned(64)));\n"
            + "int main(void) { m_args a; int s;"
            + ' FILE *in = fopen("in", "rb"), *out;' + reads + sets
            + 's = m(&a, work, sizeof work, NULL); if (s) return s; out = fopen("out", "wb"); fwrite(loss, 1, 4, out);'
            + writes + "fclose(out); return 0; }\n"
        )  # fmt: skip
        (folder / "in").write_bytes(data)
        command = [
            native.compiler,
            *native.options,
            "-O1",
            "-static",
            "main.c",
            "m.c",
            "m_kernels.o",
            "-lm",
            "-o",
            "main",
        ]
        built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if built.returncode:
            raise RuntimeError(f"{native.compiler}: {built.stderr.strip()[:600]}")
        emulator = [EMULATORS[cpu]] if cpu in EMULATORS else []
        found = []
        for _ in range(2):
            ran = subprocess.run([*emulator, "./main"], cwd=folder, capture_output=True, timeout=60)
            if ran.returncode:
                raise RuntimeError(f"the C program ends with {ran.returncode}")
            out, at, params = (folder / "out").read_bytes(), 4, {}
            for field in given:
                if field.startswith("params_"):
                    like = arrays[field]
                    params[field.removeprefix("params_")] = np.frombuffer(out, like.dtype, like.size, at).reshape(
                        like.shape
                    )
                    at += max(-(-like.nbytes // 64) * 64, 64)
            found.append((float(np.frombuffer(out, np.float32, 1)[0]), params))
        return found


def _fields(header: str) -> dict[str, str]:
    """The members of the struct of arguments, with their types."""
    import re

    body = header.partition("typedef struct m_args {")[2] or header.partition("struct m_args {")[2]
    body = re.sub(r"/\*.*?\*/", "", body.partition("}")[0], flags=re.S)
    found = {}
    for line in body.split(";"):
        if match := re.match(r"\s*(?:const\s+)?(\w+)\s*\*\s*(?:const\s+)?(?:restrict\s+)?(\w+)\s*$", line):
            found[match[2]] = match[1]
    return found


def run_wasm(program: Program, target: str, notes: dict[str, str]) -> list[Run]:
    """As an npm package, in Node.js."""
    import optgen
    from programs.check import rate

    with tempfile.TemporaryDirectory(prefix="program-") as name:
        folder = Path(name)
        package = _checked(
            notes,
            lambda check: optgen.train.compile_step_wasm(
                program.loss, program.params, program.batch, program.rule, target, name="m", check=check,
                **_settings(program),
            ),
        )  # fmt: skip
        package.write(folder / "w")
        arrays = _arguments(program)
        # JavaScript has no array of f16: theirs are the bits.
        stored = {n: a.view(np.uint16) if a.dtype == np.float16 else a for n, a in arrays.items()}
        text = {
            n: a.astype(np.float64).ravel().tolist() if a.dtype.kind in "fb" else [str(i) for i in a.ravel().tolist()]
            for n, a in stored.items()
        }
        (folder / "w" / "in.json").write_text(json.dumps(text))
        (folder / "w" / "run.mjs").write_text(
            "import fs from 'fs'; const step = await (await import('./index.js')).load();\n"
            "const a = JSON.parse(fs.readFileSync('in.json'));\n"
            "for (const k in a) { const t = step.arrays[k]; if (!t) continue;"
            " const big = t instanceof BigInt64Array; t.set(a[k].map(v => big ? BigInt(v) : Number(v))); }\n"
            f"const r = step.run({json.dumps(rate(program.rule))}); const out = {{loss: r.loss[0] ?? r.loss}};\n"
            "for (const k in step.arrays) if (k.startsWith('params_')) out[k] = Array.from(step.arrays[k]);\n"
            "console.log(JSON.stringify(out));\n"
        )
        node = find_node()
        assert node is not None
        ran = subprocess.run([node, "run.mjs"], cwd=folder / "w", capture_output=True, text=True, timeout=60)
        if ran.returncode:
            raise RuntimeError(f"node: {ran.stderr.strip()[-600:]}")
        out = json.loads(ran.stdout.splitlines()[-1])
        loss = out.pop("loss")
        params = {}
        for leaf, array in program.params.items():
            values = [float("nan") if v is None else v for v in out[f"params_{leaf}"]]
            params[leaf] = np.array(values, np.float32).reshape(array.shape)
        return [(float("nan") if loss is None else float(loss), params)]
