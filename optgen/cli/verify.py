"""``optgen verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from optgen.cli.arguments import open_any
from optgen.cli.output import console, table, yes

if TYPE_CHECKING:
    from optgen.runtime.verify import VerifyResult


def verify_command(
    bundle: Annotated[list[str] | None, typer.Argument(help="Bundles of any kind, or names of prebuilt ones.")] = None,
    device: Annotated[
        list[str] | None, typer.Option("-d", "--device", help="What to run on.", show_default="every device present")
    ] = None,
    all_prebuilt: Annotated[bool, typer.Option("--all-prebuilt", help="Every bundle that comes with optgen.")] = False,
) -> None:
    """Check the hashes of bundles, and their modules on their probes.

    Each module of a rule that can run here answers the probe vectors of its bundle; errors are in units in the last
    place. Bundles of functions, optax transformations and training steps carry no probes: their modules are loaded, no
    more. Exit code 1 if an error is over its bound, or a module copies where it should work in place, or if nothing
    could be loaded here.
    """
    from optgen.artifact import Bundle
    from optgen.runtime.check_loading import load_modules
    from optgen.runtime.loading import prebuilt_names
    from optgen.runtime.verify import verify_bundle

    names = [*(bundle or ()), *(prebuilt_names() if all_prebuilt else ())]
    if not names:
        raise typer.BadParameter("give at least one, or --all-prebuilt", param_hint="BUNDLE")
    rows = table(
        "bundle", "kernel", "device", "output", "error", "bound", "in place", "", "modules", right=["error", "bound"]
    )
    loaded = table("bundle", "module", "target", "device", "has")
    done, failed, idle = 0, 0, []
    for name in names:
        opened, label = open_any(name), name
        if isinstance(opened, Bundle):
            results = verify_bundle(opened, device)
            for group in _grouped(results):
                rows.add_row(label, *_row(group), style=None if group[0].ok else "bold red")
                label = ""
            done += len(results)
            failed += sum(not result.ok for result in results)
            idle += [] if results else [name]
            continue
        found = load_modules(opened, device)
        for each in found:
            loaded.add_row(label, each.name, each.target, each.device, ", ".join(each.programs))
            label = ""
        idle += [] if found else [name]
    out = console()
    if done:
        out.print(rows)
    if loaded.row_count:
        out.print(loaded)
        count = "1 module loaded, not run" if loaded.row_count == 1 else f"{loaded.row_count} modules loaded, none run"
        out.print(f"{count}: hashes and entry points are right; only bundles of rules carry probes")
    for name in idle:
        out.print(f"{name}: no module for {', '.join(device) if device else 'any device of this machine'}")
    if done:
        out.print(f"{done} outputs verified, {failed} failed")
    elif not loaded.row_count:
        out.print("nothing was verified")
    if failed or not (done or loaded.row_count):
        raise typer.Exit(1)


def _grouped(results: list[VerifyResult]) -> list[list[VerifyResult]]:
    """Results that differ by module alone, in groups; those with a problem apart."""
    groups: dict[tuple[str, ...], list[VerifyResult]] = {}
    for result in results:
        key = (result.kernel, result.device, result.output, result.problem, "" if result.ok else result.target)
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
