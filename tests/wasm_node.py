"""Packages for JavaScript, run in one Node.js process: see wasm_driver.mjs."""

from __future__ import annotations

import base64
import json
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

DRIVER = Path(__file__).with_name("wasm_driver.mjs")
_TYPES = {"float32": "f32", "float64": "f64", "uint16": "u16", "float16": "u16", "int32": "i32"}


def find_node() -> str | None:
    """The path of a Node.js that is new enough, if there is one."""
    node = shutil.which("node")
    if node is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    return node if int(version.lstrip("v").partition(".")[0] or 0) >= 18 else None


def encode(array: np.ndarray) -> dict[str, str]:
    """An array for the driver."""
    return {"type": _TYPES[array.dtype.name], "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}


def decode(data: str, like: np.ndarray) -> np.ndarray:
    """An array from the driver, of the dtype and shape of ``like``."""
    return np.frombuffer(base64.b64decode(data), like.dtype).reshape(like.shape).copy()


class Node:
    """The process. It ends with ``close``."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen(
            [program, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)

    def call(self, folder: Path, action: str, **call: Any) -> dict[str, Any]:
        """What an action of the driver gives."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"package": str(folder), "action": action, **call}) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], 60)[0]:
            self.process.kill()
            raise TimeoutError(f"node says nothing to '{action}'")
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        if "thrown" in answer:
            raise RuntimeError(answer["thrown"])
        return answer

    def js(self, folder: Path, body: str) -> dict[str, Any]:
        """The value of an async function's body, or its error; ``module`` is loaded, ``package_`` what is exported."""
        return self.call(folder, "js", body=body)

    def update(
        self, folder: Path, tensors: dict[str, np.ndarray], hypers: dict[str, float], action: str = "update"
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The tensors after one update, and scalar state."""
        answer = self.call(folder, action, arrays={n: encode(a) for n, a in tensors.items()}, hypers=hypers)
        return {n: decode(answer["arrays"][n], a) for n, a in tensors.items()}, answer["scalars"]
