"""Any function of static shapes as C: a whole training step, say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from math import prod

from optgen.compiler.blame import Sources
from optgen.errors import LoweringError
from optgen.native.abi import check_object
from optgen.native.bundle import CBundle, assemble, c_target
from optgen.native.c import ELEMENTS, SIZES, address, wrapped, write_body
from optgen.native.c_ops import TYPES
from optgen.native.c_selftest import Piece, Proof
from optgen.native.library import Library, compile_library
from optgen.native.limits import Limit, c_tests
from optgen.native.names import check_prefix, member_name
from optgen.native.program import Literal, Program, ScalarArgument, TensorArgument, TensorResult
from optgen.native.selftest import SelfTest


def compile_c_function(
    mlir: str,
    target: str,
    *,
    name: str,
    arguments: Sequence[str] = (),
    results: Sequence[str] = (),
    summary: str = "",
    limits: Mapping[str, Limit] | None = None,
    selftest: SelfTest | None = None,
    flags: Sequence[str] = (),
    use_cache: bool = True,
    sources: Sources = (),
) -> CBundle:
    """Compiles a module with one public function of static shapes to C without a runtime.

    The function ``NAME`` takes a struct of pointers and a workspace. Results that the module has tied to arguments
    (JAX: ``donate_argnums``, with ``lax.optimization_barrier`` between the last use of what is overwritten and the
    update) are written there; others that are called like an argument are copied there in the end, and what is left is
    written to pointers of its own.

    Args:
        mlir: the module: StableHLO as JAX prints it, or what else iree-compile takes.
        target: a processor; see ``optgen.native.NATIVE_TARGETS``.
        name: what every symbol begins with, and the function.
        arguments: names of the function's arguments.
        results: names of its results; one that is called like an argument takes its place.
        summary: a sentence for the header.
        limits: what numbers among the arguments must be, by name; the function refuses others.
        selftest: calls, and what must come of them; without it no self-test is written.
        flags: for iree-compile, beside the target's.
        use_cache: whether compiled code may come from the cache.
        sources: where its functions come from, so that refusals name lines; see :mod:`optgen.compiler.blame`.

    Returns:
        The files; :meth:`CBundle.save` writes them.

    Raises:
        UnknownTargetError: for a target that does not exist.
        HazardError: if the module would overwrite an argument that something still reads.
        CompileError: if the compiler refuses the module.
        LoweringError: for dynamic shapes, control flow on the host, and whatever else is not understood.
    """
    chosen = c_target(target)
    check_prefix(name)
    named, count = re.subn(r"^(module)( @[\w.$-]+)?", rf"\1 @{name}", mlir, count=1, flags=re.MULTILINE)
    if not count:
        raise LoweringError("'mlir' must begin with a module, whose name every symbol of the library then has")
    alignment = _largest_element(named)
    library = compile_library(
        named,
        (*chosen.flags, *flags),
        alignment=alignment,
        names=arguments,
        halves=chosen.bits == 64,
        use_cache=use_cache,
        sources=sources,
    )
    return write_program(library, target, name=name, results=results, summary=summary, limits=limits, selftest=selftest)


def _largest_element(mlir: str) -> int:
    """What memory must be aligned to, 4 or 8 bytes: the largest element.

    Elements must be aligned to their own size in the workspace, too, where pieces are aligned as arguments are.
    """
    from iree.compiler import ir

    wide: list[str] = []

    def look(operation: ir.Operation) -> ir.WalkResult:
        values = [*operation.results, *(a for r in operation.regions for block in r.blocks for a in block.arguments)]
        wide.extend(str(v.type) for v in values if re.search(r"[fi]64\W", str(v.type)))
        return ir.WalkResult.ADVANCE

    with ir.Context() as context:
        try:
            ir.Module.parse(mlir, context).operation.walk(look)
        except ir.MLIRError:
            return 8  # iree-compile says what is wrong with it
    return 8 if wide else 4


def write_program(
    library: Library,
    target: str,
    *,
    name: str,
    results: Sequence[str] = (),
    summary: str = "",
    limits: Mapping[str, Limit] | None = None,
    selftest: SelfTest | None = None,
) -> CBundle:
    """Writes the C that drives a compiled function of static shapes; arguments as :func:`compile_c_function` has them.

    Raises:
        LoweringError: for dynamic shapes, and results that lie in the same memory, or in that of another argument than
            the one that they are called after.
    """
    program, checked = library.program, check_object(library)
    fields: list[dict[str, object]] = []
    memory: dict[int, str] = {}
    scalars: dict[str, str] = {}
    spans: list[dict[str, object]] = []
    shown = [results[i] if i < len(results) else f"result{i}" for i in range(len(program.results))]
    within = _in_place(program, shown)
    copied = {
        index: result
        for index, argument in enumerate(program.arguments)
        if index not in within
        for result, label in enumerate(shown)
        if isinstance(argument, TensorArgument) and label == argument.name
    }

    def add(label: str, kind: str, doc: str, size: object, alignment: object, written: bool) -> str:
        field = member_name(label)
        if any(f["name"] == field for f in fields):
            raise LoweringError(f"two arguments or results of '{name}' are called '{field}' in C")
        fields.append({"name": field, "declaration": f"{kind}{field}", "doc": doc})
        if size is not None:
            spans.append({"name": f"args->{field}", "bytes": size, "alignment": alignment, "written": int(written)})
        return f"args->{field}"

    for index, argument in enumerate(program.arguments):
        if isinstance(argument, ScalarArgument):
            scalars[argument.name] = add(argument.name, f"{TYPES[argument.type]} ", "a number", None, None, False)
            continue
        written = argument.written or index in copied
        new = shown[within[index]] if index in within else argument.name
        becomes = f"; becomes {new}" if new != argument.name and within[index] < len(results) else ""
        memory[index] = add(
            argument.name,
            f"{'' if written else 'const '}{_element(argument.dtype)} *",
            f"{_shape(argument.dtype, argument.shape)}, {f'read and written{becomes}' if written else 'read'}",
            SIZES[argument.dtype] * _elements(argument),
            max(program.alignment, SIZES[argument.dtype]),
            written,
        )
    numbers = [r for r in program.results if not isinstance(r, TensorResult)]
    own: dict[int, Piece] = {}
    body = write_body(program, [e.name for e in checked.exports], memory, scalars, None, numbers)
    found = iter(body.returned)
    for index, result in enumerate(program.results):
        if index in within.values():
            continue
        if not isinstance(result, TensorResult):
            kind = TYPES[result.type]
            pointer = add(shown[index], f"{kind} *", "a number, written", f"sizeof({kind})", f"sizeof({kind})", True)
            body.lines.append(f"*{pointer} = {next(found)};")
            continue
        shape = tuple(int(n.value) if isinstance(n, Literal) else -1 for n in result.shape)
        each = SIZES[result.dtype]
        replaced = next((i for i, r in copied.items() if r == index), None)
        if replaced is not None:
            argument = program.arguments[replaced]
            assert isinstance(argument, TensorArgument)
            if (argument.dtype, argument.shape) != (result.dtype, shape):
                raise LoweringError(f"result '{shown[index]}' must have the dtype and shape of the argument called so")
            pointer = memory[replaced]
        else:
            doc = f"{_shape(result.dtype, shape)}, written"
            pointer = add(shown[index], f"{_element(result.dtype)} *", doc, each * prod(shape), each, True)
            own[index] = Piece(member_name(shown[index]), result.dtype, prod(shape), None, index)
        source = address(result.place, memory)
        body.lines.append(f"copy_bytes((unsigned char *){pointer}, {source}, {each * prod(shape)});")
        body.copies = True
    if program.workspace:
        upper = name.upper()
        spans.append({"name": "workspace", "bytes": f"{upper}_WORKSPACE_BYTES", "written": 1,
                      "alignment": f"{upper}_WORKSPACE_ALIGNMENT"})  # fmt: skip
    rest = ["void *workspace"] if program.workspace else []
    proof = None if selftest is None else _proof(program, selftest, name, shown, within, copied, own)
    tensors = [(i, a) for i, a in enumerate(program.arguments) if isinstance(a, TensorArgument)]
    numbers_at = {a.name: f"*{memory[i]}" for i, a in tensors if a.shape == ()}
    kinds = {a.name: a.dtype for _, a in tensors}
    return assemble(
        name, c_target(target), library, checked, body, proof,
        title=f"{name}: {summary or 'a compiled function'}",
        summary=summary,
        about=[],
        rule=None,
        pointers=fields,
        signature=wrapped(f"int {name}(", [
            f"const {name}_args *args", *rest, *(["size_t workspace_bytes"] if rest else []),
            "const optgen_threads *threads",
        ]),
        run_signature=wrapped("static int run(", [
            f"const {name}_args *args", *rest, "const library *lib", "const optgen_threads *threads",
        ]),
        run_call=f"return run(args, {'workspace, ' if rest else ''}lib, threads);",
        spans=spans,
        tests=c_tests(limits or {}, numbers_at, kinds),
        types=TYPES,
        dtypes=None,
    )  # fmt: skip


def _proof(
    program: Program,
    test: SelfTest,
    name: str,
    shown: Sequence[str],
    within: Mapping[int, int],
    copied: Mapping[int, int],
    own: Mapping[int, Piece],
) -> Proof:
    """How the self-test calls the function.

    Raises:
        LoweringError: if it takes or gives a number that is not in memory, or other results than the self-test has.
    """
    if tuple(shown) != test.results or any(isinstance(a, ScalarArgument) for a in program.arguments):
        raise LoweringError(f"the self-test of '{name}' must be one of a function of arrays with the same results")
    dtypes = [leaf.dtype for leaf in test.probe.info.results]
    pieces = []
    for index, argument in enumerate(program.arguments):
        assert isinstance(argument, TensorArgument)
        result = within.get(index, copied.get(index, -1))
        dtype = argument.dtype if result < 0 else dtypes[result]
        source = test.sources[argument.name]
        pieces.append(Piece(member_name(argument.name), dtype, _elements(argument), source, result))
    pieces += [dataclasses.replace(piece, dtype=dtypes[i]) for i, piece in own.items()]
    prepare = [f"{name}_args args;", *(f"args.{piece.name} = {{{piece.name}}};" for piece in pieces)]
    workspace = f"workspace, {name.upper()}_WORKSPACE_BYTES, " if program.workspace else ""
    return Proof(test, pieces, f"{name}(&args, {workspace}threads)", name, prepare)


def _in_place(program: Program, shown: Sequence[str]) -> dict[int, int]:
    """From each argument whose memory has a result, all of it, to the result's index."""
    found: dict[int, int] = {}
    names = [argument.name for argument in program.arguments]
    for index, result in enumerate(program.results):
        if not isinstance(result, TensorResult) or result.argument is None:
            continue
        argument = program.arguments[result.argument]
        assert isinstance(argument, TensorArgument)
        shape = tuple(n.value if isinstance(n, Literal) else None for n in result.shape)
        if result.place.start or result.place.offset or (result.dtype, shape) != (argument.dtype, argument.shape):
            raise LoweringError(
                f"result '{shown[index]}' lies in a part of argument '{argument.name}', which C is not written for"
            )
        if result.argument in found:
            both = f"'{shown[found[result.argument]]}' and '{shown[index]}'"
            raise LoweringError(f"results {both} lie in the memory of argument '{argument.name}' both")
        if shown[index] != argument.name and shown[index] in names:
            raise LoweringError(
                f"result '{shown[index]}' lies in the memory of argument '{argument.name}': do not donate that, or "
                "call both the same"
            )
        found[result.argument] = index
    return found


def _element(dtype: str) -> str:
    if dtype not in ELEMENTS:
        raise LoweringError(f"C is not written for elements of type {dtype} (there are {', '.join(ELEMENTS)})")
    return ELEMENTS[dtype]


def _elements(argument: TensorArgument) -> int:
    known = [extent for extent in argument.shape if extent is not None]
    if len(known) < len(argument.shape):
        raise LoweringError(f"argument '{argument.name}' must have a shape that is known (it has {argument.shape})")
    return prod(known)


def _shape(dtype: str, shape: Sequence[int | None]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]" if shape else f"one {dtype}"
