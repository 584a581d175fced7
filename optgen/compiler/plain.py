"""Modules for callers without Python: a file for ``iree-run-module``, or for IREE's runtime in any language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optgen.compiler.build import flags_for
from optgen.compiler.plain_check import check_flags
from optgen.compiler.variants import compile_for
from optgen.dsl.trace import import_jax
from optgen.dsl.variant import Dtypes, Variant
from optgen.errors import HyperparameterError, UnsupportedTargetError
from optgen.hyper import Scalar, part
from optgen.lower import lower
from optgen.lower.plain import plain_scalars
from optgen.targets import Target


@dataclass(frozen=True)
class PlainModule:
    """A compiled rule for one leaf, whose entry point is ``update``.

    Attributes:
        data: the module.
        target: what it was compiled for.
        operands: names of the tensors that it takes, each flat and all of one length: param, grad, state.
        dtypes: their element types.
        results: names of those that it returns, new, in order; after them come the numbers in ``returned``.
        scalars: the numbers that follow the tensors, with their defaults; None where there is none.
        returned: scalar state.
        checks: files of flags, with each of which ``iree-run-module --module=FILE --flagfile=CHECK`` compares what the
            module computes with what it must; see :func:`optgen.compiler.plain_check.check_flags`.
    """

    data: bytes
    target: str
    operands: tuple[str, ...]
    dtypes: tuple[str, ...]
    results: tuple[str, ...]
    scalars: Mapping[str, float | None]
    returned: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()

    def command(self, file: str, **numbers: float) -> list[str]:
        """The command line that makes one update, each tensor in a ``.npy`` file of its name.

        Args:
            file: where the module is.
            numbers: of ``scalars``; where neither they nor a default say one, its name in capitals.
        """
        values = {**self.scalars, **numbers}
        return [
            "iree-run-module", "--device=local-sync", f"--module={file}", "--function=update",
            *(f"--input=@{name}.npy" for name in self.operands),
            *(f"--input={name.upper() if value is None else repr(float(value))}" for name, value in values.items()),
            *(f"--output=@{name}.npy" for name in self.results),
            *("--output=-" for _ in self.returned),
        ]  # fmt: skip


def build_plain(
    variant: Variant,
    dtypes: Dtypes,
    target: Target,
    *,
    defaults: Mapping[str, float] | None = None,
    use_cache: bool = True,
) -> PlainModule:
    """Compiles a rule for callers without Python.

    The module holds conditions: a processor that lacks what the code needs is refused when it is loaded.

    Args:
        variant: the rule with its structure chosen.
        dtypes: of the kernel.
        target: a CPU target.
        defaults: hyperparameter values that replace the rule's own defaults.
        use_cache: whether compiled modules may come from the cache.

    Raises:
        UnsupportedTargetError: if the target is no CPU.
        LoweringError: if the rule does not run in place on one leaf alone.
        HyperparameterError: if it accumulates grads, which is the host's work.
        CompileError: if the compiler refuses the module.
    """
    import_jax()
    if target.backend != "cpu":
        raise UnsupportedTargetError(f"plain modules are for CPUs (got target '{target.name}'): compile a bundle")
    if variant.rule.accumulation is not None:
        raise HyperparameterError("a plain module cannot accumulate grads: which step updates, a host must say")
    kernel = lower(variant.kernel(dtypes))[0]
    target.check([o.dtype for o in kernel.spec.operands])
    flags = flags_for(kernel, target)
    made = compile_for(kernel.plain(target.style), target, flags, guarded=True, use_cache=use_cache)
    spec = kernel.spec
    known = {h.name: (defaults or {}).get(h.name, h.default) for h in variant.hypers} | dict(variant.rule.scalars)
    return PlainModule(
        made.module,
        target.name,
        tuple(o.name for o in spec.operands),
        tuple(o.dtype for o in spec.operands),
        tuple(o.name for o in spec.results),
        {s.name.removeprefix("h_"): _default(known.get(s.hyper), s) for s in plain_scalars(spec)},
        spec.returned,
        check_flags(kernel),
    )


def _default(value: float | None, scalar: Scalar) -> float | None:
    return None if value is None else part(value, scalar.part)
