"""Generated C, compiled with every warning and run on each target: results, errors, threads, and what is refused."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import native_mlp as mlp
import numpy as np
import pytest
from native_machine import MACHINES, Machine
from native_rules import LR, PLACES, SMALL, TRIALS, Call, Place, errors, prepare, run

import optgen
from optgen.native import NATIVE_TARGETS

HOST = MACHINES["cpu:x86-64"]
# Of the largest number that went into a result, in f32 arithmetic. Measured: 1.6 (docs/targets/c.md).
SINGLE = 2.0


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    found = MACHINES[request.param]
    found.need()
    return found


@cache
def session(small: bool) -> Any:
    return prepare(places=SMALL if small else PLACES)


_bits: dict[tuple[Any, ...], dict[str, bytes]] = {}


def same_bits_as_before(machine: Machine, call: Call, found: dict[str, np.ndarray], compute: str) -> None:
    """Machines that agree about fused operations must agree in every bit.

    Except in sums, which are added up in another order for each width of vectors, and in Lion's m beside f16 on
    aarch64: of ``a * b + c * d`` a compiler may fuse the one product or the other, which f32 arithmetic shows.
    """
    if call.trial.rule == "lamb" or (machine.fma and call.trial.dtype == "f16"):
        return
    key = machine.fma, compute, call.trial.rule, call.trial.dtype, call.place
    mine = {name: array.tobytes() for name, array in found.items()}
    for name, other in _bits.setdefault(key, mine).items():
        assert mine[name] == other, (machine.target, call.trial.rule, call.place, name)


def check(call: Call, found: dict[str, np.ndarray], compute: str, target: str) -> None:
    """Every result is as near to the reference as that arithmetic is."""
    for name, (own, largest) in errors(call, found).items():
        label = target, call.trial.rule, call.trial.dtype, call.place, name, own, largest
        if name in call.spec.returned:
            assert own <= (2.0 if compute == "f64" else 2.0 * 2**29), label
        elif compute == "f64":
            assert own <= 0.501, label
        else:
            assert largest <= SINGLE, label


def test_every_native_target_is_run() -> None:
    assert {name for name in NATIVE_TARGETS if name.startswith("cpu:")} == set(MACHINES)
    assert {name: m.fma for name, m in MACHINES.items()} == {name: NATIVE_TARGETS[name].fma for name in MACHINES}


def test_rules(machine: Machine, tmp_path: Path) -> None:
    """Six rules in one program, of many sizes at addresses that are aligned to elements alone, against float64."""
    calls = session(machine.bare)
    bundles = [trial.compile(machine.target) for trial in TRIALS]
    computes = {id(t): "f32" if t.dtype != "f32" else NATIVE_TARGETS[machine.target].compute for t in TRIALS}
    for call, found in zip(calls.calls, run(machine, tmp_path, calls, bundles), strict=True):
        compute = computes[id(call.trial)]
        for o in call.spec.operands:
            if o.role == "input":
                assert np.array_equal(found[o.name], call.given[o.name])
        check(call, found, compute, machine.target)
        same_bits_as_before(machine, call, found, compute)


@pytest.mark.parametrize(
    ("target", "compute"),
    [
        ("cpu:cortex-m4", "f64"),
        ("cpu:cortex-m55", "f64"),
        ("cpu:x86-64", "f32"),
        ("cpu:x86-64-v3", "f32"),
        ("cpu:aarch64", "f32"),
        ("cpu:riscv64", "f32"),
    ],
)
def test_the_other_arithmetic(target: str, compute: str, tmp_path: Path) -> None:
    """f64 in software on the Cortex-M4: 0.501 ulp. In either arithmetic, the bits of the machines that are alike."""
    machine = MACHINES[target]
    machine.need()
    calls = prepare(TRIALS[:4], SMALL)
    bundles = [trial.compile(target, compute_dtype=compute) for trial in TRIALS[:4]]
    for call, found in zip(calls.calls, run(machine, tmp_path, calls, bundles), strict=True):
        check(call, found, compute, target)
        same_bits_as_before(machine, call, found, compute)


def test_bits_of_the_runtime(tmp_path: Path) -> None:
    """What Python's runtime computes on this machine, C does, to the bit."""
    from optgen import host

    level = [name for name in host.X86_LEVELS if set(host.x86_requirements(name)) <= host.features()][-1]
    machine = MACHINES[f"cpu:{level}"]
    calls = prepare(TRIALS[:1], PLACES[1:])
    found = run(machine, tmp_path, calls, [TRIALS[0].compile(machine.target)])
    opt = optgen.compile("adamw", target="cpu")
    for call, arrays in zip(calls.calls, found, strict=True):
        w, g, m, v = (call.given[n].copy() for n in "wgmv")
        opt.step(w, g, {"step": call.place.step - 1, "m": m, "v": v}, lr=LR)
        for array, name in ((w, "w"), (m, "m"), (v, "v")):
            assert np.array_equal(array, arrays[name]), (call.place, name)


def test_training_step(machine: Machine, tmp_path: Path) -> None:
    """A whole training step, donated and in place, is JAX's for 24 steps."""
    losses, trained, stack = mlp.train(machine, tmp_path, mlp.compile_mlp(machine.target))
    wanted, params = mlp.expected()
    assert wanted[-1] < wanted[0] - 0.2
    np.testing.assert_allclose(losses, wanted, rtol=0, atol=2e-6)
    for name, array in params.items():
        np.testing.assert_allclose(trained[name], array, rtol=0, atol=2e-6, err_msg=name)
    assert 0 < stack < 8192 if machine.bare else stack == 0


def _readme_block(bundle: Any, which: str) -> str:
    blocks = re.findall(r"```c\n(.*?)```", bundle.files["README.md"].decode(), re.DOTALL)
    return next(block for block in blocks if which in block)


def test_threads(tmp_path: Path) -> None:
    """The README's pool of POSIX threads gives the same bits as one thread."""
    trials = [TRIALS[0], TRIALS[2], TRIALS[5]]
    places = (Place(1), Place(4097, 2, 1), Place(100_003, 3, 3))
    calls = prepare(trials, places)
    machine = MACHINES["cpu:x86-64"]
    bundles = [trial.compile(machine.target) for trial in trials]
    folders = [tmp_path / name for name in ("one", "many")]
    for folder in folders:
        folder.mkdir()
    prelude = "#include <pthread.h>\n" + _readme_block(bundles[0], "pthread_create")
    one = run(machine, folders[0], calls, bundles)
    many = run(machine, folders[1], calls, bundles, "-pthread", prelude=prelude, threads="&pool")
    for a, b in zip(one, many, strict=True):
        assert all(np.array_equal(a[n], b[n]) for n in a)
    assert not np.array_equal(one[2]["w"], calls.calls[2].given["w"])
