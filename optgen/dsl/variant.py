"""What exactly is compiled: a rule with its structure chosen, and a kernel with its dtypes chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optgen.dsl.rule import Rule, StateSlot
from optgen.dtypes import SIZES, dtype_name
from optgen.errors import HyperparameterError
from optgen.hyper import PARTS, Hyper, Scalar


@dataclass(frozen=True)
class Operand:
    """One tensor argument of a kernel, all of the leaf's shape.

    Attributes:
        name: the rule's name for it.
        dtype: of its elements in memory.
        role: ``param`` and ``state`` are replaced by the update, ``input`` is only read.
    """

    name: str
    dtype: str
    role: str


@dataclass(frozen=True)
class Variant:
    """A rule with its structure chosen.

    Attributes:
        rule: the mathematics.
        flags: a value for each structural parameter.
        present: the optional hyperparameters that are given.
        per_element: hyperparameters that are tensors of the leaf's shape instead of scalars.
        baked: hyperparameters that are folded into the kernel as constants.
    """

    rule: Rule
    flags: tuple[tuple[str, bool], ...]
    present: frozenset[str]
    per_element: tuple[str, ...] = ()
    baked: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(
        cls,
        rule: Rule,
        *,
        structure: Mapping[str, Any] | None = None,
        per_element: Iterable[str] = (),
        bake: Mapping[str, float] | None = None,
    ) -> Variant:
        """Chooses the structure of ``rule``.

        Args:
            rule: the mathematics.
            structure: values for structural parameters, and any value but None for each optional
                hyperparameter that is to be present.
            per_element: hyperparameters that are to be tensors.
            bake: values to fold in.

        Raises:
            HyperparameterError: for a name that the rule lacks or a value that it forbids.
        """
        structure, bake = dict(structure or {}), dict(bake or {})
        flags = dict(rule.flags)
        present = set()
        for name, value in structure.items():
            if name in flags:
                if not isinstance(value, bool):
                    raise HyperparameterError(f"'{name}' must be True or False (got {value!r})")
                flags[name] = value
            elif name in rule.needs:
                raise HyperparameterError(f"'{name}' must not be given: it comes with '{rule.needs[name]}'")
            elif name in rule.optional:
                if value is not None and value is not False:
                    present.add(name)
            else:
                rule.hyper(name)
                raise HyperparameterError(f"'{name}' of rule '{rule.name}' is a run-time number, not structure")
        for name in bake:
            if rule.hyper(name).kind == "step":
                raise HyperparameterError("'step' must stay a run-time scalar: it changes at every update")
            if name in rule.optional:
                present.add(name)
        present |= {name for name, other in rule.needs.items() if other in present}
        checked = tuple(sorted((name, rule.hyper(name).check(value)) for name, value in bake.items()))
        for name in per_element:
            if rule.hyper(name).kind != "scalar":
                raise HyperparameterError(f"'{name}' must be a plain scalar to be given per element")
        return cls(rule, tuple(sorted(flags.items())), frozenset(present), tuple(per_element), checked)

    @property
    def name(self) -> str:
        """Unique among the variants of all rules: ``sgd-momentum-nesterov``, ``adam.ivy-lr_tensor``."""
        parts = [self.rule.name if self.rule.convention == "torch" else f"{self.rule.name}.{self.rule.convention}"]
        parts += sorted(self.present - self.rule.needs.keys())
        parts += [name for name, value in self.flags if value]
        parts += [f"{name}_tensor" for name in self.per_element]
        return "-".join(parts)

    @property
    def state(self) -> tuple[str, ...]:
        """The state tensors that this variant has."""
        return tuple(slot.name for slot in self.slots)

    @property
    def slots(self) -> tuple[StateSlot, ...]:
        """The slots of those state tensors."""
        chosen = {None, *self.present, *(name for name, value in self.flags if value)}
        return tuple(slot for slot in self.rule.state if slot.needs in chosen)

    @property
    def hypers(self) -> tuple[Hyper, ...]:
        """The hyperparameters that this variant takes at run time, per-element ones included."""
        baked = dict(self.baked)
        return tuple(
            h
            for h in self.rule.hypers
            if h.name not in baked and (h.name not in self.rule.optional or h.name in self.present)
        )

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The scalar arguments, in the order of the module's signature: hyperparameters, then scalar state."""
        return (
            *(Scalar(h.name, part) for h in self.hypers if h.name not in self.per_element for part in PARTS[h.kind]),
            *(Scalar(name) for name in self.rule.scalars),
        )

    def kernel(self, dtypes: Dtypes) -> KernelSpec:
        """This variant for given dtypes."""
        return KernelSpec(self, dtypes)

    def dtypes(self, param: Any, grad: Any = None, state: Any = None, compute: Any = None) -> Dtypes:
        """:meth:`Dtypes.of`, with the arithmetic that the rule asks for."""
        exact = Dtypes.of(param, grad, state, compute)
        if compute is None and not self.rule.exact and "f64" not in (exact.param, exact.grad, exact.state):
            return Dtypes.of(param, grad, state, "f32")
        return exact


@dataclass(frozen=True)
class Dtypes:
    """The element types of one kernel.

    16-bit params keep f32 state and are computed in f32. f32 params are computed in f64, so that each result is the
    exact one rounded once; memory, not arithmetic, is what an update waits for.
    """

    param: str
    grad: str
    state: str
    compute: str

    @classmethod
    def of(cls, param: Any, grad: Any = None, state: Any = None, compute: Any = None) -> Dtypes:
        """The dtypes for params of type ``param``.

        Args:
            param: of the params.
            grad: of the grads; by default like the params.
            state: of the state; by default f32 or, where param or grad is f64, f64.
            compute: of the arithmetic; by default f64, and f32 where param and grad are of 16 bits.
        """
        p = dtype_name(param)
        g = p if grad is None else dtype_name(grad)
        s = ("f64" if "f64" in (p, g) else "f32") if state is None else dtype_name(state)
        usual = "f32" if {p, g} <= {"f16", "bf16"} and s != "f64" else "f64"
        c = usual if compute is None else dtype_name(compute)
        if SIZES[c] < max(4, *(SIZES[x] for x in (p, g, s))):
            raise HyperparameterError(f"'compute' must be at least as wide as param, grad and state, and f32 (got {c})")
        return cls(p, g, s, c)

    @property
    def name(self) -> str:
        """``f32``; where others differ from their defaults, ``bf16-gf32``, ``f32-sbf16``, ``f32-cf32``."""
        text = self.param
        if self.grad != self.param:
            text += f"-g{self.grad}"
        if self.state != Dtypes.of(self.param, self.grad).state:
            text += f"-s{self.state}"
        if self.compute != Dtypes.of(self.param, self.grad, self.state).compute:
            text += f"-c{self.compute}"
        return text


@dataclass(frozen=True)
class KernelSpec:
    """A variant for given dtypes: the unit that is traced, lowered and compiled."""

    variant: Variant
    dtypes: Dtypes

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The tensor arguments: param, inputs, state, per-element hyperparameters."""
        v, d = self.variant, self.dtypes
        return (
            Operand(v.rule.param, d.param, "param"),
            *(Operand(name, d.grad, "input") for name in v.rule.inputs),
            *(Operand(name, d.state, "state") for name in v.state),
            *(Operand(name, d.state, "input") for name in v.per_element),
        )

    @property
    def results(self) -> tuple[Operand, ...]:
        """The operands that the update replaces, in the order of the rule's results."""
        return tuple(o for o in self.operands if o.role != "input")

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The scalar arguments, all of the compute type."""
        return self.variant.scalars

    @property
    def returned(self) -> tuple[str, ...]:
        """The scalar state, which the module returns after its other results, in the compute type."""
        return tuple(self.variant.rule.scalars)
