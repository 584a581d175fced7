"""``optgen inspect`` and ``verify`` on bundles of functions, optax transformations and training steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, failed

import optgen as og
from optgen.artifact.kinds import SomeBundle, read_any
from optgen.artifact.step import StepBundle
from optgen.train import compile_function

PARAMS = {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
BATCH = {"x": np.ones((4, 3), np.float32), "y": np.ones((4, 2), np.float32)}


def error(params: Any, batch: Any) -> Any:
    """Mean squared error."""
    return ((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2).mean()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each kind that is no rule, for this processor and another."""
    import optax

    made, targets = tmp_path_factory.mktemp("kinds"), ["cpu", "cpu:aarch64"]
    compile_function(error, PARAMS, BATCH, targets=targets).save(made / "function.optgen")
    og.compile(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), like=PARAMS, target=targets
    ).save(made / "transform.optgen")  # fmt: skip
    og.train.compile_step(
        error, PARAMS, BATCH, "lion", targets=[*targets, "cuda"], groups={"b": {"weight_decay": 0.0}}, eval_fn=error
    ).save(made / "step.optgen")
    return made


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("function", ["error(params, batch)", "Mean squared error.", "params/w", "3x2", "no: results are new arrays",
                      "4 leaves, 28 elements", "1 leaf, 1 elements", "cpu:aarch64", "aarch64, 1 features"]),
        ("transform", ["chain, of optax", "chain head", "no: it only reads", "grads/w", "replaced", "5 leaves",
                       "cpu:aarch64"]),
        ("step", ["error, by lion", "step, evaluate", "Mean squared error.", "must be given", "b: weight_decay=0",
                  "all but state/m/w", "has written it", "batch/x", "4x3", "loss", "evaluation"]),
    ],
)  # fmt: skip
def test_inspect(cli: Run, folder: Path, kind: str, parts: list[str]) -> None:
    path = folder / f"{kind}.optgen"
    text = cli("inspect", path).out
    for part in parts:
        assert part in text, part
    data = json.loads(cli("inspect", path, "--json").out)
    assert data["kind"] == kind
    assert type(read_any(path).manifest).from_json(json.dumps(data)) == read_any(path).manifest


def test_inspect_lists_the_first_leaves_of_many(cli: Run, tmp_path: Path) -> None:
    leaves = [np.ones(1, np.float32)] * 25
    compile_function(lambda x: x[0], leaves, name="first").save("many.optgen")
    text = cli("inspect", "many.optgen").out
    assert "... 5 more" in text
    assert "x/19" in text
    assert "x/20" not in text


def test_verify_runs_the_probes_of_every_kind(cli: Run, folder: Path) -> None:
    names = [folder / f"{kind}.optgen" for kind in ("function", "transform", "step")]
    result = cli("verify", "sgd", *names, "--device", "local-sync")
    assert result.code == 0, result
    assert "0 failed" in result.out
    for part in ("kernel", "program", "main", "update", "evaluate", "params/w", "state/m/b"):
        assert part in result.out, part
    assert "loaded" not in result.out


def test_verify_loads_what_has_no_probes(cli: Run) -> None:
    old = Path(__file__).parent / "golden" / "step1-adamw.optgen"
    result = cli("verify", old, "--device", "local-sync")
    assert result.code == 0, result
    assert "not run" in result.out or "none run" in result.out
    assert "carry no probes" in result.out
    assert "outputs verified" not in result.out


def test_verify_fails_where_a_module_is_another_functions(cli: Run, folder: Path) -> None:
    """A module with the very signature of the right one: nothing but the numbers can tell them apart."""
    right = read_any(folder / "function.optgen")
    wrong = compile_function(lambda params, batch: error(params, batch) / 2, PARAMS, BATCH, targets="cpu")
    changed = {**right.files, "modules/cpu.vmfb": wrong.files["modules/cpu.vmfb"]}
    type(right).of(right.manifest, changed).save("forged.optgen")
    result = cli("verify", "forged.optgen", "--device", "local-sync")
    assert result.code == 1
    assert "1 outputs verified, 1 failed" in result.out
    assert "must be" in result.out
    assert "local-sync" in result.out


def _without_step(bundle: SomeBundle) -> dict[str, bytes]:
    """The step's module replaced by one without such a program."""
    other = compile_function(error, PARAMS, BATCH, targets="cpu")
    return {**bundle.files, "modules/cpu.vmfb": other.module(other.manifest.modules[0])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_step, "error for cpu has no entry point 'step'"),
        (lambda bundle: {**bundle.files, "modules/cpu.vmfb": b"no module"}, "error for cpu cannot be loaded"),
    ],
)
def test_verify_finds_modules_that_are_not_what_they_should_be(
    cli: Run,
    folder: Path,
    change: Callable[[SomeBundle], dict[str, bytes]],
    message: str,
) -> None:
    bundle = read_any(folder / "step.optgen")
    assert isinstance(bundle, StepBundle)
    StepBundle.of(bundle.manifest, change(bundle)).save("forged.optgen")
    failed(cli("verify", "forged.optgen", "--device", "local-sync"), message)


def test_damage_and_wrong_kinds_are_refused(cli: Run, folder: Path) -> None:
    for kind in ("function", "transform", "step"):
        path = read_any(folder / f"{kind}.optgen").save(kind)
        file = next(path.rglob("*.vmfb"))
        file.write_bytes(file.read_bytes()[:-1])
        for command in ("inspect", "verify"):
            failed(cli(command, kind), "is damaged: SHA-256 of")
    manifest = json.loads(read_any(folder / "step.optgen").manifest.to_json())
    Path("step/manifest.json").write_text(json.dumps({**manifest, "kind": "poem"}))
    failed(cli("inspect", "step"), "'poem', not an optimizer rule")
    Path("step/manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    failed(cli("verify", "step"), "format 99, newer than this optgen reads")


def test_verify_where_nothing_can_be_loaded(cli: Run) -> None:
    compile_function(error, PARAMS, BATCH, targets="cpu:riscv64").save("other.optgen")
    result = cli("verify", "other.optgen", "--device", "local-sync")
    assert result.code == 1
    assert "other.optgen: no module for local-sync" in result.out
    assert "nothing was verified" in result.out
