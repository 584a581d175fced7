"""Sizes and errors of generated C on every target; as a script, writes the tables of docs/targets/c.md."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import native_mlp as mlp
import numpy as np
from native_machine import MACHINES, Machine
from native_rules import TRIALS, Place, errors, prepare, program

from optgen.native import NATIVE_TARGETS

DOC = Path(__file__).resolve().parent.parent / "docs" / "targets" / "c.md"
#: Where errors are looked for; the last is how much stack is measured on.
PLACES = (Place(4097, 1), Place(4097, 2, 1), Place(4097, 10), Place(4097, 1000, 1), Place(4097, 1_000_000))
SEEDS = range(4)
_BOARDS = {"mps2-an386": "MPS2 AN386", "mps2-an500": "MPS2 AN500", "mps3-an547": "MPS3 AN547"}
_INPUT = re.compile(r"^ (\.[\w.$-]+)\s+0x[0-9a-f]+\s+0x([0-9a-f]+) (\S+)$", re.MULTILINE)


def linked(map_file: Path) -> dict[str, dict[str, int]]:
    """From each linked object file or archive to the bytes of ``code``, ``data`` and ``bss`` that are left of it."""
    text = map_file.read_text().split("Linker script and memory map")[1]
    found: dict[str, dict[str, int]] = {}
    for section, size, path in _INPUT.findall(text):
        kind = next((k for k, heads in _KINDS.items() if section.startswith(heads)), None)
        if kind is not None:
            parts = found.setdefault(Path(path.partition("(")[0]).name, dict.fromkeys(_KINDS, 0))
            parts[kind] += int(size, 16)
    return found


_KINDS = {"code": (".text", ".rodata", ".vectors", ".ARM"), "data": (".data", ".tdata"), "bss": (".bss", ".stack")}


def how(machine: Machine) -> str:
    """In a few words, what runs the program."""
    if machine.bare:
        return f"qemu-system-arm, {_BOARDS[machine.emulator[2]]}"
    return machine.emulator[0].removesuffix("-static") if machine.emulator else "natively"


def adamw(machine: Machine, compute: str) -> dict[str, object]:
    """AdamW in that arithmetic on that machine."""
    bundle = TRIALS[0].compile(machine.target, compute_dtype=compute)
    worst = np.zeros(2)
    for seed in SEEDS:
        session = prepare(TRIALS[:1], PLACES, seed)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            session.memory.tofile(folder / "in.bin")
            text = program(session, [bundle]).replace("    return 0;\n}\n", _STACK)
            machine.build(folder, [bundle], text)
            stack = int(machine.run(folder).split("stack ")[1])
            sizes = linked(folder / "program.map")
            for call, found in zip(
                session.calls, session.results(np.fromfile(folder / "out.bin", np.uint8)), strict=True
            ):
                worst = np.maximum(worst, errors(call, found)["w"])
    kernels, driver = sizes["adamw_kernels.o"], sizes["adamw.o"]
    return {
        "object": len(bundle.object), "kernels": kernels["code"], "driver": driver["code"],
        "data": kernels["data"] + driver["data"], "stack": stack,
        "libraries": sum(v["code"] for k, v in sizes.items() if k.endswith(".a")),
        "ulp": worst[0], "largest": worst[1],
    }  # fmt: skip


_STACK = r"""
    {
        size_t used = stack_used();
        char text[16] = "stack 000000\n";
        int i;
        for (i = 11; used; used /= 10)
            text[i--] = (char)('0' + used % 10);
        say(text);
    }
    return 0;
}
"""


def targets_table() -> str:
    lines = [
        "| target | arithmetic | object file | kernel | `adamw.c` | libraries | data | stack | ulp | of terms | run |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, machine in MACHINES.items():
        usual = NATIVE_TARGETS[name].compute
        for compute in dict.fromkeys((usual, "f64", "f32")):
            m = adamw(machine, compute)
            label = f"`{name}`" if compute == usual else ""
            sizes = [m["object"], m["kernels"], m["driver"], m["libraries"] if machine.bare else "-", m["data"]]
            cells = [label, compute, *sizes, m["stack"] or "-", f"{m['ulp']:.3f}", f"{m['largest']:.3f}"]
            lines.append(f"| {' | '.join(map(str, [*cells, how(machine) if compute == usual else '']))} |")
    return "\n".join(lines)


def mlp_row(machine: Machine, folder: Path) -> Mapping[str, Any]:
    """The MLP's training step on that machine: bytes, and how far its losses are from JAX's."""
    bundle = mlp.compile_mlp(machine.target)
    losses, _, stack = mlp.train(machine, folder, bundle)
    sizes = linked(folder / "program.map")
    libraries = sum(v["code"] for k, v in sizes.items() if k.endswith(".a"))
    kernels = sizes["mlp_step_kernels.o"]
    params = sum(int(np.prod(shape)) * 4 for shape in mlp.SHAPES.values())
    driver = sum(v["code"] for k, v in sizes.items() if k == "mlp_step.o")
    data = sum(v["data"] for k, v in sizes.items() if k.startswith("mlp_step"))
    return {
        "kernels": kernels["code"], "driver": driver, "libraries": libraries,
        "flash": kernels["code"] + driver + libraries + data,
        "params": params, "state": 2 * params, "batch": mlp.BATCH * 65 * 4, "workspace": bundle.workspace,
        "stack": stack, "data": data, "ram": 3 * params + mlp.BATCH * 65 * 4 + bundle.workspace + stack + data,
        "error": float(np.abs(losses - mlp.expected()[0]).max()),
    }  # fmt: skip


def mlp_table() -> str:
    rows = {}
    for name, machine in MACHINES.items():
        if machine.bare:
            with tempfile.TemporaryDirectory() as folder:
                rows[name] = mlp_row(machine, Path(folder))
    labels = {
        "kernels": "kernels", "driver": "`mlp_step.c`", "libraries": "libm, libgcc, libc", "data": "tables",
        "flash": "**flash**", "params": "params", "state": "m and v", "batch": "a batch of 16",
        "workspace": "workspace", "stack": "stack, measured", "ram": "**RAM**",
    }  # fmt: skip
    lines = ["| bytes | " + " | ".join(f"`{name}`" for name in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for key, label in labels.items():
        lines.append(f"| {label} | " + " | ".join(f"{row[key]:,}" for row in rows.values()) + " |")
    lines.append("| losses, from JAX's | " + " | ".join(f"{row['error']:.1e}" for row in rows.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    text = DOC.read_text()
    for name, make in (("targets", targets_table), ("mlp", mlp_table)):
        start, end = f"<!-- {name}: python tests/native_table.py -->\n", f"<!-- end of {name} -->"
        assert text.count(start) == text.count(end) == 1, f"{DOC} must have one place for the table '{name}'"
        head, _, rest = text.partition(start)
        text = f"{head}{start}{make()}\n{end}{rest.partition(end)[2]}"
    DOC.write_text(text)


if __name__ == "__main__":
    main()
