"""The first half of a step: loss, gradient and metrics of a function of params and batch, traced by JAX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optgen.artifact.function import Structure, structure_of
from optgen.artifact.manifest import LeafInfo
from optgen.dsl.trace import import_jax
from optgen.errors import OptgenError, RuleError
from optgen.runtime.tree import map_tree, walk
from optgen.train.parts import BUILT_IN, Part, trace_part, wide_numbers


@dataclass(frozen=True)
class Examples:
    """What a step is compiled for.

    Attributes:
        params, batch: trees of arrays, or of what has shapes and dtypes.
        rng: whether the loss takes a key of random numbers; ``typed`` if as one of JAX's new typed keys.
        param_leaves, batch_leaves: their leaves, named ``params/...`` and ``batch/...``.
        trained: the names of the leaves that are trained.
    """

    params: Any
    batch: Any
    rng: str
    param_leaves: tuple[LeafInfo, ...]
    batch_leaves: tuple[LeafInfo, ...]
    trained: tuple[str, ...]

    @property
    def trained_leaves(self) -> tuple[LeafInfo, ...]:
        """The leaves that are trained."""
        return tuple(leaf for leaf in self.param_leaves if leaf.path in self.trained)

    @property
    def inputs(self) -> tuple[LeafInfo, ...]:
        """All that the loss takes."""
        key = (LeafInfo("rng", (2,), "ui32"),) if self.rng else ()
        return (*self.param_leaves, *self.batch_leaves, *key)

    def arguments(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of the loss, from its leaves. They go into trees of the examples' own types, since JAX would
        sort the keys of dicts."""
        jax, rest = import_jax(), iter(leaves)
        params = map_tree(lambda *_: next(rest), self.params)
        batch = map_tree(lambda *_: next(rest), self.batch)
        if not self.rng:
            return params, batch
        key = next(rest)
        return params, batch, jax.random.wrap_key_data(key, impl="threefry2x32") if self.rng == "typed" else key


def trace_gradient(
    loss: Callable[..., Any],
    examples: Examples,
    metrics: Sequence[str],
    scales: Sequence[str] = (),
    constant: float = 1.0,
) -> tuple[Part, Structure]:
    """Traces loss and gradient.

    Args:
        loss: of params, batch and, where asked for, a key; gives a number, or a number and a dict of metrics.
        examples: its arguments.
        metrics: of :data:`BUILT_IN`, those to compute as well.
        scales: names of further arguments, numbers that the loss is multiplied by before it is derived. Loss and
            metrics are returned without them.
        constant: another such number.

    Returns:
        A part that returns ``grads/...`` of what is trained, ``loss`` and ``metrics/...``; the structure of metrics.

    Raises:
        RuleError: if JAX cannot trace or derive it, or it returns something else.
    """
    jax = import_jax()
    label = str(getattr(loss, "__name__", "the loss"))
    found: dict[str, Any] = {}

    inputs = (*examples.inputs, *(LeafInfo(name, (), "f32") for name in scales))
    count = len(examples.inputs)

    def scale(leaves: Sequence[Any]) -> Any:
        return math.prod(leaves[count:], start=jax.numpy.float32(constant))

    def scalar(*leaves: Any) -> tuple[Any, Any]:
        value, extra = _parts_of(loss(*examples.arguments(leaves[:count])), label)
        return (value * scale(leaves) if scaled else value), (value, extra)

    scaled = bool(scales) or constant != 1.0
    names = [leaf.path for leaf in examples.inputs]
    at = [names.index(name) for name in examples.trained]

    def flat(*leaves: Any) -> list[Any]:
        (_, (value, extra)), grads = jax.value_and_grad(scalar, argnums=tuple(at), has_aux=True)(*leaves)
        true = [_wide(g) / scale(leaves) for g in grads] if scaled and metrics else grads
        extra = dict(extra) | dict(_built_in(metrics, true, [leaves[i] for i in at]))
        found["metrics"] = extra
        return [*grads, value, *(jax.numpy.asarray(v) for _, v in walk(extra))]

    def results() -> list[str]:
        grads = [f"grads/{name.partition('/')[2]}".rstrip("/") for name in examples.trained]
        return [*grads, "loss", *(path for path, _ in walk(found["metrics"], "metrics"))]

    with wide_numbers(examples.inputs):
        part = attempt(label, lambda: trace_part(flat, inputs, results))
    return part, structure_of(found["metrics"], "metrics")


def trace_evaluation(function: Callable[..., Any], examples: Examples) -> tuple[Part, Structure]:
    """Traces a function of params and batch that is evaluated beside the step.

    Returns:
        A part that returns ``result/...``, and the structure of the result.

    Raises:
        RuleError: if JAX cannot trace it, or it returns no arrays.
    """
    jax = import_jax()
    label = str(getattr(function, "__name__", "eval_fn"))
    found: dict[str, Any] = {}

    def flat(*leaves: Any) -> list[Any]:
        found["result"] = result = function(*examples.arguments(leaves))
        return [jax.numpy.asarray(value) for _, value in walk(result)]

    def names() -> list[str]:
        return [path for path, _ in walk(found["result"], "result")]

    with wide_numbers(examples.inputs):
        part = attempt(label, lambda: trace_part(flat, examples.inputs, names))
    if not part.outputs:
        raise RuleError(f"'{label}' must return at least one array")
    return part, structure_of(found["result"], "result")


def attempt(label: str, call: Callable[[], Any]) -> Any:
    """``call()``, with whatever JAX says against it in one line.

    Raises:
        RuleError: with that line.
    """
    try:
        return call()
    except OptgenError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise RuleError(f"'{label}' cannot be traced by JAX: {first}") from error


def _parts_of(value: Any, label: str) -> tuple[Any, Any]:
    """Loss and metrics."""
    jnp = import_jax().numpy
    extra: Any = {}
    if isinstance(value, tuple) and len(value) == 2:
        value, extra = value
    if not isinstance(extra, Mapping):
        raise RuleError(
            f"'{label}' must return its loss, or the loss and a dict of metrics (got a {type(extra).__name__})"
        )
    if taken := [name for name in extra if name in BUILT_IN]:
        raise RuleError(f"'{label}' must not have a metric '{taken[0]}': ask for it with metrics=['{taken[0]}']")
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = f"shape {shape} of {dtype}" if shape is not None else type(value).__name__
        raise RuleError(f"'{label}' must return one float, the loss: take the mean over the batch (got {got})")
    return value, extra


def _wide(leaf: Any) -> Any:
    return leaf if leaf.dtype == "float64" else leaf.astype("float32")


def _built_in(names: Sequence[str], grads: Sequence[Any], params: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    jnp = import_jax().numpy
    for name in names:
        if name not in BUILT_IN:
            raise RuleError(
                f"'metrics' must be of {', '.join(BUILT_IN)} (got {name!r}); the loss may return others, in a dict"
            )
        leaves = grads if name == "grad_norm" else params
        wide = [_wide(leaf) for leaf in leaves]
        yield name, jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in wide))


def examples_like(examples: Examples, batch: Any, batch_leaves: tuple[LeafInfo, ...]) -> Examples:
    """The same params with another batch and no key, for evaluation."""
    return Examples(examples.params, batch, "", examples.param_leaves, batch_leaves, examples.trained)
