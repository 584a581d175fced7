"""Rules and the decorator that makes one from a function of mathematics.

A rule is a function ``rule(w, g, *state, *, lr, ...)`` that returns the new ``w`` and the new state in the same
order. Everything else is read off its signature and the decorator:

* positional parameters are tensors: the param ``w``, the grad ``g``, then the state in the order of ``state=``;
* keyword parameters with a number, or no default, are run-time hyperparameters;
* keyword parameters with a bool default are structure: they choose what is traced, and each value is a module
  of its own;
* a keyword parameter that defaults to None is optional: giving it a value is structure, the value itself is not;
* keyword parameters named in ``scalars=`` are scalar state: numbers that the rule returns anew after its tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optgen.dsl.faults import check_side_effects, where_defined
from optgen.errors import HyperparameterError, RuleError
from optgen.hyper import Hyper, Kind

RuleFunction = Callable[..., Any]
#: The shape of a state tensor, from its leaf's and the rule's flags.
ShapeFunction = Callable[[tuple[int, ...], Mapping[str, bool]], tuple[int, ...]]


@dataclass(frozen=True)
class StateSlot:
    """One state tensor of a rule, of its param's shape unless it says otherwise.

    Attributes:
        name: as in the rule's signature.
        needs: the optional hyperparameter, or the flag, without which this state does not exist; None for one that
            always does.
        init: what it holds before the first step: a number, the name of the hyperparameter that says which, or
            ``param`` for a copy of the param.
        shape: its shape, where that is not its param's; such rules run out of place.
    """

    name: str
    needs: str | None = None
    init: float | str = 0.0
    shape: ShapeFunction | None = None


@dataclass(frozen=True)
class Accumulation:
    """What a rule does on the steps that add to a mean of grads and update nothing else. See :func:`optgen.chain`.

    Attributes:
        rule: the update of that mean, whose param it is, by a grad; its scalar state is their number so far.
        state: the mean, among the state tensors of the whole rule.
        count: their number, among its scalar state.
        every: the hyperparameter that says which step updates.
    """

    rule: Rule
    state: str
    count: str
    every: str


@dataclass(frozen=True)
class Rule:
    """An update rule: mathematics, and what its parameters mean. Made by :func:`rule`.

    Attributes:
        name: what users call it, e.g. ``adam``.
        convention: whose arithmetic it follows where libraries differ, e.g. ``torch``.
        function: the mathematics.
        inputs: names of the tensors that are only read; the grad, as a rule.
        state: the state tensors.
        hypers: the run-time hyperparameters, optional ones included.
        flags: structural parameters and their defaults.
        optional: names in ``hypers`` that may be absent.
        source: the paper or library that defines it.
        exact: whether f32 params are computed in f64 by default.
        scalars: the scalar state, from each name to its number before the first step.
        needs: hyperparameters that exist only where an optional one is given, and which.
        accumulation: for rules that accumulate grads, what steps do that update nothing else.
        loss_scales: hyperparameters and scalar state by which the rule divides grads, since the loss has been
            multiplied by them: whole training steps do that.
    """

    name: str
    convention: str
    function: RuleFunction = field(repr=False)
    param: str
    inputs: tuple[str, ...]
    state: tuple[StateSlot, ...]
    hypers: tuple[Hyper, ...]
    flags: Mapping[str, bool]
    optional: frozenset[str]
    source: str
    exact: bool = True
    scalars: Mapping[str, float] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    accumulation: Accumulation | None = None
    loss_scales: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((self.name, self.convention, self.function))

    @property
    def doc(self) -> str:
        """The docstring of the function: formula and explanation."""
        return inspect.getdoc(self.function) or ""

    def hyper(self, name: str) -> Hyper:
        """The hyperparameter ``name``.

        Raises:
            HyperparameterError: if the rule has none of that name.
        """
        for hyper in self.hypers:
            if hyper.name == name:
                return hyper
        known = ", ".join([h.name for h in self.hypers if h.kind != "step"] + list(self.flags))
        raise HyperparameterError(f"'{self.name}' has no hyperparameter '{name}' (it has {known})")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the mathematics itself, on whatever it is given (JAX tracers, as a rule)."""
        return self.function(*args, **kwargs)


def rule(
    *,
    state: Iterable[str] | Mapping[str, str | None] = (),
    decays: Iterable[str] = (),
    signed: Iterable[str] = (),
    closed: Iterable[str] = (),
    convention: str = "torch",
    name: str | None = None,
    source: str = "",
    exact: bool = True,
    init: Mapping[str, float | str] | None = None,
    shapes: Mapping[str, ShapeFunction] | None = None,
    scalars: Mapping[str, float] | None = None,
    needs: Mapping[str, str] | None = None,
) -> Callable[[RuleFunction], Rule]:
    """Makes a :class:`Rule` from a function of mathematics.

    Args:
        state: the state tensors, in the order of the function's parameters and results. As a mapping, from each
            name to the optional hyperparameter or flag that it exists for, or None.
        decays: hyperparameters that are decay rates in [0, 1). In the function, ``1 - beta`` and
            ``1 - beta**step`` are then exact.
        signed: hyperparameters that may be negative. All others must be at least 0.
        closed: decay rates for which 1 is allowed, or ``step``, for which 0 then is.
        convention: whose arithmetic this is where libraries differ.
        name: the rule's name; the function's by default.
        source: paper or library, for the docs and the manifest.
        exact: whether f32 params are computed in f64 by default; False for rules whose published numbers have the
            rounding of f32 arithmetic in them.
        init: what state tensors hold before the first step, where not zero: a number, the name of a hyperparameter,
            or ``"param"`` for a copy of the param.
        shapes: for state tensors of another shape than their param's, a function from the leaf's shape and the rule's
            flags to it (Adafactor's factors). Each dimension must be at least 1 where the leaf's are. Such a rule runs
            out of place.
        scalars: scalar state, as a mapping from keyword parameters to their numbers before the first step. The
            function returns their new values after its tensors, computed from scalars alone.
        needs: parameters that default to None and are there exactly where another one is given: SGD needs ``step``
            for its dampening alone.

    Returns:
        A decorator that returns the rule.

    Raises:
        RuleError: where the function's signature and these arguments do not fit together.

    Example:
        >>> @rule(state=("m",), decays=("beta",))
        ... def ema_sgd(w, g, m, *, lr, beta=0.9):
        ...     m = beta * m + (1 - beta) * g
        ...     return w - lr * m, m
        >>> [h.name for h in ema_sgd.hypers]
        ['lr', 'beta']
    """
    first, numbers = dict(init or {}), {key: float(value) for key, value in (scalars or {}).items()}
    shapes = dict(shapes or {})
    slots = tuple(
        StateSlot(
            key,
            needs,
            first[key] if isinstance(first.get(key), str) else float(first.get(key, 0.0)),
            shapes.get(key),
        )
        for key, needs in (state if isinstance(state, Mapping) else dict.fromkeys(state)).items()
    )
    decays, signed, closed = frozenset(decays), frozenset(signed), frozenset(closed)

    def decorate(function: RuleFunction) -> Rule:
        label, line = name or function.__name__, where_defined(function)
        check_side_effects(label, function)
        positional, hypers, flags, optional = [], [], {}, set()
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise RuleError(f"rule '{label}' must name its parameters{line} (got *{parameter.name})")
            if parameter.kind != parameter.KEYWORD_ONLY:
                positional.append(parameter.name)
            elif parameter.name in numbers:
                continue
            elif isinstance(parameter.default, bool):
                flags[parameter.name] = parameter.default
            else:
                default = None if parameter.default is parameter.empty else parameter.default
                if parameter.default is None:
                    optional.add(parameter.name)
                kind: Kind = "step" if parameter.name == "step" else "decay" if parameter.name in decays else "scalar"
                if default is not None and not isinstance(default, int | float):
                    raise RuleError(
                        f"'{parameter.name}' of rule '{label}' must have a number, a bool or None as its default"
                        f"{line} (got {default!r})"
                    )
                hypers.append(
                    Hyper(
                        parameter.name,
                        kind,
                        default if default is None else float(default),
                        parameter.name in signed,
                        parameter.name in closed,
                    )
                )
        names = {h.name for h in hypers}
        keywords = set(inspect.signature(function).parameters) - set(positional)
        if unknown := sorted(set(numbers) - keywords):
            raise RuleError(f"'scalars' of rule '{label}' must name its keyword parameters{line} (got {unknown[0]!r})")
        if unknown := sorted(set(first) - {slot.name for slot in slots}):
            raise RuleError(f"'init' of rule '{label}' must name its state tensors{line} (got {unknown[0]!r})")
        if unknown := sorted(set(shapes) - {slot.name for slot in slots}):
            raise RuleError(f"'shapes' of rule '{label}' must name its state tensors{line} (got {unknown[0]!r})")
        if both := [slot.name for slot in slots if slot.shape is not None and slot.init == "param"]:
            raise RuleError(f"state '{both[0]}' of rule '{label}' must have its param's shape to be its copy{line}")
        for slot in slots:
            if isinstance(slot.init, str) and slot.init != "param" and slot.init not in names - {"step"}:
                raise RuleError(
                    f"'init' of state '{slot.name}' of rule '{label}' must be a number, 'param' or one of its "
                    f"hyperparameters{line} (got {slot.init!r})"
                )
        for given, what in ((decays, "decays"), (signed, "signed"), (closed, "closed")):
            if unknown := sorted(given - names):
                raise RuleError(
                    f"'{what}' of rule '{label}' must name its keyword parameters{line} (got {unknown[0]!r})"
                )
        state_names = [slot.name for slot in slots]
        if positional[len(positional) - len(state_names) :] != state_names or len(positional) <= len(state_names):
            raise RuleError(
                f"rule '{label}' must take its param, its grad and then its state {tuple(state_names)}{line} "
                f"(its positional parameters are {tuple(positional)})"
            )
        for each, other in (needs or {}).items():
            if not {each, other} <= optional:
                raise RuleError(
                    f"'needs' of rule '{label}' must name parameters that default to None{line} (got {each!r})"
                )
        for slot in slots:
            if slot.needs is not None and slot.needs not in optional and slot.needs not in flags:
                raise RuleError(
                    f"state '{slot.name}' of rule '{label}' must depend on a parameter that defaults to None or a bool"
                    f"{line} (got {slot.needs!r})"
                )
        tensors = positional[: len(positional) - len(state_names)]
        return Rule(
            name=label,
            convention=convention,
            function=function,
            param=tensors[0],
            inputs=tuple(tensors[1:]),
            state=slots,
            hypers=tuple(hypers),
            flags=flags,
            optional=frozenset(optional),
            source=source,
            exact=exact,
            scalars=numbers,
            needs=dict(needs or {}),
        )

    return decorate
