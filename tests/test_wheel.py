"""The wheel, built and installed into an empty environment elsewhere, with the runtime alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = """
import json, sys, time
start = time.perf_counter()
import optgen as ivy
import_ms = (time.perf_counter() - start) * 1e3
import numpy as np
start = time.perf_counter()
w = ivy.array([[1.0, 2.0, 3.0]] * 4)
out = ivy.adam_update(w, w, 0.1, ivy.zeros(3), ivy.zeros(1), 7, beta1=0.123, beta2=0.456)
first_ms = (time.perf_counter() - start) * 1e3
assert out[0].shape == (4, 3) and np.isfinite(out[0].to_numpy()).all()
for name in ("sgd", "adam", "adamw"):
    opt = ivy.prebuilt(name)
    p = {"w": np.ones(100_001, np.float32)}
    opt.step(p, {"w": np.ones(100_001, np.float32)}, opt.init(p), lr=0.5)
    assert (p["w"] < 0.6).all()
for missing in ("jax", "torch", "iree.compiler", "jinja2"):
    try:
        __import__(missing)
    except ImportError:
        continue
    raise SystemExit(f"{missing} is installed: this environment proves nothing")
try:
    ivy.compile("adamw")
except ivy.OptgenError as error:
    assert "optgen[compile]" in str(error), error
else:
    raise SystemExit("compiled without a compiler")
print(json.dumps({"import_ms": import_ms, "first_ms": first_ms, "where": ivy.__file__}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (found,) = folder.glob("*.whl")
    return found


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "optgen/py.typed" in names
    assert "optgen/_data/templates/tied_list.mlir.j2" in names
    assert "optgen/_data/templates/js/lib/update.js" in names
    for bundle in (ROOT / "artifacts").glob("*.optgen"):
        assert f"optgen/_data/artifacts/{bundle.name}" in names
    assert not [n for n in names if n.startswith(("tests/", "scripts/", "out/"))]


def test_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    constraints = ROOT / "requirements" / "constraints.txt"
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(constraints), str(wheel)],
        check=True,
        capture_output=True,
    )
    done = subprocess.run([str(python), "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    command = tmp_path / "env" / "bin" / "optgen"
    done = subprocess.run([str(command), "verify", "adamw"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


BARE = """
import subprocess, sys
import numpy as np
np.savez("p.npz", w=np.ones(1000, np.float32))
command = ["--params", "p.npz", "--grads", "p.npz", "--out-params", "new.npz", "--set", "lr=0.1"]
subprocess.run([sys.argv[1], "run", "adamw", *command], check=True)
assert abs(np.load("new.npz")["w"] - (1 - 0.1 * 0.01 - 0.1)).max() < 1e-6
for missing in ("typer", "rich", "click", "safetensors", "jax"):
    try:
        __import__(missing)
    except ImportError:
        continue
    raise SystemExit(f"{missing} is installed: this environment proves nothing")
"""


def test_run_with_numpy_and_the_runtime_alone(wheel: Path, tmp_path: Path) -> None:
    """As a device would install it."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python, constraints = tmp_path / "env" / "bin" / "python", ROOT / "requirements" / "constraints.txt"
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(constraints), "numpy", "iree-base-runtime"], check=True, capture_output=True)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True, capture_output=True)
    command = [str(python), "-c", BARE, str(tmp_path / "env" / "bin" / "optgen")]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "adamw: 1 leaves, 1000 elements, step 1" in done.stdout
