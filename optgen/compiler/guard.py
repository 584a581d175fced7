"""Executables that are loaded only where they can run, which IREE does not see to.

On its way through the compiler a module is changed twice, as text. Where every kernel stands once for each processor
(:func:`guard`)

* a condition is added to each that needs extensions of its processor: the runtime takes the first that holds, and where
  none does says so, instead of running into an illegal instruction;
* for VMVX, IREE's bytecode for any processor, hints for vectors are taken out, and what it lacks, casts between f32 and
  f64 and the copying of signs, is written in integer arithmetic.

And where they are compiled (:func:`load_first`), one is loaded before anything is asked: IREE 3.13 looks what the
processor has when it loads the first executable, and until then says that it has nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from optgen.errors import CompileError

#: What the runtime can be asked for, in LLVM's names (``iree-cpuinfo`` lists them). The other extensions of x86-64
#: levels (popcnt, bmi, lzcnt, movbe) come with these in every processor.
QUERIES = frozenset(
    {
        "sse3", "ssse3", "sse4.1", "sse4.2", "sse4a", "avx", "fma", "fma4", "xop", "f16c", "avx2", "avx512f",
        "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx512ifma", "avx512vbmi", "avx512vpopcntdq", "avx512vnni",
        "avx512vbmi2", "avx512bitalg", "avx512bf16", "avx512fp16", "amx-tile", "amx-int8", "amx-bf16",
        "lse", "lse128", "fullfp16", "fp16fml", "dotprod", "i8mm", "bf16", "sve", "sve2", "sve2p1", "sve2-bitperm",
        "f32mm", "f64mm", "sme", "sme2", "sme2p1", "sme-f16f16", "sme-f64f64", "sme-i16i64",
    }
)  # fmt: skip

_VARIANT = re.compile(r'\s*hal\.executable\.variant public @\S+ target\(<"([^"]+)", "([^"]+)"')
_FEATURES = re.compile(r'cpu_features = "([^"]*)"')
_CAST = re.compile(r"\s*(%\w+) = arith\.(truncf|extf) (%[\w#]+) : (f64 to f32|f32 to f64)\s*")
_SIGN = re.compile(r"\s*(%\w+) = math\.copysign (%[\w#]+), (%[\w#]+) : (f64|f32)\s*")
_QUERY = re.compile(r'hal\.device\.query<(%\w+) : !hal\.device> key\("hal\.cpu" :: ')
_EXECUTABLE = re.compile(r"^  hal\.executable private @(\S+) \{", re.MULTILINE)
_BINARY = re.compile(r'^    hal\.executable\.binary public @(\S+) <format = "([^"]+)"', re.MULTILINE)
_HINTS = "attrs =  {compilation_info = "
_VMVX_HINTS = (
    "attrs = {compilation_info = #iree_codegen.compilation_info<"
    "lowering_config = #iree_cpu.lowering_config<distribution = [0]>, "
    "translation_info = <pipeline = #iree_codegen.vmvx_pipeline>>}"
)


def guard(sources: str) -> str:
    """``sources``, a module as ``--compile-to=executable-sources`` gives it, with conditions, and fit for VMVX."""
    return "\n".join(_lines(sources.split("\n")))


def load_first(module: str) -> str:
    """``module``, as ``--compile-to=hal`` gives it, with an executable that is loaded before the processor is asked for
    its extensions. Bytecode where there is some; else native code, of which nothing runs but the query of its table.

    Raises:
        CompileError: if there is none that every processor can load.
    """
    asks = _QUERY.search(module)
    if asks is None:
        return module
    binaries = [
        (table[1], *binary.groups())
        for table in _EXECUTABLE.finditer(module)
        for binary in _BINARY.finditer(module, table.end(), _end(module, table.end()))
    ]
    chosen = [b for b in binaries if b[2].startswith("vmvx")] or binaries
    if len({kind for _, _, kind in chosen}) != 1:
        raise CompileError("the module has code for several processors and no bytecode: it could not choose")
    table, binary, _ = chosen[0]
    first = (
        "    %first_all = arith.constant -1 : i64\n"
        f"    %first = hal.executable.create device({asks[1]} : !hal.device) affinity(%first_all) "
        f"target(@{table}::@{binary}) : !hal.executable\n"
        "    util.optimization_barrier %first : !hal.executable\n"
    )
    start = module.rindex("\n", 0, asks.start()) + 1
    return module[:start] + first + module[start:]


def _end(module: str, start: int) -> int:
    """Where the executable ends whose contents begin at ``start``."""
    found = module.find("\n  }", start)
    return len(module) if found < 0 else found


def _lines(lines: list[str]) -> Iterator[str]:
    backend = ""
    for line in lines:
        if variant := _VARIANT.match(line):
            backend = variant[1]
            yield line
            yield from _condition(_needed(line))
        elif backend == "vmvx" and (cast := _CAST.fullmatch(line)):
            yield from (_truncate if cast[2] == "truncf" else _extend)(cast[1], cast[3])
        elif backend == "vmvx" and (sign := _SIGN.fullmatch(line)):
            yield from _copy_sign(sign[1], sign[2], sign[3], int(sign[4][1:]))
        elif backend == "vmvx" and _HINTS in line:
            yield _without_vectors(line)
        else:
            yield line


def _needed(line: str) -> list[str]:
    """The extensions that a variant is compiled for and the runtime can be asked about."""
    listed = _FEATURES.search(line)
    return [] if listed is None else [f[1:] for f in listed[1].split(",") if f[:1] == "+" and f[1:] in QUERIES]


def _condition(features: list[str]) -> list[str]:
    if not features:
        return []
    lines = [
        "hal.executable.condition(%device: !hal.device) -> i1 {",
        "%zero = arith.constant 0 : i64",
        "%all = arith.constant true",
    ]
    so_far = "%all"
    for i, name in enumerate(features):
        query = f'hal.device.query<%device : !hal.device> key("hal.cpu" :: "{name}")'
        lines += [
            f"%known{i}, %value{i} = {query} : i1, i64 = 0 : i64",
            f"%has{i} = arith.cmpi ne, %value{i}, %zero : i64",
            f"%all{i} = arith.andi {so_far}, %has{i} : i1",
        ]
        so_far = f"%all{i}"
    return [*lines, f"hal.return {so_far} : i1", "}"]


def _without_vectors(line: str) -> str:
    start = line.index(_HINTS)
    depth = 0
    for end in range(start + len("attrs =  "), len(line)):
        depth += {"{": 1, "}": -1}.get(line[end], 0)
        if depth == 0:
            return line[:start] + _VMVX_HINTS + line[end + 1 :]
    return line


def _copy_sign(result: str, magnitude: str, sign: str, bits: int) -> list[str]:
    p = f"%sign_{result[1:]}"
    return [
        f"{p}_mask = arith.constant {2 ** (bits - 1) - 1} : i{bits}",
        f"{p}_bit = arith.constant {-(2 ** (bits - 1))} : i{bits}",
        f"{p}_a = arith.bitcast {magnitude} : f{bits} to i{bits}",
        f"{p}_b = arith.bitcast {sign} : f{bits} to i{bits}",
        f"{p}_m = arith.andi {p}_a, {p}_mask : i{bits}",
        f"{p}_s = arith.andi {p}_b, {p}_bit : i{bits}",
        f"{p}_w = arith.ori {p}_m, {p}_s : i{bits}",
        f"{result} = arith.bitcast {p}_w : i{bits} to f{bits}",
    ]


def _integers(result: str, **numbers: int) -> tuple[str, list[str]]:
    """A prefix for names that belong to ``result``, and constants under it."""
    prefix = f"%cast_{result[1:]}"
    return prefix, [f"{prefix}_{name} = arith.constant {number} : i64" for name, number in numbers.items()]


def _truncate(result: str, operand: str) -> list[str]:
    """f64 to f32, to nearest and ties to even; what would be denormal is zero, as in CPU kernels."""
    p, constants = _integers(
        result, c29=29, c32=32, one=1, half=2**28 - 1, sign=2**31, magnitude=2**63 - 1, bias=896 << 52,
        least=897 << 52, infinity=0x7F800000, nan=0x7FC00000, wide_infinity=0x7FF << 52, zero=0,
    )  # fmt: skip
    return [
        *constants,
        f"{p}_bits = arith.bitcast {operand} : f64 to i64",
        f"{p}_high = arith.shrui {p}_bits, {p}_c32 : i64",
        f"{p}_signed = arith.andi {p}_high, {p}_sign : i64",
        f"{p}_m = arith.andi {p}_bits, {p}_magnitude : i64",
        f"{p}_cut = arith.shrui {p}_m, {p}_c29 : i64",
        f"{p}_odd = arith.andi {p}_cut, {p}_one : i64",
        f"{p}_up = arith.addi {p}_m, {p}_half : i64",
        f"{p}_round = arith.addi {p}_up, {p}_odd : i64",
        f"{p}_rebased = arith.subi {p}_round, {p}_bias : i64",
        f"{p}_normal = arith.shrui {p}_rebased, {p}_c29 : i64",
        f"{p}_big = arith.cmpi sge, {p}_normal, {p}_infinity : i64",
        f"{p}_bounded = arith.select {p}_big, {p}_infinity, {p}_normal : i64",
        f"{p}_small = arith.cmpi slt, {p}_round, {p}_least : i64",
        f"{p}_flushed = arith.select {p}_small, {p}_zero, {p}_bounded : i64",
        f"{p}_wrong = arith.cmpi sgt, {p}_m, {p}_wide_infinity : i64",
        f"{p}_number = arith.select {p}_wrong, {p}_nan, {p}_flushed : i64",
        f"{p}_word = arith.ori {p}_number, {p}_signed : i64",
        f"{p}_short = arith.trunci {p}_word : i64 to i32",
        f"{result} = arith.bitcast {p}_short : i32 to f32",
    ]


def _extend(result: str, operand: str) -> list[str]:
    """f32 to f64; denormal numbers count as zero, as in CPU kernels."""
    p, constants = _integers(
        result, c29=29, c32=32, sign=2**31, magnitude=2**31 - 1, bias=896 << 52, least=0x00800000,
        infinity=0x7F800000, wide_infinity=0x7FF << 52, zero=0,
    )  # fmt: skip
    return [
        *constants,
        f"{p}_short = arith.bitcast {operand} : f32 to i32",
        f"{p}_bits = arith.extui {p}_short : i32 to i64",
        f"{p}_low = arith.andi {p}_bits, {p}_sign : i64",
        f"{p}_signed = arith.shli {p}_low, {p}_c32 : i64",
        f"{p}_m = arith.andi {p}_bits, {p}_magnitude : i64",
        f"{p}_wide = arith.shli {p}_m, {p}_c29 : i64",
        f"{p}_normal = arith.addi {p}_wide, {p}_bias : i64",
        f"{p}_small = arith.cmpi slt, {p}_m, {p}_least : i64",
        f"{p}_flushed = arith.select {p}_small, {p}_zero, {p}_normal : i64",
        f"{p}_big = arith.cmpi sge, {p}_m, {p}_infinity : i64",
        f"{p}_unbounded = arith.ori {p}_wide, {p}_wide_infinity : i64",
        f"{p}_number = arith.select {p}_big, {p}_unbounded, {p}_flushed : i64",
        f"{p}_word = arith.ori {p}_number, {p}_signed : i64",
        f"{result} = arith.bitcast {p}_word : i64 to f64",
    ]
