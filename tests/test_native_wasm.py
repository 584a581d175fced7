"""WebAssembly without a runtime: packages run in Node.js, against float64, longdouble, JAX and themselves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from exactness import ROWS, Row, measure
from wasm_node import Node, decode, encode, find_node

import optgen
from optgen.cli import main
from optgen.dsl.variant import Variant
from optgen.dtypes import from_float64, to_float64
from optgen.errors import BundleError, CompileError, HyperparameterError, LoweringError
from optgen.native import get_native_target, step_package, update_package
from optgen.native.wasm import link_wasm
from optgen.rules import get_rule
from optgen.train import recipe

PLACES = ((1, 65), (2, 1), (1000, 4099), (1_000_000, 333))
MakePackage = Callable[..., Path]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    program = find_node()
    if program is None:
        pytest.skip("no Node.js of 18 or newer is here")
    process = Node(program)
    yield process
    process.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> MakePackage:
    made: dict[Any, Path] = {}

    def make(rule: str, target: str = "wasm", dtype: str = "f32", compute: str | None = None, **structure: Any) -> Path:
        key = rule, target, dtype, compute, *structure.items()
        if key not in made:
            structure = {n: v for n, v in structure.items() if isinstance(v, bool) or n == "momentum"}
            variant = Variant.of(get_rule(rule), structure=structure)
            found = update_package(variant, variant.dtypes(dtype, compute=compute), get_native_target(target))
            made[key] = found.write(tmp_path_factory.mktemp("wasm") / "package")
        return made[key]

    return make


def row_of(name: str) -> Row:
    return next(r for r in ROWS if r.name == name)


def peer_of(node: Node, folder: Path, row: Row, action: str) -> Any:
    def update(step: int, tensors: dict[str, np.ndarray], scalars: Any) -> dict[str, np.ndarray]:
        counts = node.js(folder, "return 'step' in module.rule.hypers")["value"]
        numbers = {n: v for n, v in row.numbers.items() if not isinstance(v, bool)}
        new, _ = node.update(folder, tensors, {**numbers, **scalars, **({"step": step} if counts else {})}, action)
        return {n: a for n, a in new.items() if n not in ("g", "h")}

    return update


@pytest.mark.parametrize("name", ["sgd", "sgd momentum nesterov", "adamw", "lion", "lamb", "nadam", "rprop"])
def test_results_are_correctly_rounded(node: Node, package: MakePackage, name: str) -> None:
    """With SIMD and without, on typed arrays and in place; denormal numbers too, which other CPUs' kernels flush."""
    row = row_of(name)
    opt = optgen.compile(row.rule, **row.settings)
    peers = {
        "simd": peer_of(node, package(row.rule, **row.settings), row, "update"),
        "scalar in place": peer_of(node, package(row.rule, "wasm:scalar", **row.settings), row, "inside"),
    }
    for label, worst in measure(row, peers, opt, "f32", PLACES).items():
        assert worst["normal", "w"] > 0.3
        assert {key: error for key, error in worst.items() if error > 0.501} == {}, label


@pytest.mark.parametrize("size", [0, 1, 3, 63, 4096, 100_003])
@pytest.mark.parametrize("rule", ["sgd", "adamw", "lamb", "lion"])
def test_sizes_and_simd(node: Node, package: MakePackage, rng: np.random.Generator, rule: str, size: int) -> None:
    """SIMD and scalar code give the same bits, in place or not; nothing beyond the leaf is written."""
    names = [o.name for o in Variant.of(get_rule(rule)).kernel(Variant.of(get_rule(rule)).dtypes("f32")).operands]
    tensors = {n: np.abs(rng.standard_normal(size)).astype(np.float32) for n in names}
    hypers = {"lr": 0.01, **({"step": 3} if "v" in names else {})}
    simd, _ = node.update(package(rule), tensors, hypers)
    scalar, _ = node.update(package(rule, "wasm:scalar"), tensors, hypers)
    inside, _ = node.update(package(rule), tensors, hypers, "inside")
    for name in names:
        assert np.array_equal(simd[name], inside[name])
        if rule != "lamb":
            assert np.array_equal(simd[name], scalar[name])
    assert np.array_equal(simd["g"], tensors["g"])
    assert size == 0 or not np.array_equal(simd["w"], tensors["w"])
    row = row_of(rule)
    expected = row.reference(*(a.astype(np.longdouble) for a in tensors.values()), step=3, lr=0.01)
    np.testing.assert_allclose(simd["w"], np.asarray(expected["w"], np.float64), rtol=2e-7, atol=1e-7)
    guarded = """
    const n = %d, whole = module.tensor(4 * n + 8);
    whole.view.fill(7);
    const at = (i) => whole.view.subarray(1 + i * (n + 1), 1 + i * (n + 1) + n);
    const arrays = Object.fromEntries(module.rule.operands.map((o, i) => [o.name, at(i).fill(0.5)]));
    module.update(arrays, %s);
    return [0, n + 1, 2 * n + 2].every((i) => whole.view[i] === 7);
    """
    assert node.js(package(rule), guarded % (size, json.dumps(hypers)))["value"]


@pytest.mark.parametrize(("dtype", "compute"), [("f64", None), ("bf16", None), ("f16", None), ("f32", "f32")])
def test_other_dtypes(
    node: Node, package: MakePackage, rng: np.random.Generator, dtype: str, compute: str | None
) -> None:
    """The same as optgen's own runtime on this processor: f64 to its last digits, 16 bits within one rounding."""
    folder, size = package("adamw", dtype=dtype, compute=compute), 333
    wide = "f64" if dtype == "f64" else "f32"
    kinds = {"w": dtype, "g": dtype, "m": wide, "v": wide}
    tensors = {n: from_float64(np.abs(rng.standard_normal(size)), kind) for n, kind in kinds.items()}
    found, _ = node.update(folder, tensors, {"lr": 0.01, "step": 2})
    exact = {n: to_float64(a, kinds[n]) for n, a in tensors.items()}
    expected = row_of("adamw").reference(*(a.astype(np.longdouble) for a in exact.values()), step=2, lr=0.01)
    tolerance = {"f64": 4e-15, "f32": 1e-6, "bf16": 4e-3, "f16": 5e-4}
    for name in ("w", "m", "v"):
        kind = kinds[name]
        limit = tolerance["f32" if kind == "f32" else kind]
        np.testing.assert_allclose(to_float64(found[name], kind), np.asarray(expected[name], float), rtol=limit,
                                   atol=limit / 10)  # fmt: skip


@pytest.mark.parametrize("rule", ["adamw", "lamb", "schedule_free_adamw", "rprop"])
def test_a_tree_follows_the_runtime(node: Node, package: MakePackage, rng: np.random.Generator, rule: str) -> None:
    """Thirty steps of an optimizer over leaves, with what its state begins with and its scalar state, against
    optgen's own runtime. Both are exact, so that they part where the last digit of f64 decides a rounding."""
    params = {"w1": rng.standard_normal(1000), "b": rng.standard_normal(7), "one": rng.standard_normal(1)}
    params = {n: a.astype(np.float32) for n, a in params.items()}
    grads = [{n: rng.standard_normal(a.size).astype(np.float32) for n, a in params.items()} for _ in range(30)]
    rates = [{"lr": 0.01 / (1 + i)} for i in range(30)]
    start = {"lr": 0.01} if rule == "rprop" else {}
    body = f"const optimizer = module.optimizer({{w: Float32Array.of(1)}}, {json.dumps(start)}); return 1"
    assert node.js(package(rule), body) == {"value": 1}
    if rule == "rprop":
        rates = [{} for _ in rates]
    given = {"params": params, "grads": grads}
    encoded = {
        "params": {n: encode(a) for n, a in given["params"].items()},
        "grads": [{n: encode(a) for n, a in g.items()} for g in grads],
    }
    answer = node.call(package(rule), "tree", **encoded, hypers=rates)
    assert answer["stepCount"] == 30
    opt = optgen.compile(rule)
    ours = {n: a.copy() for n, a in params.items()}
    state = opt.init(ours)
    for grad, rate in zip(grads, rates, strict=True):
        ours, state = opt.step(ours, grad, state, **rate)
    for name, scalar in answer["scalars"].items():
        assert scalar == pytest.approx(state[name], rel=1e-12)
    for slot, leaves in answer["arrays"].items():
        for leaf, data in leaves.items():
            expected = ours[leaf] if slot == "w" else state[slot][leaf]
            np.testing.assert_allclose(decode(data, expected), expected, rtol=3e-7, atol=6e-8)


ERRORS = {
    "module.update({w: new Float32Array(3), g: new Float32Array(4), m, v}, h)": "'g' must have 3 elements (it has 4)",
    "module.update({w: new Float64Array(3), g, m, v}, h)": "'w' must be a Float32Array, which holds f32",
    "module.update({w, g, m}, h)": "'v' must be a Float32Array, which holds f32 (got undefined)",
    "module.update({w, g, m, v, q: w}, h)": "there is no operand 'q': there are w, g, m, v",
    "module.update({w, g: w, m, v}, h)": "'w' and 'g' must not share memory",
    "module.update({w: moved(new Float32Array(3)), g, m, v}, h)": "'w' is a view of memory that is gone",
    "module.update({w, g, m, v}, {lr: 1})": "'step' must be given",
    "module.update({w, g, m, v}, {lr: -1, step: 1})": "'lr' must be at least 0 (got -1)",
    "module.update({w, g, m, v}, {lr: NaN, step: 1})": "'lr' must be a finite number (got NaN)",
    "module.update({w, g, m, v}, {lr: '1', step: 1})": "'lr' must be a finite number (got 1)",
    "module.update({w, g, m, v}, {lr: 1, step: 0})": "'step' must be a whole number of at least 1 (got 0)",
    "module.update({w, g, m, v}, {lr: 1, step: 1, beta1: 1})": "'beta1' must be in [0, 1) (got 1)",
    "module.update({w, g, m, v}, {lr: 1, step: 1, gamma: 1})": "'adamw' has no hyperparameter 'gamma' (it has lr, step",
    "module.tensor(-1)": "'length' must be a whole number (got -1)",
    "module.tensor(2 ** 40)": "there is no memory for",
    "freed()": "this tensor has been freed",
    "module.optimizer({w: [1, 2]})": "'w' must be a Float32Array, which holds f32 (got Array)",
    "module.optimizer({w}, {lr: 1})": "'lr' must not be given here",
    "module.optimizer({w}).step({}, {lr: 1})": "'grads.w' must be a Float32Array",
    "module.optimizer({w}).step({w: g, b: g}, {lr: 1})": "'b' of the grads is no param",
    "module.optimizer({w}).step({w: g}, {lr: 1, step: 4})": "'step' is counted by the optimizer",
    "module.optimizer({w}).restore({arrays: {}})": "'w.w' must be a Float32Array",
}


@pytest.mark.parametrize("code", ERRORS)
def test_errors(node: Node, package: MakePackage, code: str) -> None:
    """Each is of a class of the package, says what is wrong, and nothing has been written."""
    body = """
    const [w, g, m, v] = [1, 2, 3, 4].map((x) => new Float32Array(3).fill(x));
    const h = { lr: 1, step: 1 };
    const moved = (array) => (structuredClone(array.buffer, { transfer: [array.buffer] }), array);
    const freed = () => { const tensor = module.tensor(3); tensor.free(); return tensor.view; };
    try { CODE } catch (error) {
      if ([w, g, m, v].some((a, i) => a.some((x) => x !== i + 1))) throw new Error("something was written");
      throw error;
    }
    """.replace("CODE", code)
    answer = node.js(package("adamw"), body)
    assert answer.get("known"), answer
    assert ERRORS[code] in answer["message"]
    assert answer["error"] in ("ArrayError", "HyperparameterError")


def test_memory_grows_and_is_used_again(node: Node, package: MakePackage) -> None:
    body = """
    const optimizer = module.optimizer({ w: new Float32Array(10).fill(1) });
    const { params } = optimizer, old = params.w;
    const large = module.tensor(1000000);
    if (old.length !== 0) return "memory has not grown";
    const seen = [params.w[0], params.w.length];
    const before = module.memoryBytes;
    for (let i = 0; i < 5; i++) {
      large.free();
      const other = module.tensor(1000000);
      if (other.view.some((x) => x !== 0)) return "not zero";
      other.view.fill(3);
      other.free();
      for (const x of [1, 2, 3]) {
        const outside = () => new Float32Array(1000).fill(x);
        module.update({ w: outside(), g: outside(), m: outside(), v: outside() }, { lr: 1, step: 1 });
      }
    }
    try { module.update({ w: old, g: old, m: old, v: old }, { lr: 1, step: 1 }); return "taken"; }
    catch (error) { seen.push(error.message.slice(0, 30)); }
    const kept = optimizer.snapshot();
    optimizer.step({ w: new Float32Array(10).fill(1) }, { lr: 0.5 });
    const moved = params.w[0];
    optimizer.restore(kept);
    return [...seen, module.memoryBytes - before < 65536 * 2, moved < 0.6, params.w[0], optimizer.stepCount];
    """
    value = node.js(package("adamw"), body)["value"]
    assert value == [1, 10, "'w' is a view of memory that i", True, True, 1, 0]


@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_threads(node: Node, package: MakePackage, rng: np.random.Generator, rule: str) -> None:
    """The same bits as one thread's, in many rounds of different sizes that follow each other at once."""
    folder = package(rule, "wasm:threads")
    tensors = {n: np.abs(rng.standard_normal(300_001)).astype(np.float32) for n in "wgmv"}
    hypers = {"lr": 0.01, "step": 3}
    expected, _ = node.update(package(rule), tensors, hypers)
    for _ in range(3):
        found, _ = node.update(folder, tensors, hypers)
        assert all(np.array_equal(found[n], expected[n]) for n in tensors)
    body = """
    const other = await package_.load(undefined, { threads: 3 });
    const [one, many] = [await package_.load(undefined, { threads: 1 }), other].map((update) =>
      Object.fromEntries(update.rule.operands.map((o) => [o.name, [update, update.tensor(400000)]])));
    let random = 1;
    for (let i = 0; i < 300; i++) {
      random = (random * 48271) % 2147483647;
      const length = random % (i % 3 ? 400000 : 70000);
      for (const each of [one, many]) {
        const [[update]] = Object.values(each);
        const arrays = Object.fromEntries(Object.entries(each).map(([n, [, t]]) => [n, t.view.subarray(0, length)]));
        arrays.g.fill(1 / (1 + i));
        update.update(arrays, { lr: 0.01, step: 1 + i });
      }
    }
    const same = ["w", "m", "v"].every((n) => one[n][1].view.every((x, i) => x === many[n][1].view[i]));
    other.close();
    other.update(Object.fromEntries(Object.entries(many).map(([n, [, t]]) => [n, t])), { lr: 1, step: 1 });
    return same && one.w[1].view[0] !== 0;
    """
    assert node.js(folder, body) == {"value": True}
    wrong = node.js(folder, "return package_.load(undefined, { threads: 0 })")
    assert "'threads' must be a whole number of at least 1 (got 0)" in wrong["message"]
    assert not (folder / "adamw.script.js").exists()


def test_another_packages_wasm_is_refused(node: Node, package: MakePackage) -> None:
    bodies = {
        f"return package_.load(new URL('file://{package('sgd')}/sgd.wasm'))": "is another's",
        "return package_.load(new Uint8Array([0, 97, 115, 109]))": "cannot be compiled here",
    }
    for body, message in bodies.items():
        answer = node.js(package("adamw"), body)
        assert (answer["error"], answer["known"]) == ("LibraryError", True)
        assert message in answer["message"]


def test_package(node: Node, package: MakePackage, tmp_path: Path) -> None:
    """What npm needs is there; the same again gives the same bytes; the classic script computes the same."""
    folder = package("adamw")
    described = json.loads((folder / "package.json").read_text())
    assert (described["name"], described["type"], described["license"]) == ("optgen-adamw", "module", "Apache-2.0")
    named = [*described["files"], *described["exports"]["."].values(), described["main"], described["unpkg"]]
    assert all((folder / name).exists() for name in named)
    assert (folder / "adamw.wasm").stat().st_size < 4096
    variant = Variant.of(get_rule("adamw"))
    again = update_package(variant, variant.dtypes("f32"), get_native_target("wasm"), use_cache=False)
    assert {n: (folder / n).read_bytes() for n in again.files} == dict(again.files)
    tensors = {n: np.full(5, 0.5, np.float32) for n in "wgmv"}
    call: dict[str, Any] = {"arrays": {n: encode(a) for n, a in tensors.items()}, "hypers": {"lr": 0.1, "step": 1}}
    assert node.call(folder, "update", **call) == node.call(folder, "update", script="adamw", **call)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "package.json").write_text("{}")
    with pytest.raises(BundleError, match="is not a package of optgen: not overwritten"):
        again.write(tmp_path / "other")
    assert [f.name for f in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("rule", ["adamw", "schedule_free_adamw", "rprop", "sophia_g"])
def test_readme_runs(node: Node, package: MakePackage, tmp_path: Path, rule: str) -> None:
    """Its code, as typed, with the package where npm puts it."""
    folder = package(rule)
    name = json.loads((folder / "package.json").read_text())["name"]
    shutil.copytree(folder, tmp_path / "node_modules" / name)
    text = (folder / "README.md").read_text()
    blocks = re.findall(r"```js\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    assert "object at" not in text
    (tmp_path / "readme.mjs").write_text("\n".join(blocks))
    result = subprocess.run([str(find_node()), "readme.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    weight, count = result.stdout.split()
    assert (float(weight) < 0, count) == (True, "1")


def test_the_documents_program_runs(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "targets" / "wasm.md").read_text()
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(code, "wasm.md", "exec"), {})
    body = """
    module.arrays.x.fill(1);
    const { loss } = module.run({ y: new Float32Array(32).fill(2), lr: 0.125 });
    return [loss, ...module.arrays.w];
    """
    assert node.js(tmp_path / "regression", body)["value"] == [4] + 8 * [0.5]
    body = """
    const [batch_x, batch_y] = [new Float32Array(256).fill(1), new Float32Array(32).fill(2)];
    const run = () => module.run({ batch_x, batch_y, lr: 0.1 });
    return [run().loss, run().loss, module.arrays.params_w[0]];
    """
    first, second, weight = node.js(tmp_path / "regression-step", body)["value"]
    assert first == 4
    assert second == pytest.approx((2 - 0.8) ** 2, rel=1e-5)  # Adam's first step is lr, in all eight
    assert weight == pytest.approx(0.2, abs=0.01)


def test_types(package: MakePackage, tmp_path: Path) -> None:
    tsc = shutil.which("tsc")
    if tsc is None:
        pytest.skip("no TypeScript compiler is here")
    shutil.copytree(package("adamw"), tmp_path / "adamw")
    shutil.copytree(package("adamw", "wasm:threads"), tmp_path / "threads")
    baked = Variant.of(get_rule("adamw"), bake={"lr": 0.1})
    update_package(baked, baked.dtypes("f32"), get_native_target("wasm")).write(tmp_path / "baked")
    shutil.copy(Path(__file__).with_name("wasm_types.ts"), tmp_path)
    flags = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom"]
    (tmp_path / "package.json").write_text('{"type": "module"}')
    result = subprocess.run([tsc, *flags, "wasm_types.ts"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_what_is_refused(tmp_path: Path) -> None:
    target = get_native_target("wasm")
    muon = Variant.of(get_rule("muon"))
    with pytest.raises(LoweringError, match=r"rule 'muon' cannot run in place .* compile the whole training step"):
        update_package(muon, muon.dtypes("f32"), target)
    adamw = Variant.of(get_rule("adamw"))
    with pytest.raises(HyperparameterError, match="'name' must have small letters"):
        update_package(adamw, adamw.dtypes("f32"), target, name="../x")
    with pytest.raises(CompileError, match="iree-lld cannot link the module"):
        link_wasm(b"no object", "query")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], node: Node) -> None:
    folder = tmp_path / "package"

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as stop:
            main(["compile", "adamw", "--emit", "wasm", *arguments])
        return int(stop.value.code or 0)

    assert run("--set", "weight_decay=0.25", "-o", str(folder)) == 0
    assert "adamw.wasm" in capsys.readouterr().out
    assert node.js(folder, "return module.rule.hypers.weight_decay.default")["value"] == 0.25
    chain = tmp_path / "chain"
    with pytest.raises(SystemExit, match="0"):
        main(["compile", "adamw + ema", "--emit", "wasm", "-o", str(chain)])
    body = """
    const optimizer = module.optimizer({ w: Float32Array.of(1, 2) });
    const begun = [...optimizer.arrays.ema.w];
    optimizer.step(optimizer.grads, { lr: 0.5, weight_decay: 1, decay: 0.5 });
    return [begun, [...optimizer.params.w], [...optimizer.arrays.ema.w]];
    """
    assert node.js(chain, body)["value"] == [[1, 2], [0.5, 1], [0.75, 1.5]]
    assert json.loads((chain / "package.json").read_text())["name"] == "optgen-adamw-ema"
    wrong = {
        ("-t", "cpu:aarch64"): "--emit wasm is for targets wasm",
        ("-t", "wasm", "-t", "wasm:scalar"): "must be one",
        ("--like", "x.npz"): "is for bundles",
    }
    for arguments, message in wrong.items():
        assert run(*arguments) != 0
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("target", ["wasm", "wasm:scalar"])
def test_training_step_follows_jax(node: Node, tmp_path: Path, rng: np.random.Generator, target: str) -> None:
    """Thirty steps of an MLP with AdamW, params and moments in place in the module's memory."""
    import jax

    from optgen.train import web

    text, names = web.lowered_step(), web.STATE
    made = step_package(
        text, get_native_target(target), name="train", arguments=[*names, "x", "y", "lr", "step"],
        results=[*names, "loss"],
    )  # fmt: skip
    folder = made.write(tmp_path / "train")
    assert len(made.wasm) < 24_000
    params = recipe.init_params()
    leaves = [params[layer][leaf] for layer, leaf in (n.split(".")[1:] for n in names[:4])]
    x = rng.random((30, recipe.BATCH, 64)).astype(np.float32)
    y = rng.integers(0, 10, (30, recipe.BATCH)).astype(np.int32)
    calls = [{"x": encode(x[i]), "y": encode(y[i]), "lr": 0.01, "step": i + 1} for i in range(30)]
    given = {n: encode(a) for n, a in zip(names[:4], leaves, strict=True)}
    answer = node.call(folder, "run", set=given, calls=calls)
    step = jax.jit(web.train_step)
    state: list[Any] = [*leaves, *(np.zeros_like(a) for a in leaves * 2)]
    for i in range(30):
        *state, loss = step(*state, x[i], y[i], np.float32(0.01), np.float32(i + 1))
        assert answer["results"][i]["loss"] == pytest.approx(float(loss), abs=2e-6)
    for name, expected in zip(names, state, strict=True):
        found = decode(answer["arrays"][name], np.asarray(expected))
        np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-4, atol=2e-5)
    errors = {
        "module.run({ x: new Float32Array(3) })": f"'x' must have {recipe.BATCH * 64} elements (it has 3)",
        "module.run({ y: new Float32Array(64) })": "'y' must be a Int32Array",
        "module.run({ z: 1 })": "there is no argument 'z'",
        "module.run({ lr: '1' })": "'lr' must be a number (got string)",
    }
    for code, message in errors.items():
        found = node.js(folder, code)
        assert found.get("known"), found
        assert message in found["message"]


def test_results_go_where_their_names_say(node: Node, tmp_path: Path) -> None:
    """Not donated, they are copied into the argument that is called so; what has another's memory is refused."""
    import jax
    import jax.numpy as jnp

    zeros, target = jnp.zeros(5, jnp.float32), get_native_target("wasm")

    def swapped(a: Any, b: Any) -> Any:
        return b + 1, a * 2, a - b, jnp.sum(a)

    plain = jax.jit(swapped).lower(zeros, zeros).as_text()
    names = {"arguments": ["a", "b"], "results": ["a", "b", "difference", "sum"]}
    folder = step_package(plain, target, name="swapped", **names).write(tmp_path / "swapped")
    a, b = np.arange(5, dtype=np.float32), np.full(5, 10, np.float32)
    answer = node.call(folder, "run", set={"a": encode(a), "b": encode(b)}, calls=[{}, {}])
    assert answer["results"][0]["sum"] == 10
    assert decode(answer["results"][0]["difference"], a).tolist() == (a - b).tolist()
    assert decode(answer["arrays"]["a"], a).tolist() == (2 * a + 1).tolist()
    assert decode(answer["arrays"]["b"], a).tolist() == (2 * (b + 1)).tolist()
    with pytest.raises(LoweringError, match=r"has 2 arguments and 4 results \(names were given for 1 and 4\)"):
        step_package(plain, target, name="x", arguments=["a"], results=names["results"])
    filled = jax.jit(lambda a: (a + 1, jnp.full(5, 7.0), jnp.arange(5.0), jnp.zeros(5, jnp.int32))).lower(zeros)
    names = {"arguments": ["a"], "results": ["a", "sevens", "numbers", "zeros"]}
    folder = step_package(filled.as_text(), target, name="filled", **names).write(tmp_path / "filled")
    body = """
    const { sevens, numbers, zeros } = module.run();
    return [...sevens, ...numbers, ...zeros, zeros instanceof Int32Array];
    """
    assert node.js(folder, body)["value"] == [7] * 5 + [0, 1, 2, 3, 4] + [0] * 5 + [True]
    donated = jax.jit(lambda a, b: (a + 1, b * 2), donate_argnums=0).lower(zeros, zeros).as_text()
    with pytest.raises(LoweringError, match="result 'b' lies in the memory of argument 'a'"):
        step_package(donated, target, name="x", arguments=["a", "b"], results=["b", "c"])
