"""The command line, command by command, as a user sees it: output, files and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, failed, wrong_usage

import optgen
from optgen.artifact import Bundle, read_bundle, write_bundle
from optgen.native import NATIVE_TARGETS
from optgen.rules import RULES
from optgen.runtime.loading import prebuilt_bundle
from optgen.targets import TARGETS

RULE_FILE = """
import optgen
from beside import SIGN

@optgen.rule(state=("m",), decays=("beta",))
def ema_sgd(w, g, m, *, lr, beta=0.9):
    m = beta * m + (1 - beta) * g
    return w - SIGN * lr * m, m

@optgen.rule()
def mirrored(w, g, *, lr):
    return w - lr * g[::-1]
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    (tmp_path / "my_rules.py").write_text(RULE_FILE)
    (tmp_path / "beside.py").write_text("SIGN = 1\n")
    return "my_rules.py"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Params and grads of a small model."""
    rng = np.random.default_rng(1)
    params, grads = tmp_path / "params.npz", tmp_path / "grads.npz"
    for path in (params, grads):
        np.savez(path, **{"layer/0/w": rng.standard_normal((3, 4), np.float32), "b": np.ones(5, np.float32)})
    return params, grads


# The application.


def test_version_and_help(cli: Run) -> None:
    assert cli("--version").out == f"optgen {optgen.__version__}\n"
    text = cli("--help").out
    for command in ("compile", "lower", "inspect", "verify", "run", "targets", "devices", "demo"):
        assert command in text
        assert cli(command, "--help").code == 0


def test_wrong_usage(cli: Run) -> None:
    wrong_usage(cli("frobnicate"), "No such command 'frobnicate'")
    wrong_usage(cli("compile"), "Missing argument")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom optgen.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'jax', 'iree', 'numpy', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


# compile


def test_compile_names_the_file_after_the_variant(cli: Run) -> None:
    result = cli("compile", "sgd", "--set", "momentum=0.8", "--set", "nesterov=true", "--bake", "weight_decay=0.1")
    assert result.code == 0, result
    assert "f32 for cpu" in result.err
    manifest = read_bundle("sgd-momentum-nesterov.optgen").manifest
    assert manifest.baked == {"weight_decay": 0.1}
    assert {h.name: h.default for h in manifest.hypers} == {"lr": None, "momentum": 0.8}
    size = Path("sgd-momentum-nesterov.optgen").stat().st_size
    assert result.out.splitlines()[-1] == f"sgd-momentum-nesterov.optgen  {size / 1024:.1f} KB"
    [row] = [line.split() for line in result.out.splitlines() if line.startswith("f32")]
    assert row[:3] == ["f32", "cpu", "yes"]


def test_compile_into_a_folder_for_two_targets_and_dtypes(cli: Run) -> None:
    result = cli("compile", "sgd", "-t", "cpu", "-t", "cpu:aarch64", "--dtype", "f32", "--dtype", "bf16", "-o", "out/b")
    assert result.code == 0, result
    bundle = read_bundle("out/b")
    assert [(k.name, [m.target for m in k.modules]) for k in bundle.manifest.kernels] == [
        ("f32", ["cpu", "cpu:aarch64"]),
        ("bf16", ["cpu", "cpu:aarch64"]),
    ]


def test_compile_a_rule_of_ones_own(cli: Run, rules: str) -> None:
    assert cli("compile", f"{rules}:ema_sgd").code == 0
    optimizer = optgen.load("ema_sgd.optgen")
    w, state = {"w": np.ones(3, np.float32)}, None
    state = optimizer.init(w)
    optimizer.step(w, {"w": np.ones(3, np.float32)}, state, lr=1.0)
    np.testing.assert_allclose(w["w"], 0.9, rtol=1e-6)


def test_compile_for_the_layout_of_a_file(cli: Run, files: tuple[Path, Path]) -> None:
    assert cli("compile", "sgd", "--like", files[0], "--fixed-layout").code == 0
    manifest = read_bundle("sgd.optgen").manifest
    assert manifest.layout is not None
    assert [(leaf.path, leaf.shape) for leaf in manifest.layout] == [("layer/0/w", (3, 4)), ("b", (5,))]
    assert manifest.fixed_layout


def test_compile_refuses_what_does_not_exist(cli: Run, rules: str) -> None:
    failed(cli("compile", "sgdd"), "'sgdd'", *(name for name, _ in RULES))
    failed(cli("compile", "adam", "--convention", "abacus"), "abacus", "ivy")
    failed(cli("compile", "sgd", "-t", "cpu:z80"), "'cpu:z80'", *TARGETS)
    failed(cli("compile", "sgd", "-t", "vulkan", "--dtype", "f64"), "vulkan", "f64")
    failed(cli("compile", "sgd", "--set", "beta1=0.9"), "beta1", "lr, weight_decay, momentum, dampening, nesterov")
    failed(cli("compile", "sgd", "--set", "target=1"), "'target'")
    failed(cli("compile", "sgd", "--set", "lr=-1", "--bake", "lr"), "'lr' must be at least 0")
    failed(cli("compile", "sgd", "--bake", "lr"), "'lr' must have a value")
    failed(cli("compile", "sgd", "--like", "nowhere.npz"), "there is no file nowhere.npz")
    failed(cli("compile", "nowhere.py:rule"), "there is no file nowhere.py")
    failed(cli("compile", f"{rules}:adam"), "'adam'", "ema_sgd, mirrored")
    failed(cli("compile", rules), "which rule", "ema_sgd, mirrored")
    failed(cli("compile", f"{rules}:mirrored"), "cannot run in place")
    Path("broken.py").write_text("1 / 0\n")
    failed(cli("compile", "broken.py:rule"), "broken.py", "ZeroDivisionError")
    assert list(Path().glob("*.optgen")) == []


def test_compile_wrong_usage(cli: Run, rules: str) -> None:
    wrong_usage(cli("compile", "sgd", "--dtype", "f12"), "--dtype", "must be one of f16, bf16, f32, f64")
    wrong_usage(cli("compile", "sgd", "--set", "lr"), "--set", "name=value")
    wrong_usage(cli("compile", "sgd", "--set", "lr=fast"), "--set", "'fast'")
    wrong_usage(cli("compile", "sgd", "--fixed-layout"), "--like")
    wrong_usage(cli("compile", f"{rules}:ema_sgd", "--convention", "ivy"), "--convention")


# lower


@pytest.mark.parametrize(
    ("stage", "part"),
    [
        ("stablehlo", "stablehlo.multiply"),
        ("graph", "= multiply"),
        ("plan", "update pass over 2 leaves"),
        ("kernel", "flow.dispatch.workgroups"),
        ("stream", "stream.cmd.dispatch"),
        ("asm", "apply_dispatch_0"),
    ],
)
def test_lower(cli: Run, stage: str, part: str) -> None:
    result = cli("lower", "sgd", "--emit", stage)
    assert result.code == 0, result
    assert part in result.out
    assert result.err == ""
    assert result.out.endswith("\n")


@pytest.mark.parametrize(
    ("target", "part"),
    [("cpu:x86-64-v3", "%ymm"), ("cpu:cortex-a72", "fcvt"), ("cuda", ".visible .entry"), ("vulkan", "spirv.module")],
)
def test_lower_to_assembly(cli: Run, target: str, part: str) -> None:
    text = cli("lower", "sgd", "--emit", "asm", "-t", target).out
    assert part in text
    assert ".debug_info" not in text
    assert len(text.splitlines()) < 1500  # the kernel, without the C library that is linked to it


def test_lower_with_settings_into_a_file(cli: Run) -> None:
    result = cli("lower", "sgd", "--emit", "graph", "--set", "momentum=0.9", "--bake", "lr=0.25", "-o", "graph.txt")
    assert (result.code, result.out) == (0, "")
    assert "0.25" in Path("graph.txt").read_text()


def test_lower_a_rule_out_of_place(cli: Run, rules: str) -> None:
    failed(cli("lower", f"{rules}:mirrored", "--emit", "stablehlo"), "cannot run in place")
    assert "tensor<4x2xf32>" in cli("lower", f"{rules}:mirrored", "--emit", "stablehlo", "--shape", "4x2").out
    failed(cli("lower", f"{rules}:mirrored", "--emit", "graph", "--shape", "4x2"), "has no graph", "reverse")


def test_lower_refuses(cli: Run) -> None:
    wrong_usage(cli("lower", "sgd", "--emit", "poem"), "poem")
    wrong_usage(cli("lower", "sgd"), "--emit")
    wrong_usage(cli("lower", "sgd", "--emit", "graph", "--shape", "4xx"), "64x32")
    failed(cli("lower", "sgd", "--emit", "kernel", "-t", "vulkan", "--dtype", "f64"), "f64")


# inspect


def test_inspect(cli: Run) -> None:
    text = cli("inspect", "adamw").out
    for part in ("adamw", "torch", "Loshchilov", "m, v", "1e-08", "must be given", "cpu:aarch64", "vulkan", "w:bf16"):
        assert part in text


def test_inspect_shows_a_layout(cli: Run, files: tuple[Path, Path]) -> None:
    assert cli("compile", "sgd", "--like", files[0], "--bake", "lr=0.1").code == 0
    text = cli("inspect", "sgd.optgen").out
    assert "layer/0/w" in text
    assert "3x4" in text
    assert "lr=0.1" in text


def test_inspect_json(cli: Run) -> None:
    data = json.loads(cli("inspect", "sgd", "--json").out)
    assert data["rule"] == "sgd"
    assert len(data["kernels"]) == 5


def test_inspect_refuses(cli: Run, tmp_path: Path) -> None:
    failed(cli("inspect", "nothing"), "nothing", "adamw")
    failed(cli("inspect", "nothing.optgen"), "there is no bundle at nothing.optgen")
    (tmp_path / "text.optgen").write_text("not a bundle")
    failed(cli("inspect", "text.optgen"), "text.optgen", "not a bundle")


# verify


def test_verify(cli: Run) -> None:
    result = cli("verify", "sgd", "sgd-momentum", "--device", "local-sync")
    assert result.code == 0, result
    assert "0 failed" in result.out
    assert "sgd-momentum" in result.out


def test_verify_on_vulkan(cli: Run, vulkan: str) -> None:
    result = cli("verify", "sgd", "gradient_descent_vjp.ivy", "--device", vulkan)
    assert result.code == 0, result
    assert "gradient_descent_vjp.ivy: no module for vulkan" in result.out


def test_verify_fails_where_nothing_runs(cli: Run, vulkan: str) -> None:
    result = cli("verify", "gradient_descent_vjp.ivy", "--device", vulkan)
    assert result.code == 1
    assert "nothing was verified" in result.out


def test_verify_tampered_with(cli: Run) -> None:
    right, wrong = prebuilt_bundle("sgd-momentum"), prebuilt_bundle("sgd-momentum-nesterov")
    modules = {name: data for name, data in wrong.files.items() if name.startswith("modules/f32/")}
    write_bundle(Bundle.of(right.manifest, {**right.files, **modules}), "forged.optgen")
    result = cli("verify", "forged.optgen", "--device", "local-sync")
    assert result.code == 1
    assert "error over its bound" in result.out
    assert "0 failed" not in result.out


def test_verify_damaged(cli: Run) -> None:
    path = write_bundle(prebuilt_bundle("sgd"), "sgd.optgen")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    failed(cli("verify", "sgd.optgen"), "sgd.optgen")
    folder = write_bundle(prebuilt_bundle("sgd"), "folder")
    (folder / "stablehlo" / "f32.mlir").write_text("// other")
    failed(cli("verify", "folder"), "damaged", "stablehlo/f32.mlir")


def test_verify_refuses(cli: Run) -> None:
    wrong_usage(cli("verify"), "--all-prebuilt")
    failed(cli("verify", "sgd", "--device", "abacus"), "abacus", "local-sync")


def test_verify_all_prebuilt(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["optgen.runtime.loading"], "prebuilt_names", lambda: ["sgd", "adamw"])
    result = cli("verify", "--all-prebuilt", "--device", "local-sync")
    assert result.code == 0, result
    assert "adamw" in result.out


# run


def read(path: str | Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def test_run_as_python_does(cli: Run, files: tuple[Path, Path]) -> None:
    params, grads = files
    before = params.read_bytes()
    options = ["--params", params, "--grads", grads, "--set", "lr=0.1"]
    result = cli("run", "adamw", *options, "--out-params", "one.npz", "--out-state", "state.npz", "--steps", 2)
    assert result.code == 0, result
    assert "2 leaves, 17 elements, step 2" in result.out
    result = cli("run", "adamw", "--params", "one.npz", "--grads", grads, "--set", "lr=0.1", "--state", "state.npz",
                 "--out-params", "new/two.npz")  # fmt: skip
    assert result.code == 0, result
    expected, slopes = read(params), read(grads)
    optimizer = optgen.prebuilt("adamw")
    state = optimizer.init(expected)
    for _ in range(3):
        optimizer.step(expected, slopes, state, lr=0.1)
    actual = read("new/two.npz")
    assert list(actual) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)
    assert sorted(read("state.npz")) == ["m/b", "m/layer/0/w", "step", "v/b", "v/layer/0/w"]
    assert params.read_bytes() == before
    assert [path for path in Path().rglob(".*") if path.is_file()] == []


def test_run_on_vulkan(cli: Run, files: tuple[Path, Path], vulkan: str) -> None:
    options = ["--params", files[0], "--grads", files[1], "--set", "lr=0.1"]
    assert cli("run", "sgd", *options, "--out-params", "a.npz", "--device", vulkan).code == 0
    assert cli("run", "sgd", *options, "--out-params", "b.npz").code == 0
    for name, array in read("a.npz").items():
        np.testing.assert_allclose(array, read("b.npz")[name], rtol=1e-6)


def test_run_bfloat16_through_safetensors(cli: Run) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    safetensors.save_file({"w": np.ones((3, 5), ml_dtypes.bfloat16)}, "w.safetensors")
    options = ["--params", "w.safetensors", "--grads", "w.safetensors", "--set", "lr=0.5"]
    assert cli("run", "adam", *options, "--out-params", "new.safetensors", "--out-state", "state.npz").code == 0
    new = safetensors.load_file("new.safetensors")["w"]
    assert new.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(new.astype(np.float32), np.full((3, 5), 0.5, np.float32))
    assert read("state.npz")["m/w"].dtype == np.float32
    failed(cli("run", "adam", *options, "--out-params", "new.npz"), "npz files cannot hold 'w'", ".safetensors")
    np.savez("w.npz", w=np.ones(3, ml_dtypes.bfloat16))
    failed(cli("run", "adam", "--params", "w.npz", *options[2:], "--out-params", "x.npz"), "'w' of w.npz")
    assert not Path("new.npz").exists()


def test_run_without_safetensors(cli: Run, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The format is read and written by optgen itself; the package reads what it wrote."""
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "safetensors", None)
        patched.setitem(sys.modules, "safetensors.numpy", None)
        options = ["--params", files[0], "--grads", files[1], "--set", "lr=0.5"]
        assert cli("run", "sgd", *options, "--out-params", "new.safetensors").code == 0
    from safetensors.numpy import load_file

    assert cli("run", "sgd", *options, "--out-params", "new.npz").code == 0
    for name, array in load_file("new.safetensors").items():
        np.testing.assert_array_equal(array, read("new.npz")[name])


def test_run_refuses(cli: Run, files: tuple[Path, Path]) -> None:
    params, grads = files
    both = ["--params", params, "--grads", grads]
    out, lr = ["--out-params", "new.npz"], ["--set", "lr=0.1"]
    wrong_usage(cli("run", "sgd", *both, *lr), "--out-params")
    wrong_usage(cli("run", "adamw", *both, *out, *lr, "--set", "step=3"), "counted in the state")
    wrong_usage(cli("run", "sgd", *both, *out, *lr, "--steps", 0), "--steps")
    failed(cli("run", "sgd", *both, *out), "'lr' must be given")
    failed(cli("run", "sgd", *both, *out, "--set", "lr=-1"), "'lr' must be at least 0")
    failed(cli("run", "sgd", *both, *out, "--set", "rate=1"), "'rate'", "lr, weight_decay")
    failed(cli("run", "sgd", *both, *lr, "--out-params", "new.txt"), ".npz or .safetensors")
    failed(cli("run", "sgd", "--params", "nowhere.npz", *both[2:], *out, *lr), "there is no file nowhere.npz")
    failed(cli("run", "adamw", *both, *out, *lr, "--state", grads), "must have 'step'")
    np.savez("state.npz", step=1, **{"q/b": np.zeros(5, np.float32)})
    failed(cli("run", "adamw", *both, *out, *lr, "--state", "state.npz"), "'q/b'", "m/..., v/...")
    np.savez("state.npz", step=1, **{"m/b": np.zeros(5, np.float32)})
    failed(cli("run", "adamw", *both, *out, *lr, "--state", "state.npz"), "state 'm'", "'layer/0/w'")
    failed(cli("run", "gradient_descent_vjp.ivy", *both, *out), "more tensors than grads")
    Path("text.npz").write_text("not arrays")
    failed(cli("run", "sgd", "--params", "text.npz", *both[2:], *out, *lr), "text.npz is no npz file")
    Path("file").write_text("")
    failed(cli("run", "sgd", *both, *lr, "--out-params", "file/new.npz"), "file")
    assert not Path("new.npz").exists()


# targets, devices, demo


def test_targets(cli: Run) -> None:
    bundles, native = cli("targets").out.split("\n\n")
    assert {line.split()[0] for line in bundles.splitlines()[2:]} == {"cpu", *TARGETS}
    assert {line.split()[0] for line in native.splitlines()[2:]} == set(NATIVE_TARGETS)


def test_devices(cli: Run) -> None:
    text = cli("devices").out
    assert "local-sync" in text
    assert "local-task" in text
    assert "processor: " in text


def test_demo(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def fake(out: Path) -> int:
        seen.append(out)
        return 3 if out.name == "bad" else 0

    module = types.ModuleType("optgen.train.demo")
    module.main = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optgen.train.demo", module)
    assert cli("demo", "--out", "there").code == 0
    assert cli("demo", "--out", "bad").code == 3
    assert seen == [Path("there"), Path("bad")]


def test_demo_without_its_extras(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("optgen.train.demo")

    def fake(out: Path) -> None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    module.main = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "optgen.train.demo", module)
    failed(cli("demo"), "sklearn", "pip install 'optgen[compile,demo]'")


def test_the_program_itself(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("optgen.exe" if os.name == "nt" else "optgen")
    if not program.exists():
        pytest.skip("the optgen program is not installed beside this Python")
    result = subprocess.run([program, "inspect", "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: there is no bundle at nothing")
