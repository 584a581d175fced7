"""An update rule as C: a function that updates one leaf of any length."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping

from optgen.dsl.rule import Rule
from optgen.dsl.variant import KernelSpec
from optgen.errors import LoweringError
from optgen.formula import formula, summary
from optgen.hyper import LOG_OF_ZERO, Hyper, Scalar
from optgen.native.abi import check_object
from optgen.native.bundle import CBundle, assemble
from optgen.native.c import ELEMENTS, SIZES, wrapped, write_body
from optgen.native.c_ops import TYPES
from optgen.native.c_selftest import Piece, Proof
from optgen.native.library import Library
from optgen.native.limits import Test, range_of
from optgen.native.names import c_name, member_name
from optgen.native.program import ScalarArgument, TensorArgument, TensorResult
from optgen.native.rule_selftest import LENGTH
from optgen.native.selftest import SelfTest
from optgen.native.target import NativeTarget


def write_rule(
    spec: KernelSpec,
    library: Library,
    target: NativeTarget,
    name: str,
    values: Mapping[str, float] | None = None,
    selftest: SelfTest | None = None,
) -> CBundle:
    """Writes the C that drives a compiled leaf function.

    Args:
        spec: rule, structure and dtypes that it was compiled from.
        library: its code.
        target: that it is for.
        name: what every symbol begins with; that of the module, too.
        values: hyperparameters that become the defaults.
        selftest: its self-test; without one none is written.

    Raises:
        LoweringError: if the host program is not that of such a function.
    """
    variant, program, checked = spec.variant, library.program, check_object(library)
    operands = spec.operands
    names = [c_name(o.name) for o in operands]
    _check_signature(spec, library)
    scalars = [
        (re.sub(r"\W", "_", f"s_{s.name.removeprefix('h_')}", flags=re.ASCII), argument)
        for s, argument in zip(spec.scalars, program.arguments[len(operands) :], strict=True)
    ]
    numbers = [r for r in program.results if not isinstance(r, TensorResult)]
    body = write_body(
        program,
        [export.name for export in checked.exports],
        dict(enumerate(names)),
        {argument.name: text for text, argument in scalars},
        "length",
        numbers,
    )
    state = [c_name(s) for s in spec.returned]
    body.lines.insert(0, "const int64_t length = (int64_t)n;")
    body.lines[:0] = [f"(void){text};" for text, _ in scalars if text not in body.scalars]
    body.lines += [f"*{s} = (double){number};" for s, number in zip(state, body.returned, strict=True)]
    hypers = [h for h in variant.hypers if h.kind != "step" and h.name not in variant.per_element]
    step = next((h for h in variant.hypers if h.kind == "step"), None)
    pointers = [
        {"name": n, "declaration": f"{'const ' if o.role == 'input' else ''}{ELEMENTS[o.dtype]} *{n}", "doc": doc}
        for n, o, doc in zip(names, operands, _documents(spec), strict=True)
    ]
    declarations = [p["declaration"] for p in pointers]
    numeric = [f"double *{s}" for s in state]
    rest = ["void *workspace", "size_t workspace_bytes"] if program.workspace else []
    compute = {"f32": "float", "f64": "double"}[spec.dtypes.compute]
    shown = _defaults(hypers, values or {})
    proof = None if selftest is None else _proof(spec, selftest, name, target, bool(program.workspace))
    return assemble(
        name, target, library, checked, body, proof,
        title=f"{variant.name}: {summary(variant.rule)}",
        rule=variant.rule,
        about=_about(variant.rule),
        hypers=[
            {"name": member_name(h.name), "default": shown[h.name], "doc": _range(h, shown[h.name])} for h in hypers
        ],
        call=[
            *(f"{n}[i]" for n in names), "sizes[i]", *(["step"] if step else []), *(["&hypers"] if hypers else []),
            *(f"&next_{s}" for s in state), *(["workspace", "sizeof workspace"] if rest else []), "NULL",
        ],
        missing=any(shown[h.name] == "NAN" for h in hypers),
        state=[{"name": s, "first": repr(v)} for s, v in zip(state, variant.rule.scalars.values(), strict=True)],
        step=step is not None,
        first_step=0 if step is not None and step.closed else 1,
        pointers=pointers,
        width=max(len(x) for x in (*names, *state, "workspace")),
        signature=wrapped(f"int {name}_update(", [
            *declarations, "size_t n", *(["uint64_t step"] if step else []),
            *([f"const {name}_hypers *hypers"] if hypers else []), *numeric, *rest, "const optgen_threads *threads",
        ]),
        run_signature=wrapped("static int run(", [
            *declarations, "size_t n", *(f"{compute} {text}" for text, _ in scalars), *numeric, *rest[:1],
            "const library *lib", "const optgen_threads *threads",
        ]),
        run_call=wrapped("    return run(", [
            *names, "n", *(f"({compute}){_part(s, spec)}" for s in spec.scalars), *state,
            *(["workspace"] if rest else []), "lib", "threads",
        ]).strip() + ";",
        tests=[
            *(Test(range_of(h, "value", f"hypers->{member_name(h.name)}"), "HYPER") for h in hypers),
            *(Test(f"isfinite(*{s})", "STATE") for s in state),
        ],
        needed=[*(["hypers"] if hypers else []), *state],
        logs=any(s.part == "log" for s in spec.scalars),
        log_of_zero=repr(LOG_OF_ZERO),
        largest=max(SIZES[o.dtype] for o in operands),
        types=TYPES,
        dtypes=spec.dtypes,
        spans=[
            *({"name": n, "bytes": f"n * {SIZES[o.dtype]}", "alignment": SIZES[o.dtype],
               "written": int(o.role != "input")}
              for n, o in zip(names, operands, strict=True)),
            *({"name": s, "bytes": "sizeof(double)", "alignment": "sizeof(double)", "written": 1} for s in state),
            *([{"name": "workspace", "bytes": f"{name.upper()}_WORKSPACE_BYTES", "written": 1,
                "alignment": f"{name.upper()}_WORKSPACE_ALIGNMENT"}] if rest else []),
        ],
    )  # fmt: skip


def _proof(spec: KernelSpec, test: SelfTest, name: str, target: NativeTarget, workspace: bool) -> Proof:
    """How the self-test calls the function."""
    at = {label: i for i, label in enumerate(test.results)}
    pieces = [
        Piece(c_name(o.name), o.dtype, LENGTH, test.sources[o.name], at.get(o.name, -1)) for o in spec.operands
    ] + [Piece(c_name(n), "f64", 1, test.sources[n], at[n]) for n in spec.returned]
    calls = test.probe.info.calls
    given = [f"{{{c_name(o.name)}}}" for o in spec.operands] + [str(LENGTH)]
    prepare: list[str] = []
    numbers: list[list[float]] = []
    hypers = [h for h in spec.variant.hypers if h.name not in spec.variant.per_element]
    for hyper in sorted(hypers, key=lambda h: h.kind != "step"):
        if hyper.kind == "step":
            steps = [int(c.hypers[hyper.name]) for c in calls]
            prepare.append(f"static const uint16_t steps[CALLS] = {{{', '.join(map(str, steps))}}};")
            given.append("steps[call]")
            continue
        prepare.append(f"hypers.{member_name(hyper.name)} = number({len(numbers)});")
        numbers.append([c.hypers[hyper.name] for c in calls])
    if numbers:
        prepare.insert(int("steps" in prepare[0]), f"{name}_hypers hypers;")
        given.append("&hypers")
    given += [f"{{{c_name(n)}}}" for n in spec.returned]
    given += ["workspace", f"{name.upper()}_WORKSPACE_BYTES"] if workspace else []
    call = wrapped("        ", [*given, "threads"])
    return Proof(test, pieces, f"{name}_update(\n{call}", f"{name}_update", prepare, numbers)


def _check_signature(spec: KernelSpec, library: Library) -> None:
    """That the host program takes and gives what :func:`emit_leaf` says."""
    program, operands = library.program, spec.operands
    tensors, numbers = program.arguments[: len(operands)], program.arguments[len(operands) :]
    dtypes = {"f16": "i16"}
    good = len(numbers) == len(spec.scalars)
    for argument, operand in zip(tensors, operands, strict=False):
        good &= isinstance(argument, TensorArgument) and argument.shape == (None,)
        good &= isinstance(argument, TensorArgument) and argument.dtype == dtypes.get(operand.dtype, operand.dtype)
    good &= all(isinstance(n, ScalarArgument) and n.type == spec.dtypes.compute for n in numbers)
    if not good:
        shown = ", ".join(str(a) for a in program.arguments)
        raise LoweringError(
            f"the host program must take {len(operands)} leaves and {len(spec.scalars)} numbers ({shown})"
        )
    written = [i for i, o in enumerate(operands) if o.role != "input"]
    leaves = [r for r in program.results if isinstance(r, TensorResult)]
    places = [(r.argument, r.place.start, r.place.offset) for r in leaves]
    if places != [(i, 0, None) for i in written] or len(program.results) != len(leaves) + len(spec.returned):
        raise LoweringError(
            f"the host program must return {', '.join(operands[i].name for i in written)} in place, and "
            f"{len(spec.returned)} numbers (it returns {program.results})"
        )


def _documents(spec: KernelSpec) -> list[str]:
    slots = {slot.name: slot for slot in spec.variant.slots}
    found = []
    for o in spec.operands:
        bits = " as its bits" if o.dtype in ("f16", "bf16") else ""
        access = "read" if o.role == "input" else "read and written"
        if o.name in slots and o.role == "state":
            first = slots[o.name].init
            start = first if isinstance(first, str) and first != "param" else "the param" if first == "param" else first
            start = f"{start:g}" if isinstance(start, float) else start
            role = f"state, which begins as {start}"
        else:
            role = "param" if o.role == "param" else "hyperparameter" if o.name in spec.variant.per_element else "grad"
        found.append(f"{o.dtype}[n]{bits}: {role}; {access}")
    return found


def _about(rule: Rule) -> list[str]:
    lines: list[str] = []
    for text in formula(rule):
        lines += [f"    {line}" for line in text.split(";  ")]
    lines += ["", *textwrap.wrap(f"Source: {rule.source}", 110)] if rule.source else []
    lines = [line.replace("*/", "* /").replace("/*", "/ *").rstrip("\\") for line in lines]
    return [*(f"   {line}" if line else "" for line in lines), ""]


def _defaults(hypers: Iterable[Hyper], values: Mapping[str, float]) -> dict[str, str]:
    found = {}
    for h in hypers:
        value = values.get(h.name, h.default)
        found[h.name] = "NAN" if value is None else repr(float(value))
    return found


def _range(hyper: Hyper, default: str) -> str:
    if hyper.kind == "decay":
        text = f"decay rate in [0, 1{']' if hyper.closed else ')'}"
    else:
        text = "any number" if hyper.signed else "at least 0"
    return f"{text}; {'must be set' if default == 'NAN' else f'default {default}'}"


def _part(scalar: Scalar, spec: KernelSpec) -> str:
    """A scalar argument, in double: as the Python runtime computes it."""
    if scalar.hyper in spec.returned:
        return f"*{c_name(scalar.hyper)}"
    kinds = {h.name: h.kind for h in spec.variant.hypers}
    value = "step" if kinds[scalar.hyper] == "step" else f"hypers->{member_name(scalar.hyper)}"
    if scalar.part == "value":
        return value
    if scalar.part == "complement":
        return f"(1.0 - {value})"
    if scalar.part == "log":
        return f"log_of({value})"
    raise LoweringError(f"'{scalar.hyper}' is for rounding at random, which a function for one leaf cannot do")
