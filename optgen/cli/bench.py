"""``optgen bench``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from optgen.cli.demo import MissingExtraError
from optgen.cli.output import console
from optgen.errors import OptgenError


def bench_command(
    quick: Annotated[bool, typer.Option("--quick", help="AdamW on a few trees, few rounds.")] = False,
    work: Annotated[list[str] | None, typer.Option(help="Trees to update.", show_default="all that fit")] = None,
    rule: Annotated[list[str] | None, typer.Option(help="sgd, momentum, adam, adamw.", show_default="all")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Who updates them.", show_default="all")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write results and pictures.")] = Path("out/bench"),
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for each peer.", show_default="one for each core")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also measure the memory that first steps take.")] = False,
) -> None:
    """Time updates by optgen, by torch, optax and others, and by a C kernel with the same loads and stores.

    Peers that are not installed are left out, and the tables say so.
    """
    try:
        from optgen.bench import machine
        from optgen.bench.peers import PEERS
        from optgen.bench.run import Settings, run
        from optgen.bench.work import RULES, WORKS

        _check(work, WORKS, "--work")
        _check(rule, RULES, "--rule")
        _check(peer, PEERS, "--peer")
        count = min(threads or machine.cores(), machine.cores())
        files = run(Settings(work or (), rule or (), peer or (), quick, count, memory), out)
    except ImportError as error:
        if isinstance(error, OptgenError):
            raise
        missing = error.name or str(error)
        raise MissingExtraError(
            f"the benchmark needs {missing}, which is not installed: pip install 'optgen[compile,demo]'"
        ) from error
    for file in files:
        console().print(f"wrote {file}")


def _check(names: list[str] | None, known: Collection[str], option: str) -> None:
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
