"""How far each rule's results are from the real numbers', in ulp. As a script, writes docs/exactness.md.

The references are those of ``reference.py`` and ``rule_references.py``, evaluated in numpy's longdouble.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import reference
import rule_references as ref
from rule_cases import CASES

import optgen
from optgen.dtypes import from_float64, to_float64, ulp
from optgen.rules import OUT_OF_PLACE, get_rule

DOC = Path(__file__).resolve().parent.parent / "docs" / "exactness.md"
LR = 0.01
#: Step and number of elements of each draw.
PLACES = ((1, 1), (1, 4099), (2, 7), (2, 4099), (10, 65), (1000, 4099), (1_000_000, 1001))
#: What elements are multiplied by in extreme draws: the last of float32's denormals, of which 1e-42 has 10 bits.
SCALES = {
    "f32": (1.0, 1e-3, 1e-30, 1e30, 1e-42, 0.0),
    "bf16": (1.0, 1e-3, 1e-30, 1e30, 1e-39, 0.0),
    "f16": (1.0, 1e-3, 1e-2, 1e4, 1e-6, 0.0),
}
SMALLEST = {"f32": 2.0**-126, "bf16": 2.0**-126, "f16": 2.0**-14}
LARGEST = {"f32": float(np.finfo(np.float32).max), "bf16": 3.3895e38, "f16": 65504.0}
Arrays = dict[str, Any]
#: Does one update on float32 arrays, in place of ``w`` and the state; step, tensors and scalar state as given.
Peer = Callable[[int, Arrays, Mapping[str, float]], Arrays]


@dataclass(frozen=True)
class Row:
    """A rule in its default convention.

    Attributes:
        rule: its name.
        settings: structure and hyperparameters, where not the defaults.
        torch: the class in ``torch.optim`` of the same convention, and its settings.
        slots: from torch's names of the state to optgen's.
        optax: a function of the learning rate, and its fields' names.
    """

    rule: str
    settings: dict[str, Any] = field(default_factory=dict)
    torch: tuple[str, dict[str, Any]] | None = None
    slots: dict[str, str] = field(default_factory=dict)
    optax: Callable[[float], Any] | None = None
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join([self.rule, *(k for k, v in self.settings.items() if v is not False)])

    @property
    def reference(self) -> Callable[..., Arrays]:
        """The first of the rule's cases has it; they differ in settings alone."""
        if self.rule in ("muon", "adafactor", "adam_step", "ftrl"):
            return {"muon": muon, "adafactor": adafactor, "adam_step": adam_step, "ftrl": ftrl}[self.rule]
        convention = get_rule(self.rule).convention
        found = [c for c in CASES if (c.rule, c.convention) == (self.rule, convention)]
        return next(
            (c for c in found if "momentum" in c.settings) if "momentum" in self.settings else iter(found)
        ).reference

    @property
    def numbers(self) -> dict[str, Any]:
        return {"lr": LR, **self.settings} if self.rule != "adam_step" else self.settings

    @property
    def reduces(self) -> bool:
        return self.rule in ("lars", "lamb", "novograd", "muon", "adafactor")


def muon(*tensors: Any, **hypers: Any) -> Arrays:
    """In float64: numpy's SVD has no longdouble."""
    matrices = [np.asarray(x, np.float64).reshape(7, 5) for x in tensors]
    return {n: x.ravel() for n, x in ref.muon(*matrices, **hypers).items()}


def adafactor(w: Any, g: Any, row: Any, col: Any, v: Any, **hypers: Any) -> Arrays:
    eps = float(np.finfo(np.float32).eps)
    found = ref.adafactor_torch(
        w.reshape(7, 5), g.reshape(7, 5), row.reshape(7, 1), col.reshape(1, 5), v, eps=eps, **hypers
    )
    return {n: x.ravel() for n, x in found.items()}


def adam_step(w: Any, *tensors: Any, step: int) -> Arrays:
    """By ivy's Adam, from a param of zero with a rate of -1."""
    found = reference.adam(np.zeros_like(w), *tensors, lr=-1.0, step=step, ivy=True, eps=1e-7)
    return {n: value for n, (value, _) in found.items()}


def ftrl(w: Any, g: Any, n: Any, z: Any, *, lr: float, step: int) -> Arrays:
    """Keras' without penalties: 0 / 0 where a param has had no grad yet. The roots' difference does not cancel."""
    new = n + g * g
    rise = g * g / np.where(new > 0, np.sqrt(new) + np.sqrt(n), 1)
    rise = np.where(np.isinf(g), np.sqrt(new) - np.sqrt(n), rise)
    z = z + g - rise / lr * w
    return {"w": -z / (np.sqrt(new) / lr), "n": new, "z": z}


_MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v"}
_ADAM = {"count": "step", "mu": "m", "nu": "v"}


def _optax(name: str, **settings: Any) -> Callable[[float], Any]:
    def make(lr: float) -> Any:
        import optax
        from optax import contrib

        return (getattr(optax, name, None) or getattr(contrib, name))(lr, **settings)

    return make


def _sophia(lr: float) -> Any:
    import optax
    from optax import contrib

    given = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), lambda grads, state, params=None, *, h, **_: (h, state)
    )
    return contrib.sophia(lr, hessian_diagonal_fn=given, update_interval=1)


ROWS = [
    Row("sgd", {}, ("SGD", {}), {}, _optax("sgd")),
    Row("sgd", {"momentum": 0.9, "nesterov": True}, ("SGD", {"momentum": 0.9, "nesterov": True}),
        {"momentum_buffer": "m"}, _optax("sgd", momentum=0.9, nesterov=True), {"trace": "m"}),
    Row("adam", {}, ("Adam", {}), _MOMENTS, _optax("adam"), _ADAM),
    Row("adamw", {}, ("AdamW", {}), _MOMENTS, _optax("adamw", weight_decay=0.01), _ADAM),
    Row("amsgrad", {}, ("Adam", {"amsgrad": True}), {**_MOMENTS, "max_exp_avg_sq": "top"}),
    Row("adamax", {}, ("Adamax", {}), {"exp_avg": "m", "exp_inf": "u"}, _optax("adamax"), {**_ADAM, "nu": "u"}),
    Row("adamaxw", {}, None, {}, _optax("adamaxw"), {**_ADAM, "nu": "u"}),
    Row("nadam", {}, ("NAdam", {}), {**_MOMENTS, "mu_product": "mu_product"}),
    Row("nadamw", {}, ("NAdam", {"decoupled_weight_decay": True, "weight_decay": 0.01}),
        {**_MOMENTS, "mu_product": "mu_product"}),
    Row("radam", {}, ("RAdam", {}), _MOMENTS),
    Row("adabelief", {}, None, {}, _optax("adabelief"), {**_ADAM, "nu": "s"}),
    Row("yogi", {}, None, {}, _optax("yogi"), _ADAM),
    Row("adan", {}, None, {}, _optax("adan"), {"m": "m", "v": "v", "n": "n", "g": "old", "t": "step"}),
    Row("ademamix", {}, None, {}, _optax("ademamix"),
        {"count": "step", "count_m2": "step", "m1": "m", "m2": "slow", "nu": "v"}),
    Row("adopt", {}, None, {}, _optax("adopt"), _ADAM),
    Row("adagrad", {}, ("Adagrad", {}), {"sum": "s"}),
    Row("adadelta", {}, ("Adadelta", {}), {"square_avg": "v", "acc_delta": "u"}, _optax("adadelta"),
        {"e_g": "v", "e_x": "u"}),
    Row("rmsprop", {}, ("RMSprop", {}), {"square_avg": "v"}),
    Row("rprop", {}, ("Rprop", {}), {"prev": "old", "step_size": "s"}),
    Row("ftrl"),
    Row("lion", {}, None, {}, _optax("lion"), {"mu": "m"}),
    Row("signsgd", {}, None, {}, _optax("sign_sgd")),
    Row("signum", {}, None, {}, _optax("signum"), {"ema": "m", "count": "step"}),
    Row("lars", {}, None, {}, _optax("lars"), {"trace": "m"}),
    Row("lamb", {}, None, {}, _optax("lamb"), _ADAM),
    Row("novograd", {}, None, {}, _optax("novograd"), _ADAM),
    Row("schedule_free_sgd", {}, None, {}, _optax("schedule_free_sgd"),
        {"z": "z", "weight_sum": "weight_sum", "max_lr": "max_lr", "step_count": "next"}),
    Row("schedule_free_adamw", {}, None, {}, _optax("schedule_free_adamw"),
        {"z": "z", "weight_sum": "weight_sum", "max_lr": "max_lr", "step_count": "next", "count": "step", "nu": "v"}),
    Row("sophia_g", {}, None, {}, _sophia, _ADAM),
    Row("muon", {}, None, {}, None),
    Row("adafactor"),
    Row("gradient_descent"),
    Row("adam_step"),
]  # fmt: skip


def numpy_wise(array: np.ndarray, dtype: str) -> np.ndarray:
    """bf16 bits as ml_dtypes' array."""
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16) if dtype == "bf16" else array


def draw(row: Row, opt: Any, rng: np.random.Generator, size: int, step: int, dtype: str, extreme: bool) -> Arrays:
    """Tensors for one update: as ``init`` leaves them before the first step, else random ones."""

    def values(positive: bool = False, kind: str = "f32") -> np.ndarray:
        found = rng.standard_normal(size)
        if extreme:
            found = found * np.where(rng.random(size) < 0.3, 1.0, rng.choice(SCALES[kind], size))
        return np.abs(found) if positive else found

    w = from_float64(values(kind=dtype), dtype)
    out = {"w": w, **{n: from_float64(values(kind=dtype), dtype) for n in opt.manifest.inputs}}
    first = opt.init(numpy_wise(w, dtype).reshape(_shape(row)))
    for name in opt.manifest.state:
        # What a square root is taken of, or a step's size, is positive; a whole leaf of NovoGrad's v is one number.
        found = values(name in ("v", "s", "n", "top", "u", "row", "col")) * 0.3
        if np.size(first[name]) != size:
            found = found[: np.size(first[name])]
        if row.rule == "novograd" and name == "v":
            found[:] = abs(found[0])
        with np.errstate(over="ignore"):
            out[name] = np.asarray(first[name]).ravel() if step == 1 else found.astype(np.float32)
    return out


def _shape(row: Row) -> tuple[int, ...]:
    return (7, 5) if row.rule in OUT_OF_PLACE else (-1,)


def scalars_at(opt: Any, step: int) -> dict[str, float]:
    moved = {"mu_product": 0.25, "weight_sum": 2.0**-11, "max_lr": 2.0**-6}
    return {n: v if step == 1 else moved[n] for n, v in opt.manifest.scalars.items()}


def evaluate(row: Row, tensors: Mapping[str, np.ndarray], step: int, scalars: Mapping[str, float]) -> Arrays:
    with np.errstate(all="ignore"):
        found: Arrays = row.reference(*tensors.values(), step=step, **row.numbers, **scalars)
    return found


def classify(
    row: Row, exact: Arrays, expected: Arrays, kinds: Mapping[str, str], step: int, scalars: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Which elements are where float32's range begins and ends.

    ``beyond``: the formula in float32 arithmetic gives something infinite or NaN, or a result is larger than its dtype
    can hold. ``denormal``: an operand or a result is not zero, and smaller than the normal numbers of its dtype. All
    others are ``normal``.
    """
    with np.errstate(all="ignore"):
        single = evaluate(row, {n: np.asarray(a, np.float32) for n, a in exact.items()}, step, scalars)
    size = exact["w"].size
    beyond, denormal = np.zeros(size, bool), np.zeros(size, bool)
    for name, kind in kinds.items():
        if exact[name].size != size:  # Adafactor's factors
            continue
        for values in [exact[name], *([expected[name]] if name in expected else [])]:
            magnitude = np.abs(np.asarray(values, np.longdouble))
            denormal |= (magnitude != 0) & (magnitude < SMALLEST[kind])
            beyond |= ~(magnitude <= LARGEST[kind])
        if name in expected:
            beyond |= ~np.isfinite(np.asarray(single[name], np.float64))
    denormal &= ~beyond
    return {"normal": ~beyond & ~denormal, "denormal": denormal, "beyond": beyond}


def error_of(found: np.ndarray, expected: np.ndarray, kind: str) -> np.ndarray:
    """|error| / ulp(expected); what rounds to infinity, and NaN, must be just that."""
    with np.errstate(all="ignore"):
        wide = np.asarray(expected, np.float64)
        rounded = to_float64(from_float64(wide, kind), kind)
        error = np.abs(found - expected).astype(np.float64) / ulp(wide, kind)
    same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
    return np.where(np.isfinite(error) & np.isfinite(rounded), error, np.where(same, 0.0, np.inf))


#: By class, and "w" or "state"; for ``absolute`` not in ulp, and of denormal elements that are off by more than one.
Worst = dict[tuple[str, str], float]


def measure(
    row: Row, peers: Mapping[str, Peer], opt: Any, dtype: str, places: Sequence[tuple[int, int]]
) -> dict[str, Worst]:
    """The largest errors of each of ``peers``, all on the same tensors; ``opt`` says what state there is."""
    worst: dict[str, Worst] = {name: {} for name in peers}
    for step, size in places:
        for extreme in (False, True):
            rng = np.random.default_rng((20261101, step, size, extreme))
            if row.rule in OUT_OF_PLACE:
                if extreme:
                    continue
                size = 35
            tensors = draw(row, opt, rng, size, step, dtype, extreme)
            scalars = scalars_at(opt, step)
            kinds = {n: dtype if n in ("w", *opt.manifest.inputs) else "f32" for n in tensors}
            exact = {n: to_float64(a, kinds[n]).astype(np.longdouble) for n, a in tensors.items()}
            if row.reduces and extreme:  # the squares' sum is one number: all elements would be beyond
                for name, values in exact.items():
                    tensors[name] = np.where(np.abs(values) > 1e10, 0, tensors[name]).astype(tensors[name].dtype)
                exact = {n: to_float64(a, kinds[n]).astype(np.longdouble) for n, a in tensors.items()}
            expected = evaluate(row, exact, step, scalars)
            where = classify(row, exact, expected, kinds, step, scalars)
            for name, peer in peers.items():
                found = peer(step, {n: a.copy() for n, a in tensors.items()}, scalars)
                for tensor in found:
                    error = error_of(to_float64(found[tensor], kinds[tensor]), expected[tensor], kinds[tensor])
                    for label, mask in where.items():
                        mask = mask if error.size == mask.size else np.full(error.size, label == "normal")
                        key = label, "w" if tensor == "w" else "state"
                        worst[name][key] = max(worst[name].get(key, 0.0), float(error[mask].max(initial=0.0)))
                    if error.size == where["denormal"].size:
                        off = np.where(where["denormal"] & (error > 1), np.abs(found[tensor] - expected[tensor]), 0)
                        key = "absolute", "w" if tensor == "w" else "state"
                        worst[name][key] = max(worst[name].get(key, 0.0), float(off.max()))
    return worst


def of_optgen(row: Row, opt: Any, dtype: str) -> Peer:
    def update(step: int, tensors: Arrays, scalars: Mapping[str, float]) -> Arrays:
        shape = _shape(row)
        own = {o.name: o.shape for o in opt.manifest.kernels[0].shaped}
        typed = {
            n: numpy_wise(a, dtype if n in ("w", *opt.manifest.inputs) else "f32").reshape(own.get(n, shape))
            for n, a in tensors.items()
        }
        inputs = {n: typed[n] for n in opt.manifest.inputs}
        state = {"step": step - 1, **scalars, **{n: typed[n] for n in opt.manifest.state}}
        opt.step(
            typed["w"], inputs if len(inputs) > 1 else inputs["g"], state,
            **{k: v for k, v in row.numbers.items() if not isinstance(v, bool) and k not in opt.idle},
        )  # fmt: skip
        return {"w": tensors["w"], **{n: tensors[n] for n in opt.manifest.state}}

    return update


#: Steps and numbers of elements at which whole steps are measured, which are compiled for one number.
STEP_PLACES = ((1, 4099), (2, 4099), (1000, 4099))
STEP_RULES = ("sgd momentum nesterov", "adamw", "lion")


def of_step(row: Row, device: str, size: int) -> Peer:
    """A whole step whose loss has the very grads that are given."""
    from optgen.train import TrainStep, compile_step

    def loss(params: Any, batch: Any) -> Any:
        return (params["w"] * batch["g"]).sum()

    example = np.ones(size, np.float32)
    target = "vulkan" if device == "vulkan" else "cpu"
    bundle = compile_step(loss, {"w": example}, {"g": example}, row.rule, targets=target, check=False, **row.settings)
    step_of = TrainStep(bundle, device)
    scalars = {a.path for a in bundle.manifest.arguments if a.role == "scalar"}

    def update(step: int, tensors: Arrays, numbers: Mapping[str, float]) -> Arrays:
        state = {n: {"w": a} for n, a in tensors.items() if n not in ("w", "g")}
        counted = {"step": step - 1, **{n: v for n, v in numbers.items() if n in scalars}}
        step_of.step({"w": tensors["w"]}, {**state, **counted}, {"g": tensors["g"]}, lr=LR)
        return {n: a for n, a in tensors.items() if n != "g"}

    return update


def measure_step(row: Row, places: Sequence[tuple[int, int]] = STEP_PLACES) -> dict[str, Worst]:
    """The largest errors of a whole step on each device, of normal numbers."""
    opt = compiled(row, "local-task", "f32")
    peers = {("vulkan" if d == "vulkan" else "cpu"): of_step(row, d, places[0][1]) for d in devices()}
    return measure(row, peers, opt, "f32", places)


def of_torch(row: Row, **how: bool) -> Peer | None:
    if row.torch is None:
        return None
    name, settings = row.torch

    def update(step: int, tensors: Arrays, scalars: Mapping[str, float]) -> Arrays:
        import torch

        param = torch.nn.Parameter(torch.from_numpy(tensors["w"]))
        param.grad = torch.from_numpy(tensors["g"])
        optimizer = getattr(torch.optim, name)([param], lr=LR, **settings, **how)
        state = {theirs: torch.tensor(tensors.get(mine, scalars.get(mine))) for theirs, mine in row.slots.items()}
        optimizer.state[param] = {"step": torch.tensor(float(step - 1)), **state}
        optimizer.step()
        new = optimizer.state[param]
        return {"w": param.detach().numpy(), **{m: new[t].numpy() for t, m in row.slots.items() if m in tensors}}

    try:
        update(
            2,
            {n: np.ones(3, np.float32) for n in ("w", "g", *row.slots.values()) if n != "mu_product"},
            {"mu_product": 0.5},
        )
    except (RuntimeError, TypeError):  # torch says so where it has no fused kernel
        return None
    return update


def of_optax(row: Row) -> Peer | None:
    if row.optax is None:
        return None
    import jax
    import optax

    transformation = row.optax(LR)

    @jax.jit
    def jitted(grads: Any, state: Any, w: Any, extra: Any) -> Any:
        updates, state = transformation.update(grads, state, w, **extra)
        return optax.apply_updates(w, updates), state

    def walk(node: Any, change: Callable[[str, Any], Any]) -> Any:
        if hasattr(node, "_fields"):
            return node._replace(
                **{f: change(f, v) if f in row.fields else walk(v, change) for f, v in node._asdict().items()}
            )
        return tuple(walk(n, change) for n in node) if isinstance(node, tuple) else node

    def update(step: int, tensors: Arrays, scalars: Mapping[str, float]) -> Arrays:
        values = {**tensors, **scalars, "step": step - 1, "next": step}
        out: Arrays = {}

        def give(field: str, old: Any) -> Any:
            value = values[row.fields[field]]
            old = jax.numpy.asarray(old)
            return jax.numpy.asarray(np.ravel(value)[0] if old.shape == () else value, old.dtype)

        def take(field: str, new: Any) -> Any:
            if row.fields[field] in tensors:
                out[row.fields[field]] = np.broadcast_to(np.asarray(new), tensors["w"].shape)
            return new

        extra = {"h": tensors["h"]} if "h" in tensors else {}
        out["w"], state = jitted(tensors["g"], walk(transformation.init(tensors["w"]), give), tensors["w"], extra)
        walk(state, take)
        return {**out, "w": np.asarray(out["w"])}

    return update


@cache
def devices() -> tuple[str, ...]:
    from optgen.runtime import list_devices

    return ("local-task", *(["vulkan"] if any(driver == "vulkan" for driver, _ in list_devices()) else []))


def compiled(row: Row, device: str, *dtypes: str, **more: Any) -> Any:
    """None where the target cannot run the rule."""
    target = "vulkan" if device == "vulkan" else "cpu"
    like = {"like": np.ones((7, 5), np.float32)} if row.rule in OUT_OF_PLACE else {"dtypes": dtypes}
    try:
        return optgen.compile(row.rule, target=target, device=device, **like, **row.settings, **more)
    except optgen.errors.UnsupportedTargetError:
        return None


COLUMNS = (
    "cpu f32", "vulkan f32", "cpu f32/f32", "vulkan f32/f32", "cpu bf16", "vulkan bf16", "cpu f16", "vulkan f16",
    "torch fused", "torch foreach", "optax",
)  # fmt: skip


def peers_of(row: Row, dtype: str, columns: Sequence[str]) -> dict[str, tuple[Peer, Any]]:
    """What does one update, for each of ``columns`` that is there for params of ``dtype``; with an optimizer that says
    what state there is."""
    if row.rule in OUT_OF_PLACE and dtype != "f32":
        return {}
    peers: dict[str, Peer | None] = {}
    on_cpu = compiled(row, "local-task", dtype)
    for device in devices():
        label = f"{'cpu' if device == 'local-task' else device} {dtype}"
        if label in columns:
            opt = on_cpu if device == "local-task" else compiled(row, device, dtype)
            peers[label] = None if opt is None else of_optgen(row, opt, dtype)
        if dtype == "f32" and f"{label}/f32" in columns and row.rule not in OUT_OF_PLACE:
            opt = compiled(row, device, dtype, compute_dtype="f32")
            peers[f"{label}/f32"] = None if opt is None else of_optgen(row, opt, dtype)
    if dtype == "f32":
        peers |= {
            "torch fused": of_torch(row, fused=True) if "torch fused" in columns else None,
            "torch foreach": of_torch(row, foreach=True) if "torch foreach" in columns else None,
            "optax": of_optax(row) if "optax" in columns else None,
        }
    return {name: (peer, on_cpu) for name, peer in peers.items() if peer is not None}


def measure_row(
    row: Row, columns: Sequence[str] = COLUMNS, places: Sequence[tuple[int, int]] = PLACES
) -> dict[str, Worst]:
    """The largest errors in each of ``columns``, those left out that are not there."""
    out: dict[str, Worst] = {}
    for dtype in ("f32", "bf16", "f16"):
        there = peers_of(row, dtype, columns)
        if there:
            (_, opt), *_ = there.values()
            out |= measure(row, {name: peer for name, (peer, _) in there.items()}, opt, dtype, places)
    return out


def specials(row: Row, peer: Peer, opt: Any) -> str:
    """How infinite and NaN grads of float32 are dealt with: empty where as in the reference, and nothing else moves."""
    rng = np.random.default_rng(20261102)
    plain = draw(row, opt, rng, 9, 2, "f32", False)
    places = {1: np.inf, 3: -np.inf, 5: np.nan}
    tensors = {n: a.copy() for n, a in plain.items()}
    tensors["g"][list(places)] = list(places.values())
    scalars = scalars_at(opt, 2)
    expected = evaluate(row, {n: a.astype(np.longdouble) for n, a in tensors.items()}, 2, scalars)
    found = peer(2, tensors, scalars)
    without = peer(2, plain, scalars)
    others = [i for i in range(9) if i not in places]
    problems = []
    for name, value in found.items():
        with np.errstate(all="ignore"):
            rounded = np.asarray(expected[name], np.float64).astype(np.float32)
        for i in range(9):
            if np.isfinite(rounded[i]) and np.isfinite(value[i]):
                continue
            if not (rounded[i] == value[i] or (np.isnan(rounded[i]) and np.isnan(value[i]))):
                given = f"{places[i]:g}" if i in places else "finite"
                problems.append(f"{name} is {_number(value[i])}, not {_number(rounded[i])}, for {given}")
        if not row.reduces and found[name][others].tobytes() != without[name][others].tobytes():
            problems.append(f"{name} moves beside it")
    return "; ".join(dict.fromkeys(problems))


def _number(value: float) -> str:
    return f"{value:g}" if not np.isfinite(value) else "finite"


def special_row(row: Row, columns: Sequence[str] = COLUMNS) -> dict[str, str]:
    """:func:`specials` in each of the columns of float32."""
    return {
        n: specials(row, p, o) for n, (p, o) in peers_of(row, "f32", columns).items() if row.rule not in OUT_OF_PLACE
    }


def _cell(worst: Worst, label: str) -> str:
    found = [_ulp(worst[label, part]) for part in ("w", "state") if (label, part) in worst]
    return " / ".join(found) or "-"


def _ulp(value: float) -> str:
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}" if value < 1000 else f"{value:.0e}".replace("e+0", "e")


def _table(found: Mapping[str, Mapping[str, Worst]], label: str) -> str:
    lines = ["| rule | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for rule, columns in found.items():
        lines.append(f"| `{rule}` | " + " | ".join(_cell(columns.get(c, {}), label) for c in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def worse_than_torch(columns: Mapping[str, Worst], ours: str, label: str) -> list[str]:
    """What of the param and the state is off by more than in each of torch's ways."""
    out = []
    for part in ("w", "state"):
        theirs = [columns[t].get((label, part), 0.0) for t in ("torch fused", "torch foreach") if t in columns]
        if theirs and columns[ours].get((label, part), 0.0) > max(0.5, *theirs):
            out.append(part)
    return out


def _torch(columns: Mapping[str, Worst], label: str, part: str) -> str:
    """The figures of torch's two ways."""
    there = [columns[t].get((label, part), 0.0) for t in ("torch fused", "torch foreach") if t in columns]
    return " and ".join(dict.fromkeys(map(_ulp, there)))


def steps_table(steps: Mapping[str, Mapping[str, Worst]]) -> str:
    """Whole steps, of normal numbers."""
    columns = list(dict.fromkeys(c for found in steps.values() for c in found))
    lines = ["| rule | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [
        f"| `{rule}` | " + " | ".join(_cell(found.get(c, {}), "normal") for c in columns) + " |"
        for rule, found in steps.items()
    ]
    return "\n".join(lines) + "\n"


def document(
    found: Mapping[str, Mapping[str, Worst]],
    special: Mapping[str, Mapping[str, str]],
    steps: Mapping[str, Mapping[str, Worst]],
) -> str:
    def largest(column: str, label: str, part: str) -> str:
        values = {r: c[column][label, part] for r, c in found.items() if (label, part) in c.get(column, {})}
        values = {r: v for r, v in values.items() if r not in (*OUT_OF_PLACE, "gradient_descent", "adam_step")}
        worst = max(values, key=lambda r: values[r])
        return f"{_ulp(values[worst])} (`{worst}`)"

    def over(column: str, label: str) -> str:
        rules = [
            r
            for r, c in found.items()
            if max((v for (x, _), v in c.get(column, {}).items() if x == label), default=0) > 2
        ]
        return ", ".join(f"`{r}`" for r in rules) or "none"

    def beaten(column: str, label: str) -> str:
        rules = [(r, c, worse_than_torch(c, column, label)) for r, c in found.items() if column in c]

        def figures(c: Mapping[str, Worst], parts: Sequence[str]) -> str:
            return ", ".join(f"{p} {_ulp(c[column][label, p])}, torch {_torch(c, label, p)}" for p in parts)

        texts = [f"`{r}` ({figures(c, parts)})" for r, c, parts in rules if parts]
        return ", ".join(texts) or "nowhere"

    import jax
    import optax
    import torch

    facts = [
        "| | " + " | ".join(f"largest of {part}, {label}" for label in ("normal",) for part in ("w", "state"))
        + " | over 2 ulp, normal | worse than torch, normal | worse than torch, denormal | worse than torch, beyond |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for column in ("cpu f32", "vulkan f32", "cpu f32/f32", "vulkan f32/f32"):
        if any(column in c for c in found.values()):
            cells = [largest(column, "normal", "w"), largest(column, "normal", "state"), over(column, "normal")]
            facts.append(f"| {column} | " + " | ".join([*cells, *(beaten(column, x) for x in CLASSES)]) + " |")
    notes = [f"- `{r}`, {c}: {text}." for r, columns in special.items() for c, text in columns.items() if text]
    return TEXT.format(
        summary="\n".join(facts), normal=_table(found, "normal"), denormal=_table(found, "denormal"),
        beyond=_table(found, "beyond"), steps=steps_table(steps), special="\n".join(notes) or "No exceptions.", lr=LR,
        places=", ".join(f"{step:,} ({size})" for step, size in PLACES),
        versions=f"torch {torch.__version__}, JAX {jax.__version__}, optax {optax.__version__}",
    )  # fmt: skip


CLASSES = ("normal", "denormal", "beyond")
TEXT = """# How exact the rules are

<!-- python tests/exactness.py writes this file -->

The largest error of one update, in units in the last place of the exact result: |result - exact| / ulp(exact), in the
result's own dtype, with nothing allowed for terms that cancel. Correct rounding is 0.5. *Exact* is what the
hand-written references of `tests/reference.py` and `tests/rule_references.py` give in numpy's longdouble for the same
operands. A cell has the param's figure, then the state's. Every rule is in its default convention with its default
settings and a learning rate of {lr}.

- Columns: target and dtype of the params; `f32/f32` is `compute_dtype="f32"`, all others are what optgen does where
  nothing is asked for (f64 arithmetic, or pairs of f32 on Vulkan, for f32; f32 arithmetic for 16-bit params, whose
  state is f32). Vulkan is Mesa's lavapipe. `torch fused`, `torch foreach` and `optax` (under jit) do the same update on
  the same float32 operands, where they have the rule in that convention; `-` is where there is none. {versions}.
- Operands: once normally distributed, and once with 70 % of the elements of each operand multiplied by one of 1, 1e-3,
  1e-30, 1e30, 1e-42 (a denormal) and 0, independently; for 16-bit params by what their range has of these. Steps (and
  numbers of elements): {places}.
- *Normal* elements are those whose operands and results are zero or normal numbers, and for which the reference gives
  something finite in float32 arithmetic, too. *Denormal*: an operand or a result is denormal. *Beyond*: the reference
  in float32 is infinite or NaN somewhere, as where a grad of 1e30 is squared, or a result is larger than its dtype can
  hold; a result that must round to infinity counts 0 if it does and inf if not. For `lars`, `lamb` and `novograd`,
  whose leaf has one norm, numbers over 1e10 are left out.

{summary}

A rule is worse than torch where both torch's fused and its foreach kernels are closer than it, and it is off by more
than half an ulp.

What misses 2 ulp, and why:

- In f32 arithmetic (`f32/f32`, the state of 16-bit params, torch, optax) every rule does, by thousands of ulp where the
  terms of a sum cancel: the terms are rounded before. Which element of so many that happens to, and so which of optgen,
  torch and optax has the larger figure, is chance, but for torch's means: as `lerp` they are off by half as much. f64
  arithmetic and pairs have digits to spare.
- *Denormal* numbers: IREE sets CPUs to take them for zero before a kernel starts, and optgen's kernels set that back
  (`templates/float_mode.mlir.j2`), so f64 arithmetic is as exact there as anywhere. XLA flushes them for optax. `muon`
  and `adafactor` run out of place, in kernels that IREE forms, which flush them. Vulkan on lavapipe keeps them, but
  pairs have f32's range: what lies below 2^-126 on the way, as `(1 - beta) * g` of a denormal grad, has as few bits as
  it has in torch, and so has what is made of it. Which of the two is closer is chance. Divided by an `eps` of 1e-8 that
  is an error of at most 1e-35 of the param, for params beyond 1e-28 less than half an ulp; where the sign of such a
  number is taken (`lion`, `signum`) or it is divided by another such (`adagrad`), it may be the whole change.
- *Beyond* f32's range f64 arithmetic is still right. Pairs go wrong as f32 arithmetic does, torch's too: a grad beyond
  1.8e19 has an infinite square, and the element's change is zero. That is what both miss; on which side the param is
  rounded then is chance.
- `ftrl` divides 0 by 0 where a param has had no grad and its sum starts at 0, as Keras does; here that is no error.
- torch's `Rprop` multiplies two grads, which underflows to zero where both are small.
- `gradient_descent` and `adam_step` are ivy's, in f32 arithmetic because its published digits are.
- `muon` multiplies matrices, out of place and in f32: 15 products, whose rounding adds up. `adafactor` is computed in
  f32 as well. The sums of both are accumulated in f64 on CPUs.

## Normal numbers

{normal}
## Denormal numbers

{denormal}
## Beyond float32's range

{beyond}
## Whole steps

The same of updates by `compile_step`, of normal numbers at steps 1, 2 and 1,000: a loss whose grads are the operands'.
On CPUs their updates are in f64 arithmetic and rounded once. On Vulkan and other GPUs they are in f32 arithmetic, since
the compiler has no pairs: what the column `vulkan f32/f32` says above holds for them.

{steps}
## Infinite and NaN grads

One grad each of inf, -inf and NaN among nine of float32, at step 2: param and state must be infinite or NaN where the
reference's are, with the same sign, and nowhere else; the other elements must be bit for bit what they are without
(`lars`, `lamb` and `novograd` excepted, whose norms spread them). Exceptions:

{special}
"""


def read(text: str) -> tuple[dict[str, dict[str, Worst]], dict[str, dict[str, str]]]:
    """What a document says, to the digits that it has."""
    found: dict[str, dict[str, Worst]] = {}
    for label, part in zip(CLASSES, text.split("\n## ")[1:], strict=False):
        for line in part.splitlines():
            if line.startswith("| `"):
                name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
                for column, cell in zip(COLUMNS, cells, strict=True):
                    values = (
                        {} if cell == "-" else dict(zip(("w", "state"), map(float, cell.split(" / ")), strict=False))
                    )
                    worst = found.setdefault(name.strip("`"), {}).setdefault(column, {})
                    worst.update({(label, each): value for each, value in values.items()})
    special: dict[str, dict[str, str]] = {}
    for name, column, problem in re.findall(r"(?m)^- `([^`]+)`, ([^:]+): (.*)\.$", text.split("\n## ")[-1]):
        special.setdefault(name, {})[column] = problem
    return {n: {c: w for c, w in columns.items() if w} for n, columns in found.items()}, special


def read_steps(text: str) -> dict[str, dict[str, Worst]]:
    """What a document says of whole steps."""
    columns: list[str] = []
    found: dict[str, dict[str, Worst]] = {}
    for line in text.partition("\n## Whole steps")[2].partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| rule"):
            columns = cells[1:]
        elif line.startswith("| `"):
            found[cells[0].strip("`")] = {
                column: {("normal", p): float(v) for p, v in zip(("w", "state"), cell.split(" / "), strict=False)}
                for column, cell in zip(columns, cells[1:], strict=True)
            }
    return found


def main(*rules: str) -> None:
    """Measures those rules, or all; what the document says of others stays. ``steps`` are the whole steps."""
    found, special = read(DOC.read_text()) if rules else ({}, {})
    steps = read_steps(DOC.read_text())
    if not rules or "steps" in rules:
        steps = {row.name: measure_step(row) for row in ROWS if row.name in STEP_RULES}
    for row in ROWS:
        if not rules or row.rule in rules:
            print(row.name, file=sys.stderr, flush=True)
            found[row.name], special[row.name] = measure_row(row), special_row(row)
    DOC.write_text(document(found, special, steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
