"""``optgen lower``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optgen.cli.arguments import (
    check_dtype,
    choose_variant,
    find_rule,
    parse_bake,
    parse_settings,
    parse_state_dtype,
)

if TYPE_CHECKING:
    from optgen.lower import Kernel
    from optgen.targets import Target


class Stage(StrEnum):
    """The forms that a rule passes through on its way to a module."""

    stablehlo = "stablehlo"
    graph = "graph"
    plan = "plan"
    kernel = "kernel"
    stream = "stream"
    asm = "asm"


def lower_command(
    rule: Annotated[
        str, typer.Argument(help="A rule's name, my_rules.py:my_rule, or a chain: 'clip_by_global_norm + adamw + ema'.")
    ],
    emit: Annotated[
        Stage,
        typer.Option(
            help="stablehlo: as traced. graph: without shapes. plan: what runs where. kernel: what the compiler is "
            "given. stream: its buffers and dispatches. asm: assembly, PTX or SPIR-V."
        ),
    ],
    target: Annotated[str, typer.Option("-t", "--target", help="What to lower for; see optgen targets.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Dtype of params.")] = "f32",
    compute_dtype: Annotated[
        str | None, typer.Option(help="Dtype of the arithmetic.", show_default="f64; f32 for 16-bit params")
    ] = None,
    state_dtype: Annotated[
        str | None, typer.Option(help="Dtype of state; f8 for 8 bits; or m=bf16,v=f8v.", show_default="f32")
    ] = None,
    rounding: Annotated[str, typer.Option(help="Of bf16 results: nearest or stochastic.")] = "nearest",
    master: Annotated[bool, typer.Option("--master", help="Keep f32 weights in the state of 16-bit params.")] = False,
    convention: Annotated[str | None, typer.Option(help="Whose arithmetic: torch, optax, keras, ivy.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Structure (nesterov=true).")
    ] = None,
    bake: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=VALUE]", help="Fold a hyperparameter into the kernel.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="64x32", help="Shape of the leaf, for a rule that cannot run in place.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file, instead of stdout.")] = None,
) -> None:
    """Show a rule at one stage of its lowering, as plain text."""
    from optgen.dsl.variant import has_eight_bits
    from optgen.lower import lower
    from optgen.targets import get_target

    settings = parse_settings(setting or ())
    baked = parse_bake(bake or (), settings)
    chosen = get_target(target)
    shapes = None if shape is None else [_parse_shape(shape)]
    state = parse_state_dtype(state_dtype)
    variant = choose_variant(
        find_rule(rule, convention), settings, baked,
        rounding=rounding, eight_bits=has_eight_bits(state), master=master,
    )  # fmt: skip
    compute = compute_dtype and check_dtype(compute_dtype, "--compute-dtype")
    dtypes = variant.dtypes(check_dtype(dtype), state=state, compute=compute)
    kernel = lower(variant.kernel(dtypes), shapes)[0]
    if emit in (Stage.kernel, Stage.stream, Stage.asm):
        chosen.check([operand.dtype for operand in kernel.spec.operands], elementwise=kernel.in_place)
    text = _emit(kernel, emit, chosen)
    if not text.endswith("\n"):
        text += "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text)


def _emit(kernel: Kernel, stage: Stage, target: Target) -> str:
    from optgen.compiler.build import flags_for
    from optgen.compiler.driver import compile_mlir, dump_assembly
    from optgen.errors import LoweringError, UnsupportedTargetError

    if stage is Stage.stablehlo:
        return kernel.stablehlo
    if stage in (Stage.graph, Stage.plan):
        form = kernel.graph if stage is Stage.graph else kernel.plan
        if form is None:
            raise LoweringError(f"rule '{kernel.spec.variant.rule.name}' has no {stage.value}: {kernel.reason}")
        return str(form)
    mlir = kernel.mlir(target.style)
    if stage is Stage.kernel:
        return mlir
    if target.guarded:
        raise UnsupportedTargetError(
            f"target '{target.name}' has no {stage.value} of its own: show that of one processor, as cpu:x86-64-v3"
        )
    flags = flags_for(kernel, target)
    if stage is Stage.stream:
        return compile_mlir(mlir, [*flags, "--compile-to=stream"]).decode()
    return dump_assembly(mlir, flags)


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(extent) for extent in text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise typer.BadParameter(f"must be like 64x32 (got {text!r})", param_hint="--shape")
    return shape
