"""Compiling functions: JAX trace, StableHLO, one module for each target."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from optgen._version import __version__
from optgen.artifact.function import FunctionBundle, FunctionManifest, structure_of
from optgen.artifact.manifest import LeafInfo, ModuleInfo
from optgen.compiler.build import Progress
from optgen.compiler.driver import compiler_version
from optgen.compiler.searched import compile_reading
from optgen.dsl.trace import import_jax
from optgen.dtypes import element_name
from optgen.errors import LeafError
from optgen.lower.repair import located_stablehlo_of
from optgen.lower.repair.arguments import taking_wide
from optgen.probes.attach import attach
from optgen.probes.check import check_bundle
from optgen.probes.function import function_recipe
from optgen.runtime.tree import map_tree, show, walk
from optgen.targets import Target, get_target
from optgen.train.limits import check_vulkan
from optgen.train.parts import narrowed, struct, wide_numbers

_STABLEHLO = "stablehlo/function.mlir"


def compile_function(
    function: Callable[..., Any],
    *examples: Any,
    name: str | None = None,
    targets: str | Target | Sequence[str | Target] = "cpu",
    progress: Progress | None = None,
    use_cache: bool = True,
    check: bool = True,
) -> FunctionBundle:
    """Compiles a function of trees of arrays to a tree of arrays.

    Nothing is donated and no result lies in an argument's memory: with several kernels in one program, aliasing goes
    wrong silently.

    Args:
        function: what JAX can trace.
        examples: a tree for each of its arguments: arrays, or whatever has a shape and a dtype. The compiled function
            takes exactly these structures, shapes and dtypes.
        name: by default the function's own.
        targets: one or more of ``optgen.targets``.
        progress: called as ``progress(name, target, None)`` before and ``(name, target, bytes)`` after each module.
        use_cache: whether compiled modules may come from the cache.
        check: whether to run the probes of each module on every device here that it can run on, twice. The bundle
            carries its probes in any case: ``optgen verify`` runs them anywhere.

    Returns:
        A bundle: ``bundle.save(path)`` writes it, :class:`optgen.train.CompiledFunction`
        runs it.

    Raises:
        LeafError: if a leaf is no array, has no elements, or has a dtype that modules do not know.
        TreeError: if a tree has keys that are not strings.
        UnknownTargetError, UnsupportedTargetError: for a target that does not exist, or lacks a dtype.
        CompileError: if the compiler refuses the program.
        WrongResultError: if a module gives wrong results here, or others each time.
        CompilerNotFoundError: if JAX or the compiler is not installed.

    Example:
        >>> import numpy as np
        >>> from optgen.train import CompiledFunction, compile_function
        >>> double = CompiledFunction(compile_function(lambda x: 2 * x, np.ones(3, np.float32), name="double"))
        >>> double(np.arange(3, dtype=np.float32)).tolist()
        [0.0, 2.0, 4.0]
    """
    label = str(name or getattr(function, "__name__", "function"))
    chosen = [get_target(t) for t in ([targets] if isinstance(targets, str | Target) else targets)]
    arguments = _argument_names(function, len(examples))
    trees = tuple(structure_of(tree, argument) for tree, argument in zip(examples, arguments, strict=True))
    inputs = [_leaf(p, v) for tree, a in zip(examples, arguments, strict=True) for p, v in walk(tree, a)]
    stablehlo, located, outputs, result_tree, jaxpr = _trace(function, examples, inputs)
    used = tuple(dict.fromkeys(re.findall(r"(?:x|<)(bf16|f16|f32|f64)>", stablehlo)))
    files, modules = {_STABLEHLO: stablehlo.encode()}, []
    for target in chosen:
        if target.backend == "vulkan":
            check_vulkan(target, stablehlo, (*inputs, *outputs), located)
        target.check(used)
        if progress:
            progress(label, target.name, None)
        file = f"modules/{target.name.replace(':', '-')}.vmfb"
        files[file], retried = compile_reading(stablehlo, target, inputs, sources=[("", located)], use_cache=use_cache)
        modules.append(
            ModuleInfo(
                target.name, target.backend, file, False, arch=target.arch, features=target.features, retried=retried
            )
        )
        if progress:
            progress(label, target.name, len(files[file]))
    manifest = FunctionManifest(
        name=label,
        doc=(inspect.getdoc(function) or "").partition("\n")[0],
        arguments=arguments,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        argument_trees=trees,
        result_tree=result_tree,
        modules=tuple(modules),
        stablehlo=_STABLEHLO,
        versions={"optgen": __version__, "iree-base-compiler": compiler_version(), "jax": version("jax")},
    )
    values = [value for tree in examples for _, value in walk(tree)]
    bundle = attach(FunctionBundle.of(manifest, files), lambda: [function_recipe(jaxpr, inputs, values, outputs)])
    if check:
        check_bundle(bundle)
    return bundle


def _trace(
    function: Callable[..., Any], examples: tuple[Any, ...], inputs: Sequence[LeafInfo]
) -> tuple[str, Callable[[], str], list[LeafInfo], Any, Any]:
    """StableHLO whose ``main`` takes and returns leaves in optgen's order, the same with notes on lines, its results,
    their structure, its jaxpr."""
    jax = import_jax()
    results: Any = None

    def flat(*leaves: Any) -> list[Any]:
        nonlocal results
        rest = iter(leaves)
        # The leaves go into trees of the examples' own types: JAX would sort the keys of dicts.
        results = function(*(map_tree(lambda *_: next(rest), tree) for tree in examples))
        return [value for _, value in walk(results)]

    with wide_numbers(inputs):
        traced = jax.jit(flat, keep_unused=True).trace(*(struct(leaf) for leaf in inputs))
        text, noted = located_stablehlo_of(traced)
        wide = narrowed(inputs)
    paths = [path for path, _ in walk(results)]
    outputs = [_leaf(path, info) for path, info in zip(paths, traced.out_info, strict=True)]
    if not outputs:
        raise LeafError("a function to compile must return at least one array")
    tree = structure_of(results, "the result")
    return taking_wide(text, wide), lambda: taking_wide(noted(), wide), outputs, tree, traced.jaxpr


def _argument_names(function: Callable[..., Any], count: int) -> tuple[str, ...]:
    """The names of the positional arguments, or ``argument0``... where they have none."""
    try:
        parameters = [p for p in inspect.signature(function).parameters.values() if p.kind < p.VAR_POSITIONAL]
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters[:count]]
    return (*names, *(f"argument{i}" for i in range(len(names), count)))


def _leaf(path: str, value: Any) -> LeafInfo:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        raise LeafError(f"{show(path)} must be an array, or have a shape and a dtype (got {type(value).__name__})")
    if 0 in shape:
        raise LeafError(f"{show(path)} must have at least one element (got shape {tuple(shape)})")
    try:
        return LeafInfo(path, tuple(int(extent) for extent in shape), element_name(dtype))
    except ValueError as error:
        raise LeafError(f"{show(path)}: {error}") from None
