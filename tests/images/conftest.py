"""Fixtures of the image tests: an engine, the three images built from the production Dockerfile, input photos.

Where no engine can be had, or without root, these tests are skipped on a laptop, and fail where CI=true.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from base.stages import STAGE_NAMES, StageName
from benchmarks.hamlet import render_photos
from deploy.images.build import Built, base_image, build
from deploy.images.docker import Docker, NoEngine, running_engine
from tests.images.figures import Figures
from tests.images.player import IMAGES, OPTIONS, ROOT, Player, Ran, need_root, report_missing

DATA = Path(os.environ.get("SPACEPORT_DATA") or ROOT.parent / "shared" / "data")


HERE = Path(__file__).parent
PASSED: set[str] = set()  # node ids
DESELECTED: set[str] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.images)
            item.add_marker(pytest.mark.timeout(1500))  # the first one builds the images


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        PASSED.add(report.nodeid)


def adding_figures(items: Iterable[pytest.Item]) -> dict[str, Path]:
    """The tests among ``items`` that can add a figure, themselves or through a fixture, with their files."""
    return {item.nodeid: item.path for item in items if "figures" in getattr(item, "fixturenames", ())}


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    DESELECTED.update(adding_figures(items))


def is_whole(session: pytest.Session) -> bool:
    """Whether every test that can add a figure was chosen, and has passed."""
    chosen = adding_figures(session.items)
    files = {file for file in HERE.glob("test_*.py") if "figures: Figures" in file.read_text(encoding="utf-8")}
    return files <= set(chosen.values()) and set(chosen) <= PASSED and not DESELECTED


@pytest.fixture(scope="session")
def engine() -> Iterator[Docker]:
    try:
        with running_engine() as running:
            yield running
    except NoEngine as problem:
        report_missing(str(problem))


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """What the tests measured; written to build/images/images.md, and to docs/ when SPACEPORT_WRITE_DOCS=1.

    Otherwise the cases of docs/images.md have to be those of the tests.
    """
    found = Figures()
    yield found
    problem = found.write(ROOT, whole=is_whole(request.session))
    assert not problem, problem


@pytest.fixture(scope="session")
def base(engine: Docker, figures: Figures) -> str:
    started = time.monotonic()
    try:
        name = base_image(engine)
    except NoEngine as problem:
        report_missing(str(problem))
    figures.base = f"`{name}`, there after {time.monotonic() - started:.1f} s"
    return name


@pytest.fixture(scope="session")
def images(engine: Docker, base: str, figures: Figures) -> Callable[[str], str]:
    """Builds the image of a stage when it is first asked for; returns its tag."""
    built: dict[str, Built] = {}

    def get(stage: str) -> str:
        if stage not in built:
            tag = IMAGES.format(stage=stage)
            cold = os.environ.get("SPACEPORT_WRITE_DOCS") == "1"  # the page tells what a first build takes
            built[stage] = build(engine, stage, tag, base, no_cache=cold)
            figures.builds[stage] = (built[stage], build(engine, stage, tag, base))
        return built[stage].tag

    return get


@pytest.fixture(scope="session")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """24 photos of a walk around a plush doll, or of a hamlet where those are not there.

    Each phase of SfM lasts long enough to be met.
    """
    folder = DATA / "plush" / "images"
    if not folder.is_dir():
        print(f"{folder} is not there (SPACEPORT_DATA): the images get sample photos")
        folder = tmp_path_factory.mktemp("sample")
        render_photos(folder, photos=24, width_px=960, height_px=720)
    return sorted(folder.glob("*.[jJ][pP][gG]"))[:24]


@pytest.fixture(scope="session")
def photos(many_photos: list[Path]) -> list[Path]:
    """The first ten of them."""
    return many_photos[:10]


@pytest.fixture(scope="session")
def good_run(
    engine: Docker, images: Callable[[str], str], photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[StageName], tuple[Ran, Path]]:
    """Runs a stage on the results of those before it, once; returns what was seen and the folder of its results."""

    @cache
    def run(stage: StageName) -> tuple[Ran, Path]:
        need_root()
        earlier = {name: run(name)[1] for name in STAGE_NAMES[: STAGE_NAMES.index(stage)]}
        folder = tmp_path_factory.mktemp(stage)
        player = Player.open(engine, images, folder)
        try:
            player.put_photos(photos)
            for name, result in earlier.items():
                player.put_result(name, result)
            ran = player.run(stage, OPTIONS[stage])
            return ran, player.get_result(stage, folder / "result")
        finally:
            player.close()

    return run


@pytest.fixture
def player(
    engine: Docker,
    images: Callable[[str], str],
    good_run: Callable[[StageName], tuple[Ran, Path]],
    tmp_path: Path,
) -> Iterator[Player]:
    """An empty bucket. The good runs that give other tests their input are over: a process can have one bucket."""
    good_run("train")
    playing = Player.open(engine, images, tmp_path)
    yield playing
    playing.close()
