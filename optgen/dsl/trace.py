"""Tracing: a kernel spec becomes StableHLO text, through JAX."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from optgen.dsl.decay import Decay
from optgen.dsl.variant import MASTER, Dtypes, KernelSpec
from optgen.dtypes import FLOATS
from optgen.errors import CompilerNotFoundError, RuleError
from optgen.hyper import PARTS, part

_NOT_SCALAR = "scalar '{name}' of rule '{rule}' must be computed from scalars alone (got {got})"
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
        results = rule.function(*present, *slots, **keywords)
        results = results if isinstance(results, tuple) else (results,)
        if variant.master:
            tensors_out = 1 + len(variant.rule_state)
            results = (*results[:tensors_out], results[0], *results[tensors_out:])
        wanted = [*(o.name for o in spec.results), *spec.returned]
        if len(results) != len(wanted):
            what = "values" if spec.returned else "tensors"
            raise RuleError(
                f"rule '{rule.name}' must return {len(wanted)} {what}, the new {', '.join(wanted)} (got {len(results)})"
            )
        results, numbers_out = results[: len(spec.results)], results[len(spec.results) :]
        out = []
        for operand, value in zip(spec.results, results, strict=True):
            shape = tensors[rule.param].shape
            if jnp.shape(value) != shape:
                raise RuleError(
                    f"result '{operand.name}' of rule '{rule.name}' must have its leaf's shape {shape} "
                    f"(got {jnp.shape(value)})"
                )
            out.append(jnp.asarray(value).astype(_JAX_NAMES[operand.traced]))
        for name, value in zip(spec.returned, numbers_out, strict=True):
            if jnp.shape(value) != ():
                raise RuleError(_NOT_SCALAR.format(name=name, rule=rule.name, got=f"shape {jnp.shape(value)}"))
            out.append(jnp.asarray(value).astype(compute))
        return tuple(out)

    return update


def trace(spec: KernelSpec, shape: Sequence[int], *, locations: bool = False) -> str:
    """The StableHLO module of one kernel, traced on a leaf of ``shape``.

    Its ``main`` takes the operands of ``spec`` as tensors of that shape and then its scalars as rank-0 tensors,
    and returns the new param and state, tensors first.

    Args:
        spec: rule, structure and dtypes.
        shape: any shape; the lowering traces on placeholders and generalises.
        locations: whether the text also says from which line of the rule each operation comes.

    Returns:
        Text in the MLIR ``stablehlo`` dialect.

    Raises:
        RuleError: if the rule's results do not match its declaration.
        CompilerNotFoundError: if JAX is not installed.
    """
    jax = import_jax()
    wide = spec.dtypes.compute == "f64"
    with jax.enable_x64(True) if wide else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = [jax.ShapeDtypeStruct(tuple(shape), _JAX_NAMES[o.traced]) for o in spec.operands]
        arguments += [jax.ShapeDtypeStruct((), _JAX_NAMES[spec.dtypes.compute])] * len(spec.scalars)
        jitted = jax.jit(traceable(spec), keep_unused=True)
        text: str = jitted.trace(*arguments).lower(lowering_platforms=("cpu",)).as_text(debug_info=locations)
        return text


def reference_spec(spec: KernelSpec) -> KernelSpec:
    """The same kernel with every tensor and scalar in float64: what its results are checked against."""
    return KernelSpec(spec.variant, Dtypes("f64", "f64", "f64", "f64"))
