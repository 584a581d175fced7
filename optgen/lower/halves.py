"""f16 in memory: its bits, an i16 each, converted by the processor or by integer arithmetic.

IREE compiles f16 for a Vulkan device that lacks it as f32, in memory too, and says nothing. x86-64-v2 lacks it as well,
and LLVM calls a library function for each element; integer arithmetic is a vector's work.
"""

from __future__ import annotations

from optgen.errors import LoweringError


def convert_half(op: str, result: str, operand: str, source: str, target: str, *, native: bool) -> list[str]:
    """The MLIR of a conversion between f16, as bits, and f32; ``native`` where the device has f16.

    Raises:
        LoweringError: for any other operation or type.
    """
    if op != "convert" or "f16" not in (source, target):
        raise LoweringError(f"'{op}' from {source} to {target}: f16 is only converted")
    if native:
        name = "extf" if source == "f16" else "truncf"
        if source == "f16":
            return [
                f"{result}_h = arith.bitcast {operand} : i16 to f16",
                f"{result} = arith.{name} {result}_h : f16 to {target}",
            ]
        return [
            f"{result}_h = arith.{name} {operand} : {source} to f16",
            f"{result} = arith.bitcast {result}_h : f16 to i16",
        ]
    if source == "f16":
        lines = half_to_float(result if target == "f32" else f"{result}_w", operand)
        return lines if target == "f32" else [*lines, f"{result} = arith.extf {result}_w : f32 to {target}"]
    if source == "f64":
        # Rounding to odd first, so that the second rounding is the only one that counts.
        raise LoweringError("f64 to f16 has no form for devices without f16")
    return float_to_half(result, operand)


def half_to_float(result: str, bits: str) -> list[str]:
    """The f32 with the value of the f16 whose bits are the i16 ``bits``; exact."""
    r = result
    return [
        f"{r}_u = arith.extui {bits} : i16 to i32",
        f"{r}_c15 = arith.constant 32768 : i32",
        f"{r}_c16 = arith.constant 16 : i32",
        f"{r}_c13 = arith.constant 13 : i32",
        f"{r}_mask = arith.constant 32767 : i32",
        f"{r}_sign0 = arith.andi {r}_u, {r}_c15 : i32",
        f"{r}_sign = arith.shli {r}_sign0, {r}_c16 : i32",
        f"{r}_em = arith.andi {r}_u, {r}_mask : i32",
        # Subnormals as an integer times 2^-24: as f32 bits they would be subnormal, which devices may flush.
        f"{r}_int = arith.uitofp {r}_em : i32 to f32",
        f"{r}_tiny = arith.constant 0x33800000 : f32",
        f"{r}_sub = arith.mulf {r}_int, {r}_tiny : f32",
        f"{r}_subbits = arith.bitcast {r}_sub : f32 to i32",
        f"{r}_shift = arith.shli {r}_em, {r}_c13 : i32",
        f"{r}_bias = arith.constant 939524096 : i32",
        f"{r}_norm = arith.addi {r}_shift, {r}_bias : i32",
        f"{r}_inf = arith.constant 2139095040 : i32",
        f"{r}_special = arith.ori {r}_shift, {r}_inf : i32",
        f"{r}_c10 = arith.constant 1024 : i32",
        f"{r}_c31 = arith.constant 31744 : i32",
        f"{r}_is_sub = arith.cmpi ult, {r}_em, {r}_c10 : i32",
        f"{r}_is_special = arith.cmpi uge, {r}_em, {r}_c31 : i32",
        f"{r}_some = arith.select {r}_is_sub, {r}_subbits, {r}_norm : i32",
        f"{r}_any = arith.select {r}_is_special, {r}_special, {r}_some : i32",
        f"{r}_signed = arith.ori {r}_any, {r}_sign : i32",
        f"{result} = arith.bitcast {r}_signed : i32 to f32",
    ]


def float_to_half(result: str, x: str) -> list[str]:
    """The bits, an i16, of the f32 ``x`` rounded to the nearest f16, ties to even."""
    r = result
    return [
        f"{r}_b = arith.bitcast {x} : f32 to i32",
        f"{r}_c16 = arith.constant 16 : i32",
        f"{r}_c13 = arith.constant 13 : i32",
        f"{r}_one = arith.constant 1 : i32",
        f"{r}_mask = arith.constant 2147483647 : i32",
        f"{r}_signmask = arith.constant 32768 : i32",
        f"{r}_sign0 = arith.shrui {r}_b, {r}_c16 : i32",
        f"{r}_sign = arith.andi {r}_sign0, {r}_signmask : i32",
        f"{r}_abs = arith.andi {r}_b, {r}_mask : i32",
        # Normal: add half of the last place kept, a little less where that is even, and cut.
        f"{r}_odd0 = arith.shrui {r}_abs, {r}_c13 : i32",
        f"{r}_odd = arith.andi {r}_odd0, {r}_one : i32",
        f"{r}_half = arith.constant 4095 : i32",
        f"{r}_bias = arith.constant 939524096 : i32",
        f"{r}_n0 = arith.addi {r}_abs, {r}_odd : i32",
        f"{r}_n1 = arith.addi {r}_n0, {r}_half : i32",
        f"{r}_n2 = arith.subi {r}_n1, {r}_bias : i32",
        f"{r}_norm = arith.shrui {r}_n2, {r}_c13 : i32",
        # Subnormal: the last place of 0.5 in f32 is 2^-24, that of f16's subnormals; so an addition rounds.
        f"{r}_absf = arith.bitcast {r}_abs : i32 to f32",
        f"{r}_point5 = arith.constant 0.5 : f32",
        f"{r}_s0 = arith.addf {r}_absf, {r}_point5 : f32",
        f"{r}_s1 = arith.bitcast {r}_s0 : f32 to i32",
        f"{r}_point5bits = arith.constant 1056964608 : i32",
        f"{r}_sub = arith.subi {r}_s1, {r}_point5bits : i32",
        f"{r}_smallest = arith.constant 947912704 : i32",
        f"{r}_largest = arith.constant 1199566848 : i32",
        f"{r}_infinity = arith.constant 2139095040 : i32",
        f"{r}_is_sub = arith.cmpi ult, {r}_abs, {r}_smallest : i32",
        f"{r}_is_big = arith.cmpi uge, {r}_abs, {r}_largest : i32",
        f"{r}_is_nan = arith.cmpi ugt, {r}_abs, {r}_infinity : i32",
        f"{r}_inf16 = arith.constant 31744 : i32",
        f"{r}_nan16 = arith.constant 32256 : i32",
        f"{r}_v0 = arith.select {r}_is_sub, {r}_sub, {r}_norm : i32",
        f"{r}_v1 = arith.select {r}_is_big, {r}_inf16, {r}_v0 : i32",
        f"{r}_v2 = arith.select {r}_is_nan, {r}_nan16, {r}_v1 : i32",
        f"{r}_v3 = arith.ori {r}_v2, {r}_sign : i32",
        f"{result} = arith.trunci {r}_v3 : i32 to i16",
    ]
