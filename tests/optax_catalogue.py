"""Every transformation of optax, with arguments that make sense on a tree of three leaves."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPES = {"dense": {"w": (8, 6), "b": (6,)}, "scale": (5,)}
STEPS = 20


@dataclass(frozen=True, eq=False)
class Entry:
    """One transformation.

    Attributes:
        name: as users write it.
        make: makes it.
        kind: heading in the docs.
        extra: examples of extra arguments of its update.
        fails: a part of the reason why it is refused; empty where it is not.
        wrap: makes the params that it wants of plain ones.
        examples: how many grads there are for each param, in a leading axis; 0 for one without.
        quadratic: whether its grads are those of a quadratic function.
    """

    name: str
    make: Callable[[], Any]
    kind: str
    extra: dict[str, Any] = field(default_factory=dict)
    fails: str = ""
    wrap: Callable[[Any], Any] = lambda params: params
    examples: int = 0
    quadratic: bool = False


def _labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "bias" if path[-1].key == "b" else "rest", params)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _entries() -> list[Entry]:
    o, c = optax, optax.contrib
    schedule = o.warmup_cosine_decay_schedule(0.0, 0.01, 5, 15)
    aliases: list[tuple[str, Callable[[], Any]]] = [
        ("adabelief(1e-2)", lambda: o.adabelief(1e-2)),
        ("adadelta(1e-1)", lambda: o.adadelta(1e-1)),
        ("adafactor(1e-2)", lambda: o.adafactor(1e-2)),
        ("adafactor(1e-2, min_dim_size_to_factor=4)", lambda: o.adafactor(1e-2, min_dim_size_to_factor=4)),
        ("adagrad(1e-1)", lambda: o.adagrad(1e-1)),
        ("adam(1e-2)", lambda: o.adam(1e-2)),
        ("adam(1e-2, nesterov=True)", lambda: o.adam(1e-2, nesterov=True)),
        ("adam(1e-2, mu_dtype=bfloat16)", lambda: o.adam(1e-2, mu_dtype=jnp.bfloat16)),
        ("adamax(1e-2)", lambda: o.adamax(1e-2)),
        ("adamaxw(1e-2)", lambda: o.adamaxw(1e-2)),
        ("adamw(1e-2)", lambda: o.adamw(1e-2)),
        ("adamw(warmup_cosine_decay_schedule(...))", lambda: o.adamw(schedule)),
        ("adan(1e-2)", lambda: o.adan(1e-2)),
        ("amsgrad(1e-2)", lambda: o.amsgrad(1e-2)),
        ("fromage(1e-2)", lambda: o.fromage(1e-2)),
        ("lamb(1e-2)", lambda: o.lamb(1e-2)),
        ("lars(1e-2)", lambda: o.lars(1e-2)),
        ("lion(1e-3)", lambda: o.lion(1e-3)),
        ("nadam(1e-2)", lambda: o.nadam(1e-2)),
        ("nadamw(1e-2)", lambda: o.nadamw(1e-2)),
        ("noisy_sgd(1e-2)", lambda: o.noisy_sgd(1e-2, key=0)),
        ("novograd(1e-2)", lambda: o.novograd(1e-2)),
        ("optimistic_adam(1e-2)", lambda: o.optimistic_adam(1e-2)),
        ("optimistic_adam_v2(1e-2)", lambda: o.optimistic_adam_v2(1e-2)),
        ("optimistic_gradient_descent(1e-2)", lambda: o.optimistic_gradient_descent(1e-2)),
        ("radam(1e-2)", lambda: o.radam(1e-2)),
        ("rmsprop(1e-2)", lambda: o.rmsprop(1e-2)),
        ("rmsprop(1e-2, centered=True, momentum=0.9)", lambda: o.rmsprop(1e-2, centered=True, momentum=0.9)),
        ("rprop(1e-2)", lambda: o.rprop(1e-2)),
        ("sgd(1e-2)", lambda: o.sgd(1e-2)),
        ("sgd(1e-2, momentum=0.9, nesterov=True)", lambda: o.sgd(1e-2, momentum=0.9, nesterov=True)),
        ("sign_sgd(1e-3)", lambda: o.sign_sgd(1e-3)),
        ("signum(1e-3)", lambda: o.signum(1e-3)),
        ("sm3(1e-1)", lambda: o.sm3(1e-1)),
        ("yogi(1e-2)", lambda: o.yogi(1e-2)),
    ]
    contrib: list[tuple[str, Callable[[], Any]]] = [
        ("contrib.acprop(1e-2)", lambda: c.acprop(1e-2)),
        ("contrib.ademamix(1e-2)", lambda: c.ademamix(1e-2)),
        ("contrib.simplified_ademamix(1e-3)", lambda: c.simplified_ademamix(1e-3)),
        ("contrib.adopt(1e-2)", lambda: c.adopt(1e-2)),
        ("contrib.cocob()", lambda: c.cocob()),
        ("contrib.dadapt_adamw()", lambda: c.dadapt_adamw()),
        ("contrib.dog(1.0)", lambda: c.dog(1.0)),
        ("contrib.dowg(1.0)", lambda: c.dowg(1.0)),
        ("contrib.madgrad(1e-2)", lambda: c.madgrad(1e-2)),
        ("contrib.mechanize(adam(1e-2))", lambda: c.mechanize(o.adam(1e-2))),
        ("contrib.muon(1e-2)", lambda: c.muon(1e-2)),
        ("contrib.normalize()", lambda: o.chain(c.normalize(), o.sgd(1e-2))),
        ("contrib.prodigy()", lambda: c.prodigy()),
        ("contrib.sam(sgd(1e-2), sgd(1e-2))", lambda: c.sam(o.sgd(1e-2), o.chain(c.normalize(), o.sgd(1e-2)))),
        ("contrib.schedule_free(sgd(1e-2))", lambda: c.schedule_free(o.sgd(1e-2), 1e-2, b1=0.9)),
        ("contrib.schedule_free_adamw(1e-2)", lambda: c.schedule_free_adamw(1e-2)),
        ("contrib.schedule_free_sgd(1e-2)", lambda: c.schedule_free_sgd(1e-2)),
        ("contrib.split_real_and_imaginary(adam(1e-2))", lambda: c.split_real_and_imaginary(o.adam(1e-2))),
    ]
    sgd = o.sgd(1e-2)
    pieces: list[tuple[str, Callable[[], Any]]] = [
        ("adaptive_grad_clip(0.1)", lambda: o.chain(o.adaptive_grad_clip(0.1), sgd)),
        ("add_decayed_weights(1e-2, mask=...)", lambda: o.chain(o.add_decayed_weights(1e-2, mask=_matrices), sgd)),
        ("add_noise(0.1, 0.5, key)", lambda: o.chain(o.add_noise(0.1, 0.5, key=jax.random.key(7)), sgd)),
        ("apply_every(3)", lambda: o.chain(sgd, o.apply_every(3))),
        ("centralize()", lambda: o.chain(o.centralize(), sgd)),
        ("clip(0.5)", lambda: o.chain(o.clip(0.5), sgd)),
        ("clip_by_block_rms(0.5)", lambda: o.chain(o.clip_by_block_rms(0.5), sgd)),
        ("clip_by_global_norm(1.0)", lambda: o.chain(o.clip_by_global_norm(1.0), sgd)),
        ("ema(0.9)", lambda: o.chain(o.ema(0.9), sgd)),
        ("freeze(mask)", lambda: o.chain(o.freeze(_matrices), sgd)),
        ("identity()", o.identity),
        ("keep_params_nonnegative()", lambda: o.chain(sgd, o.keep_params_nonnegative())),
        ("normalize_by_update_norm()", lambda: o.chain(o.normalize_by_update_norm(), sgd)),
        ("scale(-0.1)", lambda: o.scale(-0.1)),
        ("scale_by_adadelta()", lambda: o.chain(o.scale_by_adadelta(), o.scale(-0.1))),
        ("scale_by_distance_over_gradients()", lambda: o.chain(o.scale_by_distance_over_gradients(), o.scale(-1.0))),
        ("scale_by_factored_rms(min_dim_size_to_factor=4)",
         lambda: o.chain(o.scale_by_factored_rms(min_dim_size_to_factor=4), sgd)),
        ("scale_by_param_block_norm()", lambda: o.chain(o.scale_by_param_block_norm(), sgd)),
        ("scale_by_param_block_rms()", lambda: o.chain(o.scale_by_param_block_rms(), sgd)),
        ("scale_by_rss()", lambda: o.chain(o.scale_by_rss(), sgd)),
        ("scale_by_schedule(cosine_onecycle)", lambda: o.scale_by_schedule(o.cosine_onecycle_schedule(20, -0.1))),
        ("scale_by_sign()", lambda: o.chain(o.scale_by_sign(), sgd)),
        ("scale_by_stddev()", lambda: o.chain(o.scale_by_stddev(), sgd)),
        ("scale_by_trust_ratio()", lambda: o.chain(o.scale_by_trust_ratio(), sgd)),
        ("set_to_zero()", o.set_to_zero),
        ("trace(0.9, nesterov=True)", lambda: o.chain(o.trace(0.9, nesterov=True), sgd)),
        ("zero_nans()", lambda: o.chain(o.zero_nans(), sgd)),
    ]  # fmt: skip
    adam = o.adam(1e-2)
    wrappers: list[tuple[str, Callable[[], Any]]] = [
        ("chain(clip_by_global_norm(1.0), adamw(schedule))",
         lambda: o.chain(o.clip_by_global_norm(1.0), o.adamw(schedule, mask=_matrices))),
        ("named_chain(...)", lambda: o.named_chain(("clip", o.clip(0.5)), ("adam", adam))),
        ("apply_if_finite(adam, 3)", lambda: o.apply_if_finite(adam, 3)),
        ("conditionally_mask(sgd, ...)", lambda: o.conditionally_mask(sgd, lambda step: step % 2 == 0)),
        ("conditionally_transform(adam, ...)", lambda: o.conditionally_transform(adam, lambda step: step < 10)),
        ("flatten(adam)", lambda: o.flatten(adam)),
        ("inject_hyperparams(adamw)", lambda: o.inject_hyperparams(o.adamw)(learning_rate=1e-2, weight_decay=0.1)),
        ("inject_hyperparams(sgd)(schedule)", lambda: o.inject_hyperparams(o.sgd)(learning_rate=schedule)),
        ("masked(adam, mask)", lambda: o.masked(adam, _matrices)),
        ("MultiSteps(adam, 3)", lambda: o.MultiSteps(adam, 3)),
        ("MultiSteps(muon, 2)", lambda: o.MultiSteps(c.muon(1e-2), 2)),
        ("apply_if_finite(noisy_sgd, 3)", lambda: o.apply_if_finite(o.noisy_sgd(1e-2, key=0), 3)),
        ("MultiSteps(lamb, 3)", lambda: o.MultiSteps(o.lamb(1e-2), 3)),
        ("MultiSteps(adam, 2, skip_not_finite)",
         lambda: o.MultiSteps(adam, 2, should_skip_update_fn=o.skip_not_finite)),
        ("partition({bias: sgd, rest: adamw})", lambda: o.partition({"bias": sgd, "rest": o.adamw(1e-2)}, _labels)),
        ("selective_transform(adam, freeze_mask=...)", lambda: o.selective_transform(adam, freeze_mask=_matrices)),
    ]  # fmt: skip
    entries = [Entry(n, m, "Optimizers") for n, m in aliases]
    entries += [Entry(n, m, "optax.contrib") for n, m in contrib]
    entries += [Entry(n, m, "Parts, followed by sgd") for n, m in pieces]
    entries += [Entry(n, m, "Wrappers and chains") for n, m in wrappers]
    entries += [
        Entry("lookahead(sgd, 5, 0.5)", lambda: o.lookahead(sgd, 5, 0.5), "Wrappers and chains",
              wrap=o.LookaheadParams.init_synced),
        Entry("contrib.dpsgd(1e-2, 1.0, 0.1, seed=3)", lambda: c.dpsgd(1e-2, 1.0, 0.1, seed=3), "optax.contrib",
              examples=2),
        Entry("polyak_sgd(), extra_args value", lambda: o.polyak_sgd(), "Extra arguments", {"value": 0.5}),
        Entry("contrib.momo(), extra_args value", lambda: c.momo(), "Extra arguments", {"value": 0.5}),
        Entry("contrib.momo_adam(), extra_args value", lambda: c.momo_adam(), "Extra arguments", {"value": 0.5}),
        Entry("contrib.reduce_on_plateau(), extra_args value",
              lambda: o.chain(o.adam(1e-2), c.reduce_on_plateau(patience=2)), "Extra arguments", {"value": 0.5}),
        Entry("polyak_sgd()", lambda: o.polyak_sgd(), "Refused", fails="extra arguments"),
        Entry("contrib.momo()", lambda: c.momo(), "Refused", fails="extra arguments"),
        Entry("contrib.momo_adam()", lambda: c.momo_adam(), "Refused", fails="extra arguments"),
        Entry("contrib.reduce_on_plateau()", lambda: c.reduce_on_plateau(), "Refused", fails="extra arguments"),
        Entry("lbfgs()", lambda: o.lbfgs(), "Refused", fails="extra arguments"),
        Entry("scale_by_backtracking_linesearch(5)", lambda: o.scale_by_backtracking_linesearch(5), "Refused",
              fails="extra arguments"),
        Entry("scale_by_zoom_linesearch(5)", lambda: o.scale_by_zoom_linesearch(5), "Refused",
              fails="extra arguments"),
        # With grads of no function its curvatures are noise, and f32's rounding grows without bound.
        Entry("scale_by_lbfgs()", lambda: o.chain(o.scale_by_lbfgs(), o.scale(-0.1)), "Parts, followed by sgd",
              quadratic=True),
        Entry("contrib.sophia(1e-2)", lambda: c.sophia(1e-2), "Refused", fails="obj_fn must be provided"),
        Entry("contrib.galore(1e-2, rank=2)", lambda: c.galore(1e-2, rank=2), "Refused", fails="linear algebra"),
    ]  # fmt: skip
    return entries


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ENTRIES = _entries()


def params() -> Any:
    """The tree that every entry is compiled for."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda s: rng.standard_normal(s).astype(np.float32), SHAPES, is_leaf=lambda s: type(s) is tuple)


def grads(step: int, examples: int = 0) -> Any:
    """The grads of one step: of the size of real ones, and different at each."""
    rng = np.random.default_rng(100 + step)
    batch = (examples,) if examples else ()
    return jax.tree.map(
        lambda s: rng.standard_normal(batch + s).astype(np.float32), SHAPES, is_leaf=lambda s: type(s) is tuple
    )


def reference(transformation: Any, start: Any, gradients: Any, state: Any, **extra: Any) -> tuple[Any, Any]:
    """One step of optax itself; jit it."""
    updates, state = transformation.update(gradients, state, start, **extra)
    return optax.apply_updates(start, updates), state


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree of optax or optgen by path, keys of random numbers as their bits."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "/".join(str(next(getattr(k, a) for a in ("idx", "key", "name") if hasattr(k, a))) for k in path)
        value = jnp.asarray(leaf)
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        found[name] = np.asarray(jax.random.key_data(value) if is_key else value)
    return found


@dataclass(frozen=True)
class Comparison:
    """How a compiled transformation did beside optax.

    Attributes:
        deviation: the largest of a param after any step, relative to the larger of 1 and the param.
        state: likewise, of the state after the last.
        moved: how far the furthest param came.
    """

    deviation: float
    state: float
    moved: float


def compare(entry: Entry, optimizer: Any, steps: int = STEPS) -> Comparison:
    """Makes steps with both and compares them."""
    transformation = entry.make()
    start = entry.wrap(params())
    mine, theirs = jax.tree.map(np.copy, start), start
    state, their_state = optimizer.init(mine), transformation.init(start)
    step = jax.jit(functools.partial(reference, transformation))
    deviation = 0.0
    for index in range(steps):
        gradients = grads(index, entry.examples)
        if entry.quadratic:  # of optax's params for both: their difference must not feed back
            gradients = jax.tree.map(lambda p, c: np.asarray(p * np.abs(c)), theirs, grads(0))
        kept = jax.tree.leaves(mine)
        mine, state = optimizer.step(mine, gradients, state, **entry.extra)
        assert all(a is b for a, b in zip(kept, jax.tree.leaves(mine), strict=True))
        theirs, their_state = step(theirs, gradients, their_state, **entry.extra)
        deviation = max(deviation, _distance(by_path(mine), by_path(theirs)))
    moved = max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(start), strict=True))
    return Comparison(deviation, _distance(by_path(state), by_path(their_state)), moved)


def _distance(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    assert found.keys() == expected.keys()
    worst = 0.0
    for path, wanted in expected.items():
        got = found[path]
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype), path
        a, b = got.astype(np.float64), wanted.astype(np.float64)
        difference = np.abs(a - b) / np.maximum(1, np.abs(b))
        worst = max(worst, float(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, difference).max()))
    return worst
