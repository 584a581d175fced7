"""What exactly is compiled: a rule with its structure chosen, and a kernel with its dtypes chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optgen.dsl.rule import Rule, StateSlot
from optgen.dtypes import CODES, SIZES, dtype_name, state_dtype_name
from optgen.errors import HyperparameterError
from optgen.hyper import PARTS, Hyper, Scalar

#: The state slot of master weights, and the hyperparameter of random rounding.
MASTER, SEED = "master", "seed"
#: What ``state_dtype="f8"`` means for a slot of each name.
_EIGHT_BITS = {"m": "f8m", "v": "f8v"}
_RNG = (Scalar(SEED, "low"), Scalar(SEED, "high"), Scalar("step", "low"), Scalar("step", "high"))


def has_eight_bits(state: Any) -> bool:
    """Whether a ``state_dtype`` asks for 8-bit state."""
    return (
        state == "f8" if isinstance(state, str) else isinstance(state, Mapping) and bool({*state.values()} & {*CODES})
    )


@dataclass(frozen=True)
class Operand:
    """One tensor argument of a kernel, of the leaf's shape unless it says otherwise.

    Attributes:
        name: the rule's name for it.
        dtype: of its elements in memory.
        role: ``param`` and ``state`` are replaced by the update, ``input`` is only read.
        rounding: ``stochastic`` where the update rounds it up or down at random, so that it is right on average.
        shape: a function from the leaf's shape to its own, where that is another.
    """

    name: str
    dtype: str
    role: str
    rounding: str = "nearest"
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] | None = field(default=None, compare=False)

    def shape_for(self, leaf: Iterable[int]) -> tuple[int, ...]:
        """Its shape beside a leaf of the shape ``leaf``."""
        return tuple(leaf) if self.shape is None else self.shape(tuple(leaf))

    @property
    def coded(self) -> bool:
        """Whether the kernel decodes and encodes it by bits; the rule is then traced with f32 in its place."""
        return self.dtype in CODES or self.rounding == "stochastic"

    @property
    def traced(self) -> str:
        """The element type that the rule is traced with."""
        return "f32" if self.coded else self.dtype


@dataclass(frozen=True)
class Variant:
    """A rule with its structure chosen.

    Attributes:
        rule: the mathematics.
        flags: a value for each structural parameter.
        present: the optional hyperparameters that are given.
        per_element: hyperparameters that are tensors of the leaf's shape instead of scalars.
        baked: hyperparameters that are folded into the kernel as constants.
        rounding: how results of 16 bits are rounded, ``nearest`` or ``stochastic``.
        seeded: whether something is rounded at random, by ``rounding`` or because it has 8 bits; then there is a
            hyperparameter ``seed``, and ``step`` in any case.
        master: whether the params are copies, rounded, of f32 weights in the state, which the rule works on.
    """

    rule: Rule
    flags: tuple[tuple[str, bool], ...]
    present: frozenset[str]
    per_element: tuple[str, ...] = ()
    baked: tuple[tuple[str, float], ...] = ()
    rounding: str = "nearest"
    seeded: bool = False
    master: bool = False

    @classmethod
    def of(
        cls,
        rule: Rule,
        *,
        structure: Mapping[str, Any] | None = None,
        per_element: Iterable[str] = (),
        bake: Mapping[str, float] | None = None,
        rounding: str = "nearest",
        eight_bits: bool = False,
        master: bool = False,
    ) -> Variant:
        """Chooses the structure of ``rule``.

        Args:
            rule: the mathematics.
            structure: values for structural parameters, and any value but None for each optional
                hyperparameter that is to be present.
            per_element: hyperparameters that are to be tensors.
            bake: values to fold in.
            rounding: of results of 16 bits, ``nearest`` or ``stochastic``.
            eight_bits: whether some state has 8 bits.
            master: whether f32 weights are kept in the state.

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
        if rounding not in ("nearest", "stochastic"):
            raise HyperparameterError(f"'rounding' must be 'nearest' or 'stochastic' (got {rounding!r})")
        seeded = eight_bits or rounding == "stochastic"
        taken = {slot.name for slot in rule.state} | {h.name for h in rule.hypers} | flags.keys() | rule.scalars.keys()
        for name, used in ((MASTER, master), (SEED, seeded)):
            if used and name in taken:
                raise HyperparameterError(f"'{name}' of rule '{rule.name}' must have another name: optgen has one, too")
        return cls(
            rule, tuple(sorted(flags.items())), frozenset(present), tuple(per_element), checked,
            rounding, seeded, master,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Unique among the variants of all rules: ``sgd-momentum-nesterov``, ``adam.ivy-lr_tensor``."""
        parts = [self.rule.name if self.rule.convention == "torch" else f"{self.rule.name}.{self.rule.convention}"]
        parts += sorted(self.present - self.rule.needs.keys())
        parts += [name for name, value in self.flags if value]
        parts += [f"{name}_tensor" for name in self.per_element]
        parts += [MASTER] if self.master else []
        parts += ["stochastic"] if self.rounding == "stochastic" else []
        return "-".join(parts)

    @property
    def state(self) -> tuple[str, ...]:
        """The state tensors that this variant has."""
        return tuple(slot.name for slot in self.slots)

    @property
    def rule_state(self) -> tuple[str, ...]:
        """Those of them that the rule itself has: all but master weights."""
        return tuple(slot for slot in self.state if not (self.master and slot == MASTER))

    @property
    def slots(self) -> tuple[StateSlot, ...]:
        """The slots of those state tensors."""
        chosen = {None, *self.present, *(name for name, value in self.flags if value)}
        slots = tuple(slot for slot in self.rule.state if slot.needs in chosen)
        return (*slots, StateSlot(MASTER, init="param")) if self.master else slots

    @property
    def hypers(self) -> tuple[Hyper, ...]:
        """The hyperparameters that this variant takes at run time, per-element ones included."""
        baked = dict(self.baked)
        found = tuple(
            h
            for h in self.rule.hypers
            if h.name not in baked and (h.name not in self.rule.optional or h.name in self.present)
        )
        if not self.seeded:
            return found
        counted = () if any(h.kind == "step" for h in found) else (Hyper("step", "step"),)
        return (*found, *counted, Hyper(SEED, "seed", 0.0))

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The scalar arguments, in the order of the module's signature: hyperparameters, then scalar state."""
        known = {h.name for h in self.rule.hypers}
        return (
            *(
                Scalar(h.name, part)
                for h in self.hypers
                if h.name in known and h.name not in self.per_element
                for part in PARTS[h.kind]
            ),
            *(_RNG if self.seeded else ()),
            *(Scalar(name) for name in self.rule.scalars),
        )

    def kernel(self, dtypes: Dtypes) -> KernelSpec:
        """This variant for given dtypes."""
        return KernelSpec(self, dtypes)

    def dtypes(self, param: Any, grad: Any = None, state: Any = None, compute: Any = None) -> Dtypes:
        """:meth:`Dtypes.of`, with the arithmetic that the rule asks for.

        Raises:
            HyperparameterError: also where ``state`` names a slot that is not there, or there is nothing to round at
                random, or no need for master weights.
        """
        if state == "f8":
            if unknown := [slot for slot in self.rule_state if slot not in _EIGHT_BITS]:
                raise HyperparameterError(
                    f"'state_dtype' must say what '{unknown[0]}' is to be, f8m (with a sign) or f8v (without): "
                    f"state_dtype={{{unknown[0]!r}: 'f8v'}}"
                )
            state = {slot: _EIGHT_BITS[slot] for slot in self.rule_state}
        if isinstance(state, Mapping) and (unknown := [slot for slot in state if slot not in self.rule_state]):
            has = ", ".join(self.rule_state) or "none"
            raise HyperparameterError(f"'state_dtype' names '{unknown[0]}', no state of this rule (it has {has})")
        exact = Dtypes.of(param, grad, state, compute)
        if self.master and SIZES[exact.param] != 2:
            raise HyperparameterError(f"'master' must be False for {exact.param} params: it is for those of 16 bits")
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
    slots: tuple[tuple[str, str], ...] = ()

    def slot(self, name: str) -> str:
        """The type of one state tensor."""
        return dict(self.slots).get(name, self.state)

    def described(self) -> dict[str, str]:
        """What the manifest says; the type of each state tensor is with its operand."""
        return {"param": self.param, "grad": self.grad, "state": self.state, "compute": self.compute}

    @classmethod
    def of(cls, param: Any, grad: Any = None, state: Any = None, compute: Any = None) -> Dtypes:
        """The dtypes for params of type ``param``.

        Args:
            param: of the params.
            grad: of the grads; by default like the params.
            state: of the state; by default f32 or, where param or grad is f64, f64. A mapping gives the types of some
                of its tensors by name.
            compute: of the arithmetic; by default f64, and f32 where param and grad, or some state, are of 16 bits or
                less and nothing is f64.
        """
        p = dtype_name(param)
        g = p if grad is None else dtype_name(grad)
        wide = "f64" if "f64" in (p, g) else "f32"
        slots: dict[str, str] = {}
        if isinstance(state, Mapping):
            slots = {name: t for name, each in state.items() if (t := state_dtype_name(each)) != wide}
            s = wide
        else:
            s = wide if state is None else state_dtype_name(state)
            if s in CODES:
                raise HyperparameterError(
                    f"'state_dtype' must be 'f8', or say which state is to be {s}: {{'m': 'f8m', 'v': 'f8v'}}"
                )
        narrow = {p, g} <= {"f16", "bf16"} or min(SIZES[x] for x in (s, *slots.values())) <= 2
        usual = "f32" if narrow and "f64" not in (p, g, s, *slots.values()) else "f64"
        c = usual if compute is None else dtype_name(compute)
        if SIZES[c] < max(4, *(SIZES[x] for x in (p, g, s, *slots.values()))):
            raise HyperparameterError(f"'compute' must be at least as wide as param, grad and state, and f32 (got {c})")
        return cls(p, g, s, c, tuple(sorted(slots.items())))

    @property
    def name(self) -> str:
        """``f32``; where others differ from their defaults, ``bf16-gf32``, ``f32-sbf16``, ``f32-m_f8m``..."""
        text = self.param
        if self.grad != self.param:
            text += f"-g{self.grad}"
        if self.state != Dtypes.of(self.param, self.grad).state:
            text += f"-s{self.state}"
        text += "".join(f"-{slot}_{dtype}" for slot, dtype in self.slots)
        if self.compute != Dtypes.of(self.param, self.grad, {**dict(self.slots), "": self.state}).compute:
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
        shapes = {slot.name: _of_leaf(slot, dict(v.flags)) for slot in v.slots}
        master = "f64" if d.param == "f64" else "f32"  # f64 in references
        return (
            Operand(v.rule.param, d.param, "param", "nearest" if v.master else self._rounding(d.param)),
            *(Operand(name, d.grad, "input") for name in v.rule.inputs),
            *(Operand(name, t := d.slot(name), "state", self._rounding(t), shapes[name]) for name in v.rule_state),
            *((Operand(MASTER, master, "state"),) if v.master else ()),
            *(Operand(name, d.state, "input") for name in v.per_element),
        )

    def _rounding(self, dtype: str) -> str:
        at_random = dtype in CODES or (dtype == "bf16" and self.variant.rounding == "stochastic")
        return "stochastic" if at_random else "nearest"

    @property
    def shaped(self) -> tuple[str, ...]:
        """The operands that have a shape of their own."""
        return tuple(o.name for o in self.operands if o.shape is not None)

    @property
    def random(self) -> bool:
        """Whether something is rounded at random."""
        return any(o.rounding == "stochastic" for o in self.operands)

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


def _of_leaf(slot: StateSlot, flags: Mapping[str, bool]) -> Callable[[tuple[int, ...]], tuple[int, ...]] | None:
    """The slot's shape as a function of the leaf's alone."""
    shape = slot.shape
    return None if shape is None else lambda leaf: shape(leaf, flags)
