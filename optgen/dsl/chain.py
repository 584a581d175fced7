"""Chains: a rule with parts around it is a rule again, by composition of their functions before tracing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from optgen.dsl.around import SHARED, New, Part, PartKind, Update
from optgen.dsl.rule import Accumulation, Rule, StateSlot
from optgen.dsl.schedule import Schedule
from optgen.errors import HyperparameterError, RuleError, UnknownRuleError
from optgen.hyper import Hyper


def chain(*parts: Part | PartKind | Rule | str, lr: Schedule | float | None = None) -> Rule:
    """A rule with parts around it, as a rule: it is compiled, saved and run as any other, in one module.

    The parts in front of the rule act on the grads, the first of them first; those behind it on what the rule has
    made. What comes first is outermost: where :func:`optgen.scale_by_loss` skips an update, nothing behind it
    changes. Hyperparameters, state and scalar state of all are those of the result. Where two have the same name, the
    rule keeps it, or else the part that comes first, and the other's is prefixed with the part's name.

    Args:
        parts: exactly one is a rule, or the name of one.
        lr: a schedule of :mod:`optgen.schedule`, evaluated inside the module, or a default.

    Raises:
        RuleError: if there is not exactly one rule, or a part must not be where it is.
        UnknownRuleError: if there is no rule of that name.
        HyperparameterError: if ``lr`` is out of range.

    Example:
        >>> import optgen as og
        >>> rule = og.chain(og.clip_by_global_norm(1.0), "adamw", og.ema(0.999), lr=1e-3)
        >>> rule.name, [slot.name for slot in rule.state], rule.hyper("max_norm").default
        ('clip_by_global_norm+adamw+ema', ['m', 'v', 'ema'], 1.0)
    """
    from optgen.rules import get_rule

    found = [p() if isinstance(p, PartKind) else get_rule(p) if isinstance(p, str) else p for p in parts]
    for each in found:
        if not isinstance(each, Part | Rule):
            raise RuleError(f"the parts of a chain must be parts, one a rule or a rule's name (got {each!r})")
    at = [i for i, p in enumerate(found) if isinstance(p, Rule)]
    if len(at) != 1:
        raise RuleError(f"a chain must have exactly one rule (got {len(at)})")
    rule = found[at[0]]
    assert isinstance(rule, Rule)
    if rule.accumulation is not None and len(found) > 1:
        raise RuleError("'accumulate' must be the first part of the outermost chain")
    if isinstance(lr, Schedule | int | float) and not any(h.name == "lr" for h in rule.hypers):
        raise RuleError(f"'lr' must not be given: rule '{rule.name}' has no learning rate")
    if isinstance(lr, Schedule) and (slot := next((s for s in rule.state if s.init == "lr"), None)):
        raise RuleError(
            f"'lr' must be a number for rule '{rule.name}', whose state '{slot.name}' starts with it: a schedule would "
            "have no effect"
        )
    names = _Names(rule)
    before = [(p, False) for p in found[: at[0]] if isinstance(p, Part)]
    after = [(p, True) for p in found[at[0] + 1 :] if isinstance(p, Part)]
    placed = [names.place(p, behind) for p, behind in (*before, *after)]
    scheduled = names.take(lr.rule, "schedule") if isinstance(lr, Schedule) else None
    levels = [*placed[len(before) :], *reversed(placed[: len(before)])]  # from the innermost to the outermost
    if (late := next((p for p, _ in (*before[1:], *after) if p.outermost), None)) is not None:
        raise RuleError(f"'{late.name}' must be the first part of a chain")
    name = "+".join(p.name for p in found)
    everything = [*levels, *([scheduled] if scheduled else [])]
    composed = _compose(rule, levels, scheduled)
    composed.__doc__ = "\n\n".join(f"{each.name}: {each.doc}" for each in (rule, *(x.rule for x in everything)))
    first = before[0][0] if before else None
    accumulation = rule.accumulation
    if first is not None and first.micro is not None:
        own = placed[0]
        accumulation = Accumulation(
            first.micro, own.state[0].name, own.names[next(iter(own.rule.scalars))], own.names["every"]
        )
    hypers, optional, needs = _hypers(rule, everything, lr)
    return dataclasses.replace(
        rule,
        name=name,
        function=composed,
        state=(*rule.state, *(slot for level in levels for slot in level.state)),
        hypers=hypers,
        flags={**rule.flags, **{each.names[n]: v for each in everything for n, v in each.rule.flags.items()}},
        optional=optional,
        needs=needs,
        scalars={**rule.scalars, **{level.names[n]: v for level in levels for n, v in level.rule.scalars.items()}},
        source="; ".join(dict.fromkeys(s for s in (rule.source, *(x.rule.source for x in levels)) if s)),
        accumulation=accumulation,
        loss_scales=(*rule.loss_scales, *(level.names[n] for level in levels for n in level.rule.loss_scales)),
    )


@dataclass(frozen=True)
class _Level:
    """A part in its place.

    Attributes:
        rule: its function and signature.
        names: from its own names of hyperparameters, flags, state and scalar state to those in the chain.
    """

    rule: Rule
    names: dict[str, str]

    @property
    def state(self) -> tuple[StateSlot, ...]:
        """Its state, under its names in the chain."""
        return tuple(
            StateSlot(
                self.names[slot.name],
                None if slot.needs is None else self.names[slot.needs],
                self.names.get(slot.init, slot.init) if isinstance(slot.init, str) else slot.init,
                slot.shape,
            )
            for slot in self.rule.state
        )

    def keywords(self, given: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
        """What its function takes, from what the chain was given."""
        found = {own: given[name] for own, name in self.names.items() if name in given}
        return found | {n: shared[n] for n in SHARED if any(h.name == n for h in self.rule.hypers)}


class _Names:
    """The names that a chain has given away."""

    def __init__(self, rule: Rule) -> None:
        self._taken = {rule.param, *rule.inputs, *rule.flags, *rule.scalars, *(s.name for s in rule.state), *SHARED}
        self._taken |= {h.name for h in rule.hypers}

    def take(self, rule: Rule, prefix: str) -> _Level:
        """``rule`` with names of its own for all that it has."""
        mine = [*(h.name for h in rule.hypers), *rule.flags, *(s.name for s in rule.state), *rule.scalars]
        names = {}
        for own in mine:
            if own in SHARED:
                continue
            name, again = own, 1
            while name in self._taken:
                name, again = f"{prefix}_{own}" + (f"_{again}" if again > 1 else ""), again + 1
            self._taken.add(name)
            names[own] = name
        return _Level(rule, names)

    def place(self, part: Part, behind: bool) -> _Level:
        found = part.at(behind)
        if found is None:
            right = "in front of" if behind else "behind"
            does = "acts on grads" if behind else "acts on what the rule has made"
            raise RuleError(f"'{part.name}' must be {right} the rule in a chain: it {does}")
        return self.take(found, part.name)


def _hypers(
    rule: Rule, levels: Iterable[_Level], lr: Schedule | float | None
) -> tuple[tuple[Hyper, ...], frozenset[str], dict[str, str]]:
    """The hyperparameters of a chain, which of them are optional, and what those need."""
    hypers = list(rule.hypers)
    if isinstance(lr, Schedule):
        hypers = [h for h in hypers if h.name != "lr"]
    elif lr is not None:
        hypers = [dataclasses.replace(h, default=h.check(lr)) if h.name == "lr" else h for h in hypers]
    counted = False
    for level in levels:
        for hyper in level.rule.hypers:
            if hyper.name in level.names:
                hypers.append(dataclasses.replace(hyper, name=level.names[hyper.name]))
            elif hyper.name == "step":
                counted = True
            elif hyper.name == "lr" and not any(h.name == "lr" for h in rule.hypers):
                raise RuleError(f"'{level.rule.name}' must be given a rule with a learning rate (got '{rule.name}')")
    optional, needs = rule.optional, dict(rule.needs)
    if counted:
        hypers = [h for h in hypers if h.name != "step"] + [Hyper("step", "step")]
        optional -= {"step"}
        needs.pop("step", None)
    return tuple(hypers), optional, needs


def _compose(rule: Rule, levels: list[_Level], scheduled: _Level | None) -> Any:
    """The function of a chain."""
    inputs = 1 + len(rule.inputs)
    slots = [len(rule.state), *(len(level.rule.state) for level in levels)]
    own = {*rule.flags, *rule.scalars, *(h.name for h in rule.hypers)} - set(SHARED)
    shares = [n for n in SHARED if any(h.name == n for h in rule.hypers)]

    def function(*tensors: Any, **given: Any) -> tuple[Any, ...]:
        others, states, at = tensors[2:inputs], [], inputs
        for count in slots:
            states.append(tensors[at : at + count])
            at += count
        numbers = [tuple(given[n] for n in rule.scalars)]
        numbers += [tuple(given[level.names[n]] for n in level.rule.scalars) for level in levels]

        def at_step(step: Any) -> dict[str, Any]:
            shared = {"step": step, "lr": given.get("lr")}
            if scheduled is not None:
                shared["lr"] = scheduled.rule.function(**scheduled.keywords(given, shared))
            return shared

        def run(depth: int, w: Any, g: Any, shared: dict[str, Any]) -> New:
            if depth == 0:
                keywords = {n: v for n, v in given.items() if n in own}
                keywords |= {n: shared[n] for n in shares if shared[n] is not None}
                results = rule.function(w, g, *others, *states[0], **keywords)
                results = results if isinstance(results, tuple) else (results,)
                return New(results[0], *_split(results[1:], len(rule.scalars)))
            level = levels[depth - 1]

            def inner(w: Any, g: Any, step: Any) -> New:
                return run(depth - 1, w, g, shared if step is None else at_step(step))

            old = New(
                tensors[0],
                tuple(t for each in states[:depth] for t in each if t is not None),
                tuple(n for each in numbers[:depth] for n in each),
            )
            made = level.rule.function(Update(inner, old), w, g, *states[depth], **level.keywords(given, shared))
            new, *mine = made if isinstance(made, tuple) else (made,)
            if not isinstance(new, New):
                raise RuleError(f"'{level.rule.name}' must return what its update did, then its own state")
            state, scalars = _split(tuple(mine), len(level.rule.scalars))
            return New(new.w, (*new.tensors, *state), (*new.scalars, *scalars))

        new = run(len(levels), tensors[0], tensors[1], at_step(given.get("step")))
        return new.w, *new.tensors, *new.scalars

    return function


def _split(values: tuple[Any, ...], last: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return values[: len(values) - last], values[len(values) - last :]


def parse_chain(text: str, find: Callable[[str], Rule]) -> Rule:
    """The chain that ``clip_by_global_norm + adamw + ema`` describes, without numbers.

    Args:
        text: names of parts and of a rule, with plus signs between. ``lr=warmup_cosine`` among them is the schedule;
            ``lr=piecewise(100:0.5, 200:0.1)`` has the numbers of updates and the factors after them.
        find: gives the rule of a name.

    Raises:
        RuleError, UnknownRuleError: as :func:`chain`.
        HyperparameterError: if there is no such schedule.
    """
    from optgen.rules import around

    parts: list[Any] = []
    lr = None
    for term in (each.strip() for each in text.split("+")):
        name, equals, value = (each.strip() for each in term.partition("="))
        if equals:
            if lr is not None:
                raise HyperparameterError(f"'lr' must be given once (got {text!r})")
            kind, bracket, rest = value.partition("(")
            if name == "lr" and kind.strip() == "piecewise":
                lr = around.schedule.piecewise(boundaries=_boundaries(term, bracket + rest))
                continue
            if name != "lr" or value not in around.SCHEDULES:
                raise HyperparameterError(
                    f"'{term}' must be lr=SCHEDULE, one of {', '.join(around.SCHEDULES)}, piecewise(100:0.5, ...); "
                    "give numbers with --set"
                )
            lr = around.SCHEDULES[value]()
        elif name in around.PARTS:
            parts.append(around.PARTS[name])
        else:
            try:
                parts.append(find(term))
            except UnknownRuleError as error:
                raise UnknownRuleError(f"{error}; the parts of a chain are {', '.join(around.PARTS)}") from None
    return chain(*parts, lr=lr)


def _boundaries(term: str, text: str) -> dict[float, float]:
    """Boundaries and factors from ``(100:0.5, 200:0.1)``."""
    pairs = [each.partition(":") for each in text.strip()[1:-1].split(",")]
    try:
        if not (text.startswith("(") and text.endswith(")")):
            raise ValueError
        boundaries = {float(boundary): float(factor) for boundary, _, factor in pairs}
    except ValueError:
        raise HyperparameterError(
            f"'{term}' must be lr=piecewise(UPDATES:FACTOR, ...), as in lr=piecewise(100:0.5, 200:0.1)"
        ) from None
    if len(boundaries) < len(pairs):
        raise HyperparameterError(f"'{term}' must have each number of updates once")
    return boundaries
