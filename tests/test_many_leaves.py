"""Trees of thousands of leaves on GPUs: hundreds of copies on one timeline lost the device."""

import numpy as np
import pytest

import optgen
from optgen.errors import DeviceError
from optgen.runtime.device import get_device, list_devices

pytestmark = pytest.mark.skipif(not list_devices("vulkan"), reason="no Vulkan device")


def _tree(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"l{i}": rng.standard_normal(1 + i % 5).astype(np.float32) for i in range(count)}


@pytest.mark.parametrize(("rule", "count"), [("sgd", 10_000), ("adamw", 1_200), ("lamb", 1_200)])
def test_many_leaves(rule, count):
    """By lists (sgd, adamw) and by leaves with reductions (lamb), against the CPU's."""
    results = []
    for device in ("vulkan", "cpu"):
        params, grads = _tree(count, 0), _tree(count, 1)
        opt = optgen.prebuilt(rule, device=device)
        opt.step(params, grads, opt.init(params), lr=0.1)
        results.append(np.concatenate(list(params.values())))
    assert np.abs(results[0] - results[1]).max() < 1e-6
    assert np.abs(results[1] - np.concatenate(list(_tree(count, 0).values()))).max() > 0.05


def test_what_a_device_raises_is_a_device_error(monkeypatch):
    device = get_device("vulkan")
    view = device.empty((4,), "f32")

    def lost(*_):
        raise RuntimeError("queue.c:2867: DATA_LOSS; [vkSignalSemaphore] VK_ERROR_DEVICE_LOST")

    monkeypatch.setattr(device, "_read_some", lost)
    with pytest.raises(DeviceError, match=r"device .vulkan. was lost.*start a new process"):
        device.read(view, np.empty(4, np.float32))
