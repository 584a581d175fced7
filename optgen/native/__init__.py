"""Code without a runtime: object files with the C or JavaScript that drives them."""

from optgen.native.bundle import CBundle as CBundle
from optgen.native.c_compile import compile_c as compile_c
from optgen.native.c_program import compile_c_function as compile_c_function
from optgen.native.library import Library as Library
from optgen.native.library import compile_library as compile_library
from optgen.native.package import Package as Package
from optgen.native.parse import parse_program as parse_program
from optgen.native.program import Program as Program
from optgen.native.target import NATIVE_TARGETS as NATIVE_TARGETS
from optgen.native.target import NativeTarget as NativeTarget
from optgen.native.target import get_native_target as get_native_target
from optgen.native.wasm_step import step_package as step_package
from optgen.native.wasm_update import update_package as update_package
