"""Update rules as packages for JavaScript."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from optgen.dsl.variant import Dtypes, KernelSpec, Variant
from optgen.dtypes import SIZES
from optgen.errors import LoweringError
from optgen.hyper import Hyper
from optgen.lower import lower
from optgen.lower.emit import alignment
from optgen.lower.leaf import emit_leaf
from optgen.lower.style import module_name
from optgen.native.js_selftest import describe
from optgen.native.library import compile_library
from optgen.native.package import ARRAYS, Field, Interface, Package, check_name, make_package, record
from optgen.native.rule_selftest import LENGTH, rule_selftest
from optgen.native.target import NativeTarget

_RANGES = {"decay": "in [0, 1)", "step": "a whole number of at least 1", "scalar": "at least 0"}
_CLOSED = {"decay": "in [0, 1]", "step": "a whole number of at least 0", "scalar": "at least 0"}


def update_package(
    variant: Variant,
    dtypes: Dtypes,
    target: NativeTarget,
    *,
    name: str | None = None,
    defaults: Mapping[str, float] | None = None,
    use_cache: bool = True,
    check: bool = True,
) -> Package:
    """Compiles a rule to a package that updates leaves, and trees of them, in place.

    Args:
        variant: the rule with its structure chosen.
        dtypes: of the one kernel.
        target: one of WebAssembly.
        name: of the package; by default the variant's, as npm allows it.
        defaults: hyperparameter values that replace the rule's own defaults.
        use_cache: whether the compiled library may come from the cache.
        check: whether the self-test is run, where there is a Node.js; ``proven`` of the result says so.

    Returns:
        The package.

    Raises:
        LoweringError: for a rule that does not run in place, or needs to see the whole tree, or accumulates grads.
        HyperparameterError: for a default that the rule forbids, or a name that npm does.
        CompileError: if the compiler refuses the module.
        WrongResultError: if its code is wrong in Node.js.
        CompilerNotFoundError: if JAX or the compiler is not installed.
    """
    rule, defaults = variant.rule, dict(defaults or {})
    if rule.accumulation is not None:
        raise LoweringError("accumulated grads need a kernel of their own, which packages for JavaScript do not have: "
                            "add grads up in the page, and step once")  # fmt: skip
    spec = variant.kernel(dtypes)
    try:
        kernel = lower(spec)[0]
    except LoweringError as error:
        what = str(error).partition(". Give the leaves' shapes")[0]
        raise LoweringError(f"{what}. A function for one leaf must: compile the whole training step instead") from error
    assert kernel.graph is not None
    assert kernel.plan is not None
    for slot in variant.slots:
        if slot.init not in (0, "param") and SIZES[dtypes.slot(slot.name)] < 4:
            raise LoweringError(f"state '{slot.name}' begins with {slot.init}, which is written as f32 or f64 alone: "
                                f"use f32 state")  # fmt: skip
    mlir = emit_leaf(spec, *kernel.expanded(), name=module_name(spec), halves=target.halves)
    names = [o.name for o in spec.operands] + [s.name.removeprefix("h_") for s in spec.scalars]
    library = compile_library(mlir, target.flags, alignment=alignment(spec), names=names, use_cache=use_cache)
    hypers = tuple(
        dataclasses.replace(h, default=h.check(defaults[h.name])) if h.name in defaults else h
        for h in variant.hypers
        if h.name not in variant.per_element
    )
    signature = {
        "name": rule.name,
        "source": rule.source,
        "operands": [{"name": o.name, "dtype": o.dtype, "written": o.role != "input"} for o in spec.operands],
        "hypers": {
            h.name: {"kind": h.kind, "default": h.default, "signed": h.signed, "closed": h.closed} for h in hypers
        },
        "scalars": dict(rule.scalars),
        "numbers": [[s.hyper, s.part] for s in spec.scalars],
        "init": {slot.name: slot.init for slot in variant.slots if slot.init != 0},
        "leafwise": kernel.plan.leafwise,
    }
    test = rule_selftest(kernel)
    given = {h.name: [c.hypers[h.name] for c in test.probe.info.calls] for h in hypers}
    given |= {name: [c.hypers[name] for c in test.probe.info.calls] for name in rule.scalars}
    operands = [(o.name, o.dtype, LENGTH) for o in spec.operands]
    selftest = describe(test, operands, {o.name: o.name for o in spec.results}, given)
    package = make_package(
        check_name(name or _name(variant.name)), library, target, kind="Update", about="rule", signature=signature,
        title=f"{variant.name}: {_first_line(rule.doc)}", interfaces=_interfaces(spec, hypers),
        readme={"operands": spec.operands, "hypers": hypers, "doc": rule.doc, "source": rule.source,
                "arrays": ARRAYS, "example": _example(spec, hypers)},
        selftest=selftest,
    )  # fmt: skip
    return package.prove() if check else package


def _name(variant: str) -> str:
    """A variant's name as npm wants it: ``adamw+ema`` is ``adamw-ema``."""
    return re.sub(r"[^a-z0-9._-]+", "-", variant.lower()).strip("._-") or "rule"


def _first_line(doc: str) -> str:
    return doc.partition("\n")[0].rstrip(".") or "an optimizer update"


def _interfaces(spec: KernelSpec, hypers: tuple[Hyper, ...]) -> list[Interface]:
    scalars = dict(spec.variant.rule.scalars)
    fields = [_field(h) for h in hypers]
    counted = [field for field, h in zip(fields, hypers, strict=True) if h.kind != "step"]
    begun = {slot.init for slot in spec.variant.slots if isinstance(slot.init, str) and slot.init != "param"}
    param, grad = (f'"{o.dtype}"' for o in spec.operands[:2])
    state = [Field.of(n, "number", f"Scalar state; {v:g} before the first step.", optional=True)
             for n, v in scalars.items()]  # fmt: skip
    return [
        Interface("Hypers", "What `update` takes.", (*fields, *state)),
        Interface("StepHypers", "What `step` takes; the optimizer counts steps and keeps scalar state.", (*counted,)),
        Interface("Initial", "What an optimizer's state begins with.",
                  tuple(_field(h) for h in hypers if h.name in begun)),
        record("Operands", "Dtypes of the arrays.", [Field.of(o.name, f'"{o.dtype}"') for o in spec.operands]),
        record("Scalars", "Scalar state.", [Field.of(n, "number") for n in scalars]),
        Interface("Types", "This rule's types.", (
            Field("param", param), Field("grad", grad), Field("operands", "Operands"), Field("hypers", "Hypers"),
            Field("step", "StepHypers"), Field("initial", "Initial"), Field("scalars", "Scalars"),
        )),
    ]  # fmt: skip


def _field(hyper: Hyper) -> Field:
    allowed = "" if hyper.signed and hyper.kind == "scalar" else (_CLOSED if hyper.closed else _RANGES)[hyper.kind]
    default = "" if hyper.default is None else f"default {hyper.default:g}"
    doc = ", ".join(part for part in (allowed, default) if part)
    doc = f"{doc[:1].upper()}{doc[1:]}." if doc else ""
    return Field.of(hyper.name, "number", doc, optional=hyper.default is not None)


def _example(spec: KernelSpec, hypers: tuple[Hyper, ...]) -> dict[str, str]:
    """What the README's lines need: numbers for a step, for an update alone, and for state to begin with."""
    needed = [h for h in hypers if h.default is None or h.name == "lr"]
    values = {h.name: "1" if h.kind == "step" else "1e-3" if h.name == "lr" else "0.5" for h in needed}
    begun = {slot.init for slot in spec.variant.slots}
    return {
        "numbers": ", ".join(f"{n}: {v}" for n, v in values.items() if n != "step"),
        "all_numbers": ", ".join(f"{n}: {v}" for n, v in values.items()),
        "initial": ", ".join(f"{n}: {v}" for n, v in values.items() if n in begun),
    }
