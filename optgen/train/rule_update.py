"""The update of a rule: each leaf by the mathematics of its kernel, all of them in one trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from optgen.artifact.manifest import LeafInfo
from optgen.artifact.step import hyper_name
from optgen.artifact.transform import InitialInfo
from optgen.dsl.rule import Rule
from optgen.dsl.trace import import_jax, traceable
from optgen.dsl.variant import KernelSpec, Variant
from optgen.errors import HyperparameterError
from optgen.hyper import Hyper, Scalar, part
from optgen.runtime.groups import Group, Groups
from optgen.train.depends import check_new_param, needed_by
from optgen.train.lockstep import LeafTrace, run_together
from optgen.train.parts import Part, jax_dtype, struct, trace_part
from optgen.train.update import COUNT, StateLeaf, Update


@dataclass(frozen=True)
class RuleUpdate(Update):
    """The update of a rule.

    Attributes:
        variant: the rule with its structure chosen.
        params: the leaves that it updates, as ``params/...``.
        groups: hyperparameters for some of them.
        state_dtype, compute_dtype: as for :func:`optgen.compile`.
    """

    variant: Variant | None = None
    params: tuple[LeafInfo, ...] = ()
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    state_dtype: Any = None
    compute_dtype: Any = None

    @property
    def rule(self) -> Variant:
        """The variant, which is there."""
        assert self.variant is not None
        return self.variant

    def compute(self, asked: str | None) -> str:
        """As :meth:`Update.compute`: the widest that any leaf's kernel has."""
        widest = [self.spec(leaf, asked).dtypes.compute for leaf in self.params]
        return "f64" if "f64" in widest else "f32"

    def spec(self, leaf: LeafInfo, compute: str | None) -> KernelSpec:
        """The kernel for one leaf."""
        return self.rule.kernel(self.rule.dtypes(leaf.dtype, None, self.state_dtype, self.compute_dtype or compute))

    def trace(self, compute: str) -> Part:
        """As :meth:`Update.trace`."""
        return _trace(self, [self.spec(leaf, compute) for leaf in self.params], self.params, compute)

    def trace_micro(self, compute: str) -> Part:
        """As :meth:`Update.trace_micro`."""
        accumulation = self.rule.rule.accumulation
        assert accumulation is not None
        made = Variant.of(accumulation.rule)
        slots = [self.spec(leaf, compute).dtypes for leaf in self.params]
        means = [d.slot(accumulation.state) for d in slots]
        specs = [made.kernel(made.dtypes(m, d.grad, m, d.compute)) for m, d in zip(means, slots, strict=True)]
        leaves = [
            LeafInfo(f"state/{accumulation.state}/{leaf.path.partition('/')[2]}".rstrip("/"), leaf.shape, mean)
            for leaf, mean in zip(self.params, means, strict=True)
        ]
        return _trace(self, specs, leaves, compute, {next(iter(made.rule.scalars)): accumulation.count})


def rule_update(
    rule: Rule,
    variant: Variant,
    params: Sequence[LeafInfo],
    keys: Mapping[str, tuple[str | int, ...]],
    defaults: Mapping[str, float],
    **settings: Any,
) -> RuleUpdate:
    """The update of ``params`` by a rule.

    Args:
        rule: the rule.
        variant: with its structure chosen.
        params: the leaves, as ``params/...``.
        keys: for each of them its path as keys.
        defaults: of hyperparameters, instead of the rule's own.
        settings: groups, state_dtype, compute_dtype.

    Raises:
        HyperparameterError: where state of 8 bits or random rounding is asked for.
        RuleError: if the rule gives the change of a param in its place.
    """
    made = RuleUpdate(rule.name, (), variant=variant, params=tuple(params), **settings)
    check_new_param(rule, made.spec(params[0], None), params[0])
    state = []
    for slot in variant.slots:
        for leaf in params:
            operand = next(o for o in made.spec(leaf, None).operands if o.name == slot.name)
            if operand.coded:
                raise HyperparameterError(f"'state_dtype' of a whole step must be a float (got {operand.dtype})")
            own = leaf.path.partition("/")[2]
            if slot.init == "param":
                initial = InitialInfo("copy", path=own)
            elif isinstance(slot.init, str):
                initial = InitialInfo("hyper", path=slot.init)
            else:
                initial = InitialInfo("fill", slot.init)
            shape = operand.shape_for(leaf.shape)
            info = LeafInfo(f"state/{slot.name}/{own}".rstrip("/"), shape, operand.dtype)
            state.append(StateLeaf(info, (slot.name, *keys[leaf.path]), initial))
    hypers = tuple(
        Hyper(h.name, h.kind, h.check(defaults[h.name]), h.signed, h.closed) if h.name in defaults else h
        for h in variant.hypers
        if h.kind != "step"
    )
    every, count = (rule.accumulation.every, rule.accumulation.count) if rule.accumulation else ("", "")
    baked = dict(variant.baked)
    scales = [n for n in rule.loss_scales if n not in baked]
    return RuleUpdate(
        rule.name, tuple(state), hypers, dict(rule.scalars), every, count,
        variant=variant, params=tuple(params), loss_scale=math.prod(baked.get(n, 1.0) for n in rule.loss_scales),
        loss_scales=tuple(f"state/{n}" if n in rule.scalars else hyper_name(Scalar(n)) for n in scales), **settings,
    )  # fmt: skip


def _trace(
    update: RuleUpdate,
    specs: Sequence[KernelSpec],
    leaves: Sequence[LeafInfo],
    compute: str,
    renamed: Mapping[str, str] | None = None,
) -> Part:
    """The update of ``leaves``, each by its kernel; scalar state under other names where those are given."""
    new_names = dict(renamed or {})
    jax = import_jax()
    variant = specs[0].variant
    number = jax_dtype(compute)
    own = [leaf.path.partition("/")[2] for leaf in update.params]
    tensors: list[LeafInfo] = []
    where: list[list[int]] = []  # for each leaf, its operands among the tensors
    for leaf, spec, path in zip(leaves, specs, own, strict=True):
        places = []
        for operand in spec.operands:
            tree = {"param": leaf.path, "input": f"grads/{path}"}.get(operand.role, f"state/{operand.name}/{path}")
            places.append(len(tensors))
            tensors.append(LeafInfo(tree.rstrip("/"), operand.shape_for(leaf.shape), operand.dtype))
        where.append(places)
    counted = any(h.kind == "step" for h in variant.hypers)
    scalars = [s for s in variant.scalars if s.hyper != "step"]
    names = [
        f"state/{new_names.get(s.hyper, s.hyper)}" if s.hyper in variant.rule.scalars else hyper_name(s)
        for s in scalars
    ]
    inputs = [*tensors, *(LeafInfo(name, (), compute) for name in names)]
    main = leaves is update.params
    if main:
        inputs.append(LeafInfo(COUNT, (), "i32"))
    groups = _groups(update, specs, leaves, scalars)
    results = [
        tensors[i].path
        for places, spec in zip(where, specs, strict=True)
        for i, operand in zip(places, spec.operands, strict=True)
        if operand.role != "input"
    ]
    results += [f"state/{new_names.get(name, name)}" for name in variant.rule.scalars] + ([COUNT] if main else [])

    def flat(*values: Any) -> list[Any]:
        given = dict(zip(scalars, values[len(tensors) :], strict=False))
        count = values[-1] + 1 if main else None
        if count is not None and counted:
            given[Scalar("step")] = count.astype(number)
        shared: dict[Any, Any] = {}  # the same tracer for all leaves of a group
        traces = []
        for leaf, spec, places, path in zip(leaves, specs, where, own, strict=True):
            group = groups.of(path)
            kind = jax_dtype(spec.dtypes.compute)
            structs = [struct(tensors[i]) for i in places] + [struct(LeafInfo("", (), spec.dtypes.compute))] * len(
                spec.scalars
            )
            jaxpr = jax.make_jaxpr(traceable(spec))(*structs)
            numbers = [
                shared.setdefault((s, group.index, spec.dtypes.compute), _number(s, given, group, kind))
                for s in spec.scalars
            ]
            traces.append(LeafTrace(jaxpr, len(places), (*(values[i] for i in places), *numbers)))
            assert leaf.shape == structs[0].shape
        found = run_together(traces)
        new = [
            value for spec, made in zip(specs, found, strict=True) for value in made[: len(made) - len(spec.returned)]
        ]
        widest = max(range(len(specs)), key=lambda i: specs[i].dtypes.compute == compute)
        new += [v.astype(number) for v in found[widest][len(found[widest]) - len(specs[widest].returned) :]]
        return [*new, *([count] if count is not None else [])]

    with jax.enable_x64(True) if compute == "f64" else nullcontext():
        return trace_part(flat, inputs, lambda: results)


def _number(scalar: Scalar, given: Mapping[Scalar, Any], group: Group, dtype: Any) -> Any:
    """A scalar of a leaf's kernel: what the step is given, or what its group has instead."""
    jnp = import_jax().numpy
    if scalar.hyper in group.numbers:
        return jnp.asarray(part(group.numbers[scalar.hyper], scalar.part), dtype)
    value = given[scalar].astype(dtype)
    return value * jnp.asarray(group.scale, dtype) if scalar.hyper == "lr" and group.scale != 1 else value


def _groups(
    update: RuleUpdate, specs: Sequence[KernelSpec], leaves: Sequence[LeafInfo], scalars: Iterable[Scalar]
) -> Groups:
    """The groups of leaves.

    Raises:
        HyperparameterError: if one has a hyperparameter that scalar state depends on, or one that does not exist.
    """
    variant = update.rule

    def hyper(name: str) -> Hyper:
        if name in dict(variant.baked):
            raise HyperparameterError(f"'{name}' must not be given to groups: it is baked in")
        return variant.rule.hyper(name)

    common: dict[str, str] = {}
    if update.groups and variant.rule.scalars:
        spec = specs[0]
        needed = needed_by(spec, leaves[0], slice(-len(spec.returned), None))[len(spec.operands) :]
        why = f"it must be one number for all leaves, since scalar state of '{variant.rule.name}' depends on it"
        common = {scalar.hyper: why for scalar, used in zip(spec.scalars, needed, strict=True) if used}
    scaled = "it must be one number for all leaves: the loss is multiplied by it"
    common |= dict.fromkeys(variant.rule.loss_scales, scaled)
    if update.every:
        common[update.every] = "it must be one number for all leaves, which are updated together"
    groups = Groups(update.groups, hyper, common)
    groups.check([leaf.path.partition("/")[2] for leaf in update.params])
    return groups
