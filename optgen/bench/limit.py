"""The limit: what a C compiler makes of each rule, with the same loads and stores, on the same memory."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optgen.bench.data import Data, coefficients
from optgen.bench.peers import AbsentError, Peer
from optgen.bench.work import AVERAGE, BETA1, BETA2, EPS, LR, MAX_NORM, MOMENTUM

FLAGS = ("-O3", "-march=native", "-fopenmp", "-ffast-math", "-fno-math-errno", "-fPIC")


class _Tree(ctypes.Structure):
    _fields_ = (
        ("leaves", ctypes.c_int64),
        ("elements", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sizes", "w", "g", "m", "v", "e")),
    )


class _Scalars(ctypes.Structure):
    _fields_ = tuple(
        (n, ctypes.c_float)
        for n in ("lr", "momentum", "beta1", "rest1", "beta2", "rest2", "alpha", "eps", "keep", "decay",
                  "correct1", "correct2", "max_norm", "average", "scale")
    )  # fmt: skip


class Limit(Peer):
    """The kernel of ``limit.c`` for the case's rule."""

    def __init__(self, data: Data, threads: int) -> None:
        case = data.case
        rule = case.rule
        if rule.again and case.dtype != "f32":
            raise AbsentError("rules with norms are written for f32 alone")
        name = "adam" if rule.name == "adamw" else rule.name.replace("-", "_")
        self._kernel = _library()[f"{name}_{case.dtype}"]
        self._data, self._threads, self._count = data, threads, 0
        self._sizes = np.array(case.work.sizes, np.int64)
        tables = [_addresses(leaves) for leaves in (data.params, data.grads, *data.state.values())]
        self._kept = tables
        pointers = [table.ctypes.data for table in tables] + [None] * (5 - len(tables))
        self._tree = _Tree(len(self._sizes), case.work.elements, self._sizes.ctypes.data, *pointers)
        self._scalars = _Scalars(LR, MOMENTUM, BETA1, 1 - BETA1, BETA2, 1 - BETA2, 0, 0, 1, rule.decay)
        self._scalars.max_norm, self._scalars.average = MAX_NORM, AVERAGE
        self._arguments = (ctypes.byref(self._tree), ctypes.byref(self._scalars), threads)

    def step(self) -> None:
        """One update."""
        self._count += 1
        self._scalars.alpha, self._scalars.eps, self._scalars.keep = coefficients(self._data.case.rule, self._count)
        if self._data.case.rule.name == "lamb":
            self._scalars.correct1 = 1 / (1 - BETA1**self._count)
            self._scalars.correct2 = 1 / (1 - BETA2**self._count)
            self._scalars.eps = EPS
        self._kernel(*self._arguments)

    def params(self) -> list[np.ndarray]:
        """The shared ones."""
        return self._data.params


def _addresses(leaves: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([leaf.ctypes.data for leaf in leaves], np.uint64)


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise AbsentError("there is no C compiler")
    source = Path(__file__).with_name("limit.c")
    with tempfile.TemporaryDirectory(prefix="optgen-bench-") as folder:
        library, compiled = Path(folder) / "limit.so", Path(folder) / "limit.o"
        # Linked without -ffast-math: with it, loading the library would flush subnormals in the whole process.
        for command in (
            [compiler, *FLAGS, "-c", str(source), "-o", str(compiled)],
            [compiler, "-fopenmp", "-shared", str(compiled), "-o", str(library), "-lm"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise AbsentError(f"the C compiler failed: {(done.stderr.strip().splitlines() or ['silently'])[-1]}")
        return ctypes.CDLL(str(library))  # stays mapped when the file is gone
