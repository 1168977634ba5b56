"""The result page in a real browser: it shows the scene upright, framed and unmirrored, and talks to nobody else."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.fetch_viewer import FETCH_COMMAND, installed_version, pinned_version
from compress.stage import OUTPUTS, run
from job import Job, JobKind
from spaceport import view
from tests.synthetic import make_gaussians, make_views, write_stage_inputs
from tests.watched_page import SHOTS, WINDOW, Watched, chromium

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TITLE = 'Five <balls> & "more"'


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of the stage, some folders below the root of the server, as in the bucket."""
    if installed_version() != pinned_version():
        message = f"the viewer is not installed: PYTHONPATH=containers {FETCH_COMMAND}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    root = tmp_path_factory.mktemp("page")
    write_stage_inputs(root / "processing/input", make_gaussians(), make_views())
    job = Job("compress", JobKind.PROCESSING, root, {"title": TITLE, "job_id": "balls-01", "price_usd_per_hour": "1"})
    job.output.mkdir(parents=True)
    job.progress_folder.mkdir(parents=True)
    run(job)
    assert all((job.output / name).is_file() for name in OUTPUTS)
    published = root / "site" / "results" / "balls" / "balls-01"
    shutil.copytree(job.output, published)
    return root / "site"


@pytest.fixture(scope="module")
def address(results: Path) -> Iterator[str]:
    server = view.serve(results)  # a plain static server, as S3 behind CloudFront is one
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/results/balls/balls-01/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def shown(browser, address: str) -> Iterator[Watched]:
    watched = Watched(browser, address + "?noui")
    watched.wait_for_first_frame()
    watched.page.wait_for_timeout(500)
    yield watched
    watched.context.close()


def where(picture: np.ndarray, color: str) -> tuple[float, float, float]:
    """(x, y, share) of the pixels of a colour: their centre as a part of the width and height, and of the area."""
    r, g, b = picture[..., 0], picture[..., 1], picture[..., 2]
    found = {
        "red": (r > 110) & (g < 80) & (b < 80),
        "blue": (b > 110) & (r < 80) & (g < 90),
        "green": (g > 100) & (r < 80) & (b < 90),
        "yellow": (r > 110) & (g > 100) & (b < 80),
        "white": (r > 140) & (g > 140) & (b > 140),
    }[color]
    rows, columns = np.nonzero(found)
    assert len(rows) > 50, f"no {color} is seen"
    return columns.mean() / picture.shape[1], rows.mean() / picture.shape[0], found.mean()


def assert_upright_and_framed(picture: np.ndarray) -> None:
    """Red over white over blue, yellow left of white left of green, all inside and large enough."""
    red, blue, green, yellow, white = (where(picture, c) for c in ("red", "blue", "green", "yellow", "white"))
    assert red[1] < white[1] - 0.1 < white[1] + 0.1 < blue[1], "the scene is not upright"
    assert yellow[0] < white[0] - 0.05 < white[0] + 0.05 < green[0], "the scene is mirrored"
    assert abs(white[0] - 0.5) < 0.05
    assert abs(white[1] - 0.5) < 0.08, "the scene's centre is not in the middle"
    assert abs(red[0] - 0.5) < 0.05, "the horizon is tilted"
    assert min(c[2] for c in (red, blue, green, yellow, white)) > 0.002, "the scene is too far away"


def test_scene_is_seen_upright_and_framed(shown: Watched) -> None:
    assert_upright_and_framed(shown.picture("scene.png"))


@pytest.mark.parametrize("way", ["served", "file"])
def test_the_single_page_shows_the_scene_by_itself(browser, results: Path, address: str, way: str) -> None:
    """By a link to one object, and from a disk: it loads nothing beside it, and the scene is the same."""
    alone = (results / "results/balls/balls-01/scene.html").as_uri() if way == "file" else address + "scene.html"
    watched = Watched(browser, alone + "?noui")
    watched.wait_for_first_frame()
    watched.page.wait_for_timeout(500)
    assert_upright_and_framed(watched.picture(f"single-{way}.png"))
    assert watched.page.title() == TITLE
    assert [url for url in watched.requests if not url.startswith(("data:", "blob:"))] == [alone + "?noui"]
    assert watched.complaints == []
    watched.context.close()


def test_nothing_is_fetched_from_elsewhere_and_nothing_complains(shown: Watched, address: str) -> None:
    assert shown.elsewhere(address) == []
    assert shown.complaints == []
    loaded = {url.split("/")[-1].split("?")[0] for url in shown.requests}
    assert {"scene.sog", "settings.json", "index.js"} <= loaded


def test_poster_shows_what_the_viewer_shows(shown: Watched, results: Path) -> None:
    """Same camera, same colours: the page must not jump when the first frame replaces the poster."""
    poster = Image.open(results / "results/balls/balls-01/poster.jpg").convert("RGB")
    poster_pixels = np.asarray(poster.resize((WINDOW["width"], WINDOW["height"]), Image.Resampling.BOX)).astype(int)
    picture = shown.picture("scene.png")
    assert_upright_and_framed(poster_pixels)
    assert np.abs(poster_pixels - picture).mean() < 4
    for color in ("red", "blue", "green", "yellow", "white"):
        expected, found = where(poster_pixels, color), where(picture, color)
        assert np.hypot(expected[0] - found[0], expected[1] - found[1]) < 0.01, color


def reach(picture: np.ndarray) -> float:
    """From yellow to green as a part of the width; it shrinks when the scene turns either way."""
    return where(picture, "green")[0] - where(picture, "yellow")[0]


def test_address_cannot_replace_the_content(browser, address: str) -> None:
    watched = Watched(
        browser, address + "?content=https://example.invalid/a.sog&settings=https://example.invalid/s.json&noui"
    )
    watched.wait_for_first_frame()
    assert watched.elsewhere(address) == []
    watched.context.close()


def test_scene_turns_under_the_mouse(browser, address: str) -> None:
    watched = Watched(browser, address + "?noui")
    watched.wait_for_first_frame()
    watched.page.wait_for_timeout(500)
    before = watched.picture("before-drag.png")
    watched.page.mouse.move(480, 300)
    watched.page.mouse.down()
    watched.page.mouse.move(640, 300, steps=8)
    watched.page.mouse.up()
    width_before, after = reach(before), before
    for _ in range(40):  # the camera glides, and a loaded machine draws few frames
        watched.page.wait_for_timeout(500)
        after = watched.picture("after-drag.png")
        if reach(after) < 0.95 * width_before:
            break
    assert reach(after) < 0.95 * width_before, "the scene did not turn"
    assert abs(where(after, "white")[0] - 0.5) < 0.08, "the scene did not turn about its centre"
    watched.context.close()


def test_page_with_controls_names_the_scene_and_links_its_files(browser, address: str) -> None:
    watched = Watched(browser, address)
    watched.wait_for_first_frame()
    watched.page.wait_for_timeout(1000)
    watched.picture("page.png")
    assert watched.page.title() == TITLE
    assert watched.page.locator("header h1").inner_text() == TITLE
    links = watched.page.eval_on_selector_all("a", "all => all.map(a => a.getAttribute('href'))")
    assert {"./report.html", "./scene.sog", "./scene.spz"} <= set(links)
    assert watched.complaints == []
    watched.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
def test_report_fits_its_window_and_loads_nothing(browser, address: str, scheme: str, width: int) -> None:
    watched = Watched(browser, address + "report.html", color_scheme=scheme)
    watched.page.set_viewport_size({"width": width, "height": 800})
    SHOTS.mkdir(parents=True, exist_ok=True)
    watched.page.screenshot(path=SHOTS / f"report-{scheme}-{width}.png", full_page=True, timeout=120_000)
    assert watched.requests == [address + "report.html"] + [
        url for url in watched.requests[1:] if url.startswith("data:")
    ]
    assert watched.complaints == []
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.page.locator("h1").inner_text() == TITLE
    assert watched.page.locator("td", has_text="Too <blurred>.").count() == 1
    watched.context.close()
