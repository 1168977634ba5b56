"""How the result page starts in a browser: `python -m benchmarks page RESULT_FOLDER`, of a run.

Headless Chromium draws with the CPU (SwiftShader), so a real machine is faster. First frame: from the start of the
navigation to the signal of the viewer, median of five loads with an empty cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, sync_playwright

from benchmarks.recording import write_result
from spaceport import view

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic"]
FLAGS += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
HOOK = "window.firstFrame = () => { window.__firstFrame = performance.now(); }"
LOADS = 5
LIMIT_S = 60


def load(browser: Browser, url: str) -> tuple[float, int, int]:
    """(seconds to the first frame, requests to other origins, errors on the console) of one load in a fresh profile."""
    context = browser.new_context(viewport={"width": 1100, "height": 700})
    page = context.new_page()
    hosts: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: hosts.append(urlsplit(request.url).netloc))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.add_init_script(HOOK)
    page.goto(url)
    deadline = time.monotonic() + LIMIT_S
    while page.evaluate("window.__firstFrame") is None:  # wait_for_function needs eval, which the page forbids
        if time.monotonic() > deadline:
            raise SystemExit(f"no frame within {LIMIT_S} s; the console says: {errors}")
        page.wait_for_timeout(50)
    seconds = page.evaluate("window.__firstFrame") / 1000
    context.close()
    off_origin = sum(host not in ("", urlsplit(url).netloc) for host in hosts)
    return seconds, off_origin, len(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    server = view.serve(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        loads = [load(browser, f"http://127.0.0.1:{server.server_address[1]}/index.html") for _ in range(LOADS)]
        version = browser.version
    server.shutdown()
    figures = {
        "first_frame_s": statistics.median(seconds for seconds, _, _ in loads),
        "off_origin_requests": max(count for _, count, _ in loads),
        "console_errors": max(count for _, _, count in loads),
        "sog_bytes": (folder / "scene.sog").stat().st_size,
    }
    write_result("page", figures, "python -m benchmarks page RESULT_FOLDER", chromium=version)


if __name__ == "__main__":
    main()
