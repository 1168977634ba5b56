"""``python -m train`` as the service runs it: quality, metrics, options and inputs."""

import json
import shutil

import numpy as np
import pytest

from splat.images import load_photo, save_photo
from splat.metrics import psnr
from splat.model import read_ply
from tests.containers.training_runs import (
    HEIGHT,
    RUN_TIMEOUT_S,
    VIEWS,
    WIDTH,
    failure,
    prepare,
    run,
    write_scene,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scene):
    root = prepare(tmp_path_factory.mktemp("ml"), scene, max_iterations=1_200, max_gaussians=3_000, test_photos=True)
    status, log, err = run(root)
    assert status == 0, err
    return root, json.loads((root / "model/metrics.json").read_text()), log


def test_training_fits_the_photos_it_has_not_seen(trained):
    _root, metrics, _log = trained
    assert metrics["psnr"] > 24
    assert metrics["curve"][-1]["psnr"] > metrics["curve"][0]["psnr"] + 3
    assert metrics["ssim"] > 0.75
    assert metrics["train_psnr"] > 24


def test_metrics_hold_what_the_contract_promises(trained):
    root, metrics, _log = trained
    contract = """seconds iterations stop_reason device engine preset gaussians sh_degree image_width image_height psnr
        psnr_median ssim train_psnr heldout heldout_are psnr_fitted exposure stragglers
        curve saved_seconds rollbacks versions"""
    assert set(contract.split()) <= set(metrics)
    assert [h["name"] for h in metrics["heldout"]] == ["000.png", "008.png", "016.png"]
    assert metrics["psnr"] == pytest.approx(np.mean([h["psnr"] for h in metrics["heldout"]]))
    assert metrics["psnr_median"] == pytest.approx(np.median([h["psnr"] for h in metrics["heldout"]]))
    assert metrics["iterations"] == 1_200 and metrics["stop_reason"] == "max_iterations"
    assert (metrics["image_width"], metrics["image_height"]) == (WIDTH, HEIGHT)
    assert all(set(point) == {"iteration", "seconds", "psnr", "gaussians"} for point in metrics["curve"])
    assert metrics["gaussians"] <= 3_000
    preview = load_photo(root / "model/previews/008.jpg", 2 * WIDTH, HEIGHT)
    photo = load_photo(root / "input/data/sfm/images/008.png", WIDTH, HEIGHT)
    assert psnr(preview[:, :WIDTH] / 255.0, photo / 255.0) > 30
    progress = json.loads((root / "checkpoints/progress.json").read_text())
    assert progress["stage"] == "train" and progress["step"] == progress["total"]


def test_the_model_file_gives_the_quality_that_is_reported(trained):
    root, metrics, _log = trained
    gaussians = read_ply(root / "model/scene.ply")
    assert len(gaussians) == metrics["gaussians"] and gaussians.sh_degree == metrics["sh_degree"] == 1
    from splat.cameras import read_scene
    from splat.render import render

    scene = read_scene(root / "input/data/sfm")
    held = scene.views[8]
    image, _alpha = render(gaussians, held)
    photo = load_photo(scene.photo_path(held), WIDTH, HEIGHT) / 255.0
    assert psnr(np.clip(image, 0, 1), photo) == pytest.approx(metrics["heldout"][1]["psnr"], abs=1e-3)


def test_the_pixels_of_test_photos_have_no_influence(tmp_path, scene):
    """Two runs of the whole stage whose test photos differ end with the same bytes."""
    shutil.copytree(scene, tmp_path / "black")
    for i in range(0, VIEWS, 8):
        save_photo(tmp_path / f"black/images/{i:03}.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    # Progress is the larger of the shares of time and of steps. No run may take so long that the share of time is it.
    steps, budget_s = 150, 100_000
    assert RUN_TIMEOUT_S / budget_s < 1 / steps
    options = {"preset": "high", "test_photos": True, "max_iterations": steps, "max_training_seconds": budget_s}
    models, metrics = [], []
    for folder in (scene, tmp_path / "black"):
        root = prepare(tmp_path / f"of-{folder.name}", folder, **options)
        status, _log, err = run(root)
        assert status == 0, err
        models.append((root / "model/scene.ply").read_bytes())
        metrics.append(json.loads((root / "model/metrics.json").read_text()))
    assert (models[0] == models[1]) is True  # not the arrays: to show how megabytes differ takes longer than a test may
    assert metrics[0]["psnr"] > metrics[1]["psnr"] + 3 and metrics[0]["train_psnr"] == metrics[1]["train_psnr"]
    assert [photo["name"] for photo in metrics[0]["heldout"]] == ["000.png", "008.png", "016.png"]


def test_a_users_run_is_measured_on_photos_that_join_afterwards(tmp_path, scene):
    root = prepare(tmp_path, scene, max_iterations=300)
    status, _log, err = run(root)
    assert status == 0, err
    metrics = json.loads((root / "model/metrics.json").read_text())
    names = [photo["name"] for photo in metrics["heldout"]]
    assert metrics["heldout_are"] == "validation" and len(names) == 2
    assert [(root / f"model/previews/{name}").with_suffix(".jpg").is_file() for name in names] == [True, True]


def test_exposure_is_compensated_where_it_differs_and_only_there(tmp_path, scene):
    """Planted gains of 0.55 to 1.1. The quality is that after an exposure fit, of photos that training has not seen."""
    gains = np.exp(np.random.default_rng(5).uniform(-0.6, 0.1, VIEWS))
    write_scene(tmp_path / "uneven", gains=gains)
    found = {}
    for name, folder, exposure in (
        ("plain", scene, "auto"),
        ("on", tmp_path / "uneven", "auto"),
        ("off", tmp_path / "uneven", "off"),
    ):
        root = prepare(tmp_path / name, folder, exposure=exposure, test_photos=True, max_iterations=400)
        status, _log, err = run(root)
        assert status == 0, err
        found[name] = json.loads((root / "model/metrics.json").read_text())
    assert found["plain"]["exposure"]["compensated"] is False and found["plain"]["exposure"]["spread"] < 0.03
    assert found["on"]["exposure"]["compensated"] is True
    assert found["on"]["exposure"]["spread"] == pytest.approx(np.log(gains).std(), rel=0.2)
    assert found["on"]["psnr_fitted"] > found["off"]["psnr_fitted"] + 0.5
    measured = [photo["gain"][0] for photo in found["on"]["heldout"]]
    assert measured / np.mean(measured) == pytest.approx(gains[::8] / np.mean(gains[::8]), rel=0.1)
    assert all(photo["gain"] == [1, 1, 1] for name in ("plain", "off") for photo in found[name]["heldout"])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"preset": "best"}, ["'preset'", "'best'"]),
        ({"max_gausians": "9"}, ["'max_gausians'"]),
        ({"sh_degree": "4"}, ["'sh_degree'", "3"]),
        ({"max_iterations": "many"}, ["'max_iterations'", "'many'"]),
    ],
)
def test_a_wrong_option_is_named(tmp_path, scene, options, wanted):
    root = prepare(tmp_path, scene, **options)
    status, _log, _err = run(root)
    assert status == 1
    assert failure(root).startswith("BAD_OPTION: ")
    assert all(word in failure(root) for word in wanted)


def test_missing_and_unusable_inputs_say_what_to_do(tmp_path, scene):
    few = tmp_path / "few"
    write_scene(few, views=3)
    root = prepare(tmp_path / "a", few)
    assert run(root)[0] == 1
    assert failure(root).startswith("TOO_FEW_PHOTOS: Only 3 photos") and "Add photos" in failure(root)

    write_scene(tmp_path / "gone", views=5)
    (tmp_path / "gone/images/002.png").unlink()
    root = prepare(tmp_path / "b", tmp_path / "gone")
    assert run(root)[0] == 1
    assert failure(root).startswith("PHOTO_UNREADABLE: ") and "002.png" in failure(root)

    root = prepare(tmp_path / "c", scene)
    (root / "input/data/sfm").unlink()
    assert run(root)[0] == 1
    assert failure(root).startswith("INPUT_MISSING: ")

    (tmp_path / "empty").mkdir()
    root = prepare(tmp_path / "d", tmp_path / "empty")
    assert run(root)[0] == 1
    assert failure(root).startswith("BAD_SFM_OUTPUT: ") and "cameras.bin" in failure(root)
