"""``optgen.compile_c``: from a rule to a folder of C."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optgen.dsl.rule import Rule
from optgen.dsl.variant import Variant, has_eight_bits
from optgen.errors import LoweringError
from optgen.lower import lower
from optgen.lower.leaf import emit_leaf
from optgen.native.bundle import CBundle, c_target
from optgen.native.c import SIZES
from optgen.native.c_rule import write_rule
from optgen.native.library import compile_library
from optgen.native.names import c_name, check_prefix
from optgen.native.rule_selftest import rule_selftest
from optgen.rules import get_rule


def compile_c(
    rule: str | Rule,
    target: str,
    *,
    name: str | None = None,
    convention: str | None = None,
    dtype: Any = "f32",
    grad_dtype: Any = None,
    state_dtype: Any = None,
    compute_dtype: Any = None,
    master: bool = False,
    bake: Mapping[str, float] | Iterable[str] = (),
    per_element: Iterable[str] = (),
    use_cache: bool = True,
    check: bool = True,
    **settings: Any,
) -> CBundle:
    """Compiles an update rule to C without a runtime: an object file, the source that drives it, and a README.

    The function ``NAME_update`` updates one leaf, of any length, in place. It allocates nothing, keeps no state, and
    needs nothing but C's mathematical library.

    Args:
        rule: a name (see ``optgen.rules``), or a :class:`Rule`.
        target: a processor; see ``optgen.native.NATIVE_TARGETS``.
        name: what every symbol begins with; by default the rule's name, with its dtype where that is not f32.
        convention: whose arithmetic, where libraries differ.
        dtype: of the params.
        grad_dtype, state_dtype, master: as :func:`optgen.compile` has them.
        compute_dtype: of the arithmetic; by default as :func:`optgen.compile` has it, and f32 on processors that have
            f64 in software only.
        bake: hyperparameters to fold in: names, or a mapping to values.
        per_element: hyperparameters that are to be tensors of the leaf's shape.
        use_cache: whether compiled code may come from the cache.
        check: whether the self-test is run, where this machine can run the code and has a C compiler; ``proven`` of
            the result says so.
        settings: structure (``nesterov=True``), and hyperparameters, which become the defaults.

    Returns:
        The files; :meth:`CBundle.save` writes them.

    Raises:
        UnknownRuleError, UnknownTargetError, HyperparameterError: for a name or value that does not exist.
        LoweringError: if the rule relates elements to one another, reduces the whole tree or rounds at random, or if
            the compiler's host code is not understood.
        CompileError: if the compiler refuses the module.
        WrongResultError: if its code is wrong on this machine.
        CompilerNotFoundError: if JAX or the compiler is not installed.
    """
    from optgen.compiler.api import baked_values
    from optgen.runtime.loading import split_settings

    chosen = c_target(target)
    found = get_rule(rule, convention)
    structure, values = split_settings(found.flags, found.optional, settings)
    baked = baked_values(found, bake, values)
    for key, value in values.items():
        found.hyper(key).check(value)
    variant = Variant.of(
        found, structure=structure, bake=baked, master=master, per_element=per_element,
        eight_bits=has_eight_bits(state_dtype),
    )  # fmt: skip
    usual = variant.dtypes(dtype, grad_dtype, state_dtype)
    if compute_dtype is None and usual.compute == "f64" and "f64" not in (usual.param, usual.grad, usual.state):
        compute_dtype = chosen.compute
    dtypes = variant.dtypes(dtype, grad_dtype, state_dtype, compute_dtype)
    default = variant.dtypes(dtype, grad_dtype, state_dtype).name
    usual_name = c_name(variant.name + ("" if default == "f32" else f"_{default}"))
    prefix = check_prefix(usual_name if name is None else name)
    try:
        kernel = lower(variant.kernel(dtypes))[0]
    except LoweringError as error:
        reason = str(error).partition(". Give the leaves' shapes")[0]
        raise LoweringError(
            f"{reason}. A function for one leaf has no other form: compile the whole training step instead"
        ) from error
    assert kernel.graph is not None
    assert kernel.plan is not None
    mlir = emit_leaf(kernel.spec, *kernel.expanded(), name=prefix, halves=chosen.halves)
    alignment = min(SIZES[o.dtype] for o in kernel.spec.operands)
    library = compile_library(mlir, chosen.flags, alignment=alignment, use_cache=use_cache)
    bundle = write_rule(kernel.spec, library, chosen, prefix, values, rule_selftest(kernel))
    return bundle.prove() if check else bundle
