"""From the settings of a step to its plan: everything is checked, then traced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optgen.artifact.function import structure_of
from optgen.artifact.manifest import LeafInfo
from optgen.artifact.step import COMPUTE, StepArgument, hyper_name
from optgen.errors import HyperparameterError, LeafError, RuleError
from optgen.hyper import PARTS, Scalar
from optgen.probes.fills import fill_of
from optgen.probes.generate import Fill
from optgen.rules import get_rule
from optgen.runtime.groups import matches, no_match
from optgen.runtime.loading import split_settings
from optgen.runtime.tree import map_tree, nest, show, walk
from optgen.train.gradient import Examples, examples_like, trace_evaluation, trace_gradient
from optgen.train.parts import is_float, leaves_of_example, struct
from optgen.train.plan import StepPlan
from optgen.train.rule_update import rule_update
from optgen.train.update import COUNT, Update, optax_update

_STATIC = (
    ": a step is compiled for one batch size. Give an example of it, and compile one step for each size that you use"
)


def plan_step(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    optimizer: Any,
    *,
    rng: Any = None,
    metrics: Sequence[str] = (),
    accumulate: int = 1,
    eval_fn: Callable[..., Any] | None = None,
    eval_batch: Any = None,
    trainable: Any = None,
    compute_dtype: Any = None,
    state_dtype: Any = None,
    convention: str | None = None,
    bake: Mapping[str, float] | Iterable[str] = (),
    groups: Mapping[str, Mapping[str, float]] | None = None,
    name: str | None = None,
    **settings: Any,
) -> StepPlan:
    """Checks and traces a step. The arguments are those of :func:`optgen.train.compile_step`."""
    structure_of(params, "params")
    structure_of(batch, "batch")
    chosen = _chosen(params, trainable)
    param_leaves = leaves_of_example(params, "params")
    batch_leaves = leaves_of_example(batch, "batch", hint=_STATIC)
    trained = tuple(leaf.path for leaf in param_leaves if leaf.path in chosen)
    examples = Examples(params, batch, _kind_of_key(rng), param_leaves, batch_leaves, trained)
    for leaf in examples.trained_leaves:
        if not is_float(leaf):
            raise LeafError(
                f"{show(leaf.path)} must have a float dtype to be trained (got {leaf.dtype}): leave it out of trainable"
            )
    update = _update(
        optimizer, examples, accumulate, compute_dtype, state_dtype, convention, bake, groups or {}, settings
    )
    gradient, metric_tree = trace_gradient(loss_fn, examples, metrics, update.loss_scales, update.loss_scale)
    evaluation, result = None, None
    eval_leaves: tuple[LeafInfo, ...] = ()
    if eval_fn is not None:
        other = batch if eval_batch is None else eval_batch
        structure_of(other, "eval_batch")
        eval_leaves = leaves_of_example(other, "eval_batch", hint=_STATIC)
        evaluation, result = trace_evaluation(eval_fn, examples_like(examples, other, eval_leaves))
    elif eval_batch is not None:
        raise LeafError("'eval_batch' must not be given without 'eval_fn', whose batch it is")
    arguments = _arguments(examples, update, eval_leaves)
    return StepPlan(
        name=str(name or getattr(loss_fn, "__name__", "step")),
        doc=(inspect.getdoc(loss_fn) or "").partition("\n")[0],
        update=update,
        gradient=gradient,
        evaluation=evaluation,
        metrics=metric_tree,
        result=result,
        arguments=arguments,
        groups={pattern: dict(numbers) for pattern, numbers in (groups or {}).items()},
        asked=None if compute_dtype is None else update.compute(None),
        fills=_fills(arguments, params, batch, batch if eval_batch is None else eval_batch),
    )


def _fills(arguments: Sequence[StepArgument], params: Any, batch: Any, eval_batch: Any) -> dict[int, Fill]:
    """What arguments hold in probes: of what comes from examples, by position."""
    values = {
        "param": dict(walk(params, "params")), "batch": dict(walk(batch, "batch")),
        "eval_batch": dict(walk(eval_batch, "eval_batch")),
    }  # fmt: skip
    values["frozen"] = values["param"]
    found = {}
    for index, argument in enumerate(arguments):
        if argument.role in values:
            leaf = LeafInfo(argument.name, argument.shape, argument.dtype)
            example = values[argument.role].get(argument.name)
            found[index] = fill_of(example, leaf, scaled=argument.role in ("param", "frozen"))
        elif argument.role == "rng":
            found[index] = Fill("key")
    return found


def _chosen(params: Any, trainable: Any) -> set[str]:
    """The names of the leaves that are trained.

    Raises:
        LeafError: if a pattern matches none, or nothing is left.
    """
    paths = [path for path, _ in walk(params)]
    if trainable is None:
        found = set(paths)
    elif callable(trainable):
        found = {path for path, leaf in walk(params) if trainable(path, leaf)}
    else:
        patterns = [trainable] if isinstance(trainable, str) else list(trainable)
        found = set()
        for pattern in patterns:
            mine = {p for p in paths if matches(pattern, p)}
            if not mine:
                raise LeafError(f"'trainable' must match leaves of the params: {no_match(pattern, paths)}")
            found |= mine
    if not found:
        raise LeafError("a step must have at least one leaf to train")
    return {f"params/{path}".rstrip("/") for path in found}


def _kind_of_key(rng: Any) -> str:
    """``''`` for no key, ``typed`` for one of JAX's typed keys, ``raw`` for two words of 32 bits."""
    if rng is None or rng is False:
        return ""
    if rng is True or str(getattr(rng, "dtype", "")).startswith("key<fry"):
        return "typed"
    if tuple(getattr(rng, "shape", ())) == (2,) and str(getattr(rng, "dtype", "")) == "uint32":
        return "raw"
    raise LeafError(
        f"'rng' must be True, jax.random.key(seed) or a uint32 array of shape (2,), a raw threefry key (got {rng!r})"
    )


def _update(
    optimizer: Any,
    examples: Examples,
    accumulate: int,
    compute_dtype: Any,
    state_dtype: Any,
    convention: str | None,
    bake: Any,
    groups: Mapping[str, Mapping[str, float]],
    settings: Mapping[str, Any],
) -> Update:
    from optgen.compiler.api import baked_values
    from optgen.dsl.chain import chain
    from optgen.dsl.variant import Variant, has_eight_bits
    from optgen.interop.optax import is_transformation
    from optgen.rules.around import accumulate as accumulation

    if not isinstance(accumulate, int) or accumulate < 1:
        raise HyperparameterError(f"'accumulate' must be a whole number of at least 1 (got {accumulate!r})")
    params = {leaf.path: leaf for leaf in examples.trained_leaves}
    if is_transformation(optimizer):
        given = {
            "compute_dtype": compute_dtype, "state_dtype": state_dtype, "convention": convention,
            "bake": bake or None, "groups": groups or None, **settings,
        }  # fmt: skip
        if wrong := [n for n, value in given.items() if value is not None]:
            raise HyperparameterError(f"'{wrong[0]}' must not be given with an optax transformation: give it to optax")
        if accumulate > 1:
            raise HyperparameterError(
                "'accumulate' must be 1 with an optax transformation: wrap it, optax.MultiSteps(optimizer, every_k)"
            )
        return optax_update(optimizer, _trained_tree(examples))
    rule = get_rule(optimizer, convention)
    if len(rule.inputs) != 1:
        raise RuleError(
            f"'{rule.name}' must not be the optimizer of a step: beside the grad it takes "
            f"{', '.join(rule.inputs[1:])}, which a loss does not give"
        )
    if accumulate > 1:
        rule = chain(accumulation(accumulate), rule)
    structure, values = split_settings(rule.flags, rule.optional, settings)
    baked = baked_values(rule, bake, values)
    variant = Variant.of(rule, structure=structure, bake=baked, eight_bits=has_eight_bits(state_dtype))
    for each in values:
        rule.hyper(each)
    return rule_update(
        rule,
        variant,
        tuple(params.values()),
        {f"params/{path}".rstrip("/"): keys for path, keys in _keys(examples.params)},
        {n: v for n, v in values.items() if n not in baked},
        groups=groups,
        state_dtype=state_dtype,
        compute_dtype=compute_dtype,
    )


def _trained_tree(examples: Examples) -> Any:
    """The params with what is frozen left out, as optax sees them."""
    by_name = {leaf.path: leaf for leaf in examples.trained_leaves}
    if len(by_name) == len(examples.param_leaves):
        rest = iter(examples.trained_leaves)
        return map_tree(lambda *_: struct(next(rest)), examples.params)
    keys = {f"params/{path}".rstrip("/"): found for path, found in _keys(examples.params)}
    return nest([(keys[name], struct(leaf)) for name, leaf in by_name.items()])


def _keys(tree: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str, tuple[str | int, ...]]]:
    """The path of each leaf, as text and as keys."""
    if isinstance(tree, Mapping):
        return [found for key, child in tree.items() for found in _keys(child, (*at, str(key)))]
    if isinstance(tree, list | tuple):
        return [found for index, child in enumerate(tree) for found in _keys(child, (*at, index))]
    return [] if tree is None else [("/".join(map(str, at)), at)]


def _arguments(examples: Examples, update: Update, eval_leaves: Sequence[LeafInfo]) -> tuple[StepArgument, ...]:
    found = [
        StepArgument(leaf.path, "param" if leaf.path in examples.trained else "frozen", leaf.shape, leaf.dtype)
        for leaf in examples.param_leaves
    ]
    found += [
        StepArgument(s.leaf.path, "state", s.leaf.shape, s.leaf.dtype, s.keys, initial=s.initial) for s in update.state
    ]
    if update.counts:
        found.append(StepArgument(COUNT, "count", (), "i32", ("step",)))
    found += [StepArgument(f"state/{name}", "scalar", (), COMPUTE, (name,)) for name in update.scalars]
    found += [StepArgument(leaf.path, "batch", leaf.shape, leaf.dtype) for leaf in examples.batch_leaves]
    if examples.rng:
        found.append(StepArgument("rng", "rng", (2,), "ui32"))
    for hyper in update.hypers:
        for each in PARTS[hyper.kind]:
            scalar = Scalar(hyper.name, each)
            found.append(StepArgument(hyper_name(scalar), "hyper", (), COMPUTE, hyper=scalar))
    found += [StepArgument(leaf.path, "eval_batch", leaf.shape, leaf.dtype) for leaf in eval_leaves]
    return tuple(found)
