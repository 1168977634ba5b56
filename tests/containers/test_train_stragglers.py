"""Photos that fit badly are found, and the reason is the one that was planted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from job import StopRequested
from splat.cameras import Scene, View
from splat.images import to_uint8
from tests.containers.training_runs import HEIGHT, WIDTH, look_at, true_gaussians
from train.cpu.engine import CpuEngine
from train.engine import Setup, TrainingPhoto
from train.evaluate import score
from train.stragglers import find_stragglers, fit_pose, moved

K = np.array([[80.0, 0, WIDTH / 2], [0, 80, HEIGHT / 2], [0, 0, 1]])
COUNT = 6


@pytest.fixture(scope="module")
def engine():
    truth = true_gaussians()
    made = CpuEngine(Setup([], len(truth), 0, 1))
    made.load(truth)
    return made


def make_photos(engine):
    rng = np.random.default_rng(0)
    views = [
        View(f"{i}.png", WIDTH, HEIGHT, K, look_at([3.5 * np.sin(i), 0.3, -3.5 * np.cos(i)])) for i in range(COUNT)
    ]
    photos = []
    for view in views:
        image = engine.render(view, 0)
        photos.append(TrainingPhoto(view, to_uint8(np.clip(image, 0, 1) + 0.02 * rng.normal(size=image.shape))))
    points = rng.uniform(-1, 1, (200, 3))
    seen = {view.name: (np.zeros((200, 2)), np.arange(200)) for view in views}
    return Scene(Path(), views, points, np.zeros((200, 3), np.uint8), seen), photos


def reasons(engine, scene, photos):
    return find_stragglers(engine, scene, photos, score(engine, photos, 0), 0)


def test_photos_that_fit_are_no_stragglers(engine):
    scene, photos = make_photos(engine)
    assert reasons(engine, scene, photos) == []
    assert find_stragglers(engine, scene, [], [], 0) == []


def test_a_stop_is_heard_before_each_straggler(engine):
    """Looking into one renders it some eighty times."""
    scene, photos = make_photos(engine)
    for i in (2, 4):
        photos[i] = replace(photos[i], pixels=to_uint8(photos[i].pixels / 255 * 0.6))
    scores, asked = score(engine, photos, 0), []

    def check_stop():
        asked.append(True)
        if len(asked) == 2:
            raise StopRequested

    with pytest.raises(StopRequested):
        find_stragglers(engine, scene, photos, scores, 0, check_stop)


def test_a_wrong_pose_is_named_and_found(engine):
    scene, photos = make_photos(engine)
    wrong = moved(photos[2].view, np.array([0.02, -0.025, 0.01, 0.03, 0.0, -0.02]))
    photos[2] = replace(photos[2], view=wrong)
    (found,) = reasons(engine, scene, photos)
    assert (found["name"], found["reason"]) == ("2.png", "pose")
    fit = fit_pose(engine, scene, photos[2], 0)
    assert fit.psnr_after > fit.psnr_before + 3
    true_pose = look_at([3.5 * np.sin(2), 0.3, -3.5 * np.cos(2)])
    assert np.abs(fit.view.world_to_camera - true_pose).max() < 0.01 < np.abs(wrong.world_to_camera - true_pose).max()
    assert 1 < fit.moved_px < 4


def test_another_exposure_is_named(engine):
    scene, photos = make_photos(engine)
    photos[4] = replace(photos[4], pixels=to_uint8(photos[4].pixels / 255 * 0.6))
    (found,) = reasons(engine, scene, photos)
    assert (found["name"], found["reason"]) == ("4.png", "exposure")
    scores = [one["psnr"] for one in score(engine, photos, 0)]
    assert found["below_db"] == pytest.approx(np.median(scores) - scores[4], abs=0.01)


def test_a_background_that_the_model_lacks_is_named(engine):
    """A bright thing at the edge, where the photo shares no point with the others."""
    scene, photos = make_photos(engine)
    pixels = photos[1].pixels.copy()
    stripes = 255 * (np.add.outer(np.arange(HEIGHT), np.arange(16)) // 4 % 2)
    pixels[:, :16] = stripes[..., None]
    photos[1] = replace(photos[1], pixels=pixels)
    (found,) = reasons(engine, scene, photos)
    assert (found["name"], found["reason"]) == ("1.png", "background")
    assert "share no point" in found["detail"]


def test_a_shadow_is_named(engine):
    scene, photos = make_photos(engine)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    shadow = 1 - 0.6 / (1 + np.exp(-(x - WIDTH / 2 + 0.3 * (y - HEIGHT / 2)) / 4))
    photos[3] = replace(photos[3], pixels=to_uint8(photos[3].pixels / 255 * shadow[..., None]))
    (found,) = reasons(engine, scene, photos)
    assert (found["name"], found["reason"]) == ("3.png", "light")
