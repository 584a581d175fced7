"""The page of examples/web in a headless Chromium, opened from its folder; and a package as a module, from a server."""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from conftest import ROOT

from optgen.compiler.driver import compiler_version
from optgen.dsl.variant import Variant
from optgen.native import get_native_target, update_package
from optgen.rules import get_rule
from optgen.train import web

PAGE = ROOT / "examples" / "web"
SEVEN = [[(0.25, 0.25), (0.5, 0.24), (0.75, 0.25), (0.65, 0.45), (0.52, 0.65), (0.42, 0.85)]]
TEXT = "document.getElementById({!r}).textContent"
NUMBER = "parseFloat(document.getElementById({!r}).textContent)"


@pytest.fixture
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is here")
    with Browser(program) as found:
        found.resize(1180, 1000)
        found.prefer("light")
        yield found


def test_generated_files_are_up_to_date() -> None:
    made = web.make_files()
    assert made.keys() == {"train.js", "predict.js", "data.js"}
    assert (PAGE / "data.js").read_text() == made["data.js"]
    by = json.loads((PAGE / "versions.json").read_text())["iree-base-compiler"]
    if by != compiler_version():
        pytest.skip(f"the modules are of compiler {by}, and {compiler_version()} is here")
    for name, text in made.items():
        assert (PAGE / name).read_text() == text, f"{name} is not what scripts/build_web makes"


def test_the_page_is_one_folder() -> None:
    """Nothing is fetched: whatever the page names lies beside it."""
    text = (PAGE / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert {"style.css", "train.js", "app.js"} <= set(named)
    for name in named:
        assert name.startswith(("data:", "https://doi.org/")) or (PAGE / name).is_file()
    for file in PAGE.glob("*.js"):
        if file.name not in ("train.js", "predict.js"):  # whose `load` can, and is not asked to
            assert not re.search(r"\bfetch\(|import\(|https?://(?!doi\.org|www\.w3\.org)", file.read_text()), file.name


def test_it_trains_and_learns_a_drawing(browser: Browser, tmp_path: Path) -> None:
    browser.open((PAGE / "index.html").as_uri())
    browser.wait("document.body?.dataset.ready")
    assert browser.run(NUMBER.format("accuracy")) < 40
    browser.draw("#pad", SEVEN)
    browser.wait(TEXT.format("digit") + " !== '–'")
    browser.run("document.getElementById('toggle').click()")
    browser.wait(NUMBER.format("steps") + " >= 300")
    browser.run("document.getElementById('toggle').click()")
    assert browser.run(NUMBER.format("accuracy")) >= 95
    assert browser.run(NUMBER.format("loss")) < 0.3
    assert 0 < browser.run(NUMBER.format("time")) < 20
    said = browser.run(TEXT.format("digit"))
    other = "3" if said == "7" else "7"
    button = f"document.querySelector('button[aria-label=\"It is a {other}\"]')"
    sure = f"parseFloat({button}.previousElementSibling.textContent)"
    assert browser.run(sure) < 50
    steps = browser.run(NUMBER.format("steps"))
    browser.run(f"{button}.click()")
    browser.wait(TEXT.format("verdict") + ".startsWith('After')")
    assert browser.run(TEXT.format("digit")) == other
    assert browser.run(sure) >= 90
    assert browser.run(TEXT.format("yours")) == "1"
    assert steps < browser.run(NUMBER.format("steps")) <= steps + 150
    assert browser.run(NUMBER.format("accuracy")) >= 85
    browser.run("document.getElementById('clear').click()")
    browser.run("document.getElementById('sample').click()")
    assert browser.run(TEXT.format("verdict")).endswith(".")
    for scheme, width in (("light", 1180), ("dark", 1180), ("dark", 360)):
        browser.prefer(scheme)
        browser.resize(width, 1000)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), f"{width} pixels are too few"
        browser.screenshot(tmp_path / f"{scheme}-{width}.png")
        assert (tmp_path / f"{scheme}-{width}.png").stat().st_size > 20_000
    names = "[...document.querySelectorAll('button')].every((b) => b.ariaLabel || b.textContent.trim())"
    assert browser.run(names)
    browser.run("document.getElementById('reset').click()")
    assert browser.run(NUMBER.format("accuracy")) < 40
    assert browser.messages == []


@pytest.mark.parametrize("isolated", [False, True])
def test_packages_are_modules_in_a_browser(browser: Browser, tmp_path: Path, isolated: bool) -> None:
    """With threads too, where the page is cross-origin isolated; where not, they say what is missing."""
    variant = Variant.of(get_rule("adamw"))
    for name in ("wasm", "wasm:threads"):
        package = update_package(variant, variant.dtypes("f32"), get_native_target(name))
        package.write(tmp_path / name.replace(":", "-"))
    (tmp_path / "index.html").write_text('<!doctype html><link rel="icon" href="data:,">')

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def end_headers(self) -> None:
            if isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            browser.open(f"http://127.0.0.1:{server.server_port}/index.html")
            browser.wait("document.readyState === 'complete' && location.protocol === 'http:'")
            script = """(async () => {
              const { load } = await import("./FOLDER/index.js");
              const update = await load(undefined, { threads: 2 });
              const optimizer = update.optimizer({ w: new Float32Array(200001).fill(2) });
              optimizer.grads.w.fill(-0.5);
              for (let i = 0; i < 20; i++) optimizer.step(optimizer.grads, { lr: 0.125, weight_decay: 0 });
              update.close();
              const { w } = optimizer.params;
              return [w[0], w.every((x) => x === w[0])];
            })().catch((error) => error.message)"""
            assert browser.run(script.replace("FOLDER", "wasm")) == [pytest.approx(4.5, abs=1e-5), True]
            threaded = browser.run(script.replace("FOLDER", "wasm-threads"))
            if isolated:
                assert threaded == [pytest.approx(4.5, abs=1e-5), True]
            else:
                assert threaded.startswith("threads need a page that is cross-origin isolated")
        finally:
            server.shutdown()
            thread.join()
    assert browser.messages == []
