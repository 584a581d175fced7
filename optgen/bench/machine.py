"""The machine, as reports describe it, and its threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

_PACKAGES = (
    "optgen", "numpy", "iree-base-runtime", "iree-base-compiler", "torch", "jax", "optax", "deepspeed", "mlx",
    "apache-tvm",
)  # fmt: skip


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Limits every peer to so many threads. To be called before any of them is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])  # XLA and MLX count the cores they may use
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if count == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import iree.runtime as rt

    rt.flags.parse_flags(f"--task_topology_group_count={count}")


def free_memory() -> int | None:
    """Bytes that are free; None where nobody says."""
    return _meminfo("MemAvailable")


def describe(threads: int) -> dict[str, Any]:
    """The machine and what is installed. No names of hosts, no paths."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    total = _meminfo("MemTotal")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "cores": cores(),
        "threads": threads,
        "memory_gib": None if total is None else round(total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _meminfo(key: str) -> int | None:
    found = re.search(rf"^{key}:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _processor() -> str:
    text = _read("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    flags = set(re.findall(r"\b(avx2|avx512f|asimd|sve)\b", text))
    return f"{name} ({', '.join(sorted(flags))})" if flags else name


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
