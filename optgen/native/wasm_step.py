"""Whole programs of fixed shapes, training steps above all, as packages for JavaScript."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from optgen.compiler.blame import Sources
from optgen.errors import LoweringError
from optgen.native.js_selftest import describe
from optgen.native.library import compile_library
from optgen.native.limits import Limit
from optgen.native.package import ARRAYS, Field, Interface, Package, check_name, make_package, record
from optgen.native.program import Copy, Literal, Number, Place, Program, TensorArgument, TensorResult
from optgen.native.selftest import SelfTest
from optgen.native.target import NativeTarget

#: What the workspace's pieces are aligned to as well: the package places all arguments itself.
_ALIGNMENT = 64


def step_package(
    mlir: str,
    target: NativeTarget,
    *,
    name: str,
    arguments: Sequence[str],
    results: Sequence[str],
    title: str = "",
    limits: Mapping[str, Limit] | None = None,
    selftest: SelfTest | None = None,
    flags: Sequence[str] = (),
    use_cache: bool = True,
    sources: Sources = (),
) -> Package:
    """Compiles a module with one public function of fixed shapes to a package.

    A result that is called like an argument becomes that argument for the next call. Where the module says that it
    aliases it (JAX's ``donate_argnums``), it is written in place. Put ``lax.optimization_barrier((loss, grads))``
    between backward pass and update, so that nothing reads the old value afterwards.

    Args:
        mlir: StableHLO, as ``jax.jit(f, donate_argnums=...).lower(...).as_text()`` gives it.
        target: one of WebAssembly.
        name: of the package.
        arguments: a name for each of the function's arguments.
        results: a name for each of its results.
        title: one line on it.
        limits: what numbers among the arguments must be, and what state begins with, by name.
        selftest: calls, and what must come of them; without it the package has no self-test.
        flags: for iree-compile, beside the target's.
        use_cache: whether the compiled library may come from the cache.
        sources: where its functions come from, so that refusals name lines; see :mod:`optgen.compiler.blame`.

    Returns:
        The package.

    Raises:
        LoweringError: for shapes that are not fixed, names that do not fit, and results that lie in another
            argument's memory than the one that they are called after.
        HazardError: if the module would overwrite an argument that something still reads.
        HyperparameterError: for a name that npm forbids.
        CompileError: if the compiler refuses the module.
    """
    check_name(name)
    library = compile_library(
        mlir,
        (*target.flags, *flags),
        alignment=_ALIGNMENT,
        names=arguments,
        halves=target.bits == 64,
        use_cache=use_cache,
        sources=sources,
    )
    program = _settle(library.program, arguments, results)
    library = dataclasses.replace(library, program=program)
    taken: list[dict[str, Any]] = []
    for each in program.arguments:
        tensor = isinstance(each, TensorArgument)
        taken.append({
            "name": each.name,
            "dtype": each.dtype if isinstance(each, TensorArgument) else each.type,
            "shape": list(each.shape) if isinstance(each, TensorArgument) else None,
            "written": tensor and each.name in results,
            **({} if (limit := (limits or {}).get(each.name)) is None or limit.zeros else {"limit": limit.to_json()}),
        })  # fmt: skip
    given: list[dict[str, Any]] = []
    for label, result in zip(results, program.results, strict=True):
        tensor = isinstance(result, TensorResult)
        given.append({
            "name": label,
            "dtype": result.dtype if isinstance(result, TensorResult) else result.type,
            "shape": [_fixed(n) for n in result.shape] if isinstance(result, TensorResult) else None,
            "argument": label if label in arguments else None,
        })  # fmt: skip
    signature = {"name": name, "arguments": taken, "results": given}
    test = None
    if selftest is not None:
        sizes = [(a["name"], a["dtype"], prod(a["shape"])) for a in taken]
        test = describe(selftest, sizes, {r["name"]: r["argument"] for r in given if r["argument"]}, {})
    returned = [each for each in given if each["argument"] is None]
    return make_package(
        name, library, target, kind="Step", about="signature", signature=signature, title=title or name,
        interfaces=_interfaces(taken, returned),
        readme={"taken": taken, "returned": returned, "arrays": ARRAYS}, selftest=test,
    )  # fmt: skip


def _settle(program: Program, arguments: Sequence[str], results: Sequence[str]) -> Program:
    """The program with what is called like an argument in that argument's memory when it has run."""
    if len(arguments) != len(program.arguments) or len(results) != len(program.results):
        raise LoweringError(
            f"the program has {len(program.arguments)} arguments and {len(program.results)} results "
            f"(names were given for {len(arguments)} and {len(results)})"
        )
    for names in (arguments, results):
        if len(set(names)) != len(names):
            raise LoweringError("arguments must have different names, and so must results")
    for argument in program.arguments:
        if isinstance(argument, TensorArgument) and None in argument.shape:
            raise LoweringError(f"argument '{argument.name}' must have a fixed shape")
    statements, settled = list(program.statements), list(program.results)
    for index, (name, result) in enumerate(zip(results, program.results, strict=True)):
        if not isinstance(result, TensorResult):
            continue
        wanted = list(arguments).index(name) if name in arguments else None
        if result.argument is not None and result.argument != wanted:
            raise LoweringError(
                f"result '{name}' lies in the memory of argument '{arguments[result.argument]}': do not donate that, "
                "or call both the same"
            )
        if wanted is None or result.argument == wanted:
            continue
        argument = program.arguments[wanted]
        shape = tuple(_fixed(n) for n in result.shape)
        if not isinstance(argument, TensorArgument) or (argument.dtype, argument.shape) != (result.dtype, shape):
            raise LoweringError(f"result '{name}' must have the dtype and shape of the argument that is called so")
        place = Place("argument", wanted)
        statements.append(Copy(result.place, place, result.length))
        settled[index] = dataclasses.replace(result, place=place)
    return dataclasses.replace(program, statements=tuple(statements), results=tuple(settled))


def _fixed(number: Number) -> int:
    if not isinstance(number, Literal):
        raise LoweringError("results must have fixed shapes")
    return int(number.value)


def _interfaces(taken: Sequence[dict[str, Any]], returned: Sequence[dict[str, Any]]) -> list[Interface]:
    arrays = [Field.of(a["name"], ARRAYS[a["dtype"]]) for a in taken if a["shape"] is not None]
    values, results = [], []
    for each in taken:
        number = "bigint" if each["dtype"] in ("i64", "u64") else "number"
        kind = number if not each["shape"] else ARRAYS[each["dtype"]]
        kind = f"{number} | {ARRAYS[each['dtype']]}" if each["shape"] == [] else kind
        values.append(Field.of(each["name"], kind, _described(each)))
    for each in returned:
        number = "bigint" if each["dtype"] in ("i64", "u64") else "number"
        results.append(Field.of(each["name"], ARRAYS[each["dtype"]] if each["shape"] else number, _described(each)))
    return [
        Interface("Values", "What `set` and `run` take, all of it optional.", tuple(values)),
        Interface("Results", "What `run` returns.", tuple(results)),
        record("StepArrays", "The arguments in the module's memory.", arrays),
        Interface("Types", "This program's types.", (
            Field("arrays", "StepArrays"), Field("values", "Values"), Field("results", "Results"),
        )),
    ]  # fmt: skip


def _described(each: dict[str, Any]) -> str:
    shape = "x".join(map(str, each["shape"] or ()))
    words = f"{each['dtype']}, {shape}" if shape else f"{each['dtype']}"
    return f"{words}, replaced by the program." if each.get("written") else f"{words}."
