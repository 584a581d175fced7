"""The README tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT
from readme_table import END, RULES_END, RULES_START, START, rules_table, table

TEXT = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_table_is_what_the_bundles_hold() -> None:
    assert TEXT.split(START)[1].split(END)[0] == table(), "run: python tests/readme_table.py"


def test_the_rules_are_those_there_are() -> None:
    assert TEXT.split(RULES_START)[1].split(RULES_END)[0] == rules_table(), "run: python tests/readme_table.py"


@pytest.mark.parametrize("code", EXAMPLES, ids=[f"example{i}" for i in range(len(EXAMPLES))])
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_what_it_points_at_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
    for command in re.findall(r"^scripts/(\w+)", TEXT, re.MULTILINE):
        assert (ROOT / "scripts" / command).exists(), command
