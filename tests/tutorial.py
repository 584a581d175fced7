"""Runs the tutorial's code and commands. As a script, writes down in docs/tutorial.md what they print."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

from optgen.cli import main as optgen

DOC = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
_BLOCK = re.compile(r"```(python|console|text)\n(.*?)```", re.DOTALL)


def rewritten(text: str) -> str:
    """The tutorial with what its blocks really print, when run one after the other in the current folder.

    Python blocks that begin with a file's name are written there, all others are run; what they print is in the text
    block after them. Console blocks are commands, each followed by what it prints.
    """
    printed = ""

    def run(match: re.Match[str]) -> str:
        nonlocal printed
        kind, body = match.groups()
        if kind == "text":
            return f"```text\n{printed}```"
        if kind == "console":
            commands = [line[2:] for line in body.splitlines() if line.startswith("$ ")]
            return "```console\n" + "".join(f"$ {command}\n{_run(command)}" for command in commands) + "```"
        if file := re.match(r"# (\w+\.py)\n", body):
            Path(file.group(1)).write_text(body)
            return match.group()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(body, DOC.name, "exec"), {"__name__": "tutorial"})
        printed = out.getvalue()
        return match.group()

    return _BLOCK.sub(run, text)


def _run(command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "optgen", command
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            optgen(arguments)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    # The spinner is a terminal's; what is refused is told on stderr.
    text = out.getvalue() + (err.getvalue() if code else "")
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def comparable(text: str) -> str:
    """Without what differs from machine to machine: sizes, times, versions, processors, errors within their bounds."""
    text = re.sub(r"\d+(\.\d+)* (KB|ms|features)", "# \\2", text)
    text = re.sub(r"(optgen|compiler|jax|runtime) \d[\w.]*", "\\1 #", text)
    text = re.sub(r"(local-\w+ +\w) +0\.\d+", "\\1 #", text)
    text = re.sub(r"x86_64|aarch64", "cpu", text)
    return re.sub(r"─+", "─", re.sub(r"(?m) +", " ", text))


def main() -> None:
    os.environ["COLUMNS"] = "110"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        sys.path.insert(0, folder)
        DOC.write_text(rewritten(DOC.read_text()))


if __name__ == "__main__":
    main()
