"""Updates inside functions that JAX transforms: the rule's mathematics itself, which JAX can differentiate,
compile and vectorise.
"""

from __future__ import annotations

from typing import Any

from optgen.arrays.leaf import Work, is_tracer, state_dtype
from optgen.dsl.decay import Decay
from optgen.hyper import LOG_OF_ZERO, PARTS, part
from optgen.rules import get_rule
from optgen.runtime.memory import Leaf, to_kind

_JAX_NAMES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}


def traced_update(work: Work) -> list[Any]:
    """The results of one leaf as JAX arrays."""
    import jax
    import jax.numpy as jnp

    rule = get_rule(work.operation.rule, "ivy")
    compute = _JAX_NAMES[state_dtype(work.dtype)]
    tensors = [jnp.asarray(_jax_array(leaf)).astype(compute) for leaf in work.leaves]
    if work.operation.results[0] == "delta":
        tensors.insert(0, jnp.zeros((), compute))  # not read
    keywords: dict[str, Any] = {}
    for hyper in rule.hypers:
        value: Any = work.values.get(hyper.name)
        if hyper.name == "lr":
            value = work.rate_owner if is_tracer(work.rate_owner) else work.rate
        if is_tracer(value):
            value = value.astype(compute)
            parts = [value, 1 - value, _log(value)][: len(PARTS[hyper.kind])]
        else:
            parts = [jnp.asarray(p, compute) for p in _parts(value, hyper.kind)]
        keywords[hyper.name] = Decay(*parts) if hyper.kind == "decay" else parts[0]
    results = rule.function(*tensors, **keywords)
    results = results if isinstance(results, tuple) else (results,)
    typed = [
        value.astype(_JAX_NAMES[work.result_dtype(name)])
        for name, value in zip(work.operation.results, results, strict=True)
    ]
    return [jax.lax.stop_gradient(value) for value in typed] if work.stop else typed


def _parts(value: Any, kind: Any) -> list[Any]:
    return [part(value, p) for p in PARTS[kind]] if kind == "decay" else [value]


def _log(value: Any) -> Any:
    import jax.numpy as jnp

    positive = value > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, value, 1)), LOG_OF_ZERO)


def _jax_array(leaf: Leaf) -> Any:
    return leaf.owner if leaf.kind == "jax" else to_kind(leaf.array, leaf.dtype, "jax")
