"""Interpreting what JAX traced in float64: the reference that steps, functions and transformations are held to.

The program stays the one that was traced: integers, truth values and random bits are what they are, and only floats
are wider. Tracing anew with JAX's 64-bit numbers would be another program, with other random bits and other dtypes.
Usual operations are numpy's, all others JAX's own, called one by one (:mod:`optgen.probes.primitives`). Nothing is
compiled as a whole, which would take longer than it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from optgen.probes import primitives
from optgen.probes.noise import Noise, floats


def interpret(closed: Any, arguments: Sequence[Any], noise: Noise) -> list[Any]:
    """The results of a closed jaxpr.

    Args:
        closed: of ``jax.jit(...).trace(...).jaxpr``.
        arguments: floats of any type as float64, others as they are.
        noise: what rounding does.
    """
    consts = [widened(c) for c in closed.consts]
    with np.errstate(all="ignore"):
        return _run(closed.jaxpr, consts, list(arguments), noise)


def widened(value: Any) -> Any:
    """A constant or argument as the interpreter has it: floats as float64, keys of random numbers as JAX's."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and str(dtype).startswith("key<"):
        return value
    array = np.asarray(value)
    return array.astype(np.float64) if floats(array.dtype) else array


def _run(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], noise: Noise) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    last = _last_uses(jaxpr)

    def read(var: Any) -> Any:
        return _literal(var) if hasattr(var, "val") else values[var]

    for number, equation in enumerate(jaxpr.eqns):
        given = [read(var) for var in equation.invars]
        for var, value in zip(equation.outvars, _results(equation, given, noise), strict=True):
            values[var] = value
        for var in last.get(number, ()):  # what is not needed any more would fill the memory
            values.pop(var, None)
    return [read(var) for var in jaxpr.outvars]


def _literal(var: Any) -> np.ndarray:
    array = np.asarray(var.val)
    return array.astype(np.float64) if floats(var.aval.dtype) else array.astype(var.aval.dtype)


@lru_cache(256)
def _last_uses(jaxpr: Any) -> dict[int, list[Any]]:
    last: dict[Any, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        for var in (*equation.invars, *equation.outvars):
            if not hasattr(var, "val"):
                last[var] = number
    for var in jaxpr.outvars:
        if not hasattr(var, "val"):
            last.pop(var, None)
    found: dict[int, list[Any]] = {}
    for var, number in last.items():
        found.setdefault(number, []).append(var)
    return found


def _call(inner: Any, arguments: Sequence[Any], noise: Noise) -> list[Any]:
    if hasattr(inner, "jaxpr"):
        return _run(inner.jaxpr, [widened(c) for c in inner.consts], arguments, noise)
    return _run(inner, [], arguments, noise)


def _results(equation: Any, given: list[Any], noise: Noise) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(params, given, noise)
    if name == "while":
        return _while(params, given, noise)
    if name == "cond":
        branches = params["branches"]
        index = min(max(int(given[0]), 0), len(branches) - 1)
        return _call(branches[index], given[1:], noise)
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = params.get(key)
        if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
            if name in primitives.WITH_COMPUTATION:
                break
            return _call(inner, given, noise)
    return primitives.evaluate(equation, given, noise)


def _scan(params: Any, given: list[Any], noise: Noise) -> list[Any]:
    consts, carries = params["num_consts"], params["num_carry"]
    fixed, carry, columns = given[:consts], given[consts : consts + carries], given[consts + carries :]
    length = params["length"]
    order = range(length - 1, -1, -1) if params["reverse"] else range(length)
    rows: list[list[Any]] = []
    for index in order:
        found = _call(params["jaxpr"], [*fixed, *carry, *(column[index] for column in columns)], noise)
        carry = found[:carries]
        rows.append(found[carries:])
    if params["reverse"]:
        rows.reverse()
    if not rows:
        shapes = [v.aval for v in params["jaxpr"].jaxpr.outvars[carries:]]
        return [*carry, *(np.zeros((0, *a.shape), np.float64 if floats(a.dtype) else a.dtype) for a in shapes)]
    return [*carry, *(primitives.stacked(column) for column in zip(*rows, strict=True))]


def _while(params: Any, given: list[Any], noise: Noise) -> list[Any]:
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    test, body, carry = given[:of_test], given[of_test : of_test + of_body], given[of_test + of_body :]
    while bool(_call(params["cond_jaxpr"], [*test, *carry], noise)[0]):
        carry = _call(params["body_jaxpr"], [*body, *carry], noise)
    return carry
