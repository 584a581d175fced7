"""Tracing: a kernel spec becomes StableHLO text, through JAX."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from optgen.dsl import faults
from optgen.dsl.decay import Decay, plain
from optgen.dsl.variant import MASTER, Dtypes, KernelSpec
from optgen.dtypes import FLOATS
from optgen.errors import CompilerNotFoundError, OptgenError, RuleError
from optgen.hyper import PARTS, part

_JAX_NAMES = dict(zip(FLOATS, ("float16", "bfloat16", "float32", "float64"), strict=True))


def import_jax() -> Any:
    """The jax package.

    Raises:
        CompilerNotFoundError: where it is not installed.
    """
    try:
        import jax
    except ImportError as error:
        raise CompilerNotFoundError(
            "tracing a rule needs JAX: pip install 'optgen[compile]' (prebuilt bundles do not: optgen.prebuilt)"
        ) from error
    return jax


def traceable(spec: KernelSpec) -> Any:
    """The function that is traced: tensors, then scalars, to a tuple of new tensors, conversions included."""
    import jax.numpy as jnp

    variant, rule = spec.variant, spec.variant.rule
    compute = _JAX_NAMES[spec.dtypes.compute]
    baked = dict(variant.baked)
    scalars = spec.scalars

    def check_results(results: Any, tensors: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        leaf = tensors[0].shape
        problem = _problem(spec, results, {o.name: o.shape_for(leaf) for o in spec.results})
        if problem:
            raise RuleError(problem.format(line=faults.where_returned(rule.function, tensors, keywords)))

    def update(*args: Any) -> tuple[Any, ...]:
        tensors = {
            o.name: value.astype(compute) for o, value in zip(spec.operands, args[: len(spec.operands)], strict=True)
        }
        numbers = {(s.hyper, s.part): v for s, v in zip(scalars, args[len(spec.operands) :], strict=True)}
        keywords: dict[str, Any] = dict(variant.flags)
        for hyper in rule.hypers:
            if hyper.name in variant.per_element:
                keywords[hyper.name] = tensors[hyper.name]
                continue
            if hyper.name in baked:
                parts = [jnp.asarray(part(baked[hyper.name], p), compute) for p in PARTS[hyper.kind]]
            elif hyper.name in rule.optional and hyper.name not in variant.present:
                continue
            else:
                parts = [numbers[hyper.name, p] for p in PARTS[hyper.kind]]
            keywords[hyper.name] = Decay(*parts) if hyper.kind == "decay" else parts[0]
        keywords.update({name: numbers[name, "value"] for name in spec.returned})
        if variant.master:  # what the param was rounded from
            tensors[rule.param] = tensors[MASTER]
        present = [tensors[n] for n in (rule.param, *rule.inputs)]
        slots = [tensors.get(slot.name) for slot in rule.state]
        try:
            results = rule.function(*present, *slots, **keywords)
        except OptgenError:  # on purpose: settings that exclude each other
            raise
        except Exception as error:
            raise faults.explain(rule.name, rule.function, error) from error
        check_results(results, (*present, *slots), keywords)
        results = results if isinstance(results, tuple) else (results,)
        if variant.master:
            own = 1 + len(variant.rule_state)
            results = (*results[:own], results[0], *results[own:])
        results, numbers_out = results[: len(spec.results)], results[len(spec.results) :]
        out = []
        for operand, value in zip(spec.results, results, strict=True):
            out.append(jnp.asarray(plain(value)).astype(_JAX_NAMES[operand.traced]))
        for value in numbers_out:
            out.append(jnp.asarray(plain(value)).astype(compute))
        return tuple(out)

    return update


def _problem(spec: KernelSpec, results: Any, shapes: dict[str, tuple[int, ...]]) -> str:
    """What is wrong with a rule's results, with ``{line}`` for where; empty if nothing is.

    ``shapes`` are those that its tensors must have."""
    import jax.numpy as jnp

    variant = spec.variant
    name, tensors = variant.rule.name, [variant.rule.param, *variant.rule_state]
    wanted = [*tensors, *spec.returned]
    many = f"{len(wanted)} {'values' if spec.returned else 'tensor' if len(wanted) == 1 else 'tensors'}"
    must = f"rule '{name}' must return {many}, the new {', '.join(wanted)}{{line}}"
    if results is None or isinstance(results, list | dict):
        return f"{must} (got {'None' if results is None else f'a {type(results).__name__}: write a tuple'})"
    results = results if isinstance(results, tuple) else (results,)
    if len(results) != len(wanted):
        return f"{must} (got {len(results)})"
    for each, value in zip(wanted, results, strict=True):
        value = plain(value)
        if not isinstance(value, int | float) and not hasattr(value, "dtype"):
            return f"result '{each}' of rule '{name}' must be a tensor{{line}} (got {_braces(value)})"
        found = jnp.shape(value)
        if each in tensors and found != shapes[each]:
            whose = "the declared" if each in spec.shaped else "its leaf's"
            hint = ": a sum over a leaf may be a term of its result" if found == () else ": each element gives one"
            hint = "" if each in spec.shaped else hint
            return (
                f"result '{each}' of rule '{name}' must have {whose} shape {shapes[each]}{{line}} (got {found}){hint}"
            )
        if each not in tensors and found != ():
            return f"scalar '{each}' of rule '{name}' must be computed from scalars alone{{line}} (got shape {found})"
    return ""


def _braces(value: Any) -> str:
    return repr(value)[:60].replace("{", "{{").replace("}", "}}")


def trace(spec: KernelSpec, shape: Sequence[int], *, locations: bool = False) -> str:
    """The StableHLO module of one kernel, traced on a leaf of ``shape``.

    Its ``main`` takes the operands of ``spec``, as tensors of their shapes beside that leaf, and then its scalars as
    rank-0 tensors, and returns the new param and state, tensors first.

    Args:
        spec: rule, structure and dtypes.
        shape: any shape; the lowering traces on placeholders and generalises.
        locations: whether the text also says from which line of the rule each operation comes.

    Returns:
        Text in the MLIR ``stablehlo`` dialect.

    Raises:
        RuleError: if the rule's function raises, or its results do not match its declaration; names the line.
        CompilerNotFoundError: if JAX is not installed.
    """
    jax = import_jax()
    wide = spec.dtypes.compute == "f64"
    with jax.enable_x64(True) if wide else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = [jax.ShapeDtypeStruct(o.shape_for(shape), _JAX_NAMES[o.traced]) for o in spec.operands]
        arguments += [jax.ShapeDtypeStruct((), _JAX_NAMES[spec.dtypes.compute])] * len(spec.scalars)
        jitted = jax.jit(traceable(spec), keep_unused=True)
        try:
            traced = jitted.trace(*arguments)
        except OptgenError as error:
            faults.without_jax_notes(error)
            raise
        faults.check_trace(spec.variant.rule.name, traced, len(arguments))
        text: str = traced.lower(lowering_platforms=("cpu",)).as_text(debug_info=locations)
        return text


def reference_spec(spec: KernelSpec) -> KernelSpec:
    """The same kernel with every tensor and scalar in float64: what its results are checked against."""
    return KernelSpec(spec.variant, Dtypes("f64", "f64", "f64", "f64"))
