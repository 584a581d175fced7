"""Compiling rules into bundles; needs JAX and iree-compile."""

from optgen.compiler.api import compile as compile
from optgen.compiler.build import build_bundle as build_bundle
from optgen.compiler.build import compile_kernel as compile_kernel
from optgen.compiler.driver import compile_mlir as compile_mlir
