"""Modules for other processors: run there, chosen by what they have, and refused where they must not run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rule_references as ref
from machines import ARM_MAX, CORE2, CORTEX, HASWELL, NATIVE, NEHALEM, TOOLS, Machine
from numpy.typing import NDArray
from typer.testing import CliRunner

import optgen
from optgen import host
from optgen.cli.app import app
from optgen.compiler.guard import guard
from optgen.compiler.plain import PlainModule, build_plain
from optgen.dsl import Variant
from optgen.dtypes import ulp
from optgen.errors import DeviceError, HyperparameterError, LoweringError, MissingFeaturesError, UnsupportedTargetError
from optgen.rules import get_rule
from optgen.runtime.device import get_device
from optgen.runtime.select import choose
from optgen.runtime.verify import verify_bundle
from optgen.targets import get_target

MACHINES = [NATIVE, HASWELL, NEHALEM, CORE2, CORTEX, ARM_MAX]
SIZES = (1, 7, 1000, 100_003)
HYPERS = {"lr": 1e-3, "step": 3, "weight_decay": 0.01}
Arrays = dict[str, NDArray[Any]]

# As the kernel of Linux shows them.
RASPBERRY_PI_4 = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n"
RASPBERRY_PI_5 = (
    "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
    "dcpop asimddp\nCPU part\t: 0xd0b\n"
)


def plain(rule: str, target: str, dtype: str = "f32", **structure: bool) -> PlainModule:
    variant = Variant.of(get_rule(rule), structure=structure)
    return build_plain(variant, variant.dtypes(dtype), get_target(target))


def leaves(module: PlainModule, size: int) -> Arrays:
    rng = np.random.default_rng(size)
    found = {name: rng.standard_normal(size).astype(np.float32) for name in module.operands}
    return {name: np.abs(a) * np.float32(0.1) if name in ("v", "s") else a for name, a in found.items()}


def errors(folder: Path, module: PlainModule, expected: dict[str, Any]) -> dict[str, float]:
    """For each result how far it is from the float64 reference, in ulp."""
    found = {}
    for name in module.results:
        got, right = np.load(folder / f"{name}.npy").astype(np.float64), np.asarray(expected[name], np.float64)
        assert got.shape == right.shape
        found[name] = float(np.max(np.abs(got - right) / ulp(right, "f32")))
    return found


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_one_file_on_every_machine(machine: Machine, tmp_path: Path) -> None:
    """``iree-run-module`` with the documented command, against float64."""
    module = plain("adamw", "cpu:any")
    assert len(module.data) < 40 * 1024
    for size in SIZES:
        arrays = leaves(module, size)
        wide = [arrays[n].astype(np.float64) for n in ("w", "g", "m", "v")]
        done = machine.update(tmp_path, module, arrays, **HYPERS)
        assert done.returncode == 0, done.stderr
        off = errors(tmp_path, module, ref.adam(*wide, eps=1e-8, **HYPERS))  # type: ignore[arg-type]
        assert max(off.values()) <= 0.501, (size, off)


@pytest.mark.parametrize("machine", [NATIVE, CORE2, CORTEX], ids=lambda m: m.name)
def test_other_rules(machine: Machine, tmp_path: Path) -> None:
    """Norms of the leaf; scalar state, which is given and returned; a copied sign."""
    lamb, hypers = plain("lamb", "cpu:any"), {**HYPERS, "beta1": 0.9, "beta2": 0.99}
    arrays = leaves(lamb, 5000)
    assert machine.update(tmp_path, lamb, arrays, **hypers).returncode == 0
    wide = [arrays[n].astype(np.float64) for n in lamb.operands]
    opt = optgen.compile("lamb", target="cpu")
    w, state = arrays["w"].copy(), {"step": 2, "m": arrays["m"].copy(), "v": arrays["v"].copy()}
    opt.step(w, arrays["g"], state, **{k: v for k, v in hypers.items() if k != "step"})
    np.testing.assert_allclose(np.load(tmp_path / "w.npy"), w, rtol=2e-7)
    moment = 0.9 * wide[2] + (1 - 0.9) * wide[1]
    assert np.max(np.abs(np.load(tmp_path / "m.npy") - moment) / ulp(moment, "f32")) <= 0.501

    lion = plain("lion", "cpu:any")
    arrays = leaves(lion, 1000)
    numbers = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}
    assert machine.update(tmp_path, lion, arrays, **numbers).returncode == 0
    w, g, m = (arrays[n].astype(np.float64) for n in lion.operands)
    expected = {"w": w - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * w), "m": 0.99 * m + (1 - 0.99) * g}
    assert max(errors(tmp_path, lion, expected).values()) <= 0.501

    nadam = plain("nadam", "cpu:any")
    assert nadam.returned == ("mu_product",)
    done = machine.update(tmp_path, nadam, leaves(nadam, 10), lr=0.01, step=1)
    assert done.returncode == 0, done.stderr
    mu = 0.9 * (1 - 0.5 * 0.96**0.004)
    assert float(re.findall(r"f64=([\d.e-]+)", done.stdout)[-1]) == pytest.approx(mu, rel=1e-5)


def _levels(data: bytes) -> dict[str, int]:
    """Where the code for each processor is in a module: ELF files, told apart by how they take square roots."""
    found = {}
    starts = [m.start() for m in re.finditer(b"\x7fELF", data)]
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        code, kind = data[start:end], int.from_bytes(data[start + 18 : start + 20], "little")
        if kind == 62:
            wide = re.search(rb"\x62.[\xfd\x7d]\x48\x51", code, re.DOTALL), re.search(rb"\xc5[\xfd\x7d]\x51", code)
            name = "x86-64-v4" if wide[0] else "x86-64-v3" if wide[1] else "x86-64-v2"
        else:
            name = {183: "aarch64", 243: "riscv64"}[kind]
        assert name not in found
        found[name] = start
    return found


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_the_best_level_is_chosen(machine: Machine, tmp_path: Path) -> None:
    """Whichever code is spoilt, the module works, except where it is the code that this machine should take."""
    module = plain("adamw", "cpu:any")
    levels = _levels(module.data)
    assert set(levels) == {"x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64", "riscv64"}
    taken = []
    for name, start in levels.items():
        spoilt = bytearray(module.data)
        spoilt[start : start + 4] = b"nope"
        other = PlainModule(**{**vars(module), "data": bytes(spoilt)})
        done = machine.update(tmp_path, other, leaves(module, 100), **HYPERS)
        assert done.returncode >= 0, "a signal"
        if done.returncode:
            taken.append(name)
    assert taken == ([] if machine.best == "vmvx" else [machine.best])


@pytest.mark.parametrize(
    ("target", "machine", "runs"),
    [
        ("cpu:x86-64-v4", HASWELL, False),
        ("cpu:x86-64-v3", HASWELL, True),
        ("cpu:x86-64-v3", NEHALEM, False),
        ("cpu:x86-64-v2", NEHALEM, True),
        ("cpu:x86-64-v2", CORE2, False),
        ("cpu:vmvx", CORE2, True),
        ("cpu:aarch64", NATIVE, False),
        ("cpu:aarch64", CORTEX, True),
        ("cpu:neoverse-v1", CORTEX, False),
        ("cpu:cortex-a76", CORTEX, False),
        ("cpu:neoverse-v1", ARM_MAX, True),
        ("cpu:riscv64", NATIVE, False),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_module_refuses_lesser_machines(target: str, machine: Machine, runs: bool, tmp_path: Path) -> None:
    """By an error when it is loaded, not by a signal in the middle of the update; and the files stay as they were."""
    module = plain("adamw", target)
    arrays = leaves(module, 100)
    done = machine.update(tmp_path, module, arrays, **HYPERS)
    if runs:
        assert done.returncode == 0, done.stderr
        assert not np.array_equal(np.load(tmp_path / "w.npy"), arrays["w"])
        return
    assert done.returncode == 1
    other = target.startswith("cpu:x86") != (machine not in (CORTEX, ARM_MAX)) or target == "cpu:riscv64"
    words = "not found or unavailable" if other else "does not support any variant of executable"
    assert words in done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), arrays["w"])


def test_without_the_guard_the_process_dies(tmp_path: Path) -> None:
    """What the conditions are for: IREE itself does not check."""
    from optgen.compiler.build import flags_for
    from optgen.compiler.variants import compile_for
    from optgen.lower import lower

    variant = Variant.of(get_rule("adamw"))
    kernel, target = lower(variant.kernel(variant.dtypes("f32")))[0], get_target("cpu:x86-64-v4")
    data = compile_for(kernel.plain(target.style), target, flags_for(kernel, target)).module
    module = PlainModule(**{**vars(plain("adamw", "cpu:x86-64-v4")), "data": data})
    done = HASWELL.update(tmp_path, module, leaves(module, 1000), **HYPERS)
    assert done.returncode in (-4, 132), (done.returncode, done.stderr)  # SIGILL


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    module = plain("adamw", "cpu:any")
    good = leaves(module, 10)
    for name, wrong in (("g", good["g"][:-1]), ("m", good["m"].astype(np.float64)), ("w", good["w"].reshape(2, 5))):
        done = NATIVE.update(tmp_path, module, {**good, name: wrong}, **HYPERS)
        assert done.returncode == 1, name
        assert "INVALID_ARGUMENT" in done.stderr
        np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), wrong if name == "w" else good["w"])


def test_what_plain_modules_cannot_do() -> None:
    with pytest.raises(UnsupportedTargetError, match="plain modules are for CPUs"):
        plain("adamw", "vulkan")
    variant = Variant.of(get_rule("muon"))
    with pytest.raises(LoweringError, match="muon"):
        build_plain(variant, variant.dtypes("f32"), get_target("cpu:any"))
    for parts, error, words in (
        ([optgen.clip_by_global_norm(1.0), "sgd"], LoweringError, "reduces the whole tree"),
        ([optgen.accumulate(2), "sgd"], HyperparameterError, "cannot accumulate"),
    ):
        variant = Variant.of(optgen.chain(*parts))  # type: ignore[arg-type]
        with pytest.raises(error, match=words):
            build_plain(variant, variant.dtypes("f32"), get_target("cpu:any"))


@pytest.mark.parametrize("machine", [NATIVE, CORTEX], ids=lambda m: m.name)
def test_a_model_and_its_gradient(machine: Machine, tmp_path: Path) -> None:
    """The function that the edge example trains with, called by ``iree-run-module`` on its processor."""
    from optgen.runtime.tree import walk
    from optgen.train import compile_function, recipe
    from optgen.train.mlp import loss_and_grad

    params, rng = recipe.init_params(), np.random.default_rng(3)
    x, y = rng.random((8, recipe.LAYERS[0]), np.float32), np.arange(8, dtype=np.int32)
    target = "cpu:aarch64" if machine is CORTEX else "cpu:x86-64-v2"
    bundle = compile_function(loss_and_grad, params, x, y, targets=target)
    manifest = bundle.manifest
    (tmp_path / "module.vmfb").write_bytes(bundle.module(manifest.modules[0]))
    command = [*machine.prefix(), "--device=local-sync", "--module=module.vmfb", "--function=main"]
    given = dict(p for name, tree in (("params", params), ("x", x), ("y", y)) for p in walk(tree, name))
    for i, leaf in enumerate(manifest.inputs):
        np.save(tmp_path / f"in{i}.npy", given[leaf.path])
        command.append(f"--input=@in{i}.npy")
    command += [f"--output=@out{i}.npy" for i in range(len(manifest.outputs))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    right = dict(walk(loss_and_grad(params, x, y)))
    for i, leaf in enumerate(manifest.outputs):
        got = np.load(tmp_path / f"out{i}.npy")
        np.testing.assert_allclose(got, np.asarray(right[leaf.path]), rtol=2e-5, atol=2e-6)


# Bundles


def test_bundles_for_all_cpus() -> None:
    """One module of less than 40 KB in the bundle; it runs here, and so does bytecode alone."""
    for target in ("cpu:any", "cpu:vmvx"):
        bundle = optgen.compile("adamw", target=target, dtypes=["f32", "bf16", "f16"]).bundle
        for kernel in bundle.manifest.kernels:
            (module,) = kernel.modules
            assert module.in_place
            assert kernel.name == "f16" or len(bundle.module(module)) < 40 * 1024
        results = verify_bundle(bundle, ["local-sync", "cpu"])
        assert results
        assert all(r.ok for r in results), results


def test_specific_modules_come_first() -> None:
    opt = optgen.compile("sgd", target=["cpu:vmvx", "cpu:any", "cpu:x86-64", "cpu:aarch64", "cpu:riscv64"])
    device = get_device("local-sync")
    own = {"x86_64": "cpu:x86-64", "aarch64": "cpu:aarch64", "riscv64": "cpu:riscv64"}.get(host.architecture())
    assert choose(opt.manifest.kernels[0], device).target == own
    for listed, best in ((["cpu:vmvx", "cpu:any"], "cpu:any"), (["cpu:vmvx"], "cpu:vmvx")):
        assert choose(optgen.compile("sgd", target=listed).manifest.kernels[0], device).target == best


def pretend(monkeypatch: pytest.MonkeyPatch, arch: str, features: tuple[str, ...]) -> None:
    monkeypatch.setattr(host, "architecture", lambda: arch)
    monkeypatch.setattr(host, "features", lambda: frozenset(features))


def test_a_bundle_refuses_lesser_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:neoverse-v1", "cpu:aarch64", "cpu:any")
    bundles = {name: optgen.compile("sgd", target=name).save(tmp_path / f"{i}.optgen") for i, name in enumerate(names)}

    def load(target: str) -> str:
        """The target of the module that a step takes."""
        opt, w = optgen.load(bundles[target]), np.ones(3, np.float32)
        opt.step(w, w.copy(), opt.init(w), lr=0.1)
        return choose(opt.manifest.kernels[0], get_device("cpu")).target

    pretend(monkeypatch, "x86_64", host.x86_requirements("x86-64-v3"))
    assert load("cpu:x86-64-v3") == "cpu:x86-64-v3"
    with pytest.raises(MissingFeaturesError, match=r"cpu:x86-64-v4 needs avx512bw.*This processor lacks.*cpu:any") as e:
        load("cpu:x86-64-v4")
    assert e.value.missing == ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
    assert isinstance(e.value, DeviceError)

    pretend(monkeypatch, "x86_64", host.x86_requirements("x86-64-v2"))
    with pytest.raises(MissingFeaturesError, match="cpu:x86-64-v3 needs abm, avx, avx2"):
        load("cpu:x86-64-v3")
    with pytest.raises(DeviceError, match="cpu:aarch64 is for aarch64"):
        load("cpu:aarch64")
    assert load("cpu:any") == "cpu:any"

    pretend(monkeypatch, "aarch64", ("fp", "asimd", "crc32"))
    with pytest.raises(MissingFeaturesError, match=r"cpu:neoverse-v1 needs asimddp, .*sve") as e:
        load("cpu:neoverse-v1")
    with pytest.raises(DeviceError, match="cpu:x86-64-v3 is for x86_64"):
        load("cpu:x86-64-v3")


def test_names_of_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, name in (("arm64", "aarch64"), ("AMD64", "x86_64"), ("riscv64", "riscv64"), ("armv7l", "armv7l")):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert host.architecture() == name


def test_features_of_arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(RASPBERRY_PI_4)
    monkeypatch.setattr(host, "CPUINFO", file)
    host.features.cache_clear()
    try:
        assert host.features() == {"fp", "asimd", "evtstrm", "crc32", "cpuid"}
        assert set(get_target("cpu:aarch64").features) <= host.features()
        assert set(get_target("cpu:cortex-a72").features) <= host.features()
        assert not set(get_target("cpu:cortex-a76").features) <= host.features()
        file.write_text(RASPBERRY_PI_5)
        host.features.cache_clear()
        assert set(get_target("cpu:cortex-a76").features) <= host.features()
        assert not set(get_target("cpu:neoverse-v1").features) <= host.features()
    finally:
        monkeypatch.undo()
        host.features.cache_clear()


def test_rules_with_sums_are_refused() -> None:
    for target in ("cpu:any", "cpu:vmvx"):
        with pytest.raises(UnsupportedTargetError, match="cannot run rules that reduce leaves"):
            optgen.compile("lamb", target=target)


def test_guard_leaves_other_text_alone() -> None:
    text = 'module {\n  hal.executable.variant public @a target(<"llvm-cpu", "x", {cpu = "generic"}>) {\n  }\n}'
    assert guard(text) == text
    asks = guard(text.replace('cpu = "generic"', 'cpu_features = "+cx16,-avx,+avx2,+fma"'))
    assert re.findall(r'"hal.cpu" :: "([^"]+)"', asks) == ["avx2", "fma"]


def test_the_command_line(tmp_path: Path) -> None:
    """What it writes is what it says to run."""
    file = tmp_path / "adamw.vmfb"
    result = CliRunner().invoke(
        app, ["compile", "adamw", "-t", "cpu:any", "--emit", "vmfb", "--set", "lr=0.5", "-o", str(file)]
    )
    assert result.exit_code == 0, result.output
    command = shlex.split(result.stdout.splitlines()[-1].replace("STEP", "1"))
    assert command[0] == "iree-run-module"
    for name, value in (("w", 1.0), ("g", 2.0), ("m", 0.0), ("v", 0.0)):
        np.save(tmp_path / f"{name}.npy", np.full(9, value, np.float32))
    done = subprocess.run([str(TOOLS / command[0]), *command[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "w.npy"), np.full(9, 1 - 0.5 * 0.01 - 0.5), rtol=1e-6)
    both = CliRunner().invoke(app, ["compile", "adamw", "-t", "cpu:any", "-t", "cpu", "--emit", "vmfb"])
    assert both.exit_code == 2
