"""``optgen.compile``: from a rule and a tree to an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from optgen.artifact import LeafInfo
from optgen.compiler.build import Progress, build_bundle
from optgen.compiler.transform import compile_transformation
from optgen.dsl.rule import Rule
from optgen.dsl.variant import SEED, Variant, has_eight_bits
from optgen.errors import HyperparameterError, LeafError
from optgen.interop.optax import Transformation, is_transformation
from optgen.probes.check import check_bundle
from optgen.rules import get_rule
from optgen.runtime.groups import check_matches
from optgen.runtime.loading import split_settings
from optgen.runtime.memory import as_leaf
from optgen.runtime.optimizer import Optimizer
from optgen.runtime.transform import TreeOptimizer
from optgen.runtime.tree import leaves_of
from optgen.targets import get_target


@overload
def compile(rule: str | Rule, like: Any = None, **settings: Any) -> Optimizer: ...
@overload
def compile(rule: Transformation, like: Any, **settings: Any) -> TreeOptimizer: ...
def compile(
    rule: Any,
    like: Any = None,
    *,
    target: str | Sequence[str] = "cpu",
    device: str | None = None,
    convention: str | None = None,
    dtypes: Iterable[Any] | None = None,
    grad_dtype: Any = None,
    state_dtype: Any = None,
    compute_dtype: Any = None,
    rounding: str = "nearest",
    master: bool = False,
    bake: Mapping[str, float] | Iterable[str] = (),
    per_element: Iterable[str] = (),
    groups: Mapping[str, Mapping[str, float]] | None = None,
    fixed_layout: bool = False,
    progress: Progress | None = None,
    use_cache: bool = True,
    check: bool = True,
    **settings: Any,
) -> Optimizer | TreeOptimizer:
    """Compiles an update rule, or an optax transformation.

    Args:
        rule: a name (see ``optgen.rules``), a :class:`Rule` of your own, or an optax ``GradientTransformation``: then
            ``like`` is the tree that it is for, ``grad_dtype`` may be given, and of the settings ``name`` (what to call
            it), ``extra_args`` (examples of further arguments of its update, by name), ``grads_like`` (the grads'
            tree where it is not like the params') and ``in_place=False``.
        like: a tree of arrays; one kernel is compiled for each dtype in it, and its layout is kept in the manifest.
        target: one or more of ``optgen.targets``, by default this machine's processor.
        device: what the returned optimizer runs on; see :class:`Optimizer`.
        convention: whose arithmetic, where libraries differ; see the rules.
        dtypes: dtypes of params to compile for, instead of those in ``like``; f32 if neither is given.
        grad_dtype: of the grads; by default that of each param.
        state_dtype: of the state; by default f32, and f64 for f64 params. As a mapping, of some state tensors by name:
            ``{"m": "bf16"}``. ``f8m`` and ``f8v`` are floats of 8 bits, with and without a sign, held as uint8; ``f8``
            is those for tensors that are called m and v. See docs/low_precision.md.
        compute_dtype: of the arithmetic; by default f64 for f32 and f64 params, so that results are rounded once, and
            f32 for 16-bit params, and where state has 16 bits or less. f32 is faster where memory is not what the
            update waits for.
        rounding: ``stochastic`` rounds what is bf16 up or down at random, right on average, by the hyperparameter
            ``seed``, the step and the element's place in the tree. 8-bit state always is.
        master: keep f32 weights in the state, as ``master``, which 16-bit params are rounded from.
        bake: hyperparameters to fold into the kernel: names (with the value from ``settings`` or the rule's
            default), or a mapping to values.
        per_element: hyperparameters that are to be tensors of each leaf's shape.
        groups: hyperparameters for the leaves whose paths match a pattern, kept in the bundle:
            ``{"*.bias": {"weight_decay": 0.0}, "head.*": {"lr": 1e-2}}``, or ``lr_scale`` for a factor. They take the
            place of what a step is given; of two patterns that match, the first counts.
        fixed_layout: refuse to update trees of any other layout than that of ``like``.
        progress: called as ``progress(kernel, target, None)`` before and ``(kernel, target, bytes)`` after each
            module.
        use_cache: whether compiled modules may come from the cache.
        check: whether to run the probes of each module on every device here that it can run on. The bundle carries its
            probes in any case: ``optgen verify`` runs them anywhere.
        settings: structure (``nesterov=True``), and hyperparameters, which become the bundle's defaults.

    Returns:
        An :class:`Optimizer`, or for a transformation a :class:`optgen.runtime.TreeOptimizer`; it can be saved, and
        runs where one of its targets does.

    Raises:
        UnknownRuleError, UnknownTargetError, HyperparameterError: for a name or value that does not exist.
        UnsupportedTargetError: if a target lacks a dtype.
        RuleError, LoweringError: if the rule is malformed, or cannot be lowered without ``like``.
        LeafError: if a leaf of ``like`` is no array of a supported dtype.
        WrongResultError: if a module gives wrong results here, or others each time.
        CompilerNotFoundError: if JAX or the compiler is not installed.

    Example:
        >>> import optgen
        >>> opt = optgen.compile("adamw", target="cpu", weight_decay=0.1)
        >>> opt.manifest.kernels[0].modules[0].in_place
        True
    """
    targets = [get_target(name) for name in ([target] if isinstance(target, str) else target)]
    if is_transformation(rule):
        given = {
            "convention": convention, "dtypes": dtypes, "state_dtype": state_dtype, "compute_dtype": compute_dtype,
            "bake": bake or None, "per_element": per_element or None, "groups": groups,
            "rounding": None if rounding == "nearest" else rounding, "master": master or None,
            "fixed_layout": fixed_layout or None,
        }  # fmt: skip
        wrong = [name for name, value in given.items() if value is not None]
        wrong += [name for name in settings if name not in ("name", "extra_args", "grads_like", "in_place")]
        if wrong:
            raise HyperparameterError(f"'{wrong[0]}' must not be given with an optax transformation: give it to optax")
        return compile_transformation(
            rule, like, targets, device=device, grad_dtype=grad_dtype, progress=progress, use_cache=use_cache,
            check=check, **settings,
        )  # fmt: skip
    found = get_rule(rule, convention)
    structure, values = split_settings(found.flags, found.optional, settings)
    baked = baked_values(found, bake, values)
    variant = Variant.of(
        found, structure=structure, bake=baked, per_element=per_element,
        rounding=rounding, eight_bits=has_eight_bits(state_dtype), master=master,
    )  # fmt: skip
    for name in values:
        if name != SEED or not variant.seeded:
            found.hyper(name)
    layout = None
    if like is not None:
        leaves = [as_leaf(value, path, "like") for path, value in leaves_of(like).items()]
        if not leaves:
            raise LeafError("'like' must have at least one array")
        layout = [LeafInfo(leaf.path, tuple(leaf.array.shape), leaf.dtype) for leaf in leaves]
    elif fixed_layout:
        raise LeafError("'fixed_layout' needs 'like', the layout to fix")
    params = list(dtypes) if dtypes is not None else [leaf.dtype for leaf in layout or ()] or ["f32"]
    chosen = [variant.dtypes(param, grad_dtype, state_dtype, compute_dtype) for param in params]
    if variant.seeded and not any(variant.kernel(each).random for each in chosen):
        raise HyperparameterError("'rounding' must be 'nearest' where neither params nor state are bf16 or of 8 bits")
    if layout is not None and groups:
        check_matches(groups, [leaf.path for leaf in layout])
    bundle = build_bundle(
        variant,
        chosen,
        targets,
        layout=layout,
        fixed_layout=fixed_layout,
        defaults={name: value for name, value in values.items() if name not in baked},
        groups=groups,
        progress=progress,
        use_cache=use_cache,
    )
    made = Optimizer(bundle, device)
    made.check_given(name for name in values if name not in baked and name not in bundle.manifest.init.values())
    if check:
        check_bundle(bundle)
    return made


def baked_values(rule: Rule, bake: Mapping[str, float] | Iterable[str], values: Mapping[str, Any]) -> dict[str, float]:
    """The hyperparameters to fold in: a mapping as it is, of names the given value or the rule's default.

    Raises:
        HyperparameterError: for one that has neither, or does not exist.
    """
    if isinstance(bake, Mapping):
        return dict(bake)
    baked = {}
    for name in bake:
        value = values.get(name, rule.hyper(name).default)
        if value is None:
            raise HyperparameterError(f"'{name}' must have a value to be baked in: it has no default, so give one")
        baked[name] = value
    return baked
