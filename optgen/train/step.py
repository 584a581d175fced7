"""Whole training steps: loss, gradient and update as one program, for Python and for code generators."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from optgen._version import __version__
from optgen.artifact.step import EntryInfo, StepBundle, StepManifest, StepModule
from optgen.compiler.build import Progress, count_copies
from optgen.compiler.driver import compiler_version
from optgen.compiler.searched import prove, search
from optgen.dtypes import storage_dtype
from optgen.errors import UnsupportedTargetError
from optgen.probes.attach import attach
from optgen.probes.check import check_bundle
from optgen.probes.step import step_recipes
from optgen.targets import Target, get_target
from optgen.train.limits import check_vulkan
from optgen.train.parts import Part, sources_of
from optgen.train.plan import StepPlan, leaf_of
from optgen.train.settings import plan_step

#: How often hazards may be met by taking out arguments, before none is overwritten at all.
_ROUNDS = 3


def compile_step(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    optimizer: Any,
    *,
    targets: str | Target | Sequence[str | Target] = "cpu",
    in_place: bool = True,
    progress: Progress | None = None,
    use_cache: bool = True,
    check: bool = True,
    **settings: Any,
) -> StepBundle:
    """Compiles a whole training step: loss and gradient by JAX, the update by an optimizer, in one module.

    Args:
        loss_fn: ``loss_fn(params, batch)`` or, with a key, ``loss_fn(params, batch, rng)``; what JAX can derive. It
            returns the loss, one float, or the loss and a dict of metrics.
        params: a tree of arrays, or of what has shapes and dtypes.
        batch: an example of a batch, of the very shapes that every step will get.
        optimizer: a rule, its name, a chain, or an optax ``GradientTransformation``.
        targets: one or more of ``optgen.targets``.
        in_place: False to overwrite nothing, but copy results back.
        progress: called as ``progress(name, target, None)`` before and ``(name, target, bytes)`` after each module.
        use_cache: whether compiled modules may come from the cache.
        check: whether to run the probes of each module on every device here that it can run on, twice. The bundle
            carries its probes in any case: ``optgen verify`` runs them anywhere.
        settings:
            ``rng``: True, or a key, if the loss takes one.
            ``metrics``: of ``grad_norm`` and ``param_norm``, what to compute besides.
            ``accumulate``: how many steps' grads make one update.
            ``eval_fn``: ``eval_fn(params, batch)``, compiled beside the step; ``eval_batch`` an example of its batch.
            ``trainable``: the leaves to train: patterns of paths, or a function of path and leaf. All by default.
            ``compute_dtype``: of the update; by default f64 for f32 params on CPUs, and f32 on other targets.
            ``state_dtype``, ``convention``, ``bake``, ``groups``: as for :func:`optgen.compile`.
            ``name``: by default the loss function's.
            Others are structure (``nesterov=True``) and defaults of hyperparameters (``lr=1e-3``).

    Returns:
        A bundle: ``bundle.save(path)`` writes it, ``optgen.load(path)`` or :class:`optgen.train.TrainStep` runs it.

    Raises:
        LeafError: for a leaf that is no array of a dtype that modules know, or that has no static shape.
        RuleError: if JAX cannot trace or derive the loss.
        HyperparameterError: for a setting that does not exist.
        UnsupportedTargetError: for a target that lacks what the step needs, or would compute it wrong.
        CompileError: if the compiler refuses the program.
        WrongResultError: if a module gives wrong results here, or others each time.
        CompilerNotFoundError: if JAX or the compiler is not installed.
    """
    plan = plan_step(loss_fn, params, batch, optimizer, **settings)
    files: dict[str, bytes] = {}
    modules: list[StepModule] = []
    entries: tuple[EntryInfo, ...] = ()
    traced: dict[str, tuple[dict[str, Part], tuple[EntryInfo, ...]]] = {}
    for each in [targets] if isinstance(targets, str | Target) else targets:
        target = get_target(each)
        if progress:
            progress(plan.name, target.name, None)
        compute = plan.update.compute(plan.asked or (None if target.backend == "cpu" else "f32"))
        parts = plan.parts(compute)
        entries = plan.entries(parts)
        traced[compute] = parts, entries
        _check(target, plan, parts, compute)
        module, data = _compile(plan, target, compute, parts, entries, in_place, use_cache)
        files[module.file] = data
        modules.append(module)
        for key, part in parts.items():
            files[_stablehlo(key, compute)] = part.stablehlo.encode()
        if progress:
            progress(plan.name, target.name, len(data))
    if plan.update.stored:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **_stored(plan))
        files["initial.npz"] = buffer.getvalue()
    manifest = StepManifest(
        name=plan.name,
        doc=plan.doc,
        optimizer=plan.update.name,
        arguments=plan.arguments,
        entries=entries,
        hypers=plan.update.hypers,
        groups=plan.groups,
        every=plan.update.every,
        count=plan.update.count,
        scalars=dict(plan.update.scalars),
        metrics=plan.metrics,
        evaluation=plan.result,
        modules=tuple(modules),
        stablehlo={name.partition("/")[2].removesuffix(".mlir"): name for name in files if name.endswith(".mlir")},
        versions={"optgen": __version__, "iree-base-compiler": compiler_version(), "jax": version("jax")},
    )
    bundle = attach(StepBundle.of(manifest, files), lambda: step_recipes(plan, traced))
    if check:
        check_bundle(bundle)
    return bundle


def _stablehlo(key: str, compute: str) -> str:
    return f"stablehlo/{key}-{compute}.mlir" if key in ("update", "mean") else f"stablehlo/{key}.mlir"


def _stored(plan: StepPlan) -> dict[str, np.ndarray]:
    return {
        index: np.ascontiguousarray(array).view(storage_dtype(plan.update.state[int(index)].leaf.dtype))
        for index, array in plan.update.stored.items()
    }


def _check(target: Target, plan: StepPlan, parts: dict[str, Part], compute: str) -> None:
    """Refuses what the target lacks.

    Raises:
        UnsupportedTargetError: naming it.
    """
    if target.guarded:
        raise UnsupportedTargetError(
            f"target '{target.name}' cannot run a whole step: its modules are for several processors at once. Compile "
            "for each of them, cpu:x86-64-v2, cpu:aarch64..., all in one bundle"
        )
    leaves = [leaf_of(argument, compute) for argument in plan.arguments]
    for part in parts.values():
        if target.backend == "vulkan":
            check_vulkan(target, part.stablehlo, (*leaves, *part.outputs), part.located)
    target.check(dict.fromkeys(leaf.dtype for leaf in leaves if leaf.dtype in target.dtypes or "f" in leaf.dtype))


def _compile(
    plan: StepPlan,
    target: Target,
    compute: str,
    parts: dict[str, Part],
    entries: Sequence[EntryInfo],
    in_place: bool,
    use_cache: bool,
) -> tuple[StepModule, bytes]:
    """The module for one target, in which nothing is overwritten that is still read."""
    leaves = [leaf_of(a, compute) for a in plan.arguments]
    apart: set[int] = set()
    every = {i for e in entries for i in plan.overwritten(e)}
    reason = "" if in_place else "it was asked for out of place"
    for attempt in range(_ROUNDS + 1):
        if not in_place or attempt == _ROUNDS:
            apart = set(every)
        text = plan.text(compute, parts, entries, apart, fuse=target.backend == "cpu")
        searched = search(text, target, leaves, sources=sources_of(parts), use_cache=use_cache)
        by_name = {e.name: e for e in entries}
        found: set[int] = set()
        for hazard in searched.hazards:  # of memory whose argument is not known, all may be
            found |= every if hazard.argument < 0 else {by_name[hazard.function].takes[hazard.argument]}
        if not found & (every - apart):
            break
        reason = reason or str(searched.hazards[0])
        apart |= found & every
    file = f"modules/{target.name.replace(':', '-')}.vmfb"
    module = StepModule(
        target.name,
        target.backend,
        file,
        in_place=not apart,
        copies=count_copies(searched.made.stream),
        arch=target.arch,
        features=target.features,
        compute=compute,
        apart=tuple(sorted(apart)),
        reason=reason if apart else "",
        retried=searched.retried,
    )
    return module, prove(searched, target, use_cache=use_cache)
