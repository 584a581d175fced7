"""The files of generated C: what they refuse at run time, how they are built, and what is not written at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from native_machine import MACHINES
from typer.testing import CliRunner

import optgen
from optgen.cli.app import app
from optgen.errors import BundleError, HyperparameterError, LoweringError, UnknownTargetError
from optgen.native import compile_c

HOST = MACHINES["cpu:x86-64"]


_ERRORS = r"""
#include "adamw.h"
#include "lamb_optax.h"
#include "io.h"
static float w[64], g[64], m[64], v[64];
static unsigned char workspace[128] __attribute__((aligned(64)));
static adamw_hypers hypers;
static lamb_optax_hypers lamb;
static void job(void *context, void (*run)(void *, size_t), void *argument, size_t count)
{
    size_t i;
    (void)context;
    for (i = 0; i < count; ++i)
        run(argument, i);
}
static int failed;
static void expect(const char *what, int status, int wanted)
{
    int i;
    for (i = 0; i < 64; ++i)
        if (w[i] != 1.0f || m[i] != 0.0f || v[i] != 0.0f)
            status = -1;
    if (status != wanted) {
        failed = 1;
        say(what);
        say("\n");
    }
}
#define TRY(wanted, ...) expect(#wanted #__VA_ARGS__, adamw_update(__VA_ARGS__), ADAMW_##wanted)
#define LAMB(wanted, ...) expect(#wanted #__VA_ARGS__, lamb_optax_update(__VA_ARGS__), LAMB_OPTAX_##wanted)
#define HYPER(field, value) (adamw_hypers_init(&hypers), hypers.lr = 0.1, hypers.field = (value), \
    expect(#field #value, adamw_update(w, g, m, v, 64, 1, &hypers, NULL), ADAMW_ERROR_HYPER))
int main(void)
{
    optgen_threads threads = {2, job, NULL};
    int i;
    for (i = 0; i < 64; ++i)
        w[i] = 1.0f;
    adamw_hypers_init(&hypers);
    TRY(ERROR_HYPER, w, g, m, v, 64, 1, &hypers, NULL); /* lr is not set */
    hypers.lr = 0.1;
    TRY(OK, w, g, m, v, 0, 1, &hypers, NULL);
    TRY(OK, NULL, NULL, NULL, NULL, 0, 1, &hypers, NULL);
    TRY(ERROR_NULL, NULL, g, m, v, 1, 1, &hypers, NULL);
    TRY(ERROR_NULL, w, NULL, m, v, 1, 1, &hypers, NULL);
    TRY(ERROR_NULL, w, g, m, NULL, 1, 1, &hypers, NULL);
    TRY(ERROR_NULL, w, g, m, v, 1, 1, NULL, NULL);
    TRY(ERROR_ALIGNMENT, (float *)((char *)w + 2), g, m, v, 8, 1, &hypers, NULL);
    TRY(ERROR_ALIGNMENT, w, (float *)((char *)g + 1), m, v, 8, 1, &hypers, NULL);
    TRY(ERROR_OVERLAP, w, w, m, v, 8, 1, &hypers, NULL);
    TRY(ERROR_OVERLAP, w, g, m, m, 8, 1, &hypers, NULL);
    TRY(ERROR_OVERLAP, w, w + 7, m, v, 8, 1, &hypers, NULL);
    TRY(ERROR_OVERLAP, w + 7, g, w, v, 8, 1, &hypers, NULL);
    TRY(ERROR_SIZE, w, g, m, v, SIZE_MAX, 1, &hypers, NULL);
    TRY(ERROR_SIZE, w, g, m, v, SIZE_MAX / 4, 1, &hypers, NULL);
    TRY(ERROR_STEP, w, g, m, v, 8, 0, &hypers, NULL);
    TRY(ERROR_STEP, w, g, m, v, 8, UINT64_MAX, &hypers, NULL);
    threads.count = 0;
    TRY(ERROR_THREADS, w, g, m, v, 8, 1, &hypers, &threads);
    threads.count = 2;
    threads.run = NULL;
    TRY(ERROR_THREADS, w, g, m, v, 8, 1, &hypers, &threads);
    HYPER(lr, -1.0);
    HYPER(lr, 1.0 / 0.0);
    HYPER(beta1, 1.0);
    HYPER(beta2, -0.1);
    HYPER(eps, 0.0 / 0.0);
    lamb_optax_hypers_init(&lamb);
    lamb.lr = 0.1;
    LAMB(ERROR_WORKSPACE, w, g, m, v, 8, 1, &lamb, workspace, LAMB_OPTAX_WORKSPACE_BYTES - 1, NULL);
    LAMB(ERROR_NULL, w, g, m, v, 8, 1, &lamb, NULL, LAMB_OPTAX_WORKSPACE_BYTES, NULL);
    LAMB(ERROR_ALIGNMENT, w, g, m, v, 8, 1, &lamb, workspace + 4, LAMB_OPTAX_WORKSPACE_BYTES, NULL);
    if (adamw_error(0)[0] != 'n' || adamw_error(12345)[0] != 'u')
        failed = 1;
    return failed;
}
"""


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:armv7", "cpu:cortex-m4"])
def test_errors(target: str, tmp_path: Path) -> None:
    """Each is found before anything is written."""
    machine = MACHINES[target]
    machine.need()
    bundles = [compile_c("adamw", target), compile_c("lamb", target)]
    machine.build(tmp_path, bundles, _ERRORS, "-Wno-div-by-zero", "-Wno-pedantic")
    machine.run(tmp_path)


def test_another_object_file_is_found(tmp_path: Path) -> None:
    """SGD's kernel under AdamW's name: the numbers of bindings differ."""
    right, wrong = compile_c("adamw", "cpu:x86-64"), compile_c("sgd", "cpu:x86-64", name="adamw")
    files = {**right.files, "adamw_kernels.o": wrong.object}
    main = """
#include "adamw.h"
int main(void)
{
    float w = 1, g = 1, m = 0, v = 0;
    adamw_hypers h;
    adamw_hypers_init(&h);
    h.lr = 1;
    return adamw_update(&w, &g, &m, &v, 1, 1, &h, NULL) == ADAMW_ERROR_LIBRARY && w == 1 ? 0 : 1;
}
"""
    HOST.build(tmp_path, [type(right)(right.name, right.target, files)], main)
    HOST.run(tmp_path)


def test_cplusplus_and_cmake(tmp_path: Path) -> None:
    """A C++ program includes the header, and CMake builds the folder."""
    HOST.need()
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    bundle = compile_c("adamw", "cpu:x86-64")
    bundle.save(tmp_path / "adamw")
    (tmp_path / "main.cpp").write_text(
        '#include "adamw.h"\nint main() { float w = 1, g = 1, m = 0, v = 0; adamw_hypers h; adamw_hypers_init(&h); '
        "h.lr = 0.5; h.weight_decay = 0; int s = adamw_update(&w, &g, &m, &v, 1, 1, &h, nullptr);\n"
        "return s || w < 0.49f || w > 0.51f; }\n"
    )
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(app CXX C)\nadd_subdirectory(adamw)\n"
        "add_executable(app main.cpp)\ntarget_link_libraries(app adamw)\n"
        "target_compile_options(app PRIVATE -std=c++11 -Wall -Wextra -Werror -pedantic)\n"
    )
    for command in (["cmake", "-S", ".", "-B", "build"], ["cmake", "--build", "build"], ["build/app"]):
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_files() -> None:
    bundle = compile_c("adamw", "cpu:cortex-m4", weight_decay=0.1)
    assert set(bundle.files) == {
        "adamw.h", "adamw.c", "adamw_kernels.o", "CMakeLists.txt", "README.md", "manifest.json",
        "adamw_selftest.h", "adamw_selftest.c",
    }  # fmt: skip
    assert bundle.files == compile_c("adamw", "cpu:cortex-m4", weight_decay=0.1, use_cache=False).files
    assert "hypers->weight_decay = 0.1;" in bundle.files["adamw.c"].decode()
    assert "hypers->lr = NAN;" in bundle.files["adamw.c"].decode()
    for name in ("adamw.h", "adamw.c", "adamw_selftest.h", "adamw_selftest.c"):
        text = bundle.files[name].decode()
        assert not re.search(r"malloc|memcpy|printf|string\.h|stdlib\.h|stdio\.h", text)
        assert max(map(len, text.splitlines())) <= 130
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), name


def test_links_as_the_readme_says(tmp_path: Path) -> None:
    bundle = compile_c("nadam", "cpu:aarch64")
    MACHINES["cpu:aarch64"].need()
    bundle.save(tmp_path / "out")
    readme = bundle.files["README.md"].decode()
    (tmp_path / "out" / "main.c").write_text(
        "#include \"nadam.h\"\nint main(void) { return nadam_error(0)[0] != 'n'; }"
    )
    commands = re.search(r"## Build\n\n```\n(.*?)```", readme, re.DOTALL)
    assert commands
    lines = commands.group(1).strip().splitlines()
    lines.insert(0, lines[0].replace("-c nadam.c", "-c main.c"))
    for line in lines:
        result = subprocess.run(line, shell=True, cwd=tmp_path / "out", capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    bundle = compile_c("adamw", "cpu:x86-64")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(BundleError, match="not overwritten"):
        bundle.save(tmp_path / "mine")
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    path = bundle.save(tmp_path / "new" / "adamw")
    (path / "stale.c").touch()
    bundle.save(path)
    assert {f.name for f in path.iterdir()} == set(bundle.files)
    with pytest.raises(BundleError):
        optgen.load(path)  # C is no bundle for the runtime


def test_names() -> None:
    """Words of C, and names that the generated code has for itself, are not used for operands."""

    @optgen.rule(state=("n", "register"))
    def odd(w: Any, kernel: Any, n: Any, register: Any, *, lr: Any, new: float = 0.5) -> Any:
        n = new * n + kernel
        return w - lr * n, n, register + n * n

    bundle = compile_c(odd, "cpu:x86-64")
    header = bundle.files["odd.h"].decode()
    assert "int odd_update(float *w, const float *kernel_, float *n_, float *register_, size_t n," in header
    assert "double new_;" in header
    assert compile_c("sgd", "cpu:x86-64", name="mine_1").name == "mine_1"
    for name in ("1st", "a-b", "run", "int", "", "exp", "é"):
        with pytest.raises(LoweringError, match="must be a name of C"):
            compile_c("sgd", "cpu:x86-64", name=name)


def test_refused() -> None:
    with pytest.raises(UnknownTargetError, match=r"did you mean 'cpu:cortex-m4'"):
        compile_c("adamw", "cpu:cortex-m44")
    with pytest.raises(LoweringError, match="WebAssembly"):
        compile_c("adamw", "wasm")
    with pytest.raises(LoweringError, match="one leaf"):
        compile_c("muon", "cpu:x86-64")
    with pytest.raises(LoweringError, match="8-bit state"):
        compile_c("adamw", "cpu:x86-64", state_dtype="f8")
    with pytest.raises(LoweringError, match="whole tree"):
        compile_c(optgen.chain(optgen.clip_by_global_norm(1.0), "adamw"), "cpu:x86-64")
    with pytest.raises(HyperparameterError, match="no hyperparameter 'momentun'"):
        compile_c("sgd", "cpu:x86-64", momentun=0.9)
    with pytest.raises(HyperparameterError, match="must be in"):
        compile_c("adamw", "cpu:x86-64", beta1=1.5)


def test_baked_and_per_element(tmp_path: Path) -> None:
    bundle = compile_c("sgd", "cpu:x86-64", bake={"lr": 0.5, "weight_decay": 0.0})
    assert "hypers" not in bundle.files["sgd.h"].decode()
    rates = compile_c("sgd", "cpu:x86-64", name="rates", per_element=["lr"])
    main = """
#include "sgd.h"
#include "rates.h"
int main(void)
{
    float w[2] = {1, 2}, g[2] = {1, 4}, lr[2] = {0.25f, 0.5f};
    rates_hypers h;
    rates_hypers_init(&h);
    return sgd_update(w, g, 2, NULL) || w[0] != 0.5f || w[1] != 0.0f
        || rates_update(w, g, lr, 2, &h, NULL) || w[0] != 0.25f || w[1] != -2.0f;
}
"""
    HOST.build(tmp_path, [bundle, rates], main)
    HOST.run(tmp_path)


# The command line and the documents.


def _optgen(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=True)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = _optgen("compile", "sgd", "--emit", "c", "-t", "cpu:cortex-m4", "--set", "momentum=0.9", "--set", "lr=0.5",
                     "--compute-dtype", "f64")  # fmt: skip
    assert result.exit_code == 0, result.output
    folder = tmp_path / "sgd_momentum-cpu-cortex-m4"
    assert "hypers->lr = 0.5;" in (folder / "sgd_momentum.c").read_text()
    assert "double s_lr" in (folder / "sgd_momentum.c").read_text()
    assert _optgen("compile", "adamw", "--emit", "c", "--name", "mine", "--dtype", "bf16", "-o", "out").exit_code == 0
    assert "uint16_t *w" in (tmp_path / "out" / "mine.h").read_text()
    for wrong, words in (
        (["--like", "p.npz"], "is for bundles"),
        (["-t", "cpu:armv7", "-t", "cpu:aarch64"], "must be one"),
        (["--rounding", "stochastic"], "must be nearest"),
    ):
        result = _optgen("compile", "adamw", "--emit", "c", "-o", "not", *wrong)
        assert result.exit_code == 2
        assert words in result.output
    assert _optgen("compile", "adamw", "--name", "mine").exit_code == 2
    assert isinstance(_optgen("compile", "adamw", "--emit", "c", "-t", "cpu:nope").exception, UnknownTargetError)
    assert not (tmp_path / "not").exists()


def _run(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout


def test_example(tmp_path: Path) -> None:
    """Every command of its README, as typed; both programs print what it says."""
    MACHINES["cpu:aarch64"].need()
    shutil.copytree(ROOT / "examples" / "c", tmp_path / "c")
    pc, arm, printed = re.findall(r"```\n(.*?)```", (ROOT / "examples/c/README.md").read_text(), re.DOTALL)
    for commands in (pc, arm):
        assert [_run(line, tmp_path / "c") for line in commands.strip().splitlines()][-1] == printed
    _run("cc -std=c99 -Wall -Wextra -Werror -pedantic -Iadamw -c main.c", tmp_path / "c")


def test_documents_have_all_targets() -> None:
    text = (ROOT / "docs" / "targets" / "c.md").read_text()
    assert {f"cpu:{name}" for name in re.findall(r"^\| `cpu:(\S+)` \|", text, re.MULTILINE)} == set(MACHINES)


def test_the_documents_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training steps that docs/targets/c.md compiles, and the function that it says comes out."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "targets" / "c.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, "c.md", "exec"), {})
    members = (tmp_path / "regression" / "regression.h").read_text()
    for name in ("params_w", "state_m_w", "state_step", "batch_x", "lr", "loss"):
        assert f"*{name};" in members
    header = (tmp_path / "sgd_step" / "sgd_step.h").read_text()
    [said] = re.findall(r"`(int sgd_step\(.*?\))`", text)
    assert said in " ".join(header.split())


def test_generated_c_is_no_bundle(tmp_path: Path) -> None:
    """Its folder may lie where a prebuilt bundle's name is looked for first."""
    from optgen.errors import BundleError
    from optgen.runtime.loading import open_any

    compile_c("sgd", "cpu:x86-64").save(tmp_path / "sgd")
    with pytest.raises(BundleError, match="not that of a bundle"):
        open_any(str(tmp_path / "sgd"))
