"""A whole training step of an MLP as C: two layers, cross entropy and AdamW, traced and donated by JAX."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from native_machine import Machine

from optgen.native import CBundle, compile_c_function

STEPS, BATCH = 24, 16
SHAPES = {"w1": (64, 32), "b1": (32,), "w2": (32, 10), "b2": (10,)}
ARGUMENTS = [*(f"{part}_{name}" for part in ("param", "m", "v") for name in sorted(SHAPES)), "x", "y", "step"]
RESULTS = [*ARGUMENTS[:-3], "loss"]


def loss(params: Any, x: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
    logits = jax.nn.log_softmax(hidden @ params["w2"] + params["b2"])
    return -jnp.mean(jnp.take_along_axis(logits, y[:, None], 1))


def step(params: Any, m: Any, v: Any, x: Any, y: Any, t: Any) -> Any:
    import jax
    import jax.numpy as jnp

    value, grads = jax.value_and_grad(loss)(params, x, y)
    # Nothing may read the params once the first of them is overwritten.
    value, grads = jax.lax.optimization_barrier((value, grads))
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
    c1, c2 = 1 - 0.9**t, 1 - 0.999**t
    params = jax.tree.map(
        lambda p, m, v: p * (1 - 1e-2 * 1e-2) - 1e-2 * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), params, m, v
    )
    return params, m, v, value


def data() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Params, and inputs and labels for each step."""
    rng = np.random.default_rng(20261124)
    params = {name: (rng.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in SHAPES.items()}
    x = rng.standard_normal((STEPS, BATCH, 64)).astype(np.float32)
    y = (x @ rng.standard_normal((64, 10)).astype(np.float32)).argmax(2).astype(np.int32)
    return params, x, y


@cache
def module() -> str:
    """The step as StableHLO, with donated params and state."""
    import jax

    params, x, y = data()
    zeros = jax.tree.map(np.zeros_like, params)
    lowered = jax.jit(step, donate_argnums=(0, 1, 2)).lower(params, zeros, zeros, x[0], y[0], np.float32(1))
    return str(lowered.as_text())


def compile_mlp(target: str) -> CBundle:
    return compile_c_function(
        module(), target, name="mlp_step", arguments=ARGUMENTS, results=RESULTS, summary="A step of training an MLP."
    )


@cache
def expected() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """JAX's losses, and its params after the last step; nothing donated."""
    import jax

    params, x, y = data()
    state = params, jax.tree.map(np.zeros_like, params), jax.tree.map(np.zeros_like, params)
    run, losses = jax.jit(step), []
    for i in range(STEPS):
        *state, value = run(*state, x[i], y[i], np.float32(i + 1))
        losses.append(float(value))
    return np.array(losses, np.float32), {name: np.asarray(p) for name, p in state[0].items()}


def program(bundle: CBundle) -> str:
    sizes = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    text = '#include "mlp_step.h"\n#include "io.h"\n#include <stdio.h>\n'
    text += "static struct {\n" + "".join(f"    float {n}[{sizes[n]}];\n" for n in sorted(SHAPES)) + "} parts[3];\n"
    text += f"static float x[{BATCH * 64}], losses[{STEPS}];\nstatic int32_t y[{BATCH}];\n"
    text += "static unsigned char workspace[MLP_STEP_WORKSPACE_BYTES] __attribute__((aligned(64)));\n"
    text += "static char name[16];\n"
    text += "static const char *file(char kind, int i)\n{\n    name[0] = kind; name[1] = (char)('0' + i / 10);\n"
    text += "    name[2] = (char)('0' + i % 10); name[3] = 0;\n    return name;\n}\n"
    text += "int main(void)\n{\n    int i, status;\n    float t;\n    mlp_step_args args;\n"
    for part, index in (("param", 0), ("m", 1), ("v", 2)):
        text += "".join(f"    args.{part}_{n} = parts[{index}].{n};\n" for n in sorted(SHAPES))
    text += "    args.x = x; args.y = y; args.step = &t;\n"
    text += '    load("params", &parts[0], sizeof parts[0]);\n'
    text += f"    for (i = 0; i < {STEPS}; ++i) {{\n        t = (float)(i + 1);\n        args.loss = &losses[i];\n"
    text += "        load(file('x', i), x, sizeof x);\n        load(file('y', i), y, sizeof y);\n"
    text += "        status = mlp_step(&args, workspace, sizeof workspace, NULL);\n"
    text += "        if (status) { say(mlp_step_error(status)); return status; }\n    }\n"
    text += '    store("losses", losses, sizeof losses);\n    store("trained", &parts[0], sizeof parts[0]);\n'
    text += '    {\n        size_t used = stack_used();\n        char text[16] = "stack 000000\\n";\n'
    text += "        for (i = 11; used; used /= 10) text[i--] = (char)('0' + used % 10);\n        say(text);\n    }\n"
    return text.replace("#include <stdio.h>\n", "") + "    return 0;\n}\n"


def train(machine: Machine, folder: Path, bundle: CBundle) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """Trains there. Returns the losses, the params and the bytes of stack that were used (0 where nobody knows)."""
    params, x, y = data()
    np.concatenate([params[n].ravel() for n in sorted(SHAPES)]).tofile(folder / "params")
    for i in range(STEPS):
        x[i].tofile(folder / f"x{i:02}")
        y[i].tofile(folder / f"y{i:02}")
    machine.build(folder, [bundle], program(bundle))
    said = machine.run(folder)
    flat = np.fromfile(folder / "trained", np.float32)
    trained, at = {}, 0
    for name in sorted(SHAPES):
        size = int(np.prod(SHAPES[name]))
        trained[name], at = flat[at : at + size].reshape(SHAPES[name]), at + size
    return np.fromfile(folder / "losses", np.float32), trained, int(said.split("stack ")[1].split()[0])
