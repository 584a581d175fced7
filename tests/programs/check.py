"""One program on one target: compiled, run, and held to JAX's loss and gradients."""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.errors import OptgenError
from programs.generate import Program
from programs.machines import run_c, run_python, run_wasm
from programs.report import processor

#: So that gradients are what SGD takes away.
LR = 1.0
SEED = 7

#: How much larger an error may be than what moving the inputs by a few roundings does.
_FACTOR = 8.0
_MOVED = 2.0**-22
#: Of programs that round to fewer bits on their way: then by a part of what those bits tell apart. The compiler leaves
#: a cast and its opposite out if both are in one kernel, as XLA does by default (xla_allow_excess_precision).
_COARSE = {"as bfloat16": 2.0**-10, "as float16": 2.0**-13}
_DRAWS = 3

Leaves = dict[str, np.ndarray]


@dataclass
class Reference:
    """What JAX says: loss, gradients, and how far each may be off."""

    loss: float
    grads: Leaves
    loss_error: float
    errors: Leaves

    @property
    def finite(self) -> bool:
        """Whether it says anything."""
        return bool(np.isfinite(self.loss)) and all(np.isfinite(g).all() for g in self.grads.values())


def reference(program: Program) -> Reference:
    """JAX's answer, in f32, and its sensitivity: the same function of inputs that are moved a little, and in f64."""
    import jax

    key = (jax.random.key(SEED),) if program.random else ()
    function = jax.jit(jax.value_and_grad(program.loss))

    def call(params: Leaves, batch: Leaves) -> tuple[float, Leaves]:
        value, grads = function(params, batch, *key)
        return float(value), {name: np.asarray(g, np.float64) for name, g in grads.items()}

    loss, grads = call(program.params, program.batch)
    loss_error, errors = 1e-5 * abs(loss) + 1e-7, {}
    rng = np.random.default_rng(program.number)
    by = max([_MOVED, *(moved for text, moved in _COARSE.items() if text in program.text)])
    moved = [call(_moved(program.params, rng, by), _moved(program.batch, rng, by)) for _ in range(_DRAWS)]
    with contextlib.suppress(Exception), jax.enable_x64(True):  # some programs mix dtypes then, and are refused
        exact = call(_wide(program.params), _wide(program.batch))
        if not program.random:  # of 64 bits, random numbers are others
            moved.append(
                (loss + (exact[0] - loss) / _FACTOR, {n: g + (exact[1][n] - g) / _FACTOR for n, g in grads.items()})
            )
    largest = max((float(np.abs(g).max(initial=0.0)) for g in grads.values()), default=0.0)
    for name, grad in grads.items():
        spread = max((float(np.abs(each[1][name] - grad).max(initial=0.0)) for each in moved), default=0.0)
        own = float(np.abs(grad).max(initial=0.0))
        stored = float(np.abs(program.params[name]).max(initial=0.0)) * 2.0**-22
        errors[name] = np.float64(_FACTOR * spread + 2e-5 * own + 1e-6 * largest + stored)
    loss_error += _FACTOR * max(abs(each[0] - loss) for each in moved)
    return Reference(loss, grads, loss_error, errors)


def _wide(leaves: Leaves) -> Leaves:
    return {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in leaves.items()}


def _moved(leaves: Leaves, rng: np.random.Generator, by: float) -> Leaves:
    return {
        name: (a * (1 + by * rng.uniform(-1, 1, a.shape))).astype(a.dtype) if a.dtype.kind == "f" else a
        for name, a in leaves.items()
    }


def check(program: Program, target: str, known: Reference | None = None) -> dict[str, Any]:
    """The record of a program on a target: ``result`` is one of right, wrong, alarm, refused, error, skipped.

    ``alarm`` is a right program that its own probes call wrong; ``refused`` an error of optgen's own; ``error`` any
    other exception. ``check`` is what the probes say: of a wrong program, whether they would have caught it.
    """
    start = time.perf_counter()
    record: dict[str, Any] = {
        "program": program.number, "target": target, "rule": program.rule, "text": program.text,
        "kinds": list(program.kinds), "kept": list(program.kept), "machine": processor(),
    }  # fmt: skip
    try:
        found = known or reference(program)
        if not found.finite:
            record |= {"result": "skipped", "message": "JAX's loss or gradients are not finite"}
        else:
            run = run_c if target.startswith("c:") else run_wasm if target.startswith("wasm") else run_python
            notes: dict[str, str] = {}
            record |= _verdict(program, found, run(program, target, notes)) | notes
            if record["result"] == "right" and notes.get("check", "").startswith("refused"):
                record |= {"result": "alarm", "message": notes["check"]}
    except OptgenError as error:
        record |= {"result": "refused", "message": f"{type(error).__name__}: {error}"[:1500]}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        record |= {
            "result": "error",
            "message": f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"[:1500],
        }
    return record | {"seconds": round(time.perf_counter() - start, 2)}


def _verdict(program: Program, wanted: Reference, runs: list[tuple[float, Leaves]]) -> dict[str, Any]:
    """Whether all runs from the same params are right, and the same."""
    expected, allowed = _expected(program, wanted)
    worst, where, value = 0.0, "", ""
    for loss, params in runs:
        off = _ratio(np.array(loss), np.array(wanted.loss), np.float64(wanted.loss_error))
        if off > worst:
            worst, where, value = off, "loss", f"{loss:.7g} for {wanted.loss:.7g}"
        for name, new in params.items():
            off = _ratio(new, expected[name], allowed[name])
            if off > worst:
                gap = np.abs(np.asarray(new, np.float64) - expected[name])
                at = np.unravel_index(
                    int(np.nanargmax(np.where(np.isnan(gap), np.inf, gap / allowed[name]))), gap.shape
                )
                worst, where = off, f"{name}{list(map(int, at))}"
                value = f"{float(new[at]):.7g} for {float(expected[name][at]):.7g}"
    first = runs[0]
    same = all(loss == first[0] and all(np.array_equal(p[n], first[1][n]) for n in p) for loss, p in runs[1:])
    record: dict[str, Any] = {"result": "right" if worst <= 1 else "wrong", "error": float(f"{min(worst, 1e30):.3g}")}
    if worst > 1:
        record["message"] = f"{where} is {value}, {worst:.3g} times what rounding explains"
    if not same:
        record |= {
            "result": "wrong",
            "message": record.get("message", "results differ from call to call"),
            "differs": True,
        }
    return record


def _ratio(found: Any, wanted: Any, allowed: Any) -> float:
    if not np.isfinite(found).all():
        return float("inf")
    return float((np.abs(np.asarray(found, np.float64) - wanted) / allowed).max(initial=0.0))


def _expected(program: Program, wanted: Reference) -> tuple[Leaves, dict[str, Any]]:
    """The params after one step, and how far each may be off."""
    before = {name: a.astype(np.float64) for name, a in program.params.items()}
    if program.rule == "sgd":
        return {n: before[n] - LR * g for n, g in wanted.grads.items()}, dict(wanted.errors)
    import optgen

    like = {name: a.copy() for name, a in program.params.items()}
    optimizer = optgen.compile(program.rule, like)

    def update(grads: Leaves) -> Leaves:
        params = {name: a.copy() for name, a in program.params.items()}
        state = optimizer.init(params)
        optimizer.step(params, {n: np.asarray(g, np.float32) for n, g in grads.items()}, state, **rate(program.rule))
        return {name: a.astype(np.float64) for name, a in params.items()}

    center, rng = update(wanted.grads), np.random.default_rng(program.number)
    allowed: dict[str, Any] = {n: np.abs(a) * 2.0**-21 + 1e-7 for n, a in center.items()}
    for _ in range(_DRAWS):
        noise = {n: g + wanted.errors[n] * rng.choice([-1.0, 1.0], g.shape) for n, g in wanted.grads.items()}
        moved = update(noise)
        allowed = {n: np.maximum(a, 2 * np.abs(moved[n] - center[n])) for n, a in allowed.items()}
    for name, grad in wanted.grads.items():  # whose sign is not known, any step may be taken for
        unknown = np.abs(grad) <= 4 * wanted.errors[name]
        allowed[name] = np.where(unknown, np.maximum(allowed[name], 1.0), allowed[name])
    if program.rule in _WHOLE:  # one number of the leaf or tree is in all of them
        allowed = {n: np.maximum(a, float(np.max(np.where(a < 1, a, 0.0), initial=0.0))) for n, a in allowed.items()}
    return center, allowed


#: Rules whose updates depend on all of a leaf.
_WHOLE = ("lamb", "lars", "muon", "adafactor", "novograd")


def rate(rule: str) -> dict[str, float]:
    """The learning rate, where a rule takes one."""
    from optgen.rules import get_rule

    return {"lr": LR if rule == "sgd" else 0.01} if any(h.name == "lr" for h in get_rule(rule).hypers) else {}
