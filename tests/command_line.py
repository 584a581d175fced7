"""Commands as a user runs them, in this process: output and exit codes. The fixture ``cli`` gives a :data:`Run`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


def failed(result: Result, *parts: str) -> None:
    """One line on stderr, nothing on stdout, exit code 1."""
    assert result.code == 1, result
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for part in parts:
        assert part in result.err


def wrong_usage(result: Result, *parts: str) -> None:
    assert result.code == 2, result
    text = " ".join(result.err.replace("│", " ").split())
    for part in parts:
        assert part in text
