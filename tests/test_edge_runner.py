"""What runs on a device: the example that may lose power at any moment, and ``optgen run`` without its extras."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import optgen
from optgen.artifact.tensors import load_tensors, save_tensors
from optgen.dtypes import ulp
from optgen.errors import FileError
from optgen.runtime import read_arrays

EDGE = ROOT / "examples" / "edge"
STEPS, EVERY = 90, 6
#: Packages that a device does not have. ml_dtypes comes with the runtime.
ABSENT = (
    "jax", "jaxlib", "torch", "optax", "iree.compiler", "jinja2", "sklearn", "matplotlib", "typer", "click", "rich",
    "safetensors", "filelock", "platformdirs",
)  # fmt: skip
BARE = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
#: Kills the process at its n-th write to disk: before it, or after it.
KILLED = """
import os, signal, sys
calls, when, n = 0, sys.argv.pop(1), int(sys.argv.pop(1))
def deadly(real):
    def call(*arguments):
        global calls
        calls += 1
        if calls == n and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments)
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
"""


def device(folder: Path, *arguments: object, before: str = "", extra: tuple[str, ...] = ()) -> list[str]:
    """The command that runs the example with nothing but numpy and the runtime."""
    script = f"{BARE}{before}import runpy; sys.argv[0] = 'device.py'; sys.path.insert(0, {str(EDGE)!r})\n"
    script += f"runpy.run_path({str(EDGE / 'device.py')!r}, run_name='__main__')"
    options = ["--folder", str(folder), "--steps", str(STEPS), "--every", str(EVERY), *map(str, arguments)]
    return [sys.executable, "-c", script, *extra, *options]


def run(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the workstation makes, by its own command."""
    folder = tmp_path_factory.mktemp("edge") / "prepared"
    command = [sys.executable, str(EDGE / "prepare.py"), "--out", str(folder), "--batches", str(STEPS)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "device"))


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("edge") / "uninterrupted"))
    done = run(device(folder))
    assert done.returncode == 0, done.stderr
    assert f"stopped at step {STEPS}" in done.stdout
    return folder


def state(folder: Path) -> dict[str, bytes]:
    """What is in the state, to the last bit. The log's length depends on how the times are written."""
    arrays = read_arrays(folder / "state.safetensors")
    arrays.pop("log_length")
    return {name: array.tobytes() for name, array in arrays.items()}


def log(folder: Path) -> list[tuple[str, str]]:
    """Steps and losses."""
    lines = (folder / "log.csv").read_text().splitlines()
    assert lines[0] == "step,loss,ms_per_step,rss_mb"
    return [(line.split(",")[0], line.split(",")[1]) for line in lines[1:]]


def wait_for(process: subprocess.Popen[str], folder: Path, done: int) -> None:
    """Waits until the state on disk is that of so many batches."""
    path = folder / "state.safetensors"
    while not (path.exists() and int(read_arrays(path)["done"]) >= done):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_it_learns(uninterrupted: Path) -> None:
    lines = log(uninterrupted)
    assert [int(step) for step, _ in lines] == list(range(EVERY, STEPS + 1, EVERY))
    losses = [float(loss) for _, loss in lines]
    assert losses[0] > 1.8
    assert losses[-1] < 0.4
    saved = read_arrays(uninterrupted / "state.safetensors")
    assert int(saved["step"]) == int(saved["done"]) == STEPS


def test_it_is_what_jax_and_torch_do(uninterrupted: Path, prepared: Path) -> None:
    """The same training with JAX's gradients and torch's AdamW ends at the same params, to what f32 gradients allow."""
    import jax
    import torch

    from optgen.train.mlp import loss_and_grad

    start = read_arrays(prepared / "params.safetensors")
    params = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in start.items()}
    adamw = torch.optim.AdamW(params.values(), lr=3e-3, weight_decay=0.05)
    gradient = jax.jit(loss_and_grad)
    for number in range(STEPS):
        batch = read_arrays(prepared / "spool" / f"{number:06}.safetensors")
        tree: dict[str, dict[str, np.ndarray]] = {}
        for name, value in params.items():
            layer, leaf = name.split("/")
            tree.setdefault(layer, {})[leaf] = value.detach().numpy()
        _, grads = gradient(tree, batch["x"], batch["y"])
        for name, value in params.items():
            layer, leaf = name.split("/")
            value.grad = torch.tensor(np.array(grads[layer][leaf]))
        adamw.step()
    saved = read_arrays(uninterrupted / "state.safetensors")
    for name, value in params.items():
        np.testing.assert_allclose(saved[f"params/{name}"], value.detach().numpy(), rtol=2e-3, atol=2e-4)


def test_killed_at_random_moments(folder: Path, uninterrupted: Path) -> None:
    """kill -9 again and again, while batches arrive: the end is the same to the last bit."""
    rng = random.Random(20261124)
    waiting = sorted((folder / "spool").iterdir())
    away = folder / "not_yet"
    away.mkdir()
    for path in waiting:
        path.rename(away / path.name)

    def arrive() -> None:
        if waiting:
            path = waiting.pop(0)
            (away / path.name).rename(path)

    kills = 0
    reached = [0]
    while len(waiting) > 10:
        command = device(folder, "--wait", 60)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(rng.randint(EVERY, 2 * EVERY)):
            arrive()
        wait_for(process, folder, reached[-1] + 1)  # it is at work, whatever else this machine does
        until = time.monotonic() + rng.uniform(0, 0.05)
        while time.monotonic() < until and waiting:
            arrive()
            time.sleep(rng.uniform(0, 0.01))
        process.kill()
        kills += process.wait(timeout=60) == -signal.SIGKILL
        process.communicate()
        reached.append(int(read_arrays(folder / "state.safetensors")["done"]))
    while waiting:
        arrive()
    assert kills >= 4, (kills, reached)
    assert reached == sorted(set(reached)), reached
    done = run(device(folder))
    assert done.returncode == 0, done.stderr
    assert state(folder) == state(uninterrupted)
    assert log(folder) == log(uninterrupted)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_in_the_middle_of_a_save(folder: Path, uninterrupted: Path, when: str) -> None:
    """At each write to disk in turn: log, state under its temporary name, the move, the folder."""
    for n in (1, 2, 3, 4, 6, 9):
        done = run(device(folder, before=KILLED, extra=(when, str(n))))
        assert done.returncode == -signal.SIGKILL, done.stderr
        if (folder / "state.safetensors").exists():
            assert int(read_arrays(folder / "state.safetensors")["done"]) % EVERY == 0
    done = run(device(folder))
    assert done.returncode == 0, done.stderr
    assert state(folder) == state(uninterrupted)
    assert log(folder) == log(uninterrupted)
    assert not list(folder.glob(".*"))


def test_stopped_and_continued(folder: Path, uninterrupted: Path) -> None:
    """SIGTERM ends it after a step, with everything saved; a second process is refused meanwhile."""
    later = sorted((folder / "spool").iterdir())[40:]
    (folder / "later").mkdir()
    for path in later:
        path.rename(folder / "later" / path.name)
    process = subprocess.Popen(device(folder, "--wait", 60), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(process, folder, 36)  # the last multiple of EVERY
    other = run(device(folder))
    assert other.returncode == 1
    assert "is being trained by another process" in other.stderr
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    stopped = int(re.findall(r"stopped at step (\d+)", out)[0])
    assert 36 <= stopped <= 40
    assert int(read_arrays(folder / "state.safetensors")["done"]) == stopped
    for path in later:
        (folder / "later" / path.name).rename(path)
    assert run(device(folder)).returncode == 0
    assert state(folder) == state(uninterrupted)


def test_the_memory_ceiling_is_held(folder: Path, uninterrupted: Path) -> None:
    """What it says it needs at most, it does; and under a ceiling that is too low it stops with a sentence."""
    lines = (uninterrupted / "log.csv").read_text().splitlines()[1:]
    assert max(float(line.split(",")[3]) for line in lines) < 100
    done = run(device(folder, "--memory", 30))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "with 30 MB at most" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "state.safetensors").exists()
    greedy = "import numpy\nreal = numpy.mean\nnumpy.mean = lambda *a, **k: real([numpy.ones(2**28).sum()], **k)\n"
    done = run(device(folder, before=greedy))
    assert done.returncode == 1
    assert "error: Unable to allocate 2.00 GiB" in done.stderr
    assert "with 128 MB at most" in done.stderr
    assert not (folder / "state.safetensors").exists()


def test_damaged_files_are_refused(folder: Path) -> None:
    assert run(device(folder, "--steps", EVERY)).returncode == 0
    path = folder / "state.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    done = run(device(folder))
    assert done.returncode == 1
    assert "state.safetensors cannot be read" in done.stderr
    assert path.read_bytes() == whole[:-5]
    path.write_bytes(whole)
    (folder / "spool" / f"{EVERY:06}.safetensors").write_bytes(b"not arrays")
    done = run(device(folder))
    assert done.returncode == 1
    assert "cannot be read" in done.stderr
    assert path.read_bytes() == whole


def test_the_plot(uninterrupted: Path, tmp_path: Path) -> None:
    picture = tmp_path / "loss.png"
    runpy.run_path(str(EDGE / "plot.py"))["draw"](uninterrupted / "log.csv", picture)
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") > 600


# optgen run


def optgen_run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line where there is neither typer nor rich."""
    script = f"{BARE}from optgen.cli import main; main()"
    return run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_run_needs_numpy_and_the_runtime_alone(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(5)
    params = {"w": rng.standard_normal((30, 4)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
    grads = {name: rng.standard_normal(a.shape).astype(np.float32) for name, a in params.items()}
    for name, arrays in (("p", params), ("g", grads)):
        if suffix == "npz":
            np.savez(tmp_path / f"{name}.npz", **arrays)
        else:
            from safetensors.numpy import save_file

            save_file(arrays, tmp_path / f"{name}.safetensors")
    files = ["--params", f"p.{suffix}", "--grads", f"g.{suffix}", "--out-params", f"new.{suffix}"]
    options = [*files, "--out-state", f"state.{suffix}", "--set", "lr=0.1", "--set", "weight_decay=0.01"]
    done = optgen_run("run", "adamw", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "adamw: 2 leaves, 127 elements, step 1" in done.stdout
    again = [*files[:4], "--out-params", f"new.{suffix}", "--state", f"state.{suffix}"]
    again[1] = f"new.{suffix}"
    done = optgen_run("run", "adamw", *again, "--set", "lr=0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, w in params.items():
        x, g, m, v = w.astype(np.float64), grads[name].astype(np.float64), 0.0, 0.0
        for step in (1, 2):
            m, v = 0.9 * m + (1 - 0.9) * g, 0.999 * v + (1 - 0.999) * g**2  # type: ignore[assignment]
            x = x * (1 - 0.1 * 0.01) - 0.1 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        got = read_arrays(tmp_path / f"new.{suffix}")[name].astype(np.float64)
        largest = np.maximum(np.abs(x), np.abs(w))  # where w and its changes cancel, what is left of two roundings
        assert np.max(np.abs(got - x) / ulp(largest, "f32")) < 2


def test_run_says_what_is_wrong_without_typer(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", w=np.ones(3, np.float32))
    files = ["--params", "p.npz", "--grads", "p.npz", "--out-params", "new.npz"]
    for arguments, code, words in (
        (["run", "sgd", *files], 1, "error: 'lr' must be given"),
        (["run", "sgd", *files, "--set", "lr=x"], 2, "--set lr must be a number"),
        (["run", "sgd", *files, "--set", "step=1"], 2, "step is counted in the state"),
        (["run", "sgd", *files, "--set", "lr=1", "--steps", "0"], 2, "--steps must be at least 1"),
        (["run", "nothing", *files, "--set", "lr=1"], 1, "no prebuilt one of that name"),
        (["run", "sgd", "--params", "no.npz", *files[2:], "--set", "lr=1"], 1, "there is no file no.npz"),
        (["compile", "adamw"], 2, "invalid choice: 'compile'"),
    ):
        done = optgen_run(*arguments, cwd=tmp_path)
        assert done.returncode == code, (arguments, done.stderr)
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "new.npz").exists()
    assert "typer is not installed" in optgen_run("--help", cwd=tmp_path).stdout
    assert optgen_run("--version", cwd=tmp_path).stdout.strip() == f"optgen {optgen.__version__}"


# The safetensors format


def test_safetensors_both_ways(tmp_path: Path, rng: np.random.Generator) -> None:
    """The package reads what optgen writes, and the other way round."""
    import ml_dtypes
    from safetensors.numpy import load_file, save_file

    arrays = {
        "w": rng.standard_normal((3, 4)).astype(np.float32), "scalar": np.array(7, np.int64), "none": np.zeros((0, 3)),
        "é": rng.integers(0, 255, 5).astype(np.uint8), "h": np.ones(3, np.float16), "flag": np.array([True, False]),
        "b": np.ones((2, 2), ml_dtypes.bfloat16), "turned": rng.standard_normal((4, 3)).T,
        "big": np.arange(3, dtype=">i4"),
    }  # fmt: skip
    data = save_tensors(arrays, {"note": "x"})
    assert data == save_tensors(dict(reversed(arrays.items())), {"note": "x"})
    ours, metadata = load_tensors(data)
    assert metadata == {"note": "x"}
    (tmp_path / "ours.safetensors").write_bytes(data)
    native = {name: np.array(a, a.dtype.newbyteorder("="), order="C") for name, a in arrays.items()}
    save_file(native, tmp_path / "theirs.safetensors")
    theirs = read_arrays(tmp_path / "theirs.safetensors")
    for name, array in load_file(tmp_path / "ours.safetensors").items():
        for other in (array, ours[name], theirs[name]):
            assert other.dtype == native[name].dtype
            assert other.shape == arrays[name].shape
            np.testing.assert_array_equal(other, arrays[name])
    with pytest.raises(ValueError, match="'c' cannot be in a safetensors file"):
        save_tensors({"c": np.ones(2, np.complex64)})


def test_damaged_safetensors_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    """Cut off anywhere, or with any byte of the header changed: an error or the same arrays, and nothing else."""
    data = save_tensors({"w": np.arange(6, dtype=np.float32), "b": np.arange(3, dtype=np.int64)})
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"header|cut off|not where|belong|no dtype"):
            load_tensors(data[:length])
    header = int.from_bytes(data[:8], "little") + 8
    for _ in range(400):
        spoilt = bytearray(data)
        spoilt[rng.integers(0, header)] ^= 1 << int(rng.integers(0, 8))
        try:
            arrays, _ = load_tensors(bytes(spoilt))
        except ValueError:
            continue
        assert sum(a.nbytes for a in arrays.values()) == len(data) - header
    wrong = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}}
    text = json.dumps(wrong).encode()
    with pytest.raises(ValueError, match="'w' is not where"):
        load_tensors(len(text).to_bytes(8, "little") + text + b"12345678")
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"12")
    with pytest.raises(FileError, match=r"x\.safetensors cannot be read"):
        read_arrays(path)
