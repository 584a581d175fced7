"""``optgen compile --emit wasm``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from optgen.cli.arguments import (
    check_dtype,
    choose_variant,
    find_rule,
    parse_bake,
    parse_settings,
    parse_state_dtype,
)
from optgen.cli.output import console, size, table


def emit_wasm(
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
    use_cache: bool,
) -> None:
    """Compiles a rule to an npm package; the arguments are those of ``optgen compile``."""
    from optgen.dsl.variant import has_eight_bits
    from optgen.errors import UnsupportedTargetError
    from optgen.native import get_native_target, update_package
    from optgen.runtime.loading import split_settings

    if like is not None or fixed_layout:
        raise typer.BadParameter("is for bundles: a package takes any tree", param_hint="--like")
    if len(targets or ()) > 1:
        raise typer.BadParameter("must be one: a package is for one target", param_hint="--target")
    if len(dtypes or ()) > 1:
        raise typer.BadParameter("must be one: a package has one kernel", param_hint="--dtype")
    target = get_native_target(targets[0] if targets else "wasm")
    if not target.name.startswith("wasm"):
        raise UnsupportedTargetError(
            f"--emit wasm is for targets wasm, wasm:scalar and wasm:threads (got {target.name})"
        )
    found = find_rule(rule, convention)
    given = parse_settings(settings)
    baked = parse_bake(bake, given)
    state = parse_state_dtype(state_dtype)
    variant = choose_variant(
        found, given, baked, per_element=per_element, rounding=rounding,
        eight_bits=has_eight_bits(state), master=master,
    )  # fmt: skip
    chosen = variant.dtypes(
        check_dtype(dtypes[0] if dtypes else "f32"),
        grad_dtype and check_dtype(grad_dtype, "--grad-dtype"),
        state,
        compute_dtype and check_dtype(compute_dtype, "--compute-dtype"),
    )
    _, values = split_settings(found.flags, found.optional, given)
    defaults = {name: value for name, value in values.items() if name not in baked}
    with console(stderr=True).status(f"{variant.name} for {target.name}"):
        package = update_package(variant, chosen, target, defaults=defaults, use_cache=use_cache)
    path = package.write(output or Path(f"{package.name}-{target.name.replace(':', '-')}"))
    rows = table("file", "size", right=["size"])
    for name, data in package.files.items():
        if name.endswith((".wasm", "index.js", "index.d.ts", "script.js")):
            rows.add_row(name, size(len(data)))
    out = console()
    out.print(rows)
    out.print(f"{path}  {size(sum(map(len, package.files.values())))}")
