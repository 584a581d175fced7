"""Probes of compiled functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optgen.artifact.manifest import LeafInfo
from optgen.probes.build import Recipe, work_of
from optgen.probes.fills import fill_of
from optgen.probes.interpret import interpret
from optgen.probes.noise import Noise


def function_recipe(
    jaxpr: Any, inputs: Sequence[LeafInfo], examples: Sequence[Any], outputs: Sequence[LeafInfo]
) -> Recipe:
    """What :func:`optgen.probes.build.make_probe` needs of a function.

    Args:
        jaxpr: of the function of its leaves.
        inputs: the leaves.
        examples: what the user gave for each of them.
        outputs: the leaves of the result.
    """

    def run(known: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
        results = interpret(jaxpr, [known[leaf.path] for leaf in inputs], noise)
        return dict(zip((leaf.path for leaf in outputs), results, strict=True))

    return Recipe(
        entry="main",
        compute="",
        arguments=dict(enumerate(inputs)),
        fills={i: fill_of(value, leaf) for i, (value, leaf) in enumerate(zip(examples, inputs, strict=True))},
        kept=frozenset(),
        hypers=({},),
        numbers=lambda hypers: {},
        begin=lambda known, hypers, noise: {},
        run=run,
        results=tuple(outputs),
        work=work_of(jaxpr.jaxpr),
    )
