"""A page in Chromium, watched: what it shows, asks for and complains about."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
]
SHOTS = Path(__file__).parents[1] / "build" / "page"
HOOK = "window.firstFrame = () => { window.__firstFrame = performance.now(); }"
WINDOW = {"width": 960, "height": 540}


@contextlib.contextmanager
def chromium() -> Iterator:
    """A browser. Where there is none the test is skipped on a laptop, and fails where $CI is set."""
    if not CHROMIUM:
        message = "NO BROWSER: install chromium (apt-get install chromium), the page is not tested without it"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield started
        started.close()


class Watched:
    """A page, all it asked for and all it complained about."""

    def __init__(self, browser, address: str, **context) -> None:
        self.context = browser.new_context(viewport=WINDOW, **context)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.add_init_script(HOOK)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self.listen)
        self.page.on("response", self.check)
        self.page.goto(address)

    def listen(self, message) -> None:
        if message.type in ("error", "assert"):
            self.complaints.append(message.text)

    def check(self, response) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status} {response.url}")

    def wait_for_first_frame(self) -> float:
        """Milliseconds after navigation. Polls, because the page's own policy forbids wait_for_function its eval."""
        for _ in range(1200):
            value = self.page.evaluate("() => window.__firstFrame ?? null")
            if value is not None:
                return float(value)
            self.page.wait_for_timeout(100)
        self.picture("no-first-frame.png")
        raise AssertionError(f"no first frame within two minutes: {self.complaints}")

    def picture(self, name: str) -> np.ndarray:
        SHOTS.mkdir(parents=True, exist_ok=True)
        png = self.page.screenshot(timeout=120_000)
        (SHOTS / name).write_bytes(png)
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def elsewhere(self, address: str) -> list[str]:
        origin = "/".join(address.split("/")[:3]) + "/"
        return [url for url in self.requests if not url.startswith((origin, "data:", f"blob:{origin}"))]
