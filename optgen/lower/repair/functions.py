"""Functions of numbers that IREE's kernels lack."""

from __future__ import annotations

from optgen.lower.repair.rewriter import Repair

FUNCTIONS: dict[str, Repair] = {}
