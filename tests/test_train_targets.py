"""Training steps for devices that this machine is not: compiled, searched for hazards, and run where that can be."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import CORTEX
from step_models import MODELS, Tree, mlp_loss

from optgen.artifact.step import StepBundle
from optgen.dtypes import storage_dtype
from optgen.errors import UnsupportedTargetError
from optgen.hyper import part
from optgen.runtime.tree import leaves_of, map_tree
from optgen.targets import get_target
from optgen.train import TrainStep, compile_step, lower_step, step_flags


@pytest.fixture(scope="module")
def model() -> tuple[Tree, Tree]:
    rng = np.random.default_rng(1)
    return MODELS["mlp"].params(rng), MODELS["mlp"].batch(rng)


MOMENTS = tuple(f"state/{slot}/{name}" for slot in "mv" for name in ("w1", "b1", "w2", "b2"))


@pytest.mark.parametrize(
    ("target", "rule", "asked", "compute", "apart"),
    [
        ("cpu:aarch64", "adamw", None, "f64", ()),
        ("cpu:riscv64", "adamw", None, "f64", ()),
        ("cuda", "adamw", "f64", "f64", ()),
        ("rocm:gfx942", "adamw", "f64", "f64", ()),
        ("metal", "adam", None, "f32", ()),
        # In f32 the moments and the param are one kernel, which GPUs' compilers may spoil.
        ("cuda", "adamw", None, "f32", MOMENTS),
        ("metal", "adamw", None, "f32", MOMENTS),
    ],
)
def test_steps_compile_without_hazards(
    model: tuple[Tree, Tree], target: str, rule: str, asked: str | None, compute: str, apart: tuple[str, ...]
) -> None:
    params, batch = model
    bundle = compile_step(mlp_loss, params, batch, rule, targets=target, compute_dtype=asked)
    (module,) = bundle.manifest.modules
    names = tuple(bundle.manifest.arguments[i].name for i in module.apart)
    assert (module.target, module.compute, names) == (target, compute, apart)
    assert module.in_place is not bool(apart)
    assert ("that it writes elsewhere" in module.reason) is bool(apart)
    gpu = not target.startswith("cpu")
    program = lower_step(mlp_loss, params, batch, rule, compute_dtype=compute, apart=apart)
    flags = step_flags(get_target(target), program.results)
    assert not program.hazards(flags, movable=gpu)
    if apart:  # what was taken out had to be
        whole = lower_step(mlp_loss, params, batch, rule, compute_dtype=compute)
        found = {whole.arguments[h.argument].name for h in whole.hazards(flags, movable=gpu)}
        assert found
        assert found <= set(apart)


def test_what_targets_lack_is_refused(model: tuple[Tree, Tree]) -> None:
    params, batch = model
    with pytest.raises(UnsupportedTargetError, match="'metal' cannot compute in f64"):
        compile_step(mlp_loss, params, batch, "adamw", targets="metal", compute_dtype="f64")
    for target in ("cpu:any", "cpu:vmvx"):
        with pytest.raises(UnsupportedTargetError, match=f"'{target}' cannot run a whole step"):
            compile_step(mlp_loss, params, batch, "adamw", targets=target)


def test_a_step_on_aarch64(model: tuple[Tree, Tree], tmp_path: Path) -> None:
    """``iree-run-module`` under an emulator does what this machine's processor does."""
    params, batch = model
    bundle = compile_step(mlp_loss, params, batch, "adamw", targets=["cpu", "cpu:aarch64"])
    hypers = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
    step, mine = TrainStep(bundle, "local-sync"), map_tree(lambda _, leaf: np.array(leaf), params)
    state = step.init(mine)
    step.step(mine, state, batch, **hypers)  # moments that are not zero
    before = {"params": mine, "state": state, "batch": batch}
    given = dict(leaves_of(map_tree(lambda _, leaf: np.array(leaf), before)))
    found = _by_run_module(bundle, given, hypers, tmp_path)
    loss, metrics = step.step(mine, state, batch, **hypers)
    expected = leaves_of({"params": mine, "state": state, "loss": loss, "metrics": metrics})
    assert found.keys() == expected.keys()
    assert found["state/step"] == state["step"] == 2
    for name, array in found.items():
        np.testing.assert_allclose(array, np.asarray(expected[name]), rtol=1e-6, atol=2e-7, err_msg=name)
    assert not np.allclose(found["params/w1"], given["params/w1"], atol=1e-3)


def _by_run_module(
    bundle: StepBundle, given: dict[str, Any], hypers: dict[str, float], folder: Path
) -> dict[str, np.ndarray]:
    """The results of one step on aarch64, by name."""
    manifest = bundle.manifest
    module, entry = next(m for m in manifest.modules if m.target == "cpu:aarch64"), manifest.entry("step")
    assert entry is not None
    (folder / "module.vmfb").write_bytes(bundle.module(module))
    command = [*CORTEX.prefix(), "--device=local-sync", "--module=module.vmfb", "--function=step"]
    for i in entry.takes:
        argument = manifest.arguments[i]
        dtype = module.compute if argument.dtype == "compute" else argument.dtype
        value = part(hypers[argument.hyper.hyper], argument.hyper.part) if argument.hyper else given[argument.name]
        np.save(folder / f"in{i}.npy", np.asarray(value, storage_dtype(dtype)))
        command.append(f"--input=@in{i}.npy")
    command += [f"--output=@out{i}.npy" for i in range(len(entry.results))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {leaf.path: np.load(folder / f"out{i}.npy") for i, leaf in enumerate(entry.results)}
