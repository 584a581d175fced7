"""``optgen verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from optgen.cli.arguments import open_any
from optgen.cli.output import console, table, yes

if TYPE_CHECKING:
    from optgen.artifact.base import AnyBundle
    from optgen.runtime.verify import VerifyResult


def verify_command(
    bundle: Annotated[list[str] | None, typer.Argument(help="Bundles of any kind, or names of prebuilt ones.")] = None,
    device: Annotated[
        list[str] | None, typer.Option("-d", "--device", help="What to run on.", show_default="every device present")
    ] = None,
    all_prebuilt: Annotated[bool, typer.Option("--all-prebuilt", help="Every bundle that comes with optgen.")] = False,
) -> None:
    """Check the hashes of bundles, and their modules on their probes.

    Each module that can run here answers the probes of its bundle. Errors of rules are in units in the last place, of
    training steps, functions and optax transformations in tolerances; those run twice, from the same inputs. Bundles
    of older formats carry no probes if they are no rules: their modules are loaded, no more. Exit code 1 if an error is
    over its bound, two runs differ, memory is overwritten, or a module copies where it should work in place; or if
    nothing could be verified or loaded here.
    """
    from optgen.runtime.loading import prebuilt_names

    names = [*(bundle or ()), *(prebuilt_names() if all_prebuilt else ())]
    if not names:
        raise typer.BadParameter("give at least one, or --all-prebuilt", param_hint="BUNDLE")
    report = _Report(device)
    for name in names:
        report.add(name)
    report.print()
    if report.failed or not (report.done or report.loaded.row_count):
        raise typer.Exit(1)


class _Report:
    """What has been found of bundles, in tables: of rules, of what else has probes, of what has none."""

    def __init__(self, device: list[str] | None) -> None:
        self._device = device
        self._rules = table(
            "bundle", "kernel", "device", "output", "error", "bound", "in place", "", "modules",
            right=["error", "bound"],
        )  # fmt: skip
        self._programs = table("bundle", "program", "device", "result", "error", "", "modules", right=["error"])
        self.loaded = table("bundle", "module", "target", "device", "has")
        self.done, self.failed = 0, 0
        self._notes: list[str] = []

    def add(self, name: str) -> None:
        """Verifies a bundle."""
        from optgen.artifact import Bundle
        from optgen.runtime.verify import verify_bundle

        opened = open_any(name)
        rule = isinstance(opened, Bundle)
        if not rule and not opened.manifest.probed:
            self._load(name, opened)
            return
        results = verify_bundle(opened, self._device)
        label = name
        for group in _grouped(results):
            row, style = (_row if rule else _program_row)(group), None if group[0].ok else "bold red"
            (self._rules if rule else self._programs).add_row(label, *row, style=style)
            label = ""
            if group[0].worst:
                self._notes.append(f"{name}: {group[0].output} on {group[0].device}: {group[0].worst}")
        self.done += len(results)
        self.failed += sum(not result.ok for result in results)
        if not results:
            self._idle(name)
        if unproven := list(dict.fromkeys(f"{r.kernel} {r.output}" for r in results if not r.proven)):
            listed = ", ".join(unproven[:4]) + (f" and {len(unproven) - 4} more" if len(unproven) > 4 else "")
            self._notes.append(
                f"{name}: nothing is proven of {listed}: rounding may change them as much as a wrong program could"
            )

    def _load(self, name: str, opened: AnyBundle[Any]) -> None:
        from optgen.runtime.check_loading import load_modules

        found, label = load_modules(opened, self._device), name
        for each in found:
            self.loaded.add_row(label, each.name, each.target, each.device, ", ".join(each.programs))
            label = ""
        if not found:
            self._idle(name)
        elif reason := opened.manifest.why_unprobed:
            self._notes.append(f"{name}: {reason}")

    def _idle(self, name: str) -> None:
        where = ", ".join(self._device) if self._device else "any device of this machine"
        self._notes.append(f"{name}: no module for {where}")

    def print(self) -> None:
        """Prints all of it."""
        out = console()
        for rows in (self._rules, self._programs, self.loaded):
            if rows.row_count:
                out.print(rows)
        if count := self.loaded.row_count:
            many = "1 module loaded, not run" if count == 1 else f"{count} modules loaded, none run"
            out.print(f"{many}: hashes and entry points are right, but these bundles carry no probes")
        for note in self._notes:
            out.print(note)
        if self.done:
            out.print(f"{self.done} outputs verified, {self.failed} failed")
        elif not self.loaded.row_count:
            out.print("nothing was verified")


def _grouped(results: list[VerifyResult]) -> list[list[VerifyResult]]:
    """Results that differ by module alone, in groups; those with a problem apart."""
    groups: dict[tuple[str, ...], list[VerifyResult]] = {}
    for result in results:
        key = (
            result.kernel, result.device, result.output, result.problem, "" if result.ok else result.target,
            str(result.proven),
        )  # fmt: skip
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def _row(group: list[VerifyResult]) -> tuple[str, ...]:
    first, error = group[0], max(result.max_ulp for result in group)
    return (
        first.kernel,
        first.device,
        first.output,
        f"{error:.3f}" if error < 1e4 else f"{error:.1e}",
        f"{first.bound:g}",
        yes(all(result.in_place for result in group)),
        first.problem or "ok",
        " ".join(result.target for result in group),
    )


def _program_row(group: list[VerifyResult]) -> tuple[str, ...]:
    first, error = group[0], max(result.max_ulp for result in group)
    return (
        first.kernel,
        first.device,
        first.output,
        f"{error:.3f}" if error < 1e4 else f"{error:.1e}",
        first.problem or ("ok" if first.proven else "not proven"),
        " ".join(result.target for result in group),
    )
