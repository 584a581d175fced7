"""The form of IREE's executable libraries that generated code is written for, and whether an object file has it."""

from __future__ import annotations

import re

from optgen.errors import LoweringError
from optgen.native.elf import ObjectLibrary, read_library
from optgen.native.library import Library

#: The version of the table's layout: what IREE 3.8 to 3.13 write.
VERSION = 6

#: Functions of C's mathematical library, without the suffix of their f32 forms.
_LIBM = frozenset((
    "sqrt", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "pow", "sin", "cos", "tan", "tanh", "sinh", "cosh",
    "asin", "acos", "atan", "atan2", "erf", "erfc", "cbrt", "fabs", "floor", "ceil", "round", "roundeven", "rint",
    "nearbyint", "trunc", "fma", "fmod", "fmin", "fmax", "ldexp", "copysign",
))  # fmt: skip
# Arm's run-time ABI, whose functions take f64 in core registers, whatever the rest of a program does. By their GNU
# names (__muldf3) LLVM calls them otherwise than GCC has them.
_HELPER = re.compile(r"__aeabi_\w+")


def check_object(library: Library) -> ObjectLibrary:
    """Checks that an object file is what its host program expects.

    Returns:
        What the object file says of itself.

    Raises:
        LoweringError: for another version, a kernel that is missing or takes other numbers of constants or bindings,
            and for memory, functions or constants that only a runtime would give.
    """
    found = read_library(library.object, library.program.query)
    if found.version != VERSION:
        raise LoweringError(f"the object file's library has version {found.version} (it must have {VERSION})")
    if found.imports or found.constants:
        raise LoweringError(
            "the object file wants functions or constants from a runtime when it is loaded "
            f"({found.imports} and {found.constants}; there must be none)"
        )
    kernels = {export.name: export for export in found.exports}
    for export in library.program.exports:
        kernel = kernels.get(export.name)
        if kernel is None:
            raise LoweringError(f"the object file has no kernel '{export.name}' (it has {', '.join(kernels)})")
        if (kernel.constants, kernel.bindings) != (export.constants, export.bindings):
            raise LoweringError(
                f"kernel '{export.name}' takes {kernel.constants} constants and {kernel.bindings} bindings in the "
                f"object file (its caller gives {export.constants} and {export.bindings})"
            )
        if kernel.memory_pages:
            raise LoweringError(
                f"kernel '{export.name}' needs {kernel.memory_pages} pages of memory for each workgroup, which code "
                "without a runtime does not give"
            )
    for symbol in found.undefined:
        if symbol not in _LIBM and symbol.removesuffix("f") not in _LIBM and not _HELPER.fullmatch(symbol):
            raise LoweringError(f"the object file needs '{symbol}', which is not in C's mathematical library")
    return found
