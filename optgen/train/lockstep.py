"""Tracing a rule over all leaves of a tree at once.

A rule is written for one leaf. Over a whole tree two things are common to the leaves: what depends on scalars alone,
which is computed once, and what :mod:`optgen.dsl.ops` reduces over the tree, for which every leaf's trace has to get as
far as its own part. So each leaf's trace is interpreted as a coroutine that hands over its part and gets the total.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optgen.dsl.ops import TREE_PREFIX
from optgen.dsl.trace import import_jax
from optgen.errors import LoweringError
from optgen.train import elementary

#: What a coroutine hands over: how to combine, and its own part.
_Partial = tuple[str, Any]
_Run = Generator[_Partial, Any, list[Any]]


@dataclass(frozen=True)
class LeafTrace:
    """A rule traced for one leaf.

    Attributes:
        jaxpr: of its function: tensors first, then scalars.
        tensors: how many of them.
        arguments: what it is called with.
    """

    jaxpr: Any
    tensors: int
    arguments: tuple[Any, ...]


def run_together(leaves: Sequence[LeafTrace]) -> list[list[Any]]:
    """The results of each leaf's trace.

    Raises:
        LoweringError: if leaves reduce the tree a different number of times.
    """
    jax = import_jax()
    scalars = _Scalars()
    known = [scalars.of(leaf) for leaf in leaves]
    scalars.compute()
    runs = [_run(leaf.jaxpr.jaxpr, _inputs(leaf) | scalars.values(k)) for leaf, k in zip(leaves, known, strict=True)]
    results: list[list[Any] | None] = [None] * len(runs)
    answers: list[Any] = [None] * len(runs)
    while any(result is None for result in results):
        partials: list[_Partial] = []
        for index, run in enumerate(runs):
            try:
                partials.append(run.send(answers[index]))
            except StopIteration as stop:
                results[index] = stop.value
        if partials and len(partials) < len(runs):
            raise LoweringError("the rule reduces the whole tree for some leaves and not for others")
        if partials:
            total = _combine(jax, partials)
            answers = [total.astype(part.dtype) for _, part in partials]
    return [result for result in results if result is not None]


def _inputs(leaf: LeafTrace) -> dict[Any, Any]:
    closed = leaf.jaxpr
    return dict(zip(closed.jaxpr.constvars, closed.consts, strict=True)) | dict(
        zip(closed.jaxpr.invars, leaf.arguments, strict=True)
    )


def _combine(jax: Any, partials: Sequence[_Partial]) -> Any:
    kind = partials[0][0]
    widest = jax.numpy.result_type(*(part.dtype for _, part in partials))
    total = partials[0][1].astype(widest)
    for _, part in partials[1:]:
        part = part.astype(widest)
        if kind == "sum":
            total = total + part
        else:
            total = (jax.numpy.maximum if kind == "max" else jax.numpy.minimum)(total, part)
    return total


def _is_call(equation: Any) -> bool:
    return equation.primitive.name in ("pjit", "jit", "closed_call", "core_call") and "jaxpr" in equation.params


def _tree_kind(equation: Any) -> str:
    """``sum``, ``max`` or ``min`` for a reduction over the tree, else ''."""
    name = str(equation.params.get("name", "")) if _is_call(equation) else ""
    return name.removeprefix(TREE_PREFIX) if name.startswith(TREE_PREFIX) else ""


def _has_tree(jaxpr: Any) -> bool:
    return any(_tree_kind(e) or (_is_call(e) and _has_tree(e.params["jaxpr"].jaxpr)) for e in jaxpr.eqns)


_OWN = ("cos", "sin", "exp", "expm1")


def _bind(equation: Any, values: Sequence[Any]) -> list[Any]:
    own = getattr(elementary, equation.primitive.name, None) if equation.primitive.name in _OWN else None
    if own is not None and equation.outvars[0].aval.dtype == "float64":
        return [own(values[0])]
    given = equation.primitive.get_bind_params(equation.params)
    functions, params = given if isinstance(given, tuple) else ((), given)  # JAX before 0.10 has both
    found = equation.primitive.bind(*functions, *values, **params)
    return list(found) if equation.primitive.multiple_results else [found]


def _reduces(equation: Any) -> bool:
    """Whether an equation makes numbers of whole leaves."""
    return all(var.aval.shape == () for var in equation.outvars) and any(
        var.aval.shape != () for var in equation.invars
    )


def _run(jaxpr: Any, known: dict[Any, Any]) -> _Run:
    """Interprets ``jaxpr``; equations whose results are known already are left out."""
    from jax.extend.core import jaxpr_as_fun

    values = dict(known)

    def read(var: Any) -> Any:
        return var.val if hasattr(var, "val") else values[var]

    for equation in jaxpr.eqns:
        if all(var in values for var in equation.outvars):
            continue
        given = [read(var) for var in equation.invars]
        if kind := _tree_kind(equation):
            inner = equation.params["jaxpr"]
            (part,) = jaxpr_as_fun(inner)(*given)
            results = [(yield kind, part)]
        elif _is_call(equation) and _has_tree(equation.params["jaxpr"].jaxpr):
            inner = equation.params["jaxpr"]
            bound = dict(zip(inner.jaxpr.constvars, inner.consts, strict=True))
            results = yield from _run(inner.jaxpr, bound | dict(zip(inner.jaxpr.invars, given, strict=True)))
        else:
            results = _bind(equation, given)
            if _reduces(equation):
                # Else the compiler may make one kernel of a norm and the update that needs it, and such a kernel
                # reads elements of the leaf after it has written others.
                results = list(import_jax().lax.optimization_barrier(results))
        values.update(zip(equation.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


class _Scalars:
    """What depends on scalars alone: computed once for all leaves, and kept from being computed again for each
    element, which compilers do with what is cheap."""

    def __init__(self) -> None:
        self._made: dict[Any, Callable[[], Any]] = {}
        self._values: dict[Any, Any] = {}
        self._numbers: dict[int, int] = {}
        self._wanted: dict[Any, None] = {}

    def of(self, leaf: LeafTrace) -> dict[Any, Any]:
        """For each variable of a leaf's trace that depends on scalars alone, a key that stands for its value."""
        jaxpr = leaf.jaxpr.jaxpr
        keys: dict[Any, Any] = {}
        for var, value in zip(jaxpr.invars[leaf.tensors :], leaf.arguments[leaf.tensors :], strict=True):
            # By number, in order of appearance: an address would make names, and the text, differ from run to run.
            keys[var] = ("input", self._numbers.setdefault(id(value), len(self._numbers)))
            self._values[keys[var]] = value

        def key(var: Any) -> Any:
            if hasattr(var, "val"):
                return ("literal", str(var.val), str(var.aval))
            return keys.get(var)

        made: dict[Any, None] = {}
        for equation in jaxpr.eqns:
            given = [key(var) for var in equation.invars]
            if None in given or not given or _tree_kind(equation) or (_is_call(equation) and _has_tree_in(equation)):
                continue
            if any(var.aval.shape != () for var in equation.outvars):
                continue
            name = (equation.primitive.name, str(equation.params), tuple(given))
            for position, var in enumerate(equation.outvars):
                keys[var] = (name, position)
                made[var] = None
            self._made.setdefault(name, self._maker(equation, given))
        used = {
            v for e in jaxpr.eqns if not all(o in keys for o in e.outvars) for v in e.invars if not hasattr(v, "val")
        }
        used |= {v for v in jaxpr.outvars if not hasattr(v, "val")}
        for var in made:
            if var in used:
                self._wanted[keys[var]] = None
        return {var: keys[var] for var in made}

    def _maker(self, equation: Any, given: Sequence[Any]) -> Callable[[], Any]:
        def make() -> list[Any]:
            values = [
                var.val if hasattr(var, "val") else self._value(key)
                for var, key in zip(equation.invars, given, strict=True)
            ]
            return _bind(equation, values)

        return make

    def _value(self, key: Any) -> Any:
        if key not in self._values:
            name, _ = key
            for position, value in enumerate(self._made[name]()):
                self._values[name, position] = value
        return self._values[key]

    def compute(self) -> None:
        """Computes what leaves need."""
        wanted = list(self._wanted)
        if wanted:
            found = import_jax().lax.optimization_barrier([self._value(key) for key in wanted])
            self._values.update(zip(wanted, found, strict=True))

    def values(self, keys: Mapping[Any, Any]) -> dict[Any, Any]:
        """The values of a leaf's variables, of those that it needs."""
        return {var: self._values[key] for var, key in keys.items() if key in self._values}


def _has_tree_in(equation: Any) -> bool:
    return _has_tree(equation.params["jaxpr"].jaxpr)
