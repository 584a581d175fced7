"""Rules as C, in one program for each target: what it is given, and how far its results are from the references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import reference
import rule_references as ref
from native_machine import Machine

from optgen.dsl.variant import KernelSpec, Variant
from optgen.dtypes import from_float64, to_float64, ulp
from optgen.native import CBundle, compile_c
from optgen.rules import get_rule

LR = 0.01
CANARY = 0xA5
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A rule, its float64 reference, and how it is compiled."""

    rule: str
    reference: Callable[..., Arrays]
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "f32"

    def compile(self, target: str, **more: Any) -> CBundle:
        return compile_c(self.rule, target, dtype=self.dtype, lr=LR, **self.settings, **more)

    @property
    def spec(self) -> KernelSpec:
        """Its operands and scalars; the arithmetic is not the target's."""
        rule = get_rule(self.rule)
        structure = {k: v for k, v in self.settings.items() if k in rule.flags or k in rule.optional}
        variant = Variant.of(rule, structure=structure)
        return variant.kernel(variant.dtypes(self.dtype))


def values_of(function: Callable[..., Any], **fixed: Any) -> Callable[..., Arrays]:
    """A reference that gives the magnitudes of its terms as well, without them."""
    return lambda *a, **k: {name: pair[0] for name, pair in function(*a, **fixed, **k).items()}


_ADAMW = values_of(reference.adam, decoupled=True, weight_decay=0.01)
TRIALS = (
    Trial("adamw", _ADAMW),
    Trial("sgd", values_of(reference.sgd_momentum), {"momentum": 0.9, "nesterov": True}),
    Trial("lamb", ref.lamb),
    Trial("nadam", ref.nadam),
    Trial("lion", ref.lion, dtype="f16"),
    Trial("adamw", _ADAMW, dtype="bf16"),
)


@dataclass(frozen=True)
class Place:
    """One call: elements, the number of the step, and the elements by which operands are off multiples of 64 bytes."""

    size: int
    step: int = 1
    shift: int = 0


PLACES = (Place(0), Place(1, 1, 1), Place(7, 2, 3), Place(4097, 10, 1), Place(100_003, 1000, 5))
SMALL = (*PLACES[:3], Place(1025, 10, 1))


@dataclass
class Call:
    """A call, with what it is given and where that lies in the program's memory."""

    trial: Trial
    place: Place
    spec: KernelSpec
    given: Arrays
    at: dict[str, int]

    def code(self, name: str, workspace: bool, threads: str) -> str:
        types = {"f32": "float", "f64": "double", "f16": "uint16_t", "bf16": "uint16_t"}
        items = [f"({types[o.dtype]} *)(memory + {self.at[o.name]})" for o in self.spec.operands]
        items.append(str(self.place.size))
        items += [str(self.place.step)] if any(h.kind == "step" for h in self.spec.variant.hypers) else []
        items.append("&hypers")
        items += [f"(double *)(memory + {self.at[n]})" for n in self.spec.returned]
        items += ["workspace", "sizeof workspace"] if workspace else []
        return f"    status = {name}_update({', '.join(items)}, {threads});\n"


@dataclass
class Session:
    """The calls of one program, and its memory before the first of them."""

    calls: list[Call]
    memory: np.ndarray

    def results(self, memory: np.ndarray) -> list[Arrays]:
        """Every operand of every call, after it; what lies between them must be as it was."""
        found, covered = [], np.zeros(memory.size, bool)
        for call in self.calls:
            arrays = {}
            for name, before in call.given.items():
                start, end = call.at[name], call.at[name] + before.nbytes
                covered[start:end] = True
                arrays[name] = memory[start:end].view(before.dtype)
            found.append(arrays)
        assert np.all(memory[~covered] == CANARY), "a kernel wrote beside its operands"
        return found


def prepare(trials: Sequence[Trial] = TRIALS, places: Sequence[Place] = PLACES, seed: int = 0) -> Session:
    """Draws what every call is given, and lays it out."""
    calls, size = [], 64
    for trial in trials:
        spec = trial.spec
        for place in places:
            rng = np.random.default_rng((20261124, seed, place.size, place.step))
            given: Arrays = {}
            at = {}
            for o in spec.operands:
                x = rng.standard_normal(place.size)
                given[o.name] = from_float64(np.abs(x) * 0.3 if o.name == "v" else x, o.dtype)
                step = given[o.name].itemsize
                size = -(-size // 64) * 64 + place.shift * step
                at[o.name], size = size, size + given[o.name].nbytes + 8
            for name in spec.returned:
                size = -(-size // 8) * 8
                given[name] = np.array([0.25 if place.step > 1 else spec.variant.rule.scalars[name]])
                at[name], size = size, size + 16
            calls.append(Call(trial, place, spec, given, at))
    memory = np.full(size + 64, CANARY, np.uint8)
    for call in calls:
        for name, array in call.given.items():
            memory[call.at[name] : call.at[name] + array.nbytes] = array.view(np.uint8)
    return Session(calls, memory)


def program(session: Session, bundles: Sequence[CBundle], *, threads: str = "NULL", prelude: str = "") -> str:
    """The program's ``main``; of ``bundles``, one for each trial."""
    needed = max((b.workspace for b in bundles), default=0)
    text = "".join(f'#include "{b.name}.h"\n' for b in bundles) + '#include "io.h"\n' + prelude
    text += f"static unsigned char memory[{session.memory.size}] __attribute__((aligned(64)));\n"
    text += f"static unsigned char workspace[{max(needed, 64)}] __attribute__((aligned(64)));\n"
    text += "int main(void)\n{\n    int status = 0;\n    (void)workspace;\n"
    text += '    load("in.bin", memory, sizeof memory);\n'
    by_trial = dict(zip(dict.fromkeys(id(c.trial) for c in session.calls), bundles, strict=True))
    for key, bundle in by_trial.items():
        text += f"    {{\n    {bundle.name}_hypers hypers;\n    {bundle.name}_hypers_init(&hypers);\n"
        for call in session.calls:
            if id(call.trial) == key:
                text += call.code(bundle.name, bool(bundle.workspace), threads)
                text += f"    if (status) {{ say({bundle.name}_error(status)); return status; }}\n"
        text += "    }\n"
    return text + '    store("out.bin", memory, sizeof memory);\n    return 0;\n}\n'


def run(
    machine: Machine, folder: Path, session: Session, bundles: Sequence[CBundle], *flags: str, **how: str
) -> list[Arrays]:
    """Builds and runs the program, and returns what it made of each call's operands."""
    session.memory.tofile(folder / "in.bin")
    machine.build(folder, bundles, program(session, bundles, **how), *flags)
    machine.run(folder)
    return session.results(np.fromfile(folder / "out.bin", np.uint8))


def errors(call: Call, found: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """For each result, the largest error in ulp of the result, and in ulp of the largest number that went into it."""
    kinds = {o.name: o.dtype for o in call.spec.operands}
    wide = {n: to_float64(a, kinds[n]) if n in kinds else a for n, a in call.given.items()}
    tensors = [wide[n] for n in kinds]
    scalars = {n: float(wide[n][0]) for n in call.spec.returned}
    expected = call.trial.reference(*tensors, lr=LR, step=call.place.step, **call.trial.settings, **scalars)
    result = {}
    for name, value in expected.items():
        kind = kinds.get(name, "f64")
        error = np.abs((to_float64(found[name], kind) if name in kinds else found[name]) - value)
        largest = np.maximum.reduce([np.abs(x) for x in (value, *(tensors if name in kinds else ()))])
        result[name] = tuple(float((error / ulp(size, kind)).max(initial=0.0)) for size in (value, largest))
    return result
