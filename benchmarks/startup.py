"""Start-up, as a new process sees it: ``import optgen``, a first update, a second one. Medians of fresh processes.

Run it with the interpreter of the environment to be measured; it needs the runtime alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

CODE = """
import json, time
t0 = time.perf_counter()
import numpy as np
t1 = time.perf_counter()
import optgen as ivy
t2 = time.perf_counter()
w, g = np.ones(64, np.float32), np.ones(64, np.float32)
new = ivy.adam_update(w, g, 0.1, np.zeros(64, np.float32), np.zeros(64, np.float32), 1, beta1=0.87, beta2=0.98)
t3 = time.perf_counter()
opt = ivy.prebuilt("adamw")
state = opt.init(w)
opt.step(w, g, state, lr=0.1)
t4 = time.perf_counter()
print(json.dumps([1e3 * (b - a) for a, b in ((t0, t1), (t1, t2), (t2, t3), (t3, t4))]))
"""
NAMES = ("import numpy", "import optgen, numpy loaded", "first adam_update", "then prebuilt adamw, init, step")


def main() -> None:
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True).stdout)
        for _ in range(11)
    ]
    for name, times in zip(NAMES, zip(*runs, strict=True), strict=True):
        print(f"{name:34} {statistics.median(times):7.1f} ms  ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
