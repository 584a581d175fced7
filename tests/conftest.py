"""Fixtures that the tests share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from command_line import Result, Run

# One BLAS thread for each test process: several of them run side by side on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


def vulkan_reason() -> str:
    """Why Vulkan cannot be tested here; empty where it can."""
    from optgen.runtime import list_devices

    return "" if any(driver == "vulkan" for driver, _ in list_devices()) else "no Vulkan device, nor lavapipe, is here"


@pytest.fixture(scope="session")
def vulkan() -> str:
    """The Vulkan device, where there is one."""
    if reason := vulkan_reason():
        pytest.skip(reason)
    return "vulkan"


@pytest.fixture(params=["local-sync", "local-task", "vulkan"])
def device(request: pytest.FixtureRequest) -> str:
    """Every device of this machine, one after the other."""
    if request.param == "vulkan":
        request.getfixturevalue("vulkan")
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261101)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in an empty folder."""
    from optgen.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        code = stop.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run
