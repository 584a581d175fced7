"""Numbers of 8 bits, and rounding at random: conversions by integer arithmetic on the bits of f32.

Of an 8-bit code (``optgen.dtypes.CODES``) with ``t`` mantissa bits and smallest normal number ``L``, let ``k`` be the
code of a magnitude ``x`` with as many fractional bits as f32 has to spare, ``23 - t``. Where ``x`` is normal, ``k`` is
``bits(x)`` less an offset. Where it is not, steps are even, as those of f32 are in ``[L, 2L)``: ``k`` is
``bits(x + L) - bits(L)``. Each is the larger of the two just where it holds, since f32's bits are a logarithm made of
straight lines; so a maximum chooses, and for decoding a minimum. Nothing in between is subnormal in f32, which would
be slow.

Rounding at random adds random bits below the last place kept, as many as there are, and cuts: up with the probability
of how far it is to there. A word has bits for two results, the lower ones for the first and the upper ones for the
second. Codes want 21, so that ten serve both: where they count most for the one, they count less than 2^-10 for the
other. The bits are a hash of the element's index, under two keys made of seed, step and leaf: they do not depend on
threads, rows or packing. The hash is lowbias32 (Wellons, hash-prospector), with the second key added in its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optgen.dtypes import CODES

#: What a call must have for keys: halves of the seed and the step, as floats, in this order.
PARTS = ("seed_low", "seed_high", "step_low", "step_high")


class _Writer:
    """Lines of MLIR on i32, with names that start with ``prefix``."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.lines, self.count = prefix, list[str](), 0

    def add(self, text: str, type_: str = "i32") -> str:
        self.count += 1
        name = f"{self.prefix}_{self.count}"
        self.lines.append(f"{name} = {text} : {type_}")
        return name

    def op(self, name: str, a: str, b: str | int, type_: str = "i32") -> str:
        return self.add(f"arith.{name} {a}, {b if isinstance(b, str) else self.number(b)}", type_)

    def number(self, value: int) -> str:
        return self.add(f"arith.constant {value - 2**32 if value >= 2**31 else value}")

    def scramble(self, x: str, between: str | None = None) -> str:
        """lowbias32 of ``x``; ``between`` is added in its middle."""
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = self.op("muli", self.op("xori", x, self.op("shrui", x, shift)), factor)
            if between is not None and shift == 16:
                x = self.op("addi", x, between)
        return self.op("xori", x, self.op("shrui", x, 16))


def _offsets(dtype: str) -> tuple[int, int, int]:
    """Of a code: spare bits, what is subtracted from the bits of normal numbers, and the bits of the smallest one."""
    code = CODES[dtype]
    low = (127 + code.lowest) << 23
    return 23 - code.mantissa, low - (1 << 23), low


def decode(result: str, operand: str, dtype: str) -> list[str]:
    """The f32 that ``operand`` in memory stands for: an i8 with a code, or a bf16."""
    if dtype == "bf16":
        return [f"{result} = arith.extf {operand} : bf16 to f32"]
    code, w = CODES[dtype], _Writer(f"{result}_d")
    spare, normal, low = _offsets(dtype)
    byte = w.add(f"arith.extui {operand}", "i8 to i32")
    shifted = w.op("shli", w.op("andi", byte, code.top) if code.signed else byte, spare)
    as_normal = w.op("addi", shifted, normal)
    high = w.add(f"arith.bitcast {w.op('addi', shifted, low)}", "i32 to f32")
    smallest = w.add(f"arith.constant {2.0**code.lowest!r}", "f32")
    as_small = w.add(f"arith.bitcast {w.op('subf', high, smallest, 'f32')}", "f32 to i32")
    bits = w.op("minsi", as_normal, as_small)
    if code.signed:
        sign = w.op("shli", w.op("andi", byte, 128), 24)
        bits = w.op("ori", bits, sign)
    return [*w.lines, f"{result} = arith.bitcast {bits} : i32 to f32"]


def encode(result: str, x: str, dtype: str, word: str, half: int) -> list[str]:
    """The f32 ``x`` rounded at random to what is in memory: an i8 with a code, or a bf16.

    Args:
        result: its name.
        x: the number.
        dtype: of the element.
        word: 32 random bits.
        half: 0 to use the lower ones, 1 for the upper ones.
    """
    w = _Writer(f"{result}_c")
    bits = w.add(f"arith.bitcast {x}", "f32 to i32")
    if dtype == "bf16":
        random = w.op("shrui", word, 16) if half else w.op("andi", word, 0xFFFF)
        up = w.op("addi", bits, random)
        # The bits of NaN must not be counted up into those of a number.
        nan = w.add(f"arith.cmpf uno, {x}, {x}", "f32")
        quiet = w.op("ori", bits, 0x400000)
        short = w.add(f"arith.trunci {w.op('shrui', w.add(f'arith.select {nan}, {quiet}, {up}'), 16)}", "i32 to i16")
        return [*w.lines, f"{result} = arith.bitcast {short} : i16 to bf16"]
    code = CODES[dtype]
    spare, normal, low = _offsets(dtype)
    random = w.op("shrui", word, 32 - spare) if half else w.op("andi", word, (1 << spare) - 1)
    magnitude = w.op("andi", bits, 0x7FFFFFFF)
    as_float = w.add(f"arith.bitcast {magnitude}", "i32 to f32")
    smallest = w.add(f"arith.constant {2.0**code.lowest!r}", "f32")
    sum_ = w.add(f"arith.bitcast {w.op('addf', as_float, smallest, 'f32')}", "f32 to i32")
    fine = w.op("maxsi", w.op("subi", magnitude, normal), w.op("subi", sum_, low))
    number = w.op("minui", w.op("shrui", w.op("addi", fine, random), spare), code.top)
    if code.signed:
        number = w.op("ori", number, w.op("andi", w.op("shrui", bits, 24), 128))
    return [*w.lines, f"{result} = arith.trunci {number} : i32 to i8"]


def keys(parts: Sequence[str], compute: str, leaf: str, start: str) -> list[str]:
    """Lines that make ``%key0``, ``%key1`` and ``%key2``, once for a row.

    Args:
        parts: names of the floats that :data:`PARTS` lists.
        compute: their type.
        leaf: number of the leaf, an index.
        start: where in its leaf the row starts, an index.
    """
    w = _Writer("%key_w")
    halves = [w.add(f"arith.fptoui {name}", f"{compute} to i32") for name in parts]
    number = w.add(f"arith.index_cast {leaf}", "index to i32")
    wide = w.add(f"arith.index_cast {start}", "index to i64")
    c32 = w.add("arith.constant 32", "i64")
    beyond = w.add(f"arith.trunci {w.add(f'arith.shrui {wide}, {c32}', 'i64')}", "i64 to i32")
    _mix(w, halves, number, beyond)
    first = w.add(f"arith.trunci {wide}", "i64 to i32")
    # The sum of key and index alone matters.
    w.lines.append(f"%key2 = arith.addi %key0, {first} : i32")
    return w.lines


def host_keys(parts: Sequence[str], compute: str, leaf: str) -> list[str]:
    """Lines for the VM that make ``%key0`` and ``%key1`` of a leaf's first 2^32 elements; ``leaf`` is an i64.

    The VM has no conversion from f64 to integers: after adding a power of two, a number is in the mantissa's last bits.
    """
    w = _Writer("%key_w")
    bits, type_, mask = (2.0**52, "i64", 2**32 - 1) if compute == "f64" else (2.0**23, "i32", 2**23 - 1)
    base = w.add(f"arith.constant {bits!r}", compute)
    kept = w.add(f"arith.constant {mask}", type_)
    halves = []
    for name in parts:
        sum_ = w.add(f"arith.bitcast {w.op('addf', name, base, compute)}", f"{compute} to {type_}")
        whole = w.op("andi", sum_, kept, type_)
        halves.append(w.add(f"arith.trunci {whole}", "i64 to i32") if type_ == "i64" else whole)
    _mix(w, halves, w.add(f"arith.trunci {leaf}", "i64 to i32"), w.number(0))
    return w.lines


def _mix(w: _Writer, halves: Sequence[str], number: str, beyond: str) -> None:
    """``%key0`` and ``%key1``, of the halves of seed and step, a leaf's number and the upper word of a place in it."""
    low, high, step_low, step_high = halves
    seed, step = (w.op("ori", a, w.op("shli", b, 16)) for a, b in ((low, high), (step_low, step_high)))
    for index, offset in enumerate((0x9E3779B9, 0x85EBCA6B)):
        key = w.scramble(w.op("addi", seed, offset))
        for each in (step, number, beyond):
            # Not the same way twice, so that not all of what meets in one key meets in the other.
            key = w.scramble(w.op("muli", w.op("addi", key, each), 0x9E3779B1) if index else w.op("xori", key, each))
        w.lines.append(f"%key{index} = arith.addi {key}, {w.number(0)} : i32")


def words(count: int, index: str) -> tuple[list[str], list[str]]:
    """``count`` words of random bits for an element.

    Args:
        count: how many.
        index: of the element in its row, an index.

    Returns:
        Lines, and the names of the words.
    """
    w = _Writer("%rnd")
    place = w.add(f"arith.index_cast {index}", "index to i32")
    names = [w.scramble(w.op("addi", place, "%key2"), "%key1")]
    while len(names) < count:
        x = w.op("muli", w.op("addi", names[-1], "%key0"), 0x9E3779B1)
        x = w.op("muli", w.op("xori", x, w.op("shrui", x, 15)), 0x85EBCA77)
        names.append(w.op("xori", x, w.op("shrui", x, 16)))
    return w.lines, names


def random_words(count: int, elements: int, *, seed: int, step: int, leaf: int = 0) -> np.ndarray:
    """What :func:`words` computes, by numpy: an array of ``count`` rows of uint32."""

    def scramble(x: Any, between: Any = 0) -> Any:
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D) + np.uint32(between)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))

    index = np.arange(elements, dtype=np.uint64)
    beyond = (index >> np.uint64(32)).astype(np.uint32)
    made = []
    with np.errstate(over="ignore"):
        for which, offset in enumerate((0x9E3779B9, 0x85EBCA6B)):
            key = scramble(np.full(1, seed, np.uint32) + np.uint32(offset))
            for each in (np.uint32(step), np.uint32(leaf), beyond):
                key = scramble((key + each) * np.uint32(0x9E3779B1) if which else key ^ each)
            made.append(key)
        found = [scramble(made[0] + index.astype(np.uint32), made[1])]
        while len(found) < count:
            x = (found[-1] + made[0]) * np.uint32(0x9E3779B1)
            x = (x ^ (x >> np.uint32(15))) * np.uint32(0x85EBCA77)
            found.append(x ^ (x >> np.uint32(16)))
    return np.stack(found)
