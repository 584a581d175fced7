"""The benchmark runs, verifies its peers, and writes what it says. No times are asserted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from optgen.bench.data import Data
from optgen.bench.measure import TOLERANCE, measure
from optgen.bench.peers import PEERS, AbsentError, Peer, PeerKind
from optgen.bench.work import RULES, WORKS, Case, Work, choose
from optgen.cli import main


def test_the_works_have_the_shapes_of_their_models() -> None:
    assert (len(WORKS["resnet50"].shapes), WORKS["resnet50"].elements) == (161, 25_557_032)
    assert (len(WORKS["gpt2"].shapes), WORKS["gpt2"].elements) == (148, 124_439_808)
    assert (len(WORKS["1000x128"].shapes), WORKS["1000x128"].elements) == (1000, 128_000)
    assert (len(WORKS["10000x32"].shapes), WORKS["10000x32"].elements) == (10_000, 320_000)


@pytest.mark.parametrize(
    ("rule", "dtype", "bytes_each"),
    [("sgd", "f32", 12), ("momentum", "f32", 20), ("adam", "f32", 28), ("adamw", "f32", 28), ("adam", "bf16", 22)],
)
def test_bytes_are_those_that_an_update_must_move(rule: str, dtype: str, bytes_each: int) -> None:
    assert Case(WORKS["1M"], RULES[rule], dtype).bytes == bytes_each * 2**20


def test_works_that_might_not_fit_are_left_out_unless_asked_for() -> None:
    assert {c.work.name for c in choose((), (), quick=False, memory=2**24)} & {"16M", "100M", "gpt2"} == set()
    assert [c.dtype for c in choose(("100M",), ("sgd",), quick=True, memory=1)] == ["f32"]


def test_a_run_writes_json_and_pictures(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from optgen.cli import main; main()", "bench", "--quick", "--threads", "1"]
    chosen = ["--work", "64", "--peer", "optgen", "--peer", "numpy", "--peer", "limit", "--out", str(tmp_path)]
    done = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "results.json").read_text()
    assert str(tmp_path) not in text
    (case,) = json.loads(text)["cases"]
    peers = case["peers"]
    assert (peers["limit"]["status"] == "ok") == bool(shutil.which("cc"))
    for name in ("optgen", "numpy"):
        assert peers[name]["status"] == "ok", peers[name]
        assert peers[name]["error"] <= TOLERANCE
        assert len(peers[name]["times"]) == 5
        assert peers[name]["seconds"]["low"] <= peers[name]["seconds"]["median"] <= peers[name]["seconds"]["high"]
    assert set(peers["optgen"]["time_over"]) >= {"numpy"}
    for picture in ("bandwidth.png", "leaves.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert "numpy" in done.stdout


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("rule", RULES)
def test_the_limit_updates_as_the_rule_says(rule: str, dtype: str) -> None:
    from optgen.bench.limit import Limit

    if RULES[rule].again and dtype == "bf16":
        with pytest.raises(AbsentError):
            Limit(Data(Case(Work("one", ((3,),)), RULES[rule], dtype)), 2)
        return
    data = Data(Case(Work("odd", ((3,), (20_001,), (7, 11), (30_000,))), RULES[rule], dtype))
    peer = Limit(data, 2)
    for _ in range(3):
        peer.step()
    assert data.error(peer.params(), 3) <= TOLERANCE


class _Idle(Peer):
    def __init__(self, data: Data, threads: int) -> None:
        self._data = data

    def step(self) -> None:
        pass

    def params(self) -> list[np.ndarray]:
        return self._data.params


class _Raises(_Idle):
    def step(self) -> None:
        raise RuntimeError("no such update")


class _Absent(_Idle):
    def __init__(self, data: Data, threads: int) -> None:
        raise AbsentError("not installed")


@pytest.mark.parametrize(
    ("peer", "status", "reason"),
    [(_Idle, "wrong", "off by"), (_Raises, "failed", "no such update"), (_Absent, "absent", "not installed")],
)
def test_peers_that_cannot_be_timed_are_reported(
    monkeypatch: pytest.MonkeyPatch, peer: type[Peer], status: str, reason: str
) -> None:
    monkeypatch.setattr(PeerKind, "make", lambda self, case, data, threads: peer(data, threads))
    result = measure(Case(WORKS["64"], RULES["adam"], "f32"), [PeerKind("numpy", "it", "")], rounds=1, threads=1)
    outcome = result.outcomes["numpy"]
    assert (outcome.status, outcome.times) == (status, [])
    assert reason in outcome.reason


def test_a_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit) as refused:
        main(["bench", "--work", "nothing"])
    assert refused.value.code == 2


def test_the_limit_leaves_the_processor_as_it_was() -> None:
    """A library linked with -ffast-math flushes subnormals in the whole process that loads it."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler is here")
    code = "import numpy as np; from optgen.bench import limit; limit._library(); assert np.float32(1e-42) * 1 != 0"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_devices_are_timed_on_tensors_that_stay_there(vulkan: str) -> None:
    from optgen.bench import gpu
    from optgen.cli.gpu_check import timings

    found = gpu.measure(vulkan, ["1000x128"], rounds=1)
    assert (found[0]["leaves"], found[0]["elements"]) == (1000, 128_000)
    assert found[0]["ms"]["optgen"] > 0
    assert timings(found, "a title").row_count == 1


@pytest.mark.parametrize("rule", ["lion", "lamb"])
def test_rules_that_torch_lacks_are_composed_of_its_operations(rule: str) -> None:
    """Every peer's update is checked against float64 before it is timed."""
    kinds = [PEERS[name] for name in ("limit", "optgen-bound", "torch-composed", "optax")]
    result = measure(Case(WORKS["10x128"], RULES[rule], "f32"), kinds, rounds=1, threads=1)
    assert [(name, outcome.reason) for name, outcome in result.outcomes.items() if outcome.status != "ok"] == []
