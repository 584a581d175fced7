"""Whole steps without a runtime: C and WebAssembly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

from optgen.errors import HazardError
from optgen.interop.optax import is_transformation
from optgen.native import CBundle, NativeTarget, Package, compile_c_function, get_native_target, step_package
from optgen.native.limits import Limit
from optgen.native.selftest import SelfTest
from optgen.probes.attach import unproven
from optgen.train.program import StepProgram, lower_step
from optgen.train.selftest import step_selftest
from optgen.train.settings import plan_step

_T = TypeVar("_T")


def compile_step_c(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    optimizer: Any,
    target: str,
    *,
    name: str,
    entry: str = "step",
    use_cache: bool = True,
    check: bool = True,
    **settings: Any,
) -> CBundle:
    """A whole training step as C without a runtime: :func:`optgen.train.compile_step` for a microcontroller.

    The function ``NAME`` takes a struct with a pointer for each leaf of ``params`` and ``state`` (updated there), of
    ``batch``, ``rng``, ``lr`` and ``loss``, in row-major order, and a workspace. It allocates nothing and keeps
    nothing from call to call.

    Args:
        loss_fn, params, batch, optimizer: as for :func:`optgen.train.compile_step`.
        target: a processor; see ``optgen.native.NATIVE_TARGETS``.
        name: what every symbol begins with.
        entry: ``step``; ``micro`` where grads are accumulated; ``evaluate`` where there is an ``eval_fn``.
        use_cache: whether compiled code may come from the cache.
        check: whether the self-test is run, where this machine can run the code and has a C compiler; ``proven`` of
            the result says so.
        settings: as for :func:`optgen.train.compile_step`. Unless ``bake`` says otherwise, all hyperparameters that
            have a value are baked in, but ``lr``. ``compute_dtype`` is by default f32 on processors that have f64 in
            software only.

    Returns:
        The files; :meth:`CBundle.save` writes them.

    Raises:
        LoweringError: for a loop whose number of rounds is not known beforehand, or is more than 64, and whatever else
            is not understood.
        CompileError: if the compiler refuses the module.
        WrongResultError: if its code is wrong on this machine.
        UnknownTargetError, HyperparameterError, LeafError...: as :func:`optgen.train.compile_step`.
    """
    chosen = get_native_target(target)

    def build(program: StepProgram) -> CBundle:
        return compile_c_function(
            program.mlir, target, name=name, arguments=[a.name for a in program.arguments],
            results=[r.path for r in program.results], summary=_summary(program),
            limits=_limits(program), selftest=_selftest(program, {}), use_cache=use_cache, sources=program.sources,
        )  # fmt: skip

    bundle = _build(loss_fn, params, batch, optimizer, chosen, entry, settings, build)
    return bundle.prove() if check else bundle


def compile_step_wasm(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    optimizer: Any,
    target: str = "wasm",
    *,
    name: str,
    entry: str = "step",
    use_cache: bool = True,
    check: bool = True,
    **settings: Any,
) -> Package:
    """A whole training step as an npm package: :func:`optgen.train.compile_step` for browsers and Node.js.

    Leaves are called by their paths, with underscores for slashes: ``step.run({batch_x, batch_y, lr})`` updates
    ``params_w`` and ``state_m_w`` in the module's memory and returns ``{loss}``.

    Args:
        loss_fn, params, batch, optimizer, entry, use_cache, settings: as for :func:`compile_step_c`.
        target: ``wasm``, ``wasm:scalar`` or ``wasm:threads``.
        name: of the package.
        check: whether the self-test is run, where there is a Node.js; ``proven`` of the result says so.

    Returns:
        The files; ``write`` writes them.

    Raises:
        As :func:`compile_step_c`.
    """
    chosen = get_native_target(target)

    def build(program: StepProgram) -> Package:
        names = {
            n: n.replace("/", "_") for n in [a.name for a in program.arguments] + [r.path for r in program.results]
        }
        return step_package(
            program.mlir, chosen, name=name, arguments=[names[a.name] for a in program.arguments],
            results=[names[r.path] for r in program.results], title=_summary(program),
            limits={names[n]: limit for n, limit in _limits(program).items()}, selftest=_selftest(program, names),
            use_cache=use_cache, sources=program.sources,
        )  # fmt: skip

    package = _build(loss_fn, params, batch, optimizer, chosen, entry, settings, build)
    return package.prove() if check else package


def _build(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    optimizer: Any,
    target: NativeTarget,
    entry: str,
    settings: dict[str, Any],
    build: Callable[[StepProgram], _T],
) -> _T:
    """What ``build`` makes of the program in which nothing is overwritten that is still read."""
    if not is_transformation(optimizer):
        settings = {"compute_dtype": target.compute, **settings}
    if "bake" not in settings and not is_transformation(optimizer):
        hypers = plan_step(loss_fn, params, batch, optimizer, **settings).update.hypers
        settings["bake"] = [h.name for h in hypers if h.default is not None and h.kind != "step" and h.name != "lr"]
    apart: tuple[str, ...] = ()
    while True:
        program = lower_step(loss_fn, params, batch, optimizer, entry=entry, apart=apart, fuse=True, **settings)
        try:
            return build(program)
        except HazardError as error:
            # Such results get memory of their own and are copied in the end; where not even that helps, all do.
            found = tuple(_names(program, error.arguments))
            if not set(found) - set(apart):
                raise
            apart = tuple(dict.fromkeys((*apart, *found)))


#: The last self-test, which is the same for all targets of one arithmetic, by what it depends on.
_known: dict[tuple[Any, ...], SelfTest] = {}


def _selftest(program: StepProgram, names: Mapping[str, str]) -> SelfTest | None:
    """The self-test of a program whose arguments and results have other names where ``names`` says so.

    None, and a warning, where the reference cannot be evaluated.
    """
    own = [a.name for a in program.arguments] + [r.path for r in program.results]
    plan = program.plan
    told = repr((plan.arguments, plan.update.hypers, plan.update.scalars, plan.groups, plan.fills))
    key = (program.mlir, program.entry, program.compute, told, tuple(names.items()))
    try:
        if key not in _known or plan.update.stored:
            _known.clear()
            renamed = {n: names.get(n, n) for n in own}
            _known[key] = step_selftest(plan, program.compute, program.entry, renamed)
        return _known[key]
    except Exception as error:  # whatever JAX or numpy has against one of the user's operations
        unproven(f"'{program.name}' has no self-test", error, stacklevel=7)
        return None


def _limits(program: StepProgram) -> dict[str, Limit]:
    """What the numbers among the arguments must be, and what state begins with, by argument."""
    kinds: dict[str, Literal["hyper", "count", "scalar", "state"]] = {
        "hyper": "hyper", "count": "count", "scalar": "scalar", "state": "state"
    }  # fmt: skip
    return {a.name: Limit(kinds[a.role], a.number, a.hyper, a.part) for a in program.arguments if a.role in kinds}


def _names(program: StepProgram, positions: Iterable[int]) -> Iterable[str]:
    for position in positions:
        if position < 0:
            yield from (a.name for a in program.arguments if a.aliased)
        else:
            yield program.arguments[position].name


def _summary(program: StepProgram) -> str:
    what = {"step": "one step of training", "micro": "one step that adds up grads", "evaluate": "an evaluation"}
    return f"{what.get(program.entry, program.entry)} of {program.name}; the update computes in {program.compute}"
