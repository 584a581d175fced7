"""What programs for Vulkan are made of, and must not do, because they would be wrong and nothing would say so."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from optgen.artifact.manifest import LeafInfo
from optgen.dsl.trace import import_jax
from optgen.dtypes import FLOATS, INTEGERS, WORDS
from optgen.errors import LoweringError, UnsupportedTargetError
from optgen.lower.lines import line_of
from optgen.lower.repair.aligned import aligned, astray
from optgen.lower.repair.words import in_words
from optgen.lower.straight import straighten
from optgen.runtime.tree import show
from optgen.targets import Target

#: IREE 3.13 packs narrower elements into words on Vulkan: f16 comes out as garbage. Wider ones many devices lack.
#: Integers are another matter: :func:`for_vulkan` writes programs over.
DTYPES = ("f32", *INTEGERS)
#: How many elements may be reduced to one. Mesa's software Vulkan leaves loops after 65,535 rounds of all of a kernel's
#: together, and one that sums and then uses the sum has two: wrong from 32,761 elements on, as measured.
LOOP = 65_535 // 3

_TENSOR = r"tensor<((?:\d+x)*)\w+>"
_REDUCE = re.compile(rf"across dimensions = \[([\d, ]*)\] : \({_TENSOR}")
_DOT = re.compile(rf"contracting_dims = \[([\d, ]*)\] x .*? : \({_TENSOR}")
_SUMS = ("stablehlo.reduce", "stablehlo.dot_general", "stablehlo.reduce_window")
_WINDOW = re.compile(r"stablehlo\.reduce_window.*?window_dimensions = array<i64: ([\d, ]*)>")


#: The operations that a program without loops may have. Each round of a loop of the host waits for the device, which
#: Mesa's driver has lost over it; but each kernel costs time at every load.
_WRITTEN_OUT = 2_000


def for_vulkan(target: Target, stablehlo: str) -> str:
    """A program as it is compiled for a target: for Vulkan with words in the place of narrower integers and truth
    values. Its arguments and results are then what ``optgen.dtypes.WORDS`` says; the runtime converts.

    Raises:
        UnsupportedTargetError: naming an operation that has no such form.
    """
    if target.backend != "vulkan":
        return stablehlo
    with suppress(LoweringError):  # loops that cannot be written out stay loops
        straight = straighten(stablehlo)
        stablehlo = straight if straight.count(" = ") <= _WRITTEN_OUT else stablehlo
    try:
        return in_words(aligned(stablehlo))
    except LoweringError as error:
        raise UnsupportedTargetError(f"target '{target.name}' cannot run this program: {error}") from None


def check_vulkan(
    target: Target, stablehlo: str, leaves: Sequence[LeafInfo], located: Callable[[], str] | None = None
) -> None:
    """Refuses floats that are not 32 bits wide, integers of 64 bits where JAX keeps them, and reductions that are too
    long.

    Args:
        target: what for.
        stablehlo: the program.
        leaves: what it takes and gives.
        located: gives the program with JAX's notes on lines, so that refusals name them.

    Raises:
        UnsupportedTargetError: naming what there is of it.
    """
    whole = import_jax().config.jax_enable_x64  # of others JAX goes on with the lower half
    for leaf in leaves:
        if leaf.dtype in FLOATS and leaf.dtype not in DTYPES:
            _refuse(target, f"must have f32 for floats ({show(leaf.path)} is {leaf.dtype}: make it f32)")
        if leaf.dtype in WORDS and leaf.dtype.endswith("64") and whole:
            word = WORDS[leaf.dtype]
            _refuse(target, f"must not keep integers of 64 bits ({show(leaf.path)} is {leaf.dtype}: make it {word})")
    for dtype in dict.fromkeys(re.findall(r"(?:x|<)(bf16|f16|f64)>", stablehlo)):
        place = _line(located, partial(_computes_in, dtype))
        _refuse(target, f"must have f32 for floats (it computes in {dtype})", place=place)
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


_PART = re.compile(
    r"dispatch\.tensor\.(?:load|store) .*?offsets = \[([^\]]*)\], sizes = \[([^\]]*)\], strides = \[([^\]]*)\] : "
    r".*?dispatch\.tensor<\w+:tensor<((?:\d+x)*)\w+>>"
)


_SUBSPAN = re.compile(r"stream\.binding\.subspan %\w+\[%c(\d+)\] .*?dispatch\.tensor<\w+:tensor<((?:\d+x)*)\w+>>")


def check_vectors(target: Target, printed: str, stream: str) -> None:
    """Refuses kernels that read or write a part of an array from the middle of four numbers on, which the compiler
    takes for vectors of four: :mod:`optgen.lower.repair.aligned` leaves none that is known to come of StableHLO.

    Args:
        target, printed: as of :func:`check_stored`.
        stream: the compiler's IR with the places in memory that kernels read and write.

    Raises:
        UnsupportedTargetError: naming the array's extents and where the part begins.
    """
    for line in _in_kernels(stream):
        if (place := _SUBSPAN.search(line)) and int(place[1]) % 16 and math.prod(_extents(place[2])) % 4 == 0:
            _refuse(target, f"must not begin in the middle of four numbers (at byte {place[1]} of its memory)")
    for line in _in_kernels(printed):
        if not (part := _PART.search(line)):
            continue
        begins, sizes, steps = (
            [int(n) if re.fullmatch(r"-?\d+", n.strip()) else None for n in part[i].split(",") if n.strip()]
            for i in (1, 2, 3)
        )
        extents = [n if n is not None else 0 for n in sizes]
        if set(steps) <= {1} and astray(_extents(part[4]), begins, extents) is not None:
            _refuse(target, f"must not begin in the middle of four numbers (at {part[1]} of {part[4][:-1]})")


def _in_kernels(text: str) -> Iterator[str]:
    """The lines of IR, without those of kernels that copy one number after the other."""
    kernel = ""
    for line in text.splitlines():
        if found := re.search(r"func\.func @(\S+?)\(", line):
            kernel = found[1]
        if "slow_memcpy" not in kernel:
            yield line


def _extents(text: str) -> list[int]:
    """Of ``7x5x``."""
    return [int(n) for n in text.split("x")[:-1]]


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
