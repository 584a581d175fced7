"""``optgen compile --emit c``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from optgen.cli.arguments import check_dtype, find_rule, parse_bake, parse_settings, parse_state_dtype
from optgen.cli.output import console, size, table


def emit_c(
    rule: str,
    output: Path | None,
    *,
    targets: list[str] | None,
    dtypes: list[str] | None,
    grad_dtype: str | None,
    state_dtype: str | None,
    rounding: str,
    master: bool,
    compute_dtype: str | None,
    convention: str | None,
    settings: Iterable[str],
    bake: Iterable[str],
    per_element: Iterable[str],
    like: Path | None,
    fixed_layout: bool,
    name: str | None,
    use_cache: bool,
) -> None:
    """Compiles a rule to a folder of C; the arguments are those of ``optgen compile``."""
    from optgen import host
    from optgen.native import compile_c

    if like is not None or fixed_layout:
        raise typer.BadParameter("is for bundles: C takes leaves of any length", param_hint="--like")
    if rounding != "nearest":
        raise typer.BadParameter("must be nearest: a function for one leaf cannot round at random",
                                 param_hint="--rounding")  # fmt: skip
    if len(targets or ()) > 1 or len(dtypes or ()) > 1:
        raise typer.BadParameter(
            "must be one: an object file has one target and one dtype", param_hint="--target, --dtype"
        )
    target = (targets or ["cpu"])[0]
    if target == "cpu":
        level = [each for each in host.X86_LEVELS if set(host.x86_requirements(each)) <= host.features()][-1:]
        target = f"cpu:{level[0] if level else host.architecture()}"
    found = find_rule(rule, convention)
    given = parse_settings(settings)
    baked = parse_bake(bake, given)
    dtype = check_dtype(dtypes[0] if dtypes else "f32")
    with console(stderr=True).status(f"{found.name} for {target}"):
        bundle = compile_c(
            found, target, name=name, dtype=dtype,
            grad_dtype=None if grad_dtype is None else check_dtype(grad_dtype, "--grad-dtype"),
            state_dtype=parse_state_dtype(state_dtype),
            compute_dtype=None if compute_dtype is None else check_dtype(compute_dtype, "--compute-dtype"),
            master=master, bake=baked, per_element=tuple(per_element), use_cache=use_cache, **given,
        )  # fmt: skip
    path = bundle.save(output or Path(f"{bundle.name}-{bundle.target.name.replace(':', '-')}"))
    rows = table("file", "size", right=["size"])
    for file, data in bundle.files.items():
        rows.add_row(file, size(len(data)))
    out = console()
    out.print(rows)
    out.print(f"{path}  {size(sum(map(len, bundle.files.values())))}")
