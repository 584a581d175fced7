"""docs/train.md tells the truth: what it shows is what its code prints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT
from tutorial import rewritten

DOC = ROOT / "docs" / "train.md"


def test_it_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = DOC.read_text()
    try:
        assert rewritten(text) == text
    finally:
        sys.modules.pop("digits_model", None)
