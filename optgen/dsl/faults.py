"""What is wrong with a rule, said in terms of the rule: which line, and what to write instead."""

from __future__ import annotations

import dis
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, TracebackType
from typing import Any

from optgen.errors import RuleError

#: Whose frames are never the line that the author of a rule has to change.
_LIBRARIES = ("jax", "jaxlib", "numpy")
_LONGEST = 240

_KEPT = (
    "rule '{name}' must not use a value that was kept from an earlier call{line}: its function runs when it is traced, "
    "not at each step. Make it state, which the function takes and returns"
)


class UntraceableError(RuleError):
    """The rule's function raised, and perhaps would not on a leaf of another shape."""


def where_defined(function: Callable[..., Any]) -> str:
    """`` (my_rules.py, line 12)``: the line of the decorator, or of ``def`` where there is none."""
    code = _code(function)
    return "" if code is None else _place(code.co_filename, code.co_firstlineno)


def where_returned(function: Callable[..., Any], tensors: Sequence[Any], keywords: Mapping[str, Any]) -> str:
    """The line of the ``return`` that these arguments lead to. Runs the function again, on traced values."""
    code = _code(function)
    if code is None:
        return ""
    lines = [code.co_firstlineno]

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is code:
            lines.append(frame.f_lineno)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        function(*tensors, **keywords)
    finally:
        sys.setprofile(before)
    return _place(code.co_filename, lines[-1])


def check_side_effects(name: str, function: Callable[..., Any]) -> None:
    """Refuses a function that assigns to names outside of it.

    Raises:
        RuleError: naming the line of the first such assignment.
    """
    code = _code(function)
    if code is None or not any(dis.opmap[op] in code.co_code[::2] for op in ("STORE_GLOBAL", "STORE_DEREF")):
        return
    line = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = (instruction.positions.lineno if instruction.positions else None) or line
        outside = instruction.opname == "STORE_DEREF" and instruction.argval in code.co_freevars
        if instruction.opname == "STORE_GLOBAL" or outside:
            raise RuleError(
                f"rule '{name}' must not assign to '{instruction.argval}', which is outside of it"
                f"{_place(code.co_filename, line)}: its function runs when it is traced, not at each step. Make it "
                f'state, which the function takes and returns: @rule(state=("{instruction.argval}",))'
            )


def check_trace(name: str, traced: Any, arguments: int) -> None:
    """Refuses a trace with side effects, as of ``jax.debug.print``, or with values of an earlier trace.

    Raises:
        RuleError: naming the line.
    """
    import jax

    jaxpr = traced.jaxpr.jaxpr
    for equation in jaxpr.eqns if jaxpr.effects else ():
        if equation.effects:
            raise RuleError(
                f"rule '{name}' must not have side effects{_line_of(equation)}: a compiled module cannot call back "
                f"(got the JAX operation '{equation.primitive.name}')"
            )
    # JAX takes a value of an earlier trace for a constant, and traced constants for arguments before all others.
    more = jaxpr.invars[: len(jaxpr.invars) - arguments]
    constants = [*zip(jaxpr.constvars, traced.jaxpr.consts, strict=True), *zip(more, _hoisted(traced), strict=False)]
    kept = {id(variable) for variable, value in constants if isinstance(value, jax.core.Tracer)}
    if kept or more:
        using = [e for e in jaxpr.eqns if any(id(v) in kept for v in e.invars)]
        raise RuleError(_KEPT.format(name=name, line=_line_of(using[0]) if using else ""))


def explain(name: str, function: Callable[..., Any], error: Exception) -> RuleError:
    """What to raise where the rule's function raised ``error``; an :class:`UntraceableError` where the shape that it
    was traced on may be the cause."""
    import jax

    known = jax.errors
    line = _line(function, error.__traceback__)
    text = _first_line(error)
    if isinstance(error, known.TracerBoolConversionError):
        return RuleError(
            f"rule '{name}' must not decide by a traced value{line}: 'if', 'while', 'and', 'or' and 'not' are run "
            "once, when it is traced. Write where(condition, x, y), of optgen.dsl, and & | ~; or make it structure: a "
            "keyword parameter with a bool"
        )
    if isinstance(error, known.TracerArrayConversionError):
        return RuleError(
            f"rule '{name}' must not give a traced value to numpy{line}: it has no elements yet. Use the functions of "
            "optgen.dsl, or those of jax.numpy"
        )
    if isinstance(error, known.UnexpectedTracerError):
        return RuleError(_KEPT.format(name=name, line=line))
    if isinstance(error, known.NonConcreteBooleanIndexError):
        return RuleError(
            f"rule '{name}' must not select elements by a condition{line}: how many there are is not known. Write "
            "where(condition, x, y), of optgen.dsl"
        )
    if isinstance(error, known.ConcretizationTypeError | known.TracerIntegerConversionError):
        return RuleError(
            f"rule '{name}' must not make a Python number of a traced value{line}, as float(), int(), range(), .item() "
            "and the functions of math do: it is not known yet. Use the functions of optgen.dsl, or those of jax.numpy"
        )
    if isinstance(error, TypeError) and "immutable" in text:
        return RuleError(
            f"rule '{name}' must not assign to elements of a tensor{line}. Write where(condition, x, y), of optgen.dsl"
        )
    if "__jax_array__" in text:
        return RuleError(
            f"rule '{name}' must not give a decay rate to jax.numpy{line}. Use the functions of optgen.dsl, or give it "
            "1 * the rate"
        )
    message = f"rule '{name}' raised {type(error).__name__}{line}: {text}"
    if isinstance(error, NameError):
        message += f". State and hyperparameters must be parameters of its function (it has {_names(function)})"
    elif isinstance(error, AttributeError) and getattr(error.obj, "__name__", "") in ("optgen.dsl", "optgen.dsl.ops"):
        from optgen.dsl import ops

        functions = [
            n for n, value in vars(ops).items() if getattr(value, "__module__", "") == ops.__name__ and n[0] != "_"
        ]
        message += f" (it has {', '.join(functions)}; those of jax.numpy work, too)"
    return UntraceableError(message) if isinstance(error, TypeError | ValueError | IndexError) else RuleError(message)


def without_jax_notes(error: Exception) -> None:
    """Takes away what JAX adds to exceptions that pass through it: how to see more of JAX's own frames."""
    notes = getattr(error, "__notes__", None)
    if notes:
        notes[:] = [note for note in notes if "JAX_TRACEBACK_FILTERING" not in note]


def _code(function: Callable[..., Any]) -> CodeType | None:
    return getattr(inspect.unwrap(function), "__code__", None)


def _hoisted(traced: Any) -> Sequence[Any]:
    return getattr(traced, "_consts", ())


def _line_of(equation: Any) -> str:
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback else ():
        if not re.search(r"[\\/](jax|jaxlib|optgen[\\/]dsl)[\\/]", frame.file_name):
            return _place(frame.file_name, frame.line_num)
    return ""


def _names(function: Callable[..., Any]) -> str:
    return ", ".join(inspect.signature(function).parameters)


def _place(path: str, line: int) -> str:
    file = re.split(r"[\\/]", path)[-1]
    return f" ({file}, line {line})"


def _line(function: Callable[..., Any], traceback: TracebackType | None) -> str:
    """The innermost line outside of libraries; no less than the function itself."""
    found, code = where_defined(function), _code(function)
    while traceback is not None:
        frame = traceback.tb_frame
        module = frame.f_globals.get("__name__", "")
        root = module.partition(".")[0]
        library = root in _LIBRARIES or (root in sys.stdlib_module_names and root != "builtins")
        if frame.f_code is code or not (library or module.startswith("optgen.dsl.")):
            found = _place(frame.f_code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def _first_line(error: Exception) -> str:
    """JAX's messages go on for pages."""
    text = (str(error).splitlines() or [""])[0].rstrip(". ")
    text = re.sub(r"'?\b(?:DynamicJaxpr|Jit|Jaxpr)\w*Tracer\b'?", "a traced value", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
