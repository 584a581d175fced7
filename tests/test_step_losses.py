"""Whole steps of losses that tempt a compiler to fuse what it must not: the same loss and gradients as JAX's.

With sgd at a rate of 1 the params move by their gradients. Losses are compiled together, to compile little.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_machine import MACHINES
from step_losses import CASES, batch, classifier, loss, params
from wasm_node import Node, encode, find_node

import optgen as og
from optgen import host
from optgen.runtime.tree import leaves_of, map_tree
from optgen.targets import TARGETS
from optgen.train import TrainStep, compile_step, compile_step_c, compile_step_wasm, lower_step

TOLERANCE = 1e-4  # of a leaf's largest gradient: f32, added up in another order
#: What the processor's vectors divide, what they do not, and what is less than one of them.
BATCHES = (1, 2, 7, 100, 128, 200, 1000)
ROWS = 100
NATIVE = ("classifier", "temperature", "brier", "attention", "logistic")
LEVELS = [t for t in TARGETS if t.startswith("cpu:x86-64") and set(host.x86_requirements(t[4:])) <= host.features()]
X86 = pytest.mark.skipif(host.architecture() != "x86_64", reason="this processor is no x86-64")


def by_size(trees: Any, batches: Any) -> Any:
    """The classifier over batches of all sizes, each with params of its own."""
    each = {size: classifier(tree, batches[size]) for size, tree in trees.items()}
    return sum(each.values()), each


def sizes() -> tuple[Any, Any]:
    (tree,) = params(("classifier",)).values()
    return {str(n): map_tree(lambda _, a: np.array(a), tree) for n in BATCHES}, {str(n): batch(n) for n in BATCHES}


@cache
def expected(function: Any, names: tuple[str, ...]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Each loss, and each param's gradient, by JAX."""
    import jax

    given = (params(names), batch(ROWS)) if names else sizes()
    (_, each), grads = jax.value_and_grad(function, has_aux=True)(*given)
    return {k: float(v) for k, v in each.items()}, {k: np.asarray(g) for k, g in leaves_of(grads).items()}


def check(found: dict[str, float], changes: dict[str, np.ndarray], function: Any, names: tuple[str, ...]) -> None:
    losses, grads = expected(function, names)
    assert losses.keys() == found.keys()
    assert grads.keys() == changes.keys()
    for name, value in losses.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    for path, grad in grads.items():
        np.testing.assert_allclose(changes[path], grad, rtol=0, atol=TOLERANCE * np.abs(grad).max(), err_msg=path)


def run(function: Any, given: tuple[Any, Any], target: str, names: tuple[str, ...]) -> None:
    start, rows = given
    made = compile_step(function, start, rows, "sgd", targets=target, compute_dtype="f32")
    assert made.manifest.modules[0].in_place
    step, mine = TrainStep(made, "local-sync"), map_tree(lambda _, a: np.array(a), start)
    _, metrics = step.step(mine, step.init(mine), rows, lr=1.0)
    after = leaves_of(mine)
    check(metrics, {p: a - after[p] for p, a in leaves_of(start).items()}, function, names)


@X86
@pytest.mark.parametrize("target", LEVELS[-1:])
def test_the_classifier_at_every_size_of_batch(target: str) -> None:
    run(by_size, sizes(), target, ())


@X86
@pytest.mark.parametrize("target", LEVELS[-1:])
def test_every_loss(target: str) -> None:
    names = tuple(CASES)
    run(loss, (params(names), batch(ROWS)), target, names)


def test_losses_in_c(tmp_path: Path) -> None:
    machine = MACHINES["cpu:x86-64-v3"]
    machine.need()
    start, rows = params(NATIVE), batch(ROWS)
    bundle = compile_step_c(loss, start, rows, "sgd", machine.target, name="many", compute_dtype="f32")
    given = {f"params/{p}": a for p, a in leaves_of(start).items()} | {f"batch/{n}": a for n, a in rows.items()}
    text = '#include "many.h"\n#include "io.h"\n#include <stddef.h>\n#define A __attribute__((aligned(64)))\n'
    fill = ""
    for name, array in given.items():
        field = name.replace("/", "_")
        text += f"static A {'float' if array.dtype == np.float32 else 'int32_t'} {field}[{array.size}];\n"
        fill += f'    load("{field}", {field}, sizeof {field});\n    args.{field} = {field};\n'
        array.tofile(tmp_path / field)
    text += f"static A float losses[{len(NATIVE)}], total, lr = 1;\nstatic A int32_t step;\n"
    text += "static A unsigned char workspace[MANY_WORKSPACE_BYTES];\nint main(void)\n{\n    int status;\n"
    text += "    many_args args;\n" + fill
    text += "    args.state_step = &step;\n    args.lr = &lr;\n    args.loss = &total;\n"
    text += "".join(f"    args.metrics_{name} = &losses[{i}];\n" for i, name in enumerate(NATIVE))
    text += "    status = many(&args, workspace, sizeof workspace, NULL);\n"
    text += "    if (status) { say(many_error(status)); return status; }\n"
    text += '    store("losses", losses, sizeof losses);\n'
    fields = [name.replace("/", "_") for name in given if name.startswith("params/")]
    text += "".join(f'    store("{f}.new", {f}, sizeof {f});\n' for f in fields) + "    return 0;\n}\n"
    machine.build(tmp_path, [bundle], text)
    machine.run(tmp_path)
    after = {
        p: np.fromfile(tmp_path / f"params_{p.replace('/', '_')}.new", np.float32).reshape(a.shape)
        for p, a in leaves_of(start).items()
    }
    found = np.fromfile(tmp_path / "losses", np.float32)
    check(dict(zip(NATIVE, map(float, found), strict=True)), {p: a - after[p] for p, a in leaves_of(start).items()},
          loss, NATIVE)  # fmt: skip


def test_losses_in_webassembly(tmp_path: Path) -> None:
    program = find_node()
    if program is None:
        pytest.skip("Node.js 18 or newer is not installed")
    start, rows = params(NATIVE), batch(ROWS)
    package = compile_step_wasm(loss, start, rows, "sgd", name="many", compute_dtype="f32")
    folder = package.write(tmp_path / "many")
    given = {f"params_{p.replace('/', '_')}": encode(a) for p, a in leaves_of(start).items()}
    given |= {f"batch_{n}": encode(a) for n, a in rows.items()}
    body = f"""
    const kinds = {{ f32: Float32Array, i32: Int32Array }};
    const given = {{}};
    for (const [name, e] of Object.entries({json.dumps(given)}))
      given[name] = new kinds[e.type](Uint8Array.from(Buffer.from(e.data, "base64")).buffer);
    module.set(given);
    const results = module.run({{ lr: 1 }});
    const out = {{}};
    for (const name of Object.keys(given)) out[name] = Array.from(module.arrays[name]);
    return {{ results, out }};
    """
    node = Node(program)
    try:
        answer = node.js(folder, body)
    finally:
        node.close()
    assert "value" in answer, answer
    results, out = answer["value"]["results"], answer["value"]["out"]
    changes = {
        p: a - np.array(out[f"params_{p.replace('/', '_')}"], np.float32).reshape(a.shape)
        for p, a in leaves_of(start).items()
    }
    check({n: results[f"metrics_{n}"] for n in NATIVE}, changes, loss, NATIVE)


# Updates with numbers of whole leaves or rows: an optimizer's code is compiled as the user's loss is.

_SHAPES = {"one": (1,), "row": (7,), "tall": (33, 5), "wide": (4, 100), "long": (1000,), "cube": (3, 7, 2)}


def _straight(tree: Any, given: Any) -> Any:
    """A loss whose gradient is the batch."""
    return sum((tree[name] * given[name]).sum() for name in tree)


def _optax(name: str) -> Any:
    import jax
    import jax.numpy as jnp
    import optax

    def rows(updates: Any, state: Any, _: Any = None) -> Any:
        """Softmax of each row times its norm: what reduces a row is used by its elements."""

        def one(g: Any) -> Any:
            return jax.nn.softmax(g, axis=-1) * jnp.sqrt((g * g).sum(-1, keepdims=True) + 1e-6)

        return jax.tree.map(one, updates), state

    def init(_: Any) -> Any:
        return optax.EmptyState()

    return {
        "lamb": lambda: optax.lamb(0.1),
        "lars": lambda: optax.lars(0.1),
        "novograd": lambda: optax.novograd(0.1),
        "adaptive_clip": lambda: optax.chain(optax.adaptive_grad_clip(0.01), optax.adam(0.1)),
        "rows": lambda: optax.chain(optax.GradientTransformation(init, rows), optax.adam(0.1)),
    }[name]()


def straight_data() -> tuple[Any, Any]:
    rng = np.random.default_rng(8)
    return tuple(  # type: ignore[return-value]
        {n: rng.standard_normal(s).astype(np.float32) for n, s in _SHAPES.items()} for _ in range(2)
    )


@pytest.mark.parametrize("name", ["lamb", "lars", "novograd", "adaptive_clip", "rows"])
def test_optax_updates_that_reduce_leaves_and_rows(name: str) -> None:
    import jax
    import optax

    start, given = straight_data()
    transformation = _optax(name)
    step = TrainStep(compile_step(_straight, start, given, transformation), "local-sync")
    mine = map_tree(lambda _, a: np.array(a), start)
    state = step.init(mine)
    theirs, other = start, transformation.init(start)
    for _ in range(3):
        step.step(mine, state, given)
        updates, other = jax.jit(transformation.update)(given, other, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for path, leaf in leaves_of(mine).items():
        np.testing.assert_allclose(leaf, np.asarray(theirs[path]), rtol=2e-5, atol=2e-6, err_msg=path)


@og.rule(state=("old",))
def remembers(w: Any, g: Any, old: Any, *, lr: Any) -> Any:
    """SGD that remembers the last params."""
    return w - lr * g, w + 0 * old


@og.rule(state=("old",))
def mixes(w: Any, g: Any, old: Any, *, lr: Any) -> Any:
    """Params that other elements of the params change."""
    return w - lr * g + 0.5 * w[::-1], w[::-1] + 0.25 * old


def test_params_that_are_read_elsewhere_are_right() -> None:
    """Their kernel cannot have their memory: it would read elements that it has overwritten."""
    start, given = ({"w": tree["tall"]} for tree in straight_data())
    bundle = compile_step(_straight, start, given, mixes, targets="cpu", compute_dtype="f64")
    (module,) = bundle.manifest.modules
    step, mine = TrainStep(bundle, "local-sync"), map_tree(lambda _, a: np.array(a), start)
    state = step.init(mine)
    w, old = start["w"].astype(np.float64), np.zeros_like(start["w"], np.float64)
    for _ in range(3):
        step.step(mine, state, given, lr=0.1)
        w, old = w - 0.1 * given["w"] + 0.5 * w[::-1], w[::-1] + 0.25 * old
    np.testing.assert_allclose(mine["w"], w, rtol=1e-5)
    np.testing.assert_allclose(state["old"]["w"], old, rtol=1e-5)
    assert not module.in_place
    assert "params/w" in {bundle.manifest.arguments[i].name for i in module.apart}


@pytest.mark.parametrize(
    ("rule", "compute"),
    [("adamw", "f32"), ("adamw", "f64"), ("lamb", "f32"), ("lion", "f32"), ("adopt", "f32"), ("novograd", "f32"),
     ("signum", "f32"), (remembers, "f32")],
)  # fmt: skip
def test_updates_are_one_kernel_a_leaf_without_copies(rule: Any, compute: str) -> None:
    """In place: also where the new moment is not what the param's change is made of."""
    start, given = straight_data()
    bundle = compile_step(_straight, start, given, rule, targets="cpu", compute_dtype=compute)
    (module,) = bundle.manifest.modules
    assert (module.in_place, module.copies, module.apart) == (True, 0, ())
    program = lower_step(_straight, start, given, rule, compute_dtype=compute, fuse=True)
    kernels = re.findall(r"%\d+(?::\d)? = linalg.generic .*outs\((.*?) :", program.mlir)
    assert len([outs for outs in kernels if "%arg" in outs]) == len(start)
    other = og.compile(rule, like=start, compute_dtype=compute)
    step, mine, theirs = TrainStep(bundle, "local-sync"), *(map_tree(lambda _, a: np.array(a), start) for _ in "12")
    state, expected_state = step.init(mine), other.init(theirs)
    hypers = {h.name: 0.1 if h.name == "lr" else h.default for h in bundle.manifest.hypers if h.default is None}
    for _ in range(3):
        step.step(mine, state, given, **hypers)
        other.step(theirs, given, expected_state, **hypers)
    for (path, a), b in zip(leaves_of(mine).items(), leaves_of(theirs).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6, err_msg=path)
    for (path, a), b in zip(leaves_of(state).items(), leaves_of(expected_state).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6, err_msg=path)
