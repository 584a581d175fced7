"""AdamW on a GPU, on tensors that stay there, beside torch's on the same GPU.

IREE's Python binding has no events of the device, so optgen's times are those of the host from call to completion, the
launch included; torch's are of CUDA events, and of the host as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optgen.bench.work import BETA1, BETA2, EPS, LR, resnet50
from optgen.hyper import part
from optgen.runtime import memory
from optgen.runtime.device import get_device
from optgen.runtime.execute import prepare
from optgen.runtime.leaves import ListCall
from optgen.runtime.loading import prebuilt

#: Name and sizes of the leaves of each tree.
TREES: dict[str, tuple[int, ...]] = {
    "1M": (2**20,),
    "16M": (2**24,),
    "100M": (100_000_000,),
    "resnet50": tuple(int(np.prod(shape)) for shape in resnet50()),
    "1000x128": (128,) * 1000,
}
_DECAY = 0.01


def measure(driver: str, trees: Sequence[str], rounds: int = 9) -> list[dict[str, Any]]:
    """Milliseconds for a step of each peer on each tree, interleaved, medians; bytes per second for optgen's.

    Args:
        driver: ``cuda`` or ``vulkan``.
        trees: names in :data:`TREES`.
        rounds: that count; one more comes before them.
    """
    found = []
    for name in trees:
        sizes = TREES[name]
        peers: dict[str, Callable[[], float]] = {"optgen": _optgen(driver, sizes), **_torch(driver, sizes)}
        times: dict[str, list[float]] = {peer: [] for peer in peers}
        for number in range(rounds + 1):
            for peer, step in peers.items():
                seconds = step()
                if number:
                    times[peer].append(seconds)
        medians = {peer: statistics.median(values) for peer, values in times.items()}
        found.append(
            {
                "tree": name,
                "leaves": len(sizes),
                "elements": sum(sizes),
                "ms": {peer: 1e3 * seconds for peer, seconds in medians.items()},
                "gb_per_s": 28 * sum(sizes) / medians["optgen"] / 1e9,
            }
        )
    return found


def _optgen(driver: str, sizes: Sequence[int]) -> Callable[[], float]:
    optimizer = prebuilt("adamw", driver, weight_decay=_DECAY, compute_dtype="f32")
    kernel = next(k for k in optimizer._kernels if k.dtypes["param"] == "f32")
    device = get_device(driver)
    leaves = []
    for size in sizes:
        leaf = [memory.empty((size,), operand.dtype) for operand in kernel.operands]
        for array, operand in zip(leaf, kernel.operands, strict=True):
            array[...] = 0.0 if operand.role == "state" else 0.5
        leaves.append(leaf)
    call = prepare(device, *optimizer.module(kernel, device), kernel, leaves)
    assert isinstance(call, ListCall)
    values = optimizer.resolve({"lr": LR, "step": 3, "beta1": BETA1, "beta2": BETA2, "eps": EPS})
    scalars = [part(values[s.hyper], s.part) for s in kernel.scalars]
    call.launch(scalars)

    def step() -> float:
        start = time.perf_counter()
        call.launch(scalars)
        return time.perf_counter() - start

    return step


def _torch(driver: str, sizes: Sequence[int]) -> dict[str, Callable[[], float]]:
    """torch's fused and foreach AdamW, by the host's clock and by the device's events; none where it has no GPU."""
    try:
        import torch
    except ImportError:
        return {}
    if driver != "cuda" or not torch.cuda.is_available():
        return {}
    steps: dict[str, Callable[[], float]] = {}
    for kind in ("fused", "foreach"):
        tensors = [torch.nn.Parameter(torch.full((n,), 0.5, device="cuda")) for n in sizes]
        for tensor in tensors:
            tensor.grad = torch.full_like(tensor, 0.5)
        optimizer = torch.optim.AdamW(tensors, lr=LR, weight_decay=_DECAY, **{kind: True})
        optimizer.step()

        def host(optimizer: Any = optimizer) -> float:
            torch.cuda.synchronize()
            start = time.perf_counter()
            optimizer.step()
            torch.cuda.synchronize()
            return time.perf_counter() - start

        def events(optimizer: Any = optimizer) -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            optimizer.step()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

        steps[f"torch {kind}"], steps[f"torch {kind}, events"] = host, events
    return steps
