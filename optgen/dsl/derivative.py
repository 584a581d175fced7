"""The derivative of a rule, as a rule: what lets gradients flow through an update without JAX at run time."""

from __future__ import annotations

import dataclasses
from typing import Any

from optgen.dsl.rule import Rule, StateSlot
from optgen.errors import RuleError


def vjp_rule(rule: Rule, per_element: tuple[str, ...] = ("lr",)) -> Rule:
    """The vector-Jacobian product of ``rule``.

    If ``rule`` maps the tensors ``w, g, *state`` and the per-element hyperparameters to the new ``w`` and state, the
    result maps cotangents of those results to cotangents of the tensors. Its operands are, in order: ``ct_w``, which
    becomes the cotangent of ``w``; as inputs the tensors ``w, g, *state`` and the per-element hyperparameters, all as
    they were before the update; and as state, ``ct_X`` for each state tensor ``X``, which becomes its cotangent, and
    ``d_Y`` for each input and per-element hyperparameter ``Y``, whose old value is not read.

    Args:
        rule: without optional or scalar state.
        per_element: hyperparameters to differentiate by, given as tensors of the leaf's shape.

    Raises:
        RuleError: if the rule has scalar state, or state of other shapes than the param's.
    """
    if rule.scalars:
        raise RuleError(f"rule '{rule.name}' must be without scalar state to have a derivative (got {[*rule.scalars]})")
    if shaped := [slot.name for slot in rule.state if slot.shape is not None]:
        raise RuleError(f"rule '{rule.name}' has no derivative: its state '{shaped[0]}' has a shape of its own")
    tensors = (rule.param, *rule.inputs, *(slot.name for slot in rule.state))
    states = tuple(slot.name for slot in rule.state)
    extra = (*rule.inputs, *per_element)

    def pullback(cotangent: Any, *arguments: Any, **hypers: Any) -> tuple[Any, ...]:
        import jax

        primals = arguments[: len(tensors) + len(per_element)]
        cotangents = arguments[len(primals) : len(primals) + len(states)]

        def update(*values: Any) -> tuple[Any, ...]:
            given = dict(zip(per_element, values[len(tensors) :], strict=True))
            results = rule.function(*values[: len(tensors)], **hypers, **given)
            return results if isinstance(results, tuple) else (results,)

        _, pull = jax.vjp(update, *primals)
        by_name = dict(zip((*tensors, *per_element), pull((cotangent, *cotangents)), strict=True))
        return tuple(by_name[n] for n in (rule.param, *states, *extra))

    return dataclasses.replace(
        rule,
        name=f"{rule.name}_vjp",
        function=pullback,
        param=f"ct_{rule.param}",
        inputs=(*tensors, *per_element),
        state=tuple(StateSlot(n) for n in (*(f"ct_{s}" for s in states), *(f"d_{n}" for n in extra))),
        hypers=tuple(h for h in rule.hypers if h.name not in per_element),
        source=f"derived from {rule.name} ({rule.source})",
    )
