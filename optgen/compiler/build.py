"""Building a bundle: rule and targets in, artifact out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version

from optgen._version import __version__
from optgen.artifact import (
    Bundle,
    KernelInfo,
    LeafInfo,
    Manifest,
    MicroInfo,
    ModuleInfo,
    OperandInfo,
    ProbeCase,
    ReductionInfo,
)
from optgen.compiler.driver import compiler_version
from optgen.compiler.probes import make_probes
from optgen.compiler.retry import in_known_ways
from optgen.compiler.variants import compile_for
from optgen.dsl.trace import import_jax
from optgen.dsl.variant import Dtypes, KernelSpec, Operand, Variant
from optgen.errors import HyperparameterError, UnsupportedTargetError
from optgen.lower import Kernel, lower
from optgen.lower.emit import alignment
from optgen.lower.plan import is_tree_reduction
from optgen.targets import Target
from optgen.train.limits import check_vulkan_sums

#: Called before each module is compiled, with kernel and target, and after it, with the number of bytes.
Progress = Callable[[str, str, int | None], None]


def build_bundle(
    variant: Variant,
    dtypes: Iterable[Dtypes],
    targets: Sequence[Target],
    *,
    layout: Sequence[LeafInfo] | None = None,
    fixed_layout: bool = False,
    defaults: Mapping[str, float] | None = None,
    groups: Mapping[str, Mapping[str, float]] | None = None,
    skip_unsupported: bool = False,
    progress: Progress | None = None,
    use_cache: bool = True,
) -> Bundle:
    """Traces, lowers and compiles a rule.

    Args:
        variant: the rule with its structure chosen.
        dtypes: one kernel is made for each.
        targets: one module for each kernel and each of these.
        layout: the leaves of the tree that it is for, where known.
        fixed_layout: refuse trees of any other layout.
        defaults: hyperparameter values that replace the rule's own defaults.
        groups: hyperparameters by patterns of leaves' paths.
        skip_unsupported: leave out modules for targets that lack a kernel's dtypes, instead of raising.
        progress: told of each module.
        use_cache: whether compiled modules may come from the cache.

    Returns:
        The bundle, in memory.

    Raises:
        LoweringError, RuleError: if the rule cannot be lowered.
        UnsupportedTargetError: if a target lacks a kernel's dtypes.
        CompileError: if the compiler refuses a module.
    """
    import_jax()  # says what to install where it is missing
    defaults = dict(defaults or {})
    hypers = tuple(
        dataclasses.replace(h, default=h.check(defaults[h.name])) if h.name in defaults else h for h in variant.hypers
    )
    files: dict[str, bytes] = {}
    kernels = []
    common: set[str] = set()
    dtypes = list(dict.fromkeys(dtypes))
    for each in dtypes:
        spec = variant.kernel(each)
        shapes = None if layout is None else tuple(leaf.shape for leaf in layout if leaf.dtype == each.param)
        for lowered in (_lowered if use_cache else _lowered.__wrapped__)(spec, shapes):
            fixed_layout |= not lowered[0].in_place
            common |= _common(lowered[0])
            kernels.append(_build_kernel(*lowered, targets, files, skip_unsupported, progress, use_cache))
    rule = variant.rule
    micro = None
    if (steps := rule.accumulation) is not None:
        made = Variant.of(steps.rule)
        for each in dtypes:
            if next(o for o in variant.kernel(each).operands if o.name == steps.state).coded:
                raise HyperparameterError(f"'{steps.state}', the mean of grads, must be a float rounded to nearest")
        means = ((d.slot(steps.state), d) for d in dtypes)
        of_mean = dict.fromkeys(made.dtypes(mean, d.grad, mean, d.compute) for mean, d in means)
        micro = MicroInfo(
            steps.state,
            steps.count,
            steps.every,
            tuple(
                _build_kernel(*lowered, targets, files, skip_unsupported, progress, use_cache, "micro-")
                for each in of_mean
                for lowered in _lowered(made.kernel(each), None)
            ),
        )
    manifest = Manifest(
        rule=rule.name,
        convention=rule.convention,
        variant=variant.name,
        source=rule.source,
        doc=rule.doc,
        param=rule.param,
        inputs=rule.inputs,
        state=variant.state,
        hypers=hypers,
        per_element=variant.per_element,
        baked=dict(variant.baked),
        structure={
            **dict(variant.flags),
            **{n: n in variant.present for n in sorted(rule.optional - rule.needs.keys())},
        },
        kernels=tuple(kernels),
        layout=None if layout is None else tuple(layout),
        fixed_layout=fixed_layout,
        versions={
            "optgen": __version__,
            "iree-base-compiler": compiler_version(),
            "jax": version("jax"),
        },
        init={slot.name: slot.init for slot in variant.slots if slot.init != 0},
        scalars=dict(rule.scalars),
        common=tuple(h.name for h in hypers if h.name in common and h.kind != "step"),
        groups={pattern: dict(numbers) for pattern, numbers in (groups or {}).items()},
        micro=micro,
    )
    # No newer than it must be, for older readers.
    leaves = any(module.abi == "leaves" for kernel in manifest.all_kernels for module in kernel.modules)
    if not leaves and not any(kernel.shaped for kernel in kernels):
        manifest = dataclasses.replace(manifest, format=3 if any(kernel.indexed for kernel in kernels) else 2)
    return Bundle.of(manifest, files)


@lru_cache(maxsize=64)
def _lowered(
    spec: KernelSpec, shapes: tuple[tuple[int, ...], ...] | None
) -> tuple[tuple[Kernel, bytes, tuple[ProbeCase, ...]], ...]:
    """The kernels of a rule and their probes. As under ``jax.jit``, the same function is not traced again: what it
    reads of its surroundings is what it read the first time."""
    return tuple((kernel, *make_probes(kernel)) for kernel in lower(spec, shapes))


def _build_kernel(
    kernel: Kernel,
    probes: bytes,
    cases: tuple[ProbeCase, ...],
    targets: Sequence[Target],
    files: dict[str, bytes],
    skip_unsupported: bool,
    progress: Progress | None,
    use_cache: bool,
    prefix: str = "",
) -> KernelInfo:
    spec = kernel.spec
    name = prefix + spec.dtypes.name
    if kernel.shape is not None:
        name += "-" + ("x".join(map(str, kernel.shape)) or "scalar")
    used = tuple(dict.fromkeys(o.dtype for o in spec.operands))
    reduces = kernel.plan is not None and bool(kernel.plan.reductions)
    modules = []
    for target in targets:
        try:
            target.check(used, elementwise=kernel.in_place, reduces=reduces)
            if target.backend == "vulkan" and not kernel.in_place:
                what = f"rule '{spec.variant.rule.name}' on a leaf of shape {kernel.shape}"
                check_vulkan_sums(target, kernel.stablehlo, what)
        except UnsupportedTargetError:
            if skip_unsupported:
                continue
            raise
        if progress:
            progress(name, target.name, None)

        def attempt(more: tuple[str, ...], target: Target = target) -> tuple[bytes, int]:
            return compile_kernel(kernel, target, more=more, use_cache=use_cache)

        (data, copies), retried = in_known_ways(attempt, target.backend)
        file = f"modules/{name}/{target.name.replace(':', '-')}.vmfb"
        files[file] = data
        modules.append(
            ModuleInfo(
                target.name,
                target.backend,
                file,
                kernel.in_place and not copies,
                copies,
                target.arch,
                target.features,
                kernel.abi(target.style),
                target.style.pairs and kernel.plan is not None and bool(kernel.plan.reductions),
                retried,
            )
        )
        if progress:
            progress(name, target.name, len(data))
    files[f"probes/{name}.npz"] = probes
    files[f"stablehlo/{name}.mlir"] = kernel.stablehlo.encode()
    return KernelInfo(
        name=name,
        dtypes=spec.dtypes.described(),
        operands=tuple(
            OperandInfo(o.name, o.dtype, o.role, o.rounding, _own_shape(o, kernel.shape)) for o in spec.operands
        ),
        scalars=spec.scalars,
        in_place=kernel.in_place,
        reason=kernel.reason,
        shape=kernel.shape,
        stablehlo=f"stablehlo/{name}.mlir",
        probes=f"probes/{name}.npz",
        cases=cases,
        modules=tuple(modules),
        stages=()
        if kernel.plan is None
        else tuple(
            tuple(ReductionInfo(n.op.removeprefix("reduce_"), is_tree_reduction(n)) for n in stage.nodes)
            for stage in kernel.plan.reductions
        ),
        leafwise=kernel.plan is not None and (kernel.plan.leafwise or spec.random),
        indexed=spec.random,
        returned=spec.returned,
    )


def _own_shape(operand: Operand, leaf: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """An operand's shape, where that is not its leaf's; those kernels are for leaves of one shape."""
    return None if operand.shape is None or leaf is None else operand.shape_for(leaf)


def _common(kernel: Kernel) -> set[str]:
    """The hyperparameters that the scalar state of a kernel depends on."""
    if kernel.plan is None or kernel.graph is None:
        return set()
    first = len(kernel.spec.operands)
    names = dict(zip(kernel.graph.inputs[first:], (s.hyper for s in kernel.spec.scalars), strict=True))
    needed = set(kernel.plan.returned)
    for node in reversed(kernel.graph.nodes):
        if node.result in needed:
            needed.update(node.operands)
    return {names[v] for v in needed if v in names and names[v] not in kernel.spec.returned}


def flags_for(kernel: Kernel, target: Target) -> tuple[str, ...]:
    """The compiler's flags for one kernel and target."""
    if target.backend != "cpu":
        return target.flags
    # Else the code assumes 64-byte alignment and crashes on memory that numpy or a slice of it gives.
    return (*target.flags, f"--iree-stream-resource-min-offset-alignment={alignment(kernel.spec)}")


def compile_kernel(
    kernel: Kernel, target: Target, *, more: Sequence[str] = (), use_cache: bool = True
) -> tuple[bytes, int]:
    """One module, and the number of copies of leaves that the compiler put into it (0 proves it in place).

    ``more`` are flags besides those that such kernels have.
    """
    flags = (*flags_for(kernel, target), *more)
    made = compile_for(kernel.mlir(target.style), target, flags, use_cache=use_cache)
    return made.module, count_copies(made.stream)


def count_copies(stream: str) -> int:
    """Copies of buffers in stream IR: commands that move bytes from one resource to another."""
    return len(re.findall(r"stream\.(?:cmd\.copy|async\.copy|async\.clone|tensor\.clone|async\.slice)\b", stream))
