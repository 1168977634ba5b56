"""Gains of photos from the points that they share."""

from pathlib import Path

import numpy as np
import pytest

from splat.cameras import Scene, View
from train.dataset import Dataset
from train.engine import TrainingPhoto
from train.exposure import SPREAD_LIMIT, compensated, is_compensated, log_gains, measure

SIDE = 40


def made_scene(gains, rng, wrong=0.15):
    """Points of random colours at random pixels; every photo sees half of them, some of them wrongly."""
    n, points = len(gains), 300
    colors = rng.uniform(40, 130, (points, 3))
    seen, photos, views = {}, [], []
    for i, gain in enumerate(gains):
        rows = rng.permutation(points)[: points // 2]
        at = rng.permutation(SIDE * SIDE)[: len(rows)]
        pixels = np.zeros((SIDE * SIDE, 3))
        pixels[at] = colors[rows] * gain
        bad = at[: int(wrong * len(at))]
        pixels[bad] = rng.uniform(20, 240, (len(bad), 3))
        view = View(f"{i}.png", 4 * SIDE, 4 * SIDE, np.eye(3), np.eye(4))
        xy = 4 * (np.stack([at % SIDE, at // SIDE], axis=1) + 0.5)
        seen[view.name] = (xy, rows)
        views.append(view)
        photos.append(
            TrainingPhoto(view.resized(SIDE, SIDE), pixels.round().clip(0, 255).astype(np.uint8).reshape(SIDE, SIDE, 3))
        )
    scene = Scene(Path(), views, np.zeros((points, 3)), np.zeros((points, 3), np.uint8), seen)
    return scene, photos, n


def test_planted_gains_are_found_in_spite_of_wrong_matches():
    rng = np.random.default_rng(0)
    gains = np.exp(rng.uniform(-0.4, 0.4, (12, 3)))
    scene, photos, _ = made_scene(gains, rng)
    found = log_gains(scene, photos).gains
    wanted = np.log(gains) - np.median(np.log(gains), axis=0)
    assert np.abs(found - wanted).max() < 0.02


def test_a_photo_without_points_is_left_alone():
    scene, photos, _ = made_scene(
        np.full((5, 3), 1.0) * np.array([[1], [1.5], [1], [1], [1]]), np.random.default_rng(1)
    )
    scene.seen["4.png"] = (np.empty((0, 2)), np.empty(0, np.int64))
    found = log_gains(scene, photos).gains
    assert not found[4].any()
    assert found[1] == pytest.approx(np.full(3, np.log(1.5)), abs=0.02)
    scene.seen.clear()
    assert not log_gains(scene, photos).gains.any()


def test_small_differences_change_nothing():
    rng = np.random.default_rng(2)
    scene, photos, _ = made_scene(np.exp(rng.uniform(-0.02, 0.02, (10, 1))) * np.ones(3), rng)
    data, spread = measure(scene, Dataset(photos[:8], photos[8:], []))
    assert 0.005 < spread < SPREAD_LIMIT and not is_compensated(data)
    assert all(new is old for new, old in zip(data.train, photos, strict=False))


def test_what_differs_from_point_to_point_is_not_exposure():
    """A dark half and a bright half that see the same points with large errors: the gains explain too little."""
    rng = np.random.default_rng(4)
    scene, photos, _ = made_scene(np.exp(np.linspace(-0.2, 0.2, 10))[:, None] * np.ones(3), rng)
    noisy = [
        TrainingPhoto(p.view, (p.pixels * np.exp(0.2 * rng.normal(size=p.pixels.shape))).clip(0, 255).astype(np.uint8))
        for p in photos
    ]
    assert is_compensated(measure(scene, Dataset(photos, [], []))[0])
    assert not is_compensated(measure(scene, Dataset(noisy, [], []))[0])


def test_test_photos_get_a_gain_but_give_none():
    rng = np.random.default_rng(3)
    gains = np.exp(rng.uniform(-0.4, 0.4, (12, 1))) * np.ones(3)
    scene, photos, _ = made_scene(gains, rng)
    data, _ = measure(scene, Dataset(photos[:8], photos[8:10], photos[10:]))
    dark = [TrainingPhoto(photo.view, photo.pixels // 2) for photo in photos[10:]]
    darker, _ = measure(scene, Dataset(photos[:8], photos[8:10], dark))
    for old, new in zip(data.train + data.validation, darker.train + darker.validation, strict=True):
        assert old.gain == new.gain
    for i, (old, new) in enumerate(zip(data.test, darker.test, strict=True)):
        assert np.divide(old.gain, data.train[0].gain) == pytest.approx(gains[10 + i] / gains[0], rel=0.03)
        assert np.divide(new.gain, old.gain) == pytest.approx(0.5, rel=0.03)


def test_compensation_divides_by_the_gain_and_keeps_what_is_overexposed():
    view = View("v", 3, 1, np.eye(3), np.eye(4))
    pixels = np.array([[[100, 100, 100], [255, 255, 255], [0, 40, 200]]], np.uint8)
    bright = compensated(TrainingPhoto(view, pixels, (2.0, 2.0, 2.0))).pixels
    assert bright[0].tolist() == [[50] * 3, [255] * 3, [0, 20, 100]]
    dark = compensated(TrainingPhoto(view, pixels, (0.5, 1.0, 0.5))).pixels
    assert dark[0].tolist() == [[200, 100, 200], [255, 255, 255], [0, 40, 255]]
    plain = TrainingPhoto(view, pixels)
    assert compensated(plain) is plain
