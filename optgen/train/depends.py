"""What a rule's results depend on, by its trace."""

from __future__ import annotations

from contextlib import nullcontext

from optgen.artifact.manifest import LeafInfo
from optgen.dsl.rule import Rule
from optgen.dsl.trace import import_jax, traceable
from optgen.dsl.variant import KernelSpec
from optgen.errors import RuleError
from optgen.train.parts import struct


def needed_by(spec: KernelSpec, leaf: LeafInfo, results: slice) -> list[bool]:
    """For each operand and scalar of a leaf's kernel, whether those ``results`` depend on it."""
    jax = import_jax()
    structs = [struct(LeafInfo("", o.shape_for(leaf.shape), o.dtype)) for o in spec.operands]
    structs += [struct(LeafInfo("", (), spec.dtypes.compute))] * len(spec.scalars)
    with jax.enable_x64(True) if spec.dtypes.compute == "f64" else nullcontext():
        jaxpr = jax.make_jaxpr(traceable(spec))(*structs).jaxpr
    needed = {v for v in jaxpr.outvars[results] if not hasattr(v, "val")}
    for equation in reversed(jaxpr.eqns):
        if needed & set(equation.outvars):
            needed |= {v for v in equation.invars if not hasattr(v, "val")}
    return [var in needed for var in jaxpr.invars]


def check_new_param(rule: Rule, spec: KernelSpec, leaf: LeafInfo) -> None:
    """Refuses rules whose new param knows neither the old one nor a learning rate: dual averaging has the rate, and
    what has neither is a direction, as Adam's effective grad is.

    Raises:
        RuleError: naming the rule.
    """
    if any(hyper.name == "lr" for hyper in rule.hypers) or any(slot.init == "param" for slot in spec.variant.slots):
        return
    param = next(i for i, operand in enumerate(spec.operands) if operand.role == "param")
    if not needed_by(spec, leaf, slice(0, 1))[param]:
        raise RuleError(
            f"'{rule.name}' must not be the optimizer of a step: its new '{spec.operands[param].name}' depends neither "
            "on the old one nor on 'lr', so it is the change of a param and not its new value"
        )
