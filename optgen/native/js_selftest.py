"""The self-test of a package, as the literal that ``templates/js/lib/selftest.js`` runs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from optgen.native.selftest import SelfTest, table_of


def describe(
    test: SelfTest,
    arguments: Sequence[tuple[str, str, int]],
    places: Mapping[str, str],
    numbers: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """The literal.

    Args:
        test: the calls.
        arguments: name, dtype and number of elements of each array that is given.
        places: for results that lie in one of those, its name.
        numbers: what is given besides, for each call.
    """
    table = table_of(test.probe)
    index = {argument: test.results.index(result) for result, argument in places.items()}
    dtypes = {"i1": "bool", **{f"ui{n}": f"u{n}" for n in (8, 16, 32, 64)}}
    pieces = []
    for name, dtype, size in arguments:
        source = test.sources[name]
        piece: dict[str, Any] = {"name": name, "dtype": dtype, "size": size, "result": index.get(name)}
        if source.fill is not None:
            fill = source.fill
            piece |= {"kind": fill.kind, "stream": source.stream, "low": fill.offset}
            piece |= {"exponent": fill.exponent} if fill.kind == "float" else {"count": fill.count}
        elif source.array is not None:
            piece |= {"stored": base64.b64encode(source.array.tobytes()).decode()}
        else:
            piece |= {"kind": "number", "numbers": list(source.numbers)}
        pieces.append(piece | {"again": source.again})
    return {
        "seeds": list(test.seeds),
        "pieces": pieces,
        "numbers": {name: list(each) for name, each in numbers.items()},
        "results": list(test.results),
        "dtypes": [dtypes.get(leaf.dtype, leaf.dtype) for leaf in test.probe.info.results],
        "kept": [{"sampled": k.sampled, "count": k.count, "sums": k.projections} for k in table.kept],
        "width": table.width,
        "data": base64.b64encode(table.data).decode(),
    }
