"""Compiling a ``GradientTransformation`` of optax: the update of one whole tree.

Where a leaf's update is elementwise it runs in place, by the same kernels that rules become; what is not is computed by
a module of its own that only reads. See :mod:`optgen.lower.split`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from optgen._version import __version__
from optgen.artifact import KernelInfo, LeafInfo, ModuleInfo, OperandInfo
from optgen.artifact.transform import (
    CallInfo,
    FunctionInfo,
    InitialInfo,
    TensorInfo,
    TransformBundle,
    TransformManifest,
)
from optgen.compiler.build import Progress, compile_kernel
from optgen.compiler.driver import compiler_version
from optgen.compiler.searched import compile_reading
from optgen.dsl.rule import Rule
from optgen.dsl.variant import Dtypes, KernelSpec, Operand, Variant
from optgen.dtypes import INTEGERS, storage_dtype
from optgen.errors import CompileError, LeafError, LoweringError
from optgen.hyper import Scalar
from optgen.interop.optax import Initial, TracedUpdate, trace_transformation
from optgen.lower import Kernel
from optgen.lower.plan import plan_of
from optgen.lower.split import Body, Split, split_update, with_wide_sums
from optgen.probes.attach import attach
from optgen.probes.check import check_bundle
from optgen.probes.transform import transform_recipe
from optgen.runtime.transform import TreeOptimizer
from optgen.runtime.tree import leaves_of
from optgen.targets import Target
from optgen.train.limits import check_vulkan


@dataclass(frozen=True)
class BodySpec(KernelSpec):
    """A body as the kernel writer takes it: its tensors and scalars are not those of a rule."""

    body: Body | None = None

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The tensors, by their position."""
        assert self.body is not None
        return tuple(Operand(f"t{i}", dtype, role) for i, (dtype, role) in enumerate(self.body.tensors))

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The scalars, by their position."""
        assert self.body is not None
        return tuple(Scalar(f"x{i}") for i in range(len(self.body.graph.inputs) - len(self.body.tensors)))


def compile_transformation(
    transformation: Any,
    like: Any,
    targets: Sequence[Target],
    *,
    device: str | None = None,
    name: str | None = None,
    grad_dtype: Any = None,
    grads_like: Any = None,
    extra_args: Mapping[str, Any] | None = None,
    in_place: bool = True,
    progress: Progress | None = None,
    use_cache: bool = True,
    check: bool = True,
) -> TreeOptimizer:
    """Compiles a transformation for the layout of ``like``; what :func:`optgen.compile` does with one.

    Args:
        transformation: what has ``init`` and ``update``, as every optimizer of optax.
        like: the params.
        targets: what for.
        device: see :class:`TreeOptimizer`.
        name: what to call it; by default the function that made it.
        grad_dtype: of the grads; by default that of each param.
        grads_like: the tree of grads where it is not like the params', as for lookahead.
        extra_args: further arguments of ``update`` by name, each with an example: a number, or a tree of arrays.
        in_place: False to compute everything out of place.
        progress, use_cache, check: see :func:`optgen.compile`.

    Raises:
        LeafError: if ``like`` is missing, or has a leaf that is no array of a dtype that modules know.
        RuleError: if JAX cannot trace the transformation.
        UnsupportedTargetError: if a target lacks what the update needs.
        CompileError: if the compiler refuses the update.
        WrongResultError: if a module gives wrong results here, or others each time.
    """
    if like is None:
        raise LeafError("an optax transformation is compiled for one tree: 'like' must be given (got None)")
    traced = trace_transformation(
        transformation, like, name=name, grad_dtype=grad_dtype, grads_like=grads_like, extra_args=extra_args
    )
    refused = {} if in_place else dict.fromkeys(traced.results, "it was asked for out of place")
    while True:
        split = split_update(traced.stablehlo, traced.results, refused)
        try:
            bundle = _build(traced, split, targets, progress, use_cache)
            break
        except _BodyRefused as error:
            # Kernels are for what updates do every day; what one of them lacks still runs, out of place.
            reason = f"no kernel can do it: {error}"
            refused |= {t: reason for use in split.uses if use.body == error.body for t in use.tensors}
    examples = {f"params/{path}".rstrip("/"): value for path, value in leaves_of(like).items()}
    for tree, given in {"grads": grads_like, **(extra_args or {})}.items():
        examples |= {f"{tree}/{path}".rstrip("/"): value for path, value in leaves_of(given).items()}
    bundle = attach(bundle, lambda: [transform_recipe(traced, examples)])
    if check:
        check_bundle(bundle)
    return TreeOptimizer(bundle, device)


class _BodyRefused(Exception):
    """An in-place kernel could not be written or compiled."""

    def __init__(self, reason: str, body: int) -> None:
        super().__init__(reason)
        self.body = body


def _build(
    traced: TracedUpdate, split: Split, targets: Sequence[Target], progress: Progress | None, use_cache: bool
) -> TransformBundle:
    files: dict[str, bytes] = {"stablehlo/update.mlir": traced.stablehlo.encode()}
    params = tuple(i for i, a in enumerate(traced.arguments) if a.tree == "params")

    def function(label: str, text: str, reads: tuple[int, ...], outputs: Sequence[LeafInfo]) -> FunctionInfo:
        files[f"stablehlo/{label}.mlir"] = text.encode()
        inputs = [_passed(traced.arguments[i]) for i in reads]
        modules = []
        for target in targets:
            if target.backend == "vulkan":
                check_vulkan(target, text, (*inputs, *outputs))
            target.check(dict.fromkeys(re.findall(r"(?:x|<)(bf16|f16|f32|f64)>", text)), elementwise=False)
            file = f"modules/{label}/{target.name.replace(':', '-')}.vmfb"
            if progress:
                progress(label, target.name, None)
            source = with_wide_sums(text) if target.backend == "cpu" else text
            files[file], retried = compile_reading(source, target, inputs, use_cache=use_cache)
            modules.append(
                ModuleInfo(
                    target.name, target.backend, file, False, 0, target.arch, target.features, retried=retried
                )
            )  # fmt: skip
            if progress:
                progress(label, target.name, len(files[file]))
        return FunctionInfo(f"{traced.name} {label}", reads, tuple(outputs), tuple(modules), f"stablehlo/{label}.mlir")

    head = None
    if split.head is not None:
        outputs = [LeafInfo(f"scalar{i}", (), dtype) for i, dtype in enumerate(split.scalars)]
        outputs += [_passed(traced.arguments[i]) for i in split.writes]
        head = function("head", split.head, split.reads, outputs)
    initial, init = [], None
    stored: dict[str, np.ndarray] = {}
    state = [a for a in traced.arguments if a.tree == "state"]
    computed = []
    for index, (tensor, value) in enumerate(zip(state, traced.initial, strict=True)):
        initial.append(_initial(index, tensor, value, stored))
        if value.computed is not None:
            computed.append(_passed(tensor))
    if traced.init is not None:
        init = function("init", traced.init, params, computed)
    if stored:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **stored)
        files["initial.npz"] = buffer.getvalue()
    kernels = tuple(_kernel(i, body, targets, files, progress, use_cache) for i, body in enumerate(split.bodies))
    calls: dict[tuple[int, tuple[int, ...]], list[tuple[int, ...]]] = {}
    for use in split.uses:
        calls.setdefault((use.body, use.scalars), []).append(use.tensors)
    manifest = TransformManifest(
        name=traced.name,
        arguments=traced.arguments,
        writes=traced.results,
        initial=tuple(initial),
        init=init,
        head=head,
        head_scalars=len(split.scalars),
        head_writes=split.writes,
        reasons=dict(sorted(split.reasons.items())),
        kernels=kernels,
        calls=tuple(CallInfo(kernel, scalars, tuple(leaves)) for (kernel, scalars), leaves in calls.items()),
        update="stablehlo/update.mlir",
        versions={"optgen": __version__, "iree-base-compiler": compiler_version(), "jax": version("jax")},
    )
    return TransformBundle.of(manifest, files)


def _kernel(
    index: int,
    body: Body,
    targets: Sequence[Target],
    files: dict[str, bytes],
    progress: Progress | None,
    use_cache: bool,
) -> KernelInfo:
    """One body for every target."""
    label = f"body{index}"
    spec = _spec(body)
    used = dict.fromkeys([*(dtype for dtype, _ in body.tensors), body.compute])
    modules = []
    for target in targets:
        target.check(used)
        if progress:
            progress(label, target.name, None)
        try:
            kernel = Kernel(spec, "", True, graph=body.graph, plan=plan_of(body.graph))
            data, copies = compile_kernel(kernel, target, use_cache=use_cache)
        except (CompileError, LoweringError, KeyError) as error:
            raise _BodyRefused(str(error).partition(";")[0][:160], index) from error
        file = f"modules/{label}/{target.name.replace(':', '-')}.vmfb"
        files[file] = data
        abi = kernel.abi(target.style)
        modules.append(
            ModuleInfo(target.name, target.backend, file, not copies, copies, target.arch, target.features, abi)
        )
        if progress:
            progress(label, target.name, len(data))
    return KernelInfo(
        name=label,
        dtypes=spec.dtypes.described(),
        operands=tuple(OperandInfo(o.name, o.dtype, o.role) for o in spec.operands),
        scalars=spec.scalars,
        in_place=True,
        reason="",
        shape=None,
        stablehlo="",
        probes="",
        cases=(),
        modules=tuple(modules),
    )


def _spec(body: Body) -> BodySpec:
    def nothing(*_: Any, **__: Any) -> None:
        raise NotImplementedError("a body has no mathematics but its graph")

    # Of one name for all: transformations with the same arithmetic then share a module in the cache.
    rule = Rule("optax", "torch", nothing, "t0", (), (), (), {}, frozenset(), "optax")
    first = body.tensors[0][0]
    return BodySpec(Variant.of(rule), Dtypes(first, first, first, body.compute), body)


def _initial(index: int, tensor: TensorInfo, value: Initial, stored: dict[str, np.ndarray]) -> InitialInfo:
    if value.copy is not None:
        return InitialInfo("copy", path=value.copy)
    if value.computed is not None:
        return InitialInfo("computed", value.computed)
    if value.fill is not None:
        return InitialInfo("fill", int(value.fill) if tensor.dtype in INTEGERS else float(value.fill))
    assert value.array is not None
    stored[str(index)] = np.ascontiguousarray(value.array).view(storage_dtype(tensor.dtype)).reshape(tensor.shape)
    return InitialInfo("stored")


def _passed(tensor: TensorInfo) -> LeafInfo:
    return LeafInfo(f"{tensor.tree}/{tensor.path}".rstrip("/"), tensor.shape, tensor.passed)
