"""What a function for Vulkan must not do, because its results would be wrong and nothing would say so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from optgen.artifact.manifest import LeafInfo
from optgen.compiler.blame import line_of
from optgen.dtypes import INTEGERS
from optgen.errors import UnsupportedTargetError
from optgen.runtime.tree import show
from optgen.targets import Target

#: IREE 3.13 packs narrower elements into words on Vulkan: f16 comes out as garbage, and of the others the last
#: elements where they do not fill a word. Wider ones many devices lack.
DTYPES = ("f32", "i32", "ui32")
#: How many elements may be reduced to one. Mesa's software Vulkan leaves loops after 65,535 rounds of all of a kernel's
#: together, and one that sums and then uses the sum has two: wrong from 32,761 elements on, as measured.
LOOP = 65_535 // 3

_TENSOR = r"tensor<((?:\d+x)*)\w+>"
_REDUCE = re.compile(rf"across dimensions = \[([\d, ]*)\] : \({_TENSOR}")
_DOT = re.compile(rf"contracting_dims = \[([\d, ]*)\] x .*? : \({_TENSOR}")
_SUMS = ("stablehlo.reduce", "stablehlo.dot_general", "stablehlo.reduce_window")
_WINDOW = re.compile(r"stablehlo\.reduce_window.*?window_dimensions = array<i64: ([\d, ]*)>")


def check_vulkan(
    target: Target, stablehlo: str, leaves: Sequence[LeafInfo], located: Callable[[], str] | None = None
) -> None:
    """Refuses element types that are not 32 bits wide, and reductions that are too long.

    Args:
        target: what for.
        stablehlo: the program.
        leaves: what it takes and gives.
        located: gives the program with JAX's notes on lines, so that refusals name them.

    Raises:
        UnsupportedTargetError: naming what there is of it.
    """
    for leaf in leaves:
        if leaf.dtype not in DTYPES:
            instead = "i32" if leaf.dtype in INTEGERS else "f32"  # of a truth value too
            _refuse(target, f"must use {', '.join(DTYPES)} ({show(leaf.path)} is {leaf.dtype}: make it {instead})")
    for dtype in dict.fromkeys(re.findall(r"(?:x|<)(bf16|f16|f64)>", stablehlo)):
        place = _line(located, partial(_computes_in, dtype))
        _refuse(target, f"must use {', '.join(DTYPES)} (it computes in {dtype})", place=place)
    check_vulkan_sums(target, stablehlo, located=located)


def _computes_in(dtype: str, op: Any) -> bool:
    return any(re.search(rf"[x<]{dtype}>", str(result.type)) for result in op.results)


def check_vulkan_sums(
    target: Target, stablehlo: str, what: str = "a function", located: Callable[[], str] | None = None
) -> None:
    """Refuses reductions that are too long.

    Raises:
        UnsupportedTargetError: naming ``what`` reduces how many elements to one.
    """
    longest = max(_reductions(stablehlo), default=0)
    if longest > LOOP:
        reason = f"must not reduce more than {LOOP} elements to one, which Mesa's driver cuts off ({longest})"
        place = _line(located, lambda op: op.name in _SUMS and longest in _reductions(str(op)))
        _refuse(target, reason, what, place)


def _line(located: Callable[[], str] | None, wanted: Callable[[Any], bool]) -> str:
    """The user's line, and a colon, where it is known."""
    line = line_of(located(), wanted) if located is not None else ""
    return f"{line}: " if line else ""


def _refuse(target: Target, reason: str, what: str = "a function", place: str = "") -> None:
    raise UnsupportedTargetError(f"{place}{what} for target '{target.name}' {reason}")


def _reductions(stablehlo: str) -> list[int]:
    """How many elements each reduction of the program makes one of."""
    found = []
    for pattern in (_REDUCE, _DOT):
        for match in pattern.finditer(stablehlo):
            extents = [int(n) for n in match[2].split("x") if n]
            found.append(math.prod(extents[int(d)] for d in match[1].split(",") if d.strip()))
    return found + [math.prod(int(n) for n in m[1].split(",")) for m in _WINDOW.finditer(stablehlo)]


_STORED = re.compile(r"dispatch\.tensor<(?:writeonly|readwrite):tensor<((?:\d+x)*)(i1|i8|i16|f16|bf16)>")


def check_stored(target: Target, printed: str) -> None:
    """Refuses programs whose kernels write elements narrower than 32 bits to memory, as a truth value that the
    backward pass needs again would be: of bytes that several kernels' lanes write into one word, the last one stays.

    Args:
        target: what for.
        printed: the compiler's IR, as :mod:`optgen.lower.hazard` reads it.

    Raises:
        UnsupportedTargetError: naming the element type.
    """
    for match in _STORED.finditer(printed):
        if match[1]:
            _refuse(target, f"must keep values narrower than 32 bits out of memory (it stores {match[1]}{match[2]})")
