"""Digests of what depends on elementary functions, computed in a process of its own whose processor has fewer features.

``python tests/same_bytes.py operations`` prints one for each operation and function, ``bundles`` one for each file that
a selection of bundles holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

_FEATURES = ("AVX2", "AVX512F", "FMA", "FMA4")

#: What switches a processor's features off: for numpy, for the C library (whose names for them have changed), for XLA.
WITHOUT = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=" + ",".join(f"-{f}{s}" for f in _FEATURES for s in ("", "_Usable")),
    "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
    "OPENBLAS_CORETYPE": "Nehalem",
}

#: Prebuilt bundles whose rules have powers, exponentials, roots, norms of leaves and of trees, and scalar state.
PREBUILT = ("nadam", "nadamw", "lamb.optax", "radam", "adamax", "schedule_free_adamw.optax", "rprop")


def digest(data: Any) -> str:
    """A short one."""
    return hashlib.sha256(data.tobytes() if isinstance(data, np.ndarray) else data).hexdigest()[:16]


def operations() -> dict[str, str]:
    """Of every operation of a graph, and of every function that references are computed by."""
    from optgen.lower import rounded
    from optgen.lower.ops import OPS, REDUCTIONS

    # Bits of a multiplicative hash: numbers that need no function.
    words = (np.arange(1, 6_001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)
    unit = words.astype(np.float64) * 2.0**-53
    a, b = unit[::20] * 8 - 4, unit[1::20] * 8 - 4
    found = {}
    with np.errstate(all="ignore"):
        for name, op in OPS.items():
            positive = np.abs(a) if name in ("log", "log_plus_one", "power", "sqrt", "rsqrt") else a
            arguments: dict[str, tuple[Any, ...]] = {
                "select": (a > 0, a, b), "clamp": (np.minimum(a, b), a * 2, np.maximum(a, b)), "not": (a > 0,),
                "compare": ("LT", a, b), "and": (a > 0, b > 0), "or": (a > 0, b > 0), "xor": (a > 0, b > 0),
            }  # fmt: skip
            pairs = ("add", "subtract", "multiply", "divide", "remainder", "maximum", "minimum", "atan2", "power")
            given = arguments.get(name, (positive, b) if name in pairs else (positive,))
            found[name] = digest(np.asarray(op.evaluate(*given)))
        for name, reduction in REDUCTIONS.items():
            found[name] = digest(np.asarray(reduction.evaluate(1 + a * 1e-5)))
        for name in ("exp", "expm1", "log1p", "tanh", "logistic", "cbrt", "sin", "cos"):
            found[f"rounded.{name}"] = digest(getattr(rounded, name)(np.abs(a)))
        for name in ("power", "arctan2"):
            found[f"rounded.{name}"] = digest(getattr(rounded, name)(np.abs(a), b))
    found["control"] = digest(np.array([math.exp(v) for v in unit * 8 - 4]))  # by the C library: differs
    return found


def bundles() -> dict[str, str]:
    """Of every file of some bundles. Modules come from the cache."""
    from dataclasses import replace

    from optgen.compiler.prebuilt import recipes

    found = {}
    made = {
        recipe.variant.name: replace(recipe, dtypes=("f32",), targets=("cpu:x86-64-v3",)).build()
        for recipe in recipes()
        if recipe.variant.name in PREBUILT
    }
    for name, bundle in made.items():
        found.update({f"{name}/{file}": digest(data) for file, data in bundle.files.items()})
        found[f"{name}/manifest"] = digest(bundle.manifest.to_json().encode())
    return found


def elsewhere(what: str) -> dict[str, str]:
    """The digests of a process whose processor has fewer features."""
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, __file__, what],
        env={**os.environ, **WITHOUT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps({"operations": operations, "bundles": bundles}[sys.argv[1]]()))
