"""``optgen compile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optgen.cli.arguments import check_dtype, find_rule, parse_bake, parse_settings, parse_state_dtype
from optgen.cli.emit import EMITTERS, Emit, Request
from optgen.cli.output import console, size, table, yes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from optgen.compiler.build import Progress
    from optgen.runtime import Optimizer


def compile_command(
    rule: Annotated[
        str, typer.Argument(help="A rule's name, my_rules.py:my_rule, or a chain: 'clip_by_global_norm + adamw + ema'.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="NAME.optgen for one file, else a directory.", show_default="VARIANT.optgen"
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("-t", "--target", help="What to compile for; see optgen targets.", show_default="cpu"),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="Dtypes of params.", show_default="those of --like, or f32")
    ] = None,
    grad_dtype: Annotated[str | None, typer.Option(help="Dtype of grads.", show_default="the params'")] = None,
    state_dtype: Annotated[
        str | None,
        typer.Option(help="Dtype of state; f8 for 8 bits; or m=bf16,v=f8v.", show_default="f32; f64 for f64 params"),
    ] = None,
    rounding: Annotated[str, typer.Option(help="Of bf16 results: nearest or stochastic.")] = "nearest",
    master: Annotated[bool, typer.Option("--master", help="Keep f32 weights in the state of 16-bit params.")] = False,
    compute_dtype: Annotated[
        str | None, typer.Option(help="Dtype of the arithmetic.", show_default="f64; f32 for 16-bit params")
    ] = None,
    convention: Annotated[str | None, typer.Option(help="Whose arithmetic: torch, optax, keras, ivy.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Structure (nesterov=true) or a default (weight_decay=0.1)."),
    ] = None,
    bake: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=VALUE]", help="Fold a hyperparameter into the kernel.")
    ] = None,
    per_element: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Take a hyperparameter as a tensor for each leaf.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="A file of params, .npz or .safetensors: their dtypes and layout.")
    ] = None,
    fixed_layout: Annotated[
        bool, typer.Option("--fixed-layout", help="Refuse trees of another layout than --like.")
    ] = False,
    emit: Annotated[
        Emit,
        typer.Option(
            help="bundle: for optgen's runtime. vmfb: one module that updates one flat leaf, for iree-run-module "
            "without Python. c: C99 and an object file, wasm: an npm package; neither needs a runtime."
        ),
    ] = Emit.bundle,
    name: Annotated[
        str | None,
        typer.Option(help="With --emit c, what every symbol begins with.", show_default="the rule's and its dtype's"),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither use nor fill the cache of modules.")] = False,
) -> None:
    """Compile an update rule into a bundle, or into code that needs no runtime."""
    from optgen.compiler import compile as compile_rule
    from optgen.runtime.files import read_arrays

    if fixed_layout and like is None:
        raise typer.BadParameter("needs --like, the layout to fix", param_hint="--fixed-layout")
    if name is not None and emit is not Emit.c:
        raise typer.BadParameter("is for --emit c", param_hint="--name")
    settings = parse_settings(setting or ())
    baked = parse_bake(bake or (), settings)
    dtypes = None if dtype is None else [check_dtype(text) for text in dtype]
    found = find_rule(rule, convention)
    for key in settings.keys() - found.flags.keys() - {"seed"}:
        found.hyper(key)  # says which there are; and no name can then be taken for a parameter of `compile`
    if emit is not Emit.bundle:
        if like is not None:
            raise typer.BadParameter("is for bundles: other forms take leaves of any length", param_hint="--like")
        asked = Request(
            found, settings, baked, tuple(per_element or ()), output, tuple(target or ()), tuple(dtype or ()),
            grad_dtype, state_dtype, compute_dtype, rounding, master, not no_cache, name,
        )  # fmt: skip
        return EMITTERS[emit](asked)
    tree = None if like is None else read_arrays(like)
    with _progress() as progress:
        optimizer = compile_rule(
            found,
            tree,
            target=target or ["cpu"],
            dtypes=dtypes,
            grad_dtype=None if grad_dtype is None else check_dtype(grad_dtype, "--grad-dtype"),
            state_dtype=parse_state_dtype(state_dtype),
            rounding=rounding,
            master=master,
            compute_dtype=None if compute_dtype is None else check_dtype(compute_dtype, "--compute-dtype"),
            bake=baked,
            per_element=per_element or (),
            fixed_layout=fixed_layout,
            progress=progress,
            use_cache=not no_cache,
            **settings,
        )
    path = optimizer.save(output or Path(f"{optimizer.manifest.variant}.optgen"))
    _show(optimizer, path)


def _show(optimizer: Optimizer, path: Path) -> None:
    rows = table("kernel", "target", "in place", "size", right=["size"])
    for kernel in optimizer.manifest.kernels:
        for module in kernel.modules:
            rows.add_row(kernel.name, module.target, yes(module.in_place), size(len(optimizer.bundle.module(module))))
    out = console()
    out.print(rows)
    for kernel in optimizer.manifest.kernels:
        if not kernel.in_place:
            out.print(f"{kernel.name} is out of place: {kernel.reason}")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    out.print(f"{path}  {size(sum(file.stat().st_size for file in files))}")


def _progress() -> AbstractContextManager[Progress]:
    """A line for each module on stderr, with a spinner while it is being compiled."""
    from contextlib import contextmanager

    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    @contextmanager
    def show() -> Iterator[Progress]:
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
        )
        bars = Bars(*columns, console=console(stderr=True))
        tasks: dict[tuple[str, str], TaskID] = {}

        def update(kernel: str, target: str, count: int | None) -> None:
            if count is None:
                bars.start()  # not before: what is refused right away needs no spinner
                tasks[kernel, target] = bars.add_task(f"{kernel} for {target}", total=1)
            else:
                bars.update(tasks[kernel, target], completed=1)

        try:
            yield update
        finally:
            if tasks:
                bars.stop()

    return show()
