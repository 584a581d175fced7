"""Elementary functions of float64 arrays: correctly rounded, so the same bits on every processor.

numpy, C libraries and XLA each have several versions of ``exp`` or ``pow``, chosen by what the processor offers, which
differ in the last bit. What is stored in an artifact must not depend on that. mpmath computes in whole numbers, which
are the same everywhere; here each result has 120 bits (sums of logarithms as many as they need) and is rounded once.

Slow, some 20 microseconds for an element: for probes, which have few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_BITS = 120


def _elements(name: str, *arrays: Any) -> Any:
    """The function of mpmath called ``name``, of each element of arrays of finite numbers."""
    from mpmath import mp

    function: Callable[..., Any] = getattr(mp, name)
    with mp.workprec(_BITS):
        flat = [float(function(*map(mp.mpf, each))) for each in zip(*(a.ravel().tolist() for a in arrays), strict=True)]
    return np.array(flat, np.float64).reshape(arrays[0].shape)


def _function(name: str, edges: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes its values at zeros, infinities, NaN and outside its domain, which are exact on every
    processor, and the sign of its results, from numpy's ``edges``; the others from mpmath's ``name``."""

    def evaluate(*arguments: Any) -> Any:
        given = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in arguments))
        with np.errstate(all="ignore"):
            known = np.asarray(edges(*given))
        inside = np.all([np.isfinite(a) & (a != 0) for a in given], axis=0) & ~np.isnan(known)
        # Of negative numbers mpmath gives complex powers and roots.
        bases = [np.abs(given[0]), *given[1:]] if name in ("power", "cbrt") else given
        result = known.copy()
        result[inside] = np.copysign(_elements(name, *(a[inside] for a in bases)), known[inside])
        return result[()]

    evaluate.__doc__ = f"As numpy's ``{edges.__name__}``."
    return evaluate


exp = _function("exp", np.exp)
expm1 = _function("expm1", np.expm1)
log = _function("log", np.log)
log1p = _function("log1p", np.log1p)
power = _function("power", np.power)
tanh = _function("tanh", np.tanh)
sin = _function("sin", np.sin)
cos = _function("cos", np.cos)
cbrt = _function("cbrt", np.cbrt)
arctan2 = _function("atan2", np.arctan2)


def logistic(x: Any) -> Any:
    """``1 / (1 + exp(-x))``."""
    with np.errstate(all="ignore"):
        return 1 / (1 + exp(-np.asarray(x, np.float64)))
