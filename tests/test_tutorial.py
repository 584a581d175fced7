"""The tutorial tells the truth: what it shows is what its code and commands print."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tutorial import DOC, comparable, rewritten


def test_the_tutorial_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    text = DOC.read_text()
    try:
        assert comparable(rewritten(text)) == comparable(text), "run: python tests/tutorial.py"
    finally:
        sys.modules.pop("my_rules", None)


def test_what_it_points_at_exists() -> None:
    assert "(design.md)" in DOC.read_text()
    assert (DOC.parent / "design.md").exists()
