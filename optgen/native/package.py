"""npm packages: a .wasm, a small ES module that drives it, and its types."""

from __future__ import annotations

import base64
import json
import keyword
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optgen import resources
from optgen._version import __version__
from optgen.artifact.storage import digest, write_files
from optgen.compiler.driver import compiler_version
from optgen.errors import HyperparameterError
from optgen.lower.style import render
from optgen.native.js import HELPERS, write_program
from optgen.native.library import Library
from optgen.native.prove import prove_wasm
from optgen.native.target import NativeTarget
from optgen.native.wasm import link_wasm

#: The file that says a folder is such a package.
MARKER = "optgen.json"
_LICENSE = "Apache-2.0"
_ERRORS = ("OptgenError", "LibraryError", "ArrayError", "HyperparameterError")
#: The typed arrays of dtypes.
ARRAYS = {
    "f32": "Float32Array", "f64": "Float64Array", "f16": "Uint16Array", "bf16": "Uint16Array", "bool": "Uint8Array",
    "i8": "Int8Array", "u8": "Uint8Array", "i16": "Int16Array", "u16": "Uint16Array", "i32": "Int32Array",
    "u32": "Uint32Array", "i64": "BigInt64Array", "u64": "BigUint64Array",
}  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A package in memory.

    Attributes:
        name: of its files.
        files: by name.
        proven: what its self-test has run on when it was compiled; empty where it has not. It is no part of the files.
    """

    name: str
    files: Mapping[str, bytes] = field(repr=False)
    proven: str = field(default="", compare=False)

    def prove(self) -> Package:
        """Runs the self-test, if there is a Node.js here: see :func:`optgen.native.prove.prove_wasm`.

        Raises:
            WrongResultError: if a result is wrong.
        """
        return replace(self, proven=prove_wasm(self.name, self.files))

    @property
    def wasm(self) -> bytes:
        """The module alone."""
        return self.files[f"{self.name}.wasm"]

    @property
    def script(self) -> str:
        """The whole of it as a classic script, for pages that are opened from a folder; not with threads."""
        return self.files[f"{self.name}.script.js"].decode()

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes it as a folder, whole or not at all. A package that is there is replaced.

        Raises:
            BundleError: if there is something else.
        """
        return write_files(path, self.files, marker=MARKER)


@dataclass(frozen=True)
class Field:
    """A line of a TypeScript type."""

    name: str
    type: str
    doc: str = ""

    @classmethod
    def of(cls, name: str, kind: str, doc: str = "", *, optional: bool = False) -> Field:
        """A field, its name quoted where it is no identifier."""
        return cls(f"{name if is_identifier(name) else json.dumps(name)}{'?' if optional else ''}", kind, doc)


@dataclass(frozen=True)
class Interface:
    """A TypeScript type with a name."""

    name: str
    doc: str
    fields: tuple[Field, ...]
    alias: str = ""


def is_identifier(name: str) -> bool:
    """Whether a name may stand for itself as a key in JavaScript."""
    return re.fullmatch(r"[A-Za-z_$][\w$]*", name) is not None


def record(name: str, doc: str, fields: Iterable[Field]) -> Interface:
    """An object type that, unlike an interface, is assignable to a ``Record``."""
    inside = "; ".join(f"readonly {each.name}: {each.type}" for each in fields)
    return Interface(name, doc, (), f"{{ {inside} }}" if inside else "Record<string, never>")


def check_name(name: str) -> str:
    """``name``, if it may be a file's and a package's.

    Raises:
        HyperparameterError: if not.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise HyperparameterError(
            f"'name' must have small letters, digits, '.', '_' and '-' alone, as npm asks for (got {name!r})"
        )
    return name


def make_package(
    name: str,
    library: Library,
    target: NativeTarget,
    *,
    kind: str,
    title: str,
    about: str,
    signature: Mapping[str, Any],
    interfaces: Sequence[Interface],
    readme: Mapping[str, Any],
    selftest: Mapping[str, Any] | None = None,
) -> Package:
    """The package of a compiled library.

    Args:
        name: of the files.
        library: compiled for ``target``.
        target: one of WebAssembly.
        kind: the class in ``templates/js/lib`` that drives it: ``Update`` or ``Step``.
        title: one line on it.
        about: the name that ``signature`` is exported by.
        signature: what its class and its callers must know.
        interfaces: its types.
        selftest: its self-test, from :func:`optgen.native.js_selftest.describe`; without one it has none.
        readme: what ``templates/js/KIND.md.j2`` needs besides.

    Raises:
        LoweringError: if the host program cannot be written in JavaScript.
        CompileError: if the library cannot be linked.
    """
    program = library.program
    threads = "+atomics" in target.features
    wasm = link_wasm(library.object, program.query, threads=threads)
    described = {
        "query": program.query,
        "exports": [{"name": e.name, "constants": e.constants, "bindings": e.bindings} for e in program.exports],
        "constants": [base64.b64encode(each).decode() for each in program.constants],
        "workspace": program.workspace,
    }
    lines = write_program(program)
    used = [each for each in HELPERS if any(f"{each}(" in line for line in lines)]
    context = {
        "name": name,
        "identifier": identifier(name),
        "kind": kind,
        "title": title,
        "version": __version__,
        "target": target.name,
        "about": about,
        "threads": threads,
        "size": len(wasm),
        "library": script_literal(described),
        "signature": script_literal(signature),
        "lines": lines,
        "helpers": used,
        "selftest": selftest is not None,
        "interfaces": interfaces,
    }
    parts = ["memory.js", "library.js", "hypers.js" if kind == "Update" else "limits.js", f"{kind.lower()}.js"]
    typed = ["memory.d.ts", "library.d.ts", f"{kind.lower()}.d.ts"]
    threaded = ["threads.js", "worker.js", "threads.d.ts"] if threads else []
    sources = {part: _library_file(part) for part in parts}
    body = "\n".join(_plain(text) for text in (*sources.values(), render("js/program.js.j2", **context)))
    exports = (*_ERRORS, "Tensor", kind, *(("Optimizer",) if kind == "Update" else ()))
    script = {}
    if not threads:  # a page that is opened from a folder may not share memory
        script[f"{name}.script.js"] = render(
            "js/script.js.j2",
            **context, body=textwrap.indent(body, "  "), wasm=base64.b64encode(wasm).decode(), exports=exports,
        )  # fmt: skip
    proof = {}
    if selftest is not None:
        proof = {
            "selftest.js": render("js/selftest.js.j2", **context, test=script_literal(selftest)),
            "selftest.d.ts": render("js/selftest.d.ts.j2"),
            "lib/selftest.js": _library_file("selftest.js"),
        }
    texts = {
        **proof,
        "index.js": render("js/index.js.j2", **context),
        "index.d.ts": render("js/index.d.ts.j2", **context),
        **script,
        "README.md": render(f"js/{kind.lower()}.md.j2", **context, **readme),
        "package.json": _package_json(name, title, threads, selftest is not None),
        **{f"lib/{part}": text for part, text in sources.items()},
        **{f"lib/{part}": _library_file(part) for part in (*typed, *threaded)},
    }
    data = {f"{name}.wasm": wasm, **{file: text.encode() for file, text in texts.items()}}
    marker = {
        "format": 1,
        "kind": kind.lower(),
        "name": name,
        "target": target.name,
        **({"retried": list(library.retried)} if library.retried else {}),
        "versions": {"optgen": __version__, "iree-base-compiler": compiler_version()},
        "sha256": {file: digest(each) for file, each in sorted(data.items())},
    }
    return Package(name, {MARKER: (json.dumps(marker, indent=2) + "\n").encode(), **data})


def script_literal(value: Any, indent: str = "") -> str:
    """A value as a JavaScript literal, on one line where it fits there."""
    if not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    inner = indent + "  "
    if isinstance(value, dict):
        keys = [f"{k if is_identifier(k) else json.dumps(k)}: " for k in value]
        items, ends = [k + script_literal(v, inner) for k, v in zip(keys, value.values(), strict=True)], ("{ ", " }")
    else:
        items, ends = [script_literal(v, inner) for v in value], ("[", "]")
    line = f"{ends[0]}{', '.join(items)}{ends[1]}" if items else (ends[0] + ends[1]).replace(" ", "")
    if len(indent) + len(line) <= 100 and "\n" not in line:
        return line
    return "\n".join([ends[0].strip(), *(f"{inner}{item}," for item in items), indent + ends[1].strip()])


def identifier(name: str) -> str:
    """A name of a package as one of a variable: ``adamw.optax`` is ``adamw_optax``."""
    text = re.sub(r"\W", "_", name)
    return f"_{text}" if text[0].isdigit() or keyword.iskeyword(text) else text


def _library_file(name: str) -> str:
    return (resources.templates() / "js" / "lib" / name).read_text(encoding="utf-8")


def _plain(text: str) -> str:
    """A module's text without imports and exports."""
    lines = (line for line in text.splitlines() if not re.match(r"import .* from ", line))
    return "\n".join(line.removeprefix("export ") for line in lines)


def _package_json(name: str, title: str, threads: bool, selftest: bool) -> str:
    script = f"./{name}.script.js"
    described: dict[str, Any] = {
        "name": f"optgen-{name}",
        "version": __version__,
        "description": title,
        "license": _LICENSE,
        "type": "module",
        "main": "./index.js",
        "types": "./index.d.ts",
        "exports": {
            ".": {"types": "./index.d.ts", "default": "./index.js"},
            f"./{name}.wasm": f"./{name}.wasm",
            "./package.json": "./package.json",
        },
        "files": [f"{name}.wasm", "index.js", "index.d.ts", "lib", MARKER],
        "sideEffects": ["./lib/worker.js"] if threads else [script],
        "engines": {"node": ">=18"},
        "keywords": ["optimizer", "training", "wasm", "webassembly", "optgen"],
    }
    if selftest:
        described["exports"]["./selftest"] = {"types": "./selftest.d.ts", "default": "./selftest.js"}
        described["files"] += ["selftest.js", "selftest.d.ts"]
    if not threads:
        described["exports"]["./script"] = described["unpkg"] = described["jsdelivr"] = script
        described["files"].append(f"{name}.script.js")
    return json.dumps(described, indent=2) + "\n"
