"""Probes of optax transformations: two updates of a tree, the first from the state that ``init`` gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from optgen.artifact.manifest import LeafInfo
from optgen.probes.build import Recipe, work_of
from optgen.probes.fills import fill_of
from optgen.probes.generate import Fill
from optgen.probes.interpret import interpret
from optgen.probes.noise import Noise
from optgen.probes.rounding import rounded

if TYPE_CHECKING:
    from optgen.interop.optax import TracedUpdate


def transform_recipe(traced: TracedUpdate, examples: Mapping[str, Any]) -> Recipe:
    """What :func:`optgen.probes.build.make_probe` needs of a transformation.

    Args:
        traced: the update.
        examples: what the user gave for arguments, by name; those that are not there have the range of an unknown one.
    """
    leaves = {i: LeafInfo(f"{a.tree}/{a.path}".rstrip("/"), a.shape, a.passed) for i, a in enumerate(traced.arguments)}
    state = [leaves[i] for i, a in enumerate(traced.arguments) if a.tree == "state"]
    fills = {}
    for index, argument in enumerate(traced.arguments):
        leaf = LeafInfo(leaves[index].path, argument.shape, argument.dtype)
        scaled = argument.tree in ("params", "grads")
        fills[index] = (
            Fill("initial") if argument.tree == "state" else fill_of(examples.get(leaf.path), leaf, scaled=scaled)
        )
    results = tuple(leaves[i] for i in traced.results)

    def begin(known: Mapping[str, Any], hypers: Mapping[str, float], noise: Noise) -> dict[str, Any]:
        computed: list[Any] = []
        if traced.init_jaxpr is not None:
            params = [known[leaves[i].path] for i, a in enumerate(traced.arguments) if a.tree == "params"]
            computed = interpret(traced.init_jaxpr, params, noise)
        found = {}
        for leaf, initial in zip(state, traced.initial, strict=True):
            if initial.computed is not None:
                value = np.asarray(computed[initial.computed])
            elif initial.copy is not None:
                value = rounded(np.asarray(known[f"params/{initial.copy}".rstrip("/")]), leaf.dtype)
            elif initial.fill is not None:
                value = np.broadcast_to(rounded(np.array(initial.fill), leaf.dtype), leaf.shape)
            else:
                value = rounded(np.asarray(initial.array).reshape(leaf.shape), leaf.dtype)
            found[leaf.path] = value
        return found

    def run(known: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
        given = [known[leaf.path] for leaf in leaves.values()]
        return dict(zip((leaf.path for leaf in results), interpret(traced.jaxpr, given, noise), strict=True))

    return Recipe(
        entry="update",
        compute="",
        arguments=leaves,
        fills=fills,
        kept=frozenset(leaves[i].path for i, a in enumerate(traced.arguments) if a.tree in ("params", "state")),
        hypers=({}, {}),
        numbers=lambda hypers: {},
        begin=begin,
        run=run,
        results=results,
        work=work_of(traced.jaxpr.jaxpr),
    )
