"""A headless Chromium, spoken to over a pipe: its DevTools protocol, no package needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip


def find_browser() -> str | None:
    """The path of a Chromium, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page. Use it in a ``with``.

    Attributes:
        messages: what the page has said on its console, and exceptions that nothing caught.
    """

    def __init__(self, program: str, *, width: int = 1180, height: int = 1000, timeout: float = 30.0) -> None:
        self.timeout, self.count, self.messages = timeout, 0, list[str]()
        self.folder = tempfile.TemporaryDirectory(prefix="optgen-browser-")
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()
        script = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        command = [program, *FLAGS, f"--window-size={width},{height}", f"--user-data-dir={self.folder.name}",
                   "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command], pass_fds=(to_read, to_write), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self.buffer, self.session = b"", ""
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read)
        os.close(self.write)
        shutil.rmtree(self.folder.name, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        number = self.count
        while (answer := self.receive()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def receive(self) -> dict[str, Any]:
        """The next message; what belongs into :attr:`messages` is put there."""
        end = time.monotonic() + self.timeout
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser says nothing")
            part = os.read(self.read, 1 << 16)
            if not part:
                raise RuntimeError("the browser has ended")
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        details = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.messages.append(str(details["exceptionDetails"]))
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(a.get("value", a.get("description"))) for a in details["args"]))
        elif message.get("method") == "Log.entryAdded":
            self.messages.append(details["entry"]["text"])
        return message

    def open(self, url: str) -> None:
        """Goes to ``url``."""
        result = self.call("Page.navigate", url=url)
        if "errorText" in result:
            raise RuntimeError(f"{url}: {result['errorText']}")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """The first value of an expression that is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} is not true after {seconds} s; the console has {self.messages}")
            time.sleep(0.05)
        return value

    def draw(self, selector: str, strokes: list[list[tuple[float, float]]]) -> None:
        """Drags the mouse over an element, along points in parts of its width and height."""
        box = self.run(f"(({{left, top, width, height}}) => [left, top, width, height])"
                       f"(document.querySelector({selector!r}).getBoundingClientRect())")  # fmt: skip
        for points in strokes:
            for i, (x, y) in enumerate([points[0], *points, points[-1]]):
                kind = "mousePressed" if i == 0 else "mouseReleased" if i == len(points) + 1 else "mouseMoved"
                self.call("Input.dispatchMouseEvent", type=kind, x=box[0] + x * box[2], y=box[1] + y * box[3],
                          button="left", buttons=0 if kind == "mouseReleased" else 1, clickCount=1)  # fmt: skip

    def prefer(self, scheme: str) -> None:
        """``light`` or ``dark``."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, width: int, height: int) -> None:
        """The page's size, as on a device."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
