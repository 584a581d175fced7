"""``optgen compile --emit``: forms of one kernel for one target, for callers without optgen's runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from optgen.cli.arguments import check_dtype, choose_variant, parse_state_dtype
from optgen.cli.output import console, size, table

if TYPE_CHECKING:
    from optgen.dsl import Rule
    from optgen.dsl.variant import Dtypes, Variant


class Emit(StrEnum):
    """What ``optgen compile`` writes."""

    bundle = "bundle"
    vmfb = "vmfb"
    c = "c"
    wasm = "wasm"


@dataclass(frozen=True)
class Request:
    """What was asked for, as text where it must still be looked at; empty where nothing was said.

    Attributes:
        rule: what to compile.
        settings: structure, and hyperparameters that become defaults.
        bake: hyperparameters to fold in.
        per_element: hyperparameters that are tensors.
        output: where to.
        targets: names.
        params: dtypes.
        grad: dtype.
        state: dtype, or several by name.
        compute: dtype.
        rounding: of 16-bit results.
        master: whether f32 weights are kept.
        use_cache: whether compiled code may come from the cache.
        name: what the symbols of C begin with.
    """

    rule: Rule
    settings: Mapping[str, Any]
    bake: Sequence[str]
    per_element: Sequence[str]
    output: Path | None
    targets: Sequence[str]
    params: Sequence[str]
    grad: str | None
    state: str | None
    compute: str | None
    rounding: str
    master: bool
    use_cache: bool
    name: str | None = None

    def one(self, option: str, values: Sequence[str], default: str) -> str:
        """The one of ``values``, or the default.

        Raises:
            typer.BadParameter: if there are several.
        """
        if len(values) > 1:
            raise typer.BadParameter(
                f"must be one where --emit is not bundle (got {', '.join(values)})", param_hint=option
            )
        return values[0] if values else default

    @property
    def param(self) -> str:
        """The dtype of params."""
        return check_dtype(self.one("--dtype", self.params, "f32"))

    @property
    def variant(self) -> Variant:
        """The rule with its structure chosen."""
        from optgen.dsl.variant import has_eight_bits

        return choose_variant(
            self.rule, dict(self.settings), self.bake, per_element=tuple(self.per_element), rounding=self.rounding,
            eight_bits=has_eight_bits(parse_state_dtype(self.state)), master=self.master,
        )  # fmt: skip

    @property
    def dtypes(self) -> Dtypes:
        """Those of the kernel."""
        return self.variant.dtypes(
            self.param,
            self.grad and check_dtype(self.grad, "--grad-dtype"),
            parse_state_dtype(self.state),
            self.compute and check_dtype(self.compute, "--compute-dtype"),
        )

    @property
    def defaults(self) -> dict[str, float]:
        """Hyperparameters that replace the rule's own defaults."""
        from optgen.runtime.loading import split_settings

        _, values = split_settings(self.rule.flags, self.rule.optional, self.settings)
        return {name: value for name, value in values.items() if name not in self.bake}


def _emit_vmfb(asked: Request) -> None:
    from optgen.compiler.plain import build_plain
    from optgen.runtime.files import write_whole
    from optgen.targets import get_target

    if asked.per_element:
        raise typer.BadParameter("is not for --emit vmfb, which takes numbers", param_hint="--per-element")
    target = get_target(asked.one("--target", asked.targets, "cpu"))
    module = build_plain(asked.variant, asked.dtypes, target, defaults=asked.defaults, use_cache=asked.use_cache)
    path = asked.output or Path(f"{asked.variant.name}.vmfb")
    write_whole(path, lambda file: file.write(module.data))
    out = console()
    out.print(f"{path}  {size(len(module.data))}, {module.target}")
    kinds = ", ".join(f"{n} {d}" for n, d in zip(module.operands, module.dtypes, strict=True))
    if module.checks:
        out.print("Checked where it is to run, status 0 if right:")
    for number, text in enumerate(module.checks, 1):
        check = path.with_name(f"{path.stem}.check{number}.txt")
        check.write_text(text)
        out.print(f"iree-run-module --module={path} --flagfile={check}", soft_wrap=True)
    out.print(f"One update of a flat leaf ({kinds}), each tensor in a .npy file:")
    out.print(" ".join(module.command(str(path))), soft_wrap=True)


def _emit_c(asked: Request) -> None:
    from optgen import host
    from optgen.native import compile_c

    if asked.rounding != "nearest":
        raise typer.BadParameter(
            "must be nearest: a function for one leaf cannot round at random", param_hint="--rounding"
        )
    target = asked.one("--target", asked.targets, "cpu")
    if target == "cpu":
        levels = [name for name in host.X86_LEVELS if set(host.x86_requirements(name)) <= host.features()]
        target = f"cpu:{levels[-1] if host.architecture() == 'x86_64' else host.architecture()}"
    with console(stderr=True).status(f"{asked.rule.name} for {target}"):
        bundle = compile_c(
            asked.rule, target, name=asked.name, dtype=asked.param,
            grad_dtype=asked.grad and check_dtype(asked.grad, "--grad-dtype"),
            state_dtype=parse_state_dtype(asked.state),
            compute_dtype=asked.compute and check_dtype(asked.compute, "--compute-dtype"),
            master=asked.master, bake=asked.bake, per_element=asked.per_element, use_cache=asked.use_cache,
            **asked.settings,
        )  # fmt: skip
    path = bundle.save(asked.output or Path(f"{bundle.name}-{target.replace(':', '-')}"))
    _show(path, bundle.files)
    _show_proof(bundle.proven)


def _emit_wasm(asked: Request) -> None:
    from optgen.errors import UnsupportedTargetError
    from optgen.native import get_native_target, update_package

    target = get_native_target(asked.one("--target", asked.targets, "wasm"))
    if not target.name.startswith("wasm"):
        raise UnsupportedTargetError(
            f"--emit wasm is for targets wasm, wasm:scalar and wasm:threads (got {target.name})"
        )
    variant = asked.variant
    with console(stderr=True).status(f"{variant.name} for {target.name}"):
        package = update_package(variant, asked.dtypes, target, defaults=asked.defaults, use_cache=asked.use_cache)
    path = package.write(asked.output or Path(f"{package.name}-{target.name.replace(':', '-')}"))
    _show(path, package.files, lambda name: name.endswith((".wasm", "index.js", "index.d.ts", "script.js")))
    _show_proof(package.proven)


def _show_proof(proven: str) -> None:
    console().print(f"self-test passed ({proven})" if proven else "self-test not run here")


def _show(path: Path, files: Mapping[str, bytes], listed: Callable[[str], bool] = lambda _: True) -> None:
    rows = table("file", "size", right=["size"])
    for name, data in files.items():
        if listed(name):
            rows.add_row(name, size(len(data)))
    out = console()
    out.print(rows)
    out.print(f"{path}  {size(sum(map(len, files.values())))}")


#: What writes each form.
EMITTERS: dict[Emit, Callable[[Request], None]] = {Emit.vmfb: _emit_vmfb, Emit.c: _emit_c, Emit.wasm: _emit_wasm}
