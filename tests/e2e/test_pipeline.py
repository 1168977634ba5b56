"""The whole path, as a user starts it: `spaceport run` on photos, with the real state machine, Lambdas and stages."""

import email
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from email.policy import default
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.hamlet import render_photos
from compress.clean import clean, log_position, sigmoid
from compress.order import canonical_axes, morton_order
from splat.model import read_ply

pytestmark = pytest.mark.slow
DATA = Path(os.environ.get("SPACEPORT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
RESULT_FILES = [
    "index.html",
    "scene.sog",
    "scene.spz",
    "scene.ply",
    "report.html",
    "report.json",
    "poster.jpg",
    "settings.json",
]
QUICK = ["--preset", "draft", "--max-iterations", "120", "--max-image-long-side", "320"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "meadow"
    render_photos(folder, photos=14, width_px=640, height_px=480)
    return folder


def spaceport(*arguments, **options):
    command = [sys.executable, "-m", "spaceport.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def finish(process, timeout_s=420):
    output, _ = process.communicate(timeout=timeout_s)
    return process.returncode, output


def mails(out: Path):
    return [
        email.message_from_bytes(file.read_bytes(), policy=default) for file in sorted((out / "outbox").glob("*.eml"))
    ]


def text_of(mail):
    return mail.get_body(("plain",)).get_content()


def copy_photos(source: Path, folder: Path, count: int) -> Path:
    folder.mkdir()
    for file in sorted(source.glob("*.jpg"))[:count]:
        shutil.copy(file, folder)
    return folder


def assert_failed(out: Path, status: int, output: str, code: str, words: str):
    """FAILED, one e-mail with a reason a person can act on, and nothing that looks like a result."""
    assert status == 1, output
    assert code in output
    (mail,) = mails(out)
    assert re.search(words, text_of(mail), re.IGNORECASE), text_of(mail)
    assert not [name for name in RESULT_FILES if (out / name).exists()]


@pytest.fixture(scope="module")
def page(photos, tmp_path_factory):
    """The result of a run on the sample photos, which are as they were."""
    before = {file.name: file.read_bytes() for file in photos.iterdir()}
    out = tmp_path_factory.mktemp("page") / "out"
    status, output = finish(spaceport("run", photos, "--out", out, "--email", "ada@example.org", *QUICK))
    assert status == 0, output
    assert {file.name: file.read_bytes() for file in photos.iterdir()} == before
    return out


def test_sample_photos_become_a_page(page):
    assert [name for name in RESULT_FILES if not (page / name).is_file()] == []
    report = json.loads((page / "report.json").read_text())
    assert report["photos"]["total"] == report["photos"]["registered"] == 14
    assert report["sfm"]["georeferenced"] is True
    (mail,) = mails(page)
    assert mail["To"] == "ada@example.org"


def test_another_reader_finds_the_trained_scene_in_the_published_one(page, read_elsewhere):
    """scene.sog of the run against its scene.ply: each value within what the format can say."""
    cleaned = clean(read_ply(page / "scene.ply")).gaussians
    wanted = cleaned.select(morton_order(cleaned.means))
    quats, log_scales = canonical_axes(wanted.quats, wanted.log_scales)  # the same ellipsoids, axes in the file's order
    found = read_elsewhere(page / "scene.sog")
    assert len(found.means) == len(wanted.means) > 1000
    with zipfile.ZipFile(page / "scene.sog") as archive:
        meta = json.loads(archive.read("meta.json"))
    assert meta["count"] == len(found.means)

    wide = log_position(wanted.means)
    assert np.all(np.abs(log_position(found.means) - wide) <= 0.51 * np.ptp(wide, axis=0) / 65_535 + 1e-6)
    assert np.abs(sigmoid(found.opacity_logits) - sigmoid(wanted.opacity_logits)).max() <= 0.51 / 255
    assert_nearest(found.log_scales, log_scales, meta["scales"]["codebook"])
    assert_nearest(found.sh[:, 0], wanted.sh[:, 0], meta["sh0"]["codebook"])
    # Three components in 255 steps over the root of 2; the error of the fourth, the largest, is at most their sum.
    step = 0.51 * 2**0.5 / 255
    found_quats = found.quats / np.linalg.norm(found.quats, axis=1, keepdims=True)
    sign = np.sign((found_quats * quats).sum(axis=1, keepdims=True))
    assert np.linalg.norm(found_quats * sign - quats, axis=1).max() <= step * 12**0.5
    assert found.sh.shape == wanted.sh.shape


def assert_nearest(found, wanted, codebook):
    """Each value is an entry of the file's own codebook, and none of the others would have been nearer."""
    distance = np.abs(np.asarray(wanted, np.float64)[..., None] - np.asarray(codebook)).min(axis=-1)
    assert np.all(np.abs(found - wanted) <= distance + 1e-5)
    assert np.abs(np.asarray(found)[..., None] - np.asarray(codebook)).min(axis=-1).max() <= 1e-5
    assert len(np.unique(found)) > 100, "the codebook is used"


@pytest.mark.parametrize("loose", [0, 4])
def test_real_photos_in_an_archive_become_a_page(tmp_path, loose):
    """photos.zip by itself, and in a folder beside other photos."""
    source = DATA / "banana-tiny" / "images"
    if not source.is_dir():
        pytest.skip(f"the test photos are not there: {source}; SPACEPORT_DATA names another place")
    photos = sorted(source.iterdir())
    folder = tmp_path / "bananas"
    folder.mkdir()
    for file in photos[:loose]:
        shutil.copy(file, folder)
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for number, file in enumerate(photos[loose:]):
            archive.write(file, f"card {number % 2}/{file.name}")
            archive.writestr(f"__MACOSX/card {number % 2}/._{file.name}", b"resource fork")
    given = folder if loose else folder / "photos.zip"
    status, output = finish(spaceport("run", given, "--out", tmp_path / "out", *QUICK))
    assert status == 0, output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["photos"]["total"] == 12
    (job,) = (tmp_path / "out/.spaceport/objects").glob("*/work/*/sfm/photos.json")
    names = [photo["name"] for photo in json.loads(job.read_text())]
    assert len(names) == 12
    assert sum(name.startswith("photos.zip/card ") for name in names) == 12 - loose


def test_an_empty_folder_fails_with_a_reason(tmp_path):
    (tmp_path / "nothing").mkdir()
    status, output = finish(spaceport("run", tmp_path / "nothing", "--out", tmp_path / "out"))
    assert_failed(tmp_path / "out", status, output, "NO_PHOTOS", "no photos")


def test_two_photos_fail_with_a_reason(photos, tmp_path):
    two = copy_photos(photos, tmp_path / "two", 2)
    status, output = finish(spaceport("run", two, "--out", tmp_path / "out"))
    assert_failed(tmp_path / "out", status, output, "TOO_FEW_PHOTOS", r"\b2\b.*\b8\b")


def test_text_files_called_jpg_fail_with_a_reason(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(10):
        (folder / f"{index}.jpg").write_text("this is not a photo\n" * 50)
    status, output = finish(spaceport("run", folder, "--out", tmp_path / "out"))
    assert_failed(tmp_path / "out", status, output, "NO_PHOTOS", r"0\.jpg.*not a JPEG")


def test_unrelated_photos_give_no_model(tmp_path):
    folder = tmp_path / "unrelated"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(9):
        blocks = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((640, 480), Image.Resampling.NEAREST).save(folder / f"{index}.jpg")
    status, output = finish(spaceport("run", folder, "--out", tmp_path / "out", *QUICK))
    assert_failed(tmp_path / "out", status, output, "NO_MODEL", "overlap")


def test_half_a_jpeg_among_good_ones_is_reported_and_the_rest_go_on(photos, tmp_path):
    folder = copy_photos(photos, tmp_path / "mixed", 14)
    victim = sorted(folder.glob("*.jpg"))[5]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    status, output = finish(spaceport("run", folder, "--out", tmp_path / "out", *QUICK))
    assert status == 0, output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["photos"]["registered"] == 13
    (rejected,) = report["photos"]["rejected"]
    assert rejected["name"] == victim.name
    assert "TRUNCATED_PHOTO" in json.dumps(rejected) or "cut" in rejected["reason"].lower()


@pytest.mark.skipif(
    os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="needs root on Linux to mount a small tmpfs"
)
def test_a_full_disk_in_training_is_named(photos, tmp_path):
    """The disk holds the inputs and SfM, but not what training adds: filled up when training begins."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    try:
        process = spaceport("run", photos, "--out", tmp_path / "out", "--jobs-dir", disk, *QUICK)
        wait_for_training(tmp_path / "out", process, disk)
        fill(disk)
        status, output = finish(process)
        assert_failed(tmp_path / "out", status, output, "DISK_FULL", "disk is full")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            return


def wait_for_training(out: Path, process, jobs: Path | None = None, timeout_s: float = 240) -> Path:
    """The progress file of the training job, once it reports a step."""
    jobs = jobs or out / ".spaceport" / "jobs"
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        for file in jobs.glob("*-train-*/ml/checkpoints/progress.json"):
            if json.loads(file.read_text())["step"] > 0:
                return file
        time.sleep(0.1)
    raise AssertionError("training did not begin")


def sfm_jobs(out: Path) -> list[str]:
    """Names of the SfM jobs that ever ran, from the state machine's journal."""
    journals = "".join(file.read_text() for file in (out / ".spaceport").rglob("*.jsonl"))
    return sorted(set(re.findall(r"[a-z0-9-]+-sfm-\d+", journals)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_where_it_was(photos, tmp_path, number):
    out = tmp_path / "out"
    long_run = ["--preset", "draft", "--max-image-long-side", "320"]
    process = spaceport("run", photos, "--out", out, *long_run)
    progress = wait_for_training(out, process)
    while number == signal.SIGKILL and not (progress.parent / "checkpoint.npz").is_file():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.2)
    process.send_signal(number)
    status, output = finish(process)
    if number == signal.SIGINT:
        assert status == 130 and "spaceport resume" in output
    assert not (out / "index.html").exists()

    status, output = finish(spaceport("resume", out))
    assert status == 0, output
    assert "SfM" not in [line.split(":")[0] for line in output.splitlines() if ": done in" in line]
    assert len(sfm_jobs(out)) == 1
    (log,) = (out / ".spaceport" / "logs").glob("*-train-0.log")
    (resumed,) = [json.loads(line) for line in log.read_text().splitlines() if '"event": "resumed"' in line]
    assert resumed["iteration"] > 0
    assert [name for name in RESULT_FILES if not (out / name).is_file()] == []
    assert len(mails(out)) == 1
