"""Random programs: some of those that ``scripts/fuzz`` runs, whose log is docs/programs.md, each on one target."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import vulkan_reason
from programs.generate import program
from programs.pieces import PIECES
from programs.pool import TARGETS, Worker, targets_of
from programs.report import read, reason, table, write


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """A process for programs, which may die."""
    made = Worker()
    yield made
    made.close()


def _need(target: str) -> None:
    if target == "vulkan" and (why := vulkan_reason()):
        pytest.skip(why)
    tool = "node" if target.startswith("wasm") else "gcc" if target.startswith("c:") else None
    if tool and shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


#: With a target each, in turn. Between them they have every kind of piece; each takes a few seconds to compile.
NUMBERS = (
    2, 3, 5, 7, 9, 11, 18, 20, 21, 28, 33, 35, 39, 45, 75, 76, 94, 109, 114, 116, 124, 133, 134, 145, 147, 152, 170,
    180, 188, 208, 223, 227, 241, 1000, 1002, 1003, 1005, 1006, 1019, 1022,
)  # fmt: skip

#: What is refused, and why: f16 on Vulkan.
REFUSED = {76: "it computes in f16"}


@pytest.mark.parametrize("number", NUMBERS)
def test_programs_are_those_of_jax(number: int, worker: Worker) -> None:
    """Right, and proven by their own probes; or refused, where that is known."""
    target = targets_of(number, TARGETS)[0]
    _need(target)
    record = worker.check(number, target)
    if number in REFUSED:
        assert record["result"] == "refused", record
        assert REFUSED[number] in record["message"]
        assert "\n" not in record["message"]
        return
    assert record["result"] == "right", record
    assert not record.get("check", "").startswith("refused"), record


def test_no_kind_is_missing() -> None:
    """Neither of piece, nor of what losses begin with, nor of target; and several rules are among them."""
    made = [program(number) for number in NUMBERS if number not in REFUSED]
    kinds = {kind for each in made for kind in each.kinds}
    assert set(PIECES) <= kinds
    assert {"rows", "image", "sequence", "tokens", "vector", "integers"} <= kinds
    assert len({each.rule for each in made}) >= 5
    assert {targets_of(each.number, TARGETS)[0] for each in made} == set(TARGETS)


def test_a_program_is_the_same_each_time() -> None:
    one, again = program(12), program(12)
    assert one.text == again.text
    assert one.params.keys() == again.params.keys()
    for name, array in one.params.items():
        np.testing.assert_array_equal(array, again.params[name])


def test_pieces_can_be_left_out() -> None:
    whole, part = program(12), program(12, keep=[1])
    assert whole.kept == (0, 1)
    assert part.kept == (1,)
    assert len(part.text) < len(whole.text)


def test_a_child_that_dies_is_a_record() -> None:
    worker = Worker()
    try:
        record = worker.check(-1, "cpu")  # no number
        assert record["result"] == "crashed"
        limited = Worker(limit=0.5)
        assert limited.check(0, "cpu")["result"] == "timeout"
        limited.close()
    finally:
        worker.close()


def test_wrong_numbers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is off in one element, by little, is not right; one that differs from call to call neither."""
    import programs.check as checks

    made = program(9)
    known = checks.reference(made)
    exact = {name: (made.params[name] - grad).astype(np.float32) for name, grad in known.grads.items()}

    def runs(*found: tuple[float, dict[str, np.ndarray]]) -> str:
        monkeypatch.setattr(checks, "run_python", lambda *_: list(found))
        record = checks.check(made, "cpu", known)
        return str(record["result"])

    assert runs((known.loss, exact)) == "right"
    assert runs((known.loss + 1e-3, exact)) == "wrong"
    off = {name: array.copy() for name, array in exact.items()}
    off["p1"][1, 3] += 1e-3 * float(np.abs(known.grads["p1"]).max())
    assert runs((known.loss, off)) == "wrong"
    off["p1"][1, 3] = np.nan
    assert runs((known.loss, off)) == "wrong"
    near = {name: np.nextafter(array, np.float32(9)) for name, array in exact.items()}
    assert runs((known.loss, near)) == "right"
    assert runs((known.loss, exact), (known.loss, near)) == "wrong"


def test_the_page(tmp_path: Path) -> None:
    records = [
        {"program": 1, "target": "cpu", "result": "right", "text": "x", "kinds": ["dense"], "rule": "sgd"},
        {
            "program": 2,
            "target": "cpu",
            "result": "refused",
            "text": "y",
            "message": "no '7x8xf32' of 12",
            "rule": "sgd",
        },
        {
            "program": 3,
            "target": "cpu",
            "result": "refused",
            "text": "zz",
            "message": "no '9x8xf32' of 5",
            "rule": "sgd",
        },
        {"program": 3, "target": "cpu", "result": "wrong", "text": "zz", "message": "p0 is 1 for 2", "rule": "sgd"},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert [r["result"] for r in read(log)] == ["right", "refused", "wrong"]  # the last of each
    assert reason(records[1]) == reason(records[2])
    assert reason({"message": "an index of 7x8xf32, or 12"}) == "an index of SHAPE, or N"
    assert "| `cpu` | 3 | 1 | 1 | 0 | 1 |" in table(read(log))
    write(log, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "3: `zz`" in page
    assert "3 programs, 3 runs of a program on a target" in page
