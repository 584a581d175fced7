"""What a training step is to be: checked settings, traced parts, arguments and entry points, for any arithmetic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from optgen.artifact.function import Structure, structure_of
from optgen.artifact.manifest import LeafInfo
from optgen.artifact.step import COMPUTE, EntryInfo, StepArgument
from optgen.errors import HyperparameterError, LeafError
from optgen.hyper import PARTS, Scalar
from optgen.rules import get_rule
from optgen.runtime.loading import split_settings
from optgen.runtime.tree import map_tree, show, walk
from optgen.train.gradient import Examples, examples_like, trace_evaluation, trace_gradient
from optgen.train.join import Entry, join, passed_through, unread
from optgen.train.parts import Part, is_float, leaves_of_example
from optgen.train.update import COUNT, Update, hyper_name, optax_update, rule_update

_STATIC = (
    ": a step is compiled for one batch size. Give an example of it, and compile one step for each size that you use"
)


@dataclass(frozen=True)
class StepPlan:
    """A step before it is compiled. Made by :func:`plan_step`.

    Attributes:
        name: of the loss function.
        doc: first line of its docstring.
        update: the optimizer.
        gradient: loss, gradient and metrics.
        evaluation: what is evaluated beside the step.
        metrics, result: the structures of metrics and of what evaluation gives.
        arguments: of all programs; numbers of the arithmetic's type have the dtype ``compute``.
        groups: hyperparameters by patterns of leaves' paths.
        asked: the arithmetic that was asked for.
    """

    name: str
    doc: str
    update: Update
    gradient: Part
    evaluation: Part | None
    metrics: Structure
    result: Structure
    arguments: tuple[StepArgument, ...]
    groups: Mapping[str, Mapping[str, float]]
    asked: str | None

    def parts(self, compute: str) -> dict[str, Part]:
        """The traced parts, by name, for one arithmetic."""
        found = {"gradient": self.gradient, "update": self.update.trace(compute)}
        if self.update.every:
            found["mean"] = self.update.trace_micro(compute)
        if self.evaluation is not None:
            found["evaluation"] = self.evaluation
        if self.update.init is not None:
            found["initial"] = self.update.init
        return found

    def entries(self, parts: Mapping[str, Part]) -> tuple[EntryInfo, ...]:
        """The programs: ``step``, and where there are such ``micro``, ``evaluate`` and ``init``."""
        found = [self._entry("step", parts, ("gradient", "update"))]
        if "mean" in parts:
            found.append(self._entry("micro", parts, ("gradient", "mean")))
        if "evaluation" in parts:
            found.append(self._entry("evaluate", parts, ("evaluation",)))
        if "initial" in parts:
            found.append(self._entry("init", parts, ("initial",)))
        return tuple(found)

    def _entry(self, name: str, parts: Mapping[str, Part], keys: tuple[str, ...]) -> EntryInfo:
        made: dict[str, LeafInfo] = {}
        for key in keys:
            made |= {leaf.path: leaf for leaf in parts[key].outputs}
        last = parts[keys[-1]]
        unchanged = passed_through(last) if name in ("step", "micro") else set()
        wanted = set().union(*(_inputs(parts[k]) for k in keys))
        used = set().union(*(_inputs(parts[k]) - unread(parts[k]) for k in keys))
        takes = tuple(
            i for i, a in enumerate(self.arguments) if a.name in wanted and (a.role != "hyper" or a.name in used)
        )
        results = [
            leaf
            for leaf in made.values()
            if leaf.path not in unchanged and not leaf.path.startswith("grads/") and leaf.path != "grads"
        ]
        at = {self.arguments[i].name: i for i in takes}
        gives = tuple(at.get(leaf.path, -1) for leaf in results) if name != "init" else (-1,) * len(results)
        return EntryInfo(name, takes, gives, tuple(results))

    def text(
        self,
        compute: str,
        parts: Mapping[str, Part],
        entries: Sequence[EntryInfo],
        apart: Iterable[int] = (),
        *,
        in_place: bool = True,
        fence_pools: bool = False,
        name: str = "step",
    ) -> str:
        """The module of ``entries``.

        Args:
            compute: the arithmetic.
            parts, entries: as :meth:`parts` and :meth:`entries` give them.
            apart: arguments that are not to be overwritten.
            in_place: False to overwrite none.
            fence_pools: see :func:`optgen.train.join.join`.
            name: of the module.
        """
        keys = {"step": ("gradient", "update"), "micro": ("gradient", "mean"), "evaluate": ("evaluation",)}
        out = set(apart)
        made = [
            Entry(
                entry.name,
                keys.get(entry.name, ("initial",)),
                tuple(leaf_of(self.arguments[i], compute) for i in entry.takes),
                entry.results,
                frozenset(self.arguments[i].name for i in self.overwritten(entry) if in_place and i not in out),
            )
            for entry in entries
        ]
        return join(name, parts, made, fence_pools=fence_pools)

    def overwritten(self, entry: EntryInfo) -> tuple[int, ...]:
        """The arguments that a program may overwrite: arrays, but no single numbers, which many kernels read."""
        return tuple(
            i
            for i in entry.gives
            if i >= 0 and self.arguments[i].role in ("param", "state") and self.arguments[i].shape
        )


def leaf_of(argument: StepArgument, compute: str) -> LeafInfo:
    """Name, shape and dtype of an argument, for one arithmetic."""
    return LeafInfo(argument.name, argument.shape, compute if argument.dtype == COMPUTE else argument.dtype)


def _inputs(part: Part) -> set[str]:
    return {leaf.path for leaf in part.inputs}


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
    gradient, metric_tree = trace_gradient(loss_fn, examples, metrics)
    evaluation, result = None, None
    eval_leaves: tuple[LeafInfo, ...] = ()
    if eval_fn is not None:
        other = batch if eval_batch is None else eval_batch
        structure_of(other, "eval_batch")
        eval_leaves = leaves_of_example(other, "eval_batch", hint=_STATIC)
        evaluation, result = trace_evaluation(eval_fn, examples_like(examples, other, eval_leaves))
    elif eval_batch is not None:
        raise LeafError("'eval_batch' must not be given without 'eval_fn', whose batch it is")
    return StepPlan(
        name=str(name or getattr(loss_fn, "__name__", "step")),
        doc=(inspect.getdoc(loss_fn) or "").partition("\n")[0],
        update=update,
        gradient=gradient,
        evaluation=evaluation,
        metrics=metric_tree,
        result=result,
        arguments=_arguments(examples, update, eval_leaves),
        groups={pattern: dict(numbers) for pattern, numbers in (groups or {}).items()},
        asked=None if compute_dtype is None else update.compute(None),
    )


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
            mine = {p for p in paths if fnmatchcase(p, pattern) or fnmatchcase(p.replace("/", "."), pattern)}
            if not mine:
                raise LeafError(f"'trainable' must match leaves of the params: {pattern!r} matches none of {paths[:6]}")
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
    from optgen.compiler.api import _baked
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
    if accumulate > 1:
        rule = chain(accumulation(accumulate), rule)
    structure, values = split_settings(rule.flags, rule.optional, settings)
    baked = _baked(rule, bake, values)
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
    from optgen.runtime.tree import nest
    from optgen.train.parts import struct

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
