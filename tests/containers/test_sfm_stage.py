"""The whole stage as a program: true poses of the sample photos, hopeless photos, a stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from job.documents import PhotosJson, SceneJson

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def start(root: Path, **options: str) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SPACEPORT_")}
    environment |= {"SPACEPORT_ML_ROOT": str(root), "PYTHONPATH": str(REPOSITORY / "containers")}
    environment |= {f"SPACEPORT_OPTION_{name.upper()}": value for name, value in options.items()}
    log = (root / "log").open("w")
    return subprocess.Popen([sys.executable, "-m", "sfm"], env=environment, stdout=log, stderr=subprocess.STDOUT)


def photo_folder(root: Path) -> Path:
    folder = root / "processing/input/photos"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def reconstruction(tmp_path_factory):
    """(output folder, truth) of 18 sample photos beside two files that are no photos, in folders with odd names."""
    from benchmarks.hamlet import render_photos

    root, sample = tmp_path_factory.mktemp("ml"), tmp_path_factory.mktemp("sample")
    render_photos(sample, photos=18, width_px=640, height_px=480)
    folder = photo_folder(root)
    truth = {}
    for index, camera in enumerate(json.loads((sample / "truth.json").read_text())["cameras"]):
        name = f"Flug {1 + index % 2} é/{index // 2:02d}.JPG"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((sample / camera["name"]).read_bytes())
        truth[name] = np.array(camera["world_to_camera"])
    cut = (sample / "photo_001.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "text.jpg").write_text("not a photo")
    process = start(root, job_id="j", scene="s", preset="draft")
    assert process.wait(300) == 0, (root / "log").read_text()
    return root, truth


def test_every_sample_photo_is_registered(reconstruction):
    root, truth = reconstruction
    photos = {row["name"]: row for row in json.loads((root / "processing/output/photos.json").read_text())}
    assert {name for name, row in photos.items() if row["registered"]} == set(truth)
    assert photos["cut.jpg"]["code"] == "TRUNCATED_PHOTO" and photos["text.jpg"]["code"] == "UNREADABLE_PHOTO"
    for name in truth:
        image = root / "processing/output" / photos[name]["image"]
        assert image.with_suffix("") == (root / "processing/output/images" / name).with_suffix("")
        with Image.open(image) as picture:
            assert picture.format == "JPEG" and not picture.getexif() and max(picture.size) <= 1600


def test_camera_centres_are_true_and_the_frame_is_as_agreed(reconstruction):
    pycolmap = pytest.importorskip("pycolmap")
    root, truth = reconstruction
    output = root / "processing/output"
    model = pycolmap.Reconstruction(output / "sparse")
    assert {camera.model_name for camera in model.cameras.values()} == {"PINHOLE"}
    images = {row["image"]: row["name"] for row in json.loads((output / "photos.json").read_text()) if row["image"]}
    found, true = [], []
    for image in model.images.values():
        found.append(image.projection_center())
        true.append(np.linalg.inv(truth[images[f"images/{image.name}"]])[:3, 3])
    found, true = np.array(found), np.array(true)
    radius = np.median(np.linalg.norm(true - true.mean(0), axis=1))
    fit = pycolmap.estimate_sim3d(found, true)
    error = np.linalg.norm([fit * centre for centre in found] - true, axis=1)
    assert error.max() < 0.005 * radius

    scene = json.loads((output / "scene.json").read_text())
    assert scene["georeferenced"] and scene["units"] == "metres" and scene["gps_residual_m"] < 0.5
    assert fit.scale == pytest.approx(1, abs=0.02)  # metres
    enu_from_scene = np.array(scene["enu_from_scene"])[:3, :3]
    assert np.linalg.det(enu_from_scene) == pytest.approx(1)
    turn = enu_from_scene @ fit.rotation.matrix().T
    assert np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 1.5
    assert scene["registered"] == len(truth) and scene["photos"] == len(truth) + 2
    assert scene["points"] == model.num_points3D() > 500
    assert scene["radius"] == pytest.approx(np.median(np.linalg.norm(found - found.mean(0), axis=1)), rel=1e-6)
    assert scene["center"] == pytest.approx(found.mean(0).tolist())


def test_documents_hold_what_their_types_say_and_nothing_else(reconstruction):
    output = reconstruction[0] / "processing/output"
    SceneJson.model_validate_json((output / "scene.json").read_text())
    PhotosJson.model_validate_json((output / "photos.json").read_text())


def test_no_scratch_is_left_and_progress_ended(reconstruction):
    root, _ = reconstruction
    assert not list((root / "scratch").iterdir())
    assert sorted(path.name for path in (root / "processing/output/sparse").iterdir()) == [
        "cameras.bin",
        "images.bin",
        "points3D.bin",
    ]
    progress = json.loads((root / "processing/progress/progress.json").read_text())
    assert progress["stage"] == "sfm" and progress["step"] == progress["total"] == 18


def test_unrelated_photos_end_with_a_reason(tmp_path: Path):
    folder = photo_folder(tmp_path)
    for k in range(8):
        noise = np.random.default_rng(k).integers(0, 255, (60, 80, 3), np.uint8)
        Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{k}.jpg")
    assert start(tmp_path).wait(200) == 1
    message = (tmp_path / "output/message").read_text()
    assert message.startswith("NO_MODEL: ") and "overlap" in message
    assert not list((tmp_path / "scratch").iterdir())


def test_empty_folder_and_wrong_option(tmp_path: Path):
    photo_folder(tmp_path)
    assert start(tmp_path).wait(60) == 1
    assert (tmp_path / "output/message").read_text().startswith("TOO_FEW_PHOTOS: 0 of 0 ")
    assert start(tmp_path, matcher="vocabtree").wait(60) == 1
    assert (tmp_path / "output/message").read_text().startswith("BAD_OPTION: Wrong option: 'matcher'")


def test_sigterm_ends_the_stage_and_its_child(tmp_path: Path):
    folder = photo_folder(tmp_path)
    for k in range(40):
        noise = np.random.default_rng(k).integers(0, 255, (120, 160, 3), np.uint8)
        Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(folder / f"{k}.jpg", quality=70)
    process = start(tmp_path)
    progress = tmp_path / "processing/progress/progress.json"
    deadline = time.monotonic() + 120
    while not (progress.is_file() and "Finding features" in progress.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert '"event": "stopped"' in (tmp_path / "log").read_text()
    assert not (tmp_path / "output/message").exists()
    assert not list((tmp_path / "scratch").iterdir())
    request = str(tmp_path / "scratch/sfm/request.json").encode()
    alive = [path for path in Path("/proc").glob("[0-9]*/cmdline") if request in read(path)]
    assert not alive


def read(path: Path) -> bytes:
    """The file, or nothing if the process ended meanwhile."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
