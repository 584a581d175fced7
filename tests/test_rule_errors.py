"""Rules that are wrong: the error is optgen's, names the line, and says what to write instead."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optgen
from optgen import dsl
from optgen.dsl import rule, sqrt, where
from optgen.errors import HyperparameterError, LoweringError, OptgenError, RuleError

KEPT: list[Any] = []
last: Any = None


def undeclared_state() -> Any:
    @rule(state=("velocity",))  # here
    def bad(w: Any, g: Any, m: Any, *, lr: Any) -> Any:
        return w - lr * m, m

    return bad


def unknown_state() -> Any:
    @rule(state=("m",))
    def bad(w: Any, g: Any, m: Any, *, lr: Any) -> Any:
        return w - lr * velocity, m  # type: ignore[name-defined] # noqa: F821 # here

    return bad


def forgets_its_state() -> Any:
    @rule(state={"m": "momentum"})
    def bad(w: Any, g: Any, m: Any = None, *, lr: Any, momentum: Any = None, twice: bool = False) -> Any:
        if momentum is None:
            return w - lr * g, g  # here
        return w - lr * m, m

    return bad


def returns_nothing() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        w - lr * g  # here

    return bad


def returns_a_list() -> Any:
    @rule(state=("m",))
    def bad(w: Any, g: Any, m: Any, *, lr: Any) -> Any:
        return [w - lr * m, m]  # here

    return bad


def returns_a_text() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        return "{w}"  # here

    return bad


def shrinks() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        w = w - lr * g
        return w[:1]  # here

    return bad


def sums() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        return (w - lr * g).sum()  # here

    return bad


def scalar_of_a_leaf() -> Any:
    @rule(scalars={"total": 0.0})
    def bad(w: Any, g: Any, *, lr: Any, total: Any) -> Any:
        return w - lr * g, total + g  # here

    return bad


def assigns_to_a_global() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        global last
        last = g  # here
        return w - lr * g

    return bad


def assigns_to_an_outer_variable() -> Any:
    count = 0

    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        nonlocal count
        count += 1  # here
        return w - lr * g

    return bad


def keeps() -> Any:
    KEPT.clear()

    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        KEPT.append(g)
        return w - lr * KEPT[0]  # here

    return bad


def keeps_a_number() -> Any:
    KEPT.clear()

    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        KEPT.append(lr)
        return w - g * np.arange(3.0).sum() * KEPT[0]  # here

    return bad


def calls_back() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        jax.debug.print("{}", g)  # here
        return w - lr * g

    return bad


def reverses() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        return w - lr * g[::-1]  # here

    return bad


def accumulates() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        g = jnp.cumsum(g)
        return w - lr * g  # here

    return bad


def accumulates_an_axis() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        g = jnp.cumsum(g, axis=0)  # here
        return w - lr * g

    return bad


def decides() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        if lr > 0.5:  # here
            return w
        return w - lr * g

    return bad


def decides_by_a_rate() -> Any:
    @rule(decays=("beta",))
    def bad(w: Any, g: Any, *, lr: Any, beta: Any = 0.9) -> Any:
        if beta == 0.9:  # here
            return w
        return w - lr * g

    return bad


def decides_in_a_helper() -> Any:
    def clipped(x: Any) -> Any:
        return max(x, -1.0)  # here

    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        return w - lr * clipped(g.sum())

    return bad


def uses_numpy() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        return w - lr * np.sqrt(g)  # here

    return bad


def uses_numpy_on_a_rate() -> Any:
    @rule(decays=("beta",))
    def bad(w: Any, g: Any, *, lr: Any, beta: Any = 0.9) -> Any:
        return w - lr * np.asarray(beta) * g  # here

    return bad


def uses_math() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any, step: Any) -> Any:
        return w - lr / math.sqrt(step) * g  # here

    return bad


def gives_a_rate_to_jax() -> Any:
    @rule(decays=("beta",))
    def bad(w: Any, g: Any, *, lr: Any, beta: Any = 0.9) -> Any:
        return w - lr * jnp.sqrt(beta) * g  # here

    return bad


def selects() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        return w - lr * g[g > 0].sum()  # here

    return bad


def assigns_to_an_element() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        g[0] = 0  # here
        return w - lr * g

    return bad


def unknown_function() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        return w - lr * dsl.softsign(g)  # type: ignore[attr-defined] # here

    return bad


def unknown_operation() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        return w - lr * jax.lax.reduce_precision(g, 5, 2)  # here

    return bad


def wrong_types() -> Any:
    @rule(state={"m": "momentum"})
    def bad(w: Any, g: Any, m: Any = None, *, lr: Any, momentum: Any = None) -> Any:
        return w - lr * (g + m)  # here

    return bad


def divides_by_zero() -> Any:
    @rule()
    def bad(w: Any, g: Any, *, lr: Any) -> Any:
        return w - lr * g * (1 / 0)  # here

    return bad


WRONG: list[tuple[Callable[[], Any], type[OptgenError], str]] = [
    (undeclared_state, RuleError, r"must take its param, its grad and then its state \('velocity',\)"),
    (unknown_state, RuleError, r"name 'velocity' is not defined. .* must be parameters .* \(it has w, g, m, lr\)"),
    (forgets_its_state, RuleError, r"must return 1 tensor, the new w .*\(got 2\)"),
    (returns_nothing, RuleError, r"must return 1 tensor, the new w .*\(got None\)"),
    (returns_a_list, RuleError, r"must return 2 tensors, the new w, m .*\(got a list: write a tuple\)"),
    (returns_a_text, RuleError, r"result 'w' of rule 'bad' must be a tensor .*\(got '\{w\}'\)"),
    (shrinks, RuleError, r"result 'w' of rule 'bad' must have its leaf's shape \(7,\) .*\(got \(1,\)\)"),
    (sums, RuleError, r"result 'w' of rule 'bad' must have its leaf's shape \(7,\) .*\(got \(\)\)"),
    (scalar_of_a_leaf, RuleError, r"scalar 'total' of rule 'bad' must be computed from scalars alone"),
    (assigns_to_a_global, RuleError, r"must not assign to 'last', which is outside .*Make it state"),
    (assigns_to_an_outer_variable, RuleError, r"must not assign to 'count', which is outside .*Make it state"),
    (keeps, RuleError, r"must not use a value that was kept from an earlier call.*Make it state"),
    (keeps_a_number, RuleError, r"must not use a value that was kept from an earlier call.*Make it state"),
    (calls_back, RuleError, r"must not have side effects.*got the JAX operation 'debug_"),
    (reverses, LoweringError, r"cannot run in place .*'reverse' is not elementwise.*like=params"),
    (accumulates, LoweringError, r"cannot run in place .*Incompatible shapes.*like=params"),
    (accumulates_an_axis, LoweringError, r"cannot run in place .*like=params"),
    (decides, RuleError, r"must not decide by a traced value.*Write where\(condition, x, y\)"),
    (decides_by_a_rate, RuleError, r"must not decide by a traced value.*Write where\(condition, x, y\)"),
    (decides_in_a_helper, RuleError, r"must not decide by a traced value.*Write where\(condition, x, y\)"),
    (uses_numpy, RuleError, r"must not give a traced value to numpy.*Use the functions of optgen\.dsl"),
    (uses_numpy_on_a_rate, RuleError, r"must not give a traced value to numpy.*Use the functions of optgen\.dsl"),
    (uses_math, RuleError, r"must not make a Python number of a traced value.*Use the functions of optgen\.dsl"),
    (gives_a_rate_to_jax, RuleError, r"must not give a decay rate to jax\.numpy.*Use the functions of optgen\.dsl"),
    (selects, RuleError, r"must not select elements by a condition.*Write where"),
    (assigns_to_an_element, RuleError, r"must not assign to elements of a tensor.*Write where"),
    (unknown_function, RuleError, r"no attribute 'softsign' \(it has .*sqrt, where.*; those of jax\.numpy work, too\)"),
    (unknown_operation, LoweringError, r"'reduce_precision' is not elementwise, or not known to be"),
    (wrong_types, RuleError, r"raised TypeError.*: unsupported operand"),
    (divides_by_zero, RuleError, r"raised ZeroDivisionError.*: division by zero"),
]


def here(make: Callable[[], Any]) -> int:
    lines, first = inspect.getsourcelines(make)
    return first + next(i for i, line in enumerate(lines) if line.endswith("# here\n"))


@pytest.mark.parametrize(("make", "kind", "words"), WRONG, ids=[make.__name__ for make, _, _ in WRONG])
def test_wrong_rules(make: Callable[[], Any], kind: type[OptgenError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        optgen.compile(make())
    message = str(caught.value)
    assert re.findall(r"\(test_rule_errors\.py, line (\d+)\)", message) == [str(here(make))], message
    assert "\n" not in message
    assert "Tracer" not in message
    assert len(message) < 450


def test_what_has_no_effect_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    """Printing, and lists that nobody reads: for looking at a rule while one writes it."""
    seen: list[Any] = []

    @rule(decays=("beta",))
    def fine(w: Any, g: Any, *, lr: Any, beta: Any = 0.25) -> Any:
        u = where(beta > 0.5, -g, g) * sqrt(beta)
        seen.append(u)
        print("traced", u)
        w -= lr * u  # a new tensor of the same name
        return w

    opt = optgen.compile(fine)
    assert len(seen) >= 2
    assert "traced" in capsys.readouterr().out
    for beta, expected in ((0.25, 0.75), (0.81, 1.45)):
        w = np.ones(3, np.float32)
        opt.step(w, np.ones(3, np.float32), opt.init(w), lr=0.5, beta=beta)
        np.testing.assert_allclose(w, expected, rtol=1e-6)


def test_with_shapes_the_line_is_named_too() -> None:
    like = np.ones((4, 4), np.float32)
    with pytest.raises(RuleError, match=rf"test_rule_errors\.py, line {here(wrong_types)}\): unsupported operand"):
        optgen.compile(wrong_types(), like)

    @rule()
    def narrow(w: Any, g: Any, *, lr: Any) -> Any:
        return w - lr * (g @ np.ones((3, 3)))

    with pytest.raises(RuleError, match=r"rule 'narrow' raised \w+ \(test_rule_errors\.py, line \d+\): .*same shape"):
        optgen.compile(narrow, like)
    assert not optgen.compile(reverses(), like).manifest.kernels[0].in_place


def test_errors_on_purpose_pass_through() -> None:
    @rule()
    def strict(w: Any, g: Any, *, lr: Any, a: bool = False) -> Any:
        raise HyperparameterError("'a' must not be")

    with pytest.raises(HyperparameterError, match=r"^'a' must not be$"):
        optgen.compile(strict)


def test_the_command_line_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from optgen.cli import main

    file = tmp_path / "my_rules.py"
    for text, line, words in (
        ("import optgen\n\n\n@optgen.rule()\ndef bad(w, g, *, lr):\n    if lr > 0:\n        return w\n", 6,
         "must not decide by a traced value"),
        ("import optgen\n\n1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("from optgen.dsl import softsign\n", 1, "ImportError: cannot import name 'softsign'"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(SystemExit) as caught:
            main(["compile", f"{file}:bad", "-o", str(tmp_path / "bad.optgen")])
        assert caught.value.code == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert words in error
        assert f"(my_rules.py, line {line})" in error
