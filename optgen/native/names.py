"""Names that generated C may use."""

from __future__ import annotations

import re

from optgen.errors import LoweringError

# Words of C and C++.
_KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const constexpr const_cast
    continue decltype default delete do double dynamic_cast else enum explicit export extern false float for friend
    goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected
    public register reinterpret_cast restrict return short signed sizeof static static_assert static_cast struct switch
    template this thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t
    while xor xor_eq
"""
# What generated files call things themselves, and names of C's library.
_WORDS = """
    n step hypers args workspace workspace_bytes threads lib length most fits spans status header environment
    dispatch_state workgroup_state kernel attributes library work span run run_job dispatch open_library check_spans
    BYTES copy_bytes fill_bytes log_of no_environment constant_counts binding_counts EXPORTS ALIGNED NULL main
    linux unix

    exp exp2 expm1 log log1p log2 pow sqrt fabs floor ceil fma fmax fmin sin cos tanh isfinite signbit
"""
_TAKEN = frozenset(_KEYWORDS.split() + _WORDS.split())
_OWN = re.compile(r"(value|constant)\d+|bits_\w+|(maximum|minimum)_f\d\d|check_\w+|s_\w+|u?int\w*_t|size_t|_\w*")


def member_name(text: str) -> str:
    """``text`` as the name of a member of a struct: one that is no word of C or C++."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    if not name or name[0].isdigit() or name[0] == "_":
        name = f"x{name}"
    return f"{name}_" if name in _KEYWORDS.split() else name


def c_name(text: str) -> str:
    """``text`` as a name that neither C nor C++ nor a generated file uses for something else."""
    name = member_name(text)
    return f"{name}_" if name in _TAKEN or _OWN.fullmatch(name) else name


def check_prefix(name: str) -> str:
    """``name`` if every symbol of a bundle may begin with it.

    Raises:
        LoweringError: if it is no name of C, or one that means something else there.
    """
    if not re.fullmatch(r"[a-zA-Z]\w*", name, flags=re.ASCII) or c_name(name) != name:
        raise LoweringError(
            f"'name' must be a name of C that nothing else has: letters, digits and underscores (got {name!r})"
        )
    return name
