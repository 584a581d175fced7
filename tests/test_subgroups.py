"""Kernels for Vulkan are right whatever the size of subgroups: proven in SPIR-V, and run on three sizes."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import optgen
from optgen.compiler.barriers import proven, with_barriers
from optgen.compiler.driver import compile_mlir
from optgen.compiler.searched import program_flags
from optgen.errors import CompileError
from optgen.lower.address import Address, Digit, apart
from optgen.lower.races import find_faults
from optgen.runtime.device import get_device, list_devices
from optgen.runtime.loading import prebuilt_bundle, prebuilt_names
from optgen.runtime.select import unfit
from optgen.targets import TARGETS, get_target

MEAN = """
module @mean {
  func.func public @main(%x: tensor<64x16xf32>) -> tensor<64x16xf32> {
    %zero = stablehlo.constant dense<0.0> : tensor<f32>
    %sum = stablehlo.reduce(%x init: %zero) applies stablehlo.add across dimensions = [0]
      : (tensor<64x16xf32>, tensor<f32>) -> tensor<16xf32>
    %wide = stablehlo.broadcast_in_dim %sum, dims = [1] : (tensor<16xf32>) -> tensor<64x16xf32>
    %new = stablehlo.subtract %x, %wide : tensor<64x16xf32>
    return %new : tensor<64x16xf32>
  }
}
"""


@pytest.mark.parametrize("name", ["vulkan", "vulkan:turing", "vulkan:rdna3", "vulkan:adreno"])
def test_what_the_compiler_makes_is_found_guilty_and_mended(name):
    target = get_target(name)
    flags = program_flags(target, ())
    module = compile_mlir(MEAN, flags)
    faults = find_faults(module, subgroups=name != "vulkan")
    assert any("reads what another invocation has written" in str(fault) for fault in faults)
    assert not find_faults(proven(MEAN, target, flags, module), subgroups=name != "vulkan")


def test_a_module_that_only_fills_memory_has_no_kernel_to_prove():
    fills = "func.func @main() -> tensor<8x6xf32> { %c = stablehlo.constant dense<0.1> : tensor<8x6xf32>\n"
    flags = program_flags(get_target("vulkan"), ())
    assert not find_faults(compile_mlir(f"module @fills {{ {fills} return %c : tensor<8x6xf32> }} }}", flags))
    hidden = compile_mlir(MEAN, flags).replace(b"\x03\x02\x23\x07", b"\x00\x02\x23\x07")
    assert [str(fault) for fault in find_faults(hidden)] == ["a kernel cannot be found in the module"]


def test_barriers_that_do_not_help_are_refused(monkeypatch):
    target = get_target("vulkan")
    flags = program_flags(target, ())
    monkeypatch.setattr("optgen.compiler.barriers.with_barriers", lambda text: text)
    monkeypatch.setattr("optgen.compiler.barriers.with_lone_invocations", lambda text, kernels: text)
    with pytest.raises(CompileError, match="not proven right for every size of subgroups"):
        proven(MEAN, target, flags, compile_mlir(MEAN, flags))


def test_lone_invocations_need_no_barrier(monkeypatch):
    target = get_target("vulkan")
    flags = program_flags(target, ())
    monkeypatch.setattr("optgen.compiler.barriers.with_barriers", lambda text: text)
    assert not find_faults(proven(MEAN, target, flags, compile_mlir(MEAN, flags)))


def test_operations_over_subgroups_are_for_chips_alone():
    total = "sum"
    text = MEAN.replace("@mean", f"@{total}").replace("dimensions = [0]", "dimensions = [0, 1]")
    text = text.replace("tensor<f32>) -> tensor<16xf32>", "tensor<f32>) -> tensor<f32>")
    text = text.replace("dims = [1] : (tensor<16xf32>)", "dims = [] : (tensor<f32>)")
    module = compile_mlir(text, program_flags(get_target("vulkan:turing"), ()))
    assert any("subgroups" in str(fault) for fault in find_faults(module))
    assert not any("subgroups" in str(fault) for fault in find_faults(module, subgroups=True))


def test_every_prebuilt_module_is_proven():
    seen = 0
    for name in prebuilt_names():
        bundle = prebuilt_bundle(name)
        for kernel in bundle.manifest.all_kernels:
            for module in kernel.modules:
                if module.backend == "vulkan":
                    assert not find_faults(bundle.module(module)), (name, kernel.name)
                    seen += 1
    assert seen > 100


def _row(*digits: tuple[int, int | None, str], base: int = 0) -> Address:
    return Address(base, (), tuple(Digit(*each) for each in digits))


@pytest.mark.parametrize(
    ("one", "other", "local", "right"),
    [
        (_row((1, 64, "x")), _row((1, 64, "x")), (64, 1, 1), True),
        (_row((1, 64, "x")), _row((1, 16, "loop")), (64, 1, 1), False),
        (_row((1, 64, "x"), (64, None, "loop")), _row((1, 64, "x")), (64, 1, 1), True),
        (_row((1, 64, "x"), (32, 4, "loop")), _row((1, 64, "x")), (64, 1, 1), False),
        (_row((4, 64, "x"), (1, 4, "loop")), _row((4, 64, "x")), (64, 1, 1), True),
        (_row((4, 64, "x"), (1, 5, "loop")), _row((4, 64, "x")), (64, 1, 1), False),
        (_row((4, 64, "x")), _row((4, 64, "x"), base=4), (64, 1, 1), False),
        (_row((1, 16, "x")), _row((1, 16, "x")), (16, 4, 1), False),
        (_row((1, 16, "x"), (16, 4, "y")), _row((1, 16, "x"), (16, 4, "y")), (16, 4, 1), True),
        (_row((1, 16, "x"), (10, 4, "y")), _row((1, 16, "x"), (10, 4, "y")), (16, 4, 1), False),
        (Address(known=False), _row((1, 64, "x")), (64, 1, 1), False),
    ],
)
def test_invocations_that_never_meet(one, other, local, right):
    """Against trying every number that the digits can be."""
    assert apart(one, other, local) is right
    if one.known and all(d.count for d in (*one.digits, *other.digits)):
        places = [_places(address, local) for address in (one, other)]
        meet = any(a == b and who != whom for who, a in places[0] for whom, b in places[1])
        assert not (right and meet)
        assert right or meet


def _places(address: Address, local: tuple[int, int, int]) -> set[tuple[tuple[int, ...], int]]:
    found = {((), address.base)}
    for axis, extent in zip("xyz", local, strict=True):
        scale = next((d.scale for d in address.digits if d.of == axis), 0)
        found = {((*who, n), at + scale * n) for who, at in found for n in range(extent)}
    for d in address.digits:
        if d.of not in "xyz":
            found = {(who, at + d.scale * n) for who, at in found for n in range(d.count or 1)}
    return found


def test_kernels_of_several_blocks_are_left_as_they_are():
    text = "  spirv.func @f() {\n    spirv.Branch ^bb1\n  ^bb1:\n    spirv.Return\n  }"
    assert with_barriers(text) == text


@pytest.mark.parametrize(("chip", "size", "fits"), [
    ("turing", 32, True), ("turing", 8, False), ("rdna3", 64, False), ("rdna3", 32, True), ("valhall", 16, True),
    ("adreno", 64, True), ("adreno", None, False),
])  # fmt: skip
def test_chips_are_refused_where_subgroups_do_not_fit(chip, size, fits, monkeypatch):
    if not list_devices("vulkan"):
        pytest.skip("no Vulkan device")
    device = get_device("vulkan")
    monkeypatch.setattr(device, "description", "NVIDIA, AMD, Adreno, Mali")
    monkeypatch.setattr(type(device), "subgroup_size", lambda self: size)
    generic = next(m for m in prebuilt_bundle("sgd").manifest.kernels[0].modules if m.target == "vulkan")
    reason = unfit(dataclasses.replace(generic, target=f"vulkan:{chip}"), device)
    assert (reason == "") is fits
    assert fits or "needs subgroups of" in reason
    assert unfit(generic, device) == ""
    assert f"vulkan:{chip}" in TARGETS


def _pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _normed(h, axis):
    mean = h.mean(axis, keepdims=True)
    return (h - mean) / jnp.sqrt(((h - mean) ** 2).mean(axis, keepdims=True) + 1e-5)


def loss(params, batch):
    """Means over rows and columns, batch and layer norm, cross entropy, a max pool."""
    hidden = batch["x"] @ params["a"]
    logits = (_normed(hidden, 0) * params["g"] + _normed(hidden, 1)) @ params["b"]
    entropy = -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * batch["y"], 1))
    pooled = jnp.mean((_pool(params["image"]) - batch["z"]) ** 2)
    means = params["c"] - params["c"].mean(0) + params["c"].mean(1, keepdims=True)
    return entropy + pooled + jnp.mean((means - batch["c"]) ** 2)


CHILD = """
import sys, json, numpy as np, optgen
from optgen.runtime.device import get_device
step, data = optgen.load(sys.argv[1], device="vulkan"), dict(np.load(sys.argv[2]))
batch = {k[6:]: v for k, v in data.items() if k.startswith("batch/")}
seen = []
for _ in range(2):
    params = {k[7:]: v.copy() for k, v in data.items() if k.startswith("params/")}
    step.step(params, step.init(params), batch, lr=1.0)
    seen.append(params)
same = all(np.array_equal(seen[0][k], seen[1][k]) for k in params)
np.savez(sys.argv[3], **seen[0])
print(json.dumps({"size": get_device("vulkan").subgroup_size(), "same": same}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if not list_devices("vulkan"):
        pytest.skip("no Vulkan device")
    folder, rng = tmp_path_factory.mktemp("subgroups"), np.random.default_rng(0)
    shapes = {"a": (24, 40), "g": (40,), "b": (40, 10), "image": (4, 8, 8, 16), "c": (64, 48)}
    params = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    shapes = {"x": (100, 24), "y": (100, 10), "z": (4, 4, 4, 16), "c": (64, 48)}
    batch = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    optgen.train.compile_step(loss, params, batch, "sgd", targets="vulkan").save(folder / "step.optgen")
    named = {f"{tree}/{k}": v for tree, part in (("params", params), ("batch", batch)) for k, v in part.items()}
    np.savez(folder / "data.npz", **named)
    with jax.enable_x64(True):
        wide = {k: v.astype(np.float64) for k, v in params.items()}
        right = jax.grad(loss)(wide, {k: v.astype(np.float64) for k, v in batch.items()})
    return folder, params, {k: np.asarray(v) for k, v in right.items()}


@pytest.mark.parametrize("width", [128, 256, 512])
def test_step_on_subgroups_of_4_8_and_16(compiled, width):
    folder, params, right = compiled
    environment = {**os.environ, "LP_NATIVE_VECTOR_WIDTH": str(width)}
    arguments = [sys.executable, "-c", CHILD, *(str(folder / n) for n in ("step.optgen", "data.npz", "new.npz"))]
    ran = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    if said["size"] != width // 32:
        pytest.skip(f"this processor's lavapipe has subgroups of {said['size']} instead of {width // 32}")
    assert said["same"]
    new = np.load(folder / "new.npz")
    for name, grad in right.items():
        # The change of a param of size 1 has an error of its rounding besides that of f32 sums.
        error = np.abs((params[name] - new[name]) - grad).max()
        assert error < 1e-4 * np.abs(grad).max() + 2e-7, name
