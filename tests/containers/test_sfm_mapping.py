"""When the mapper is asked again, and what features are looked for. The real mapper: test_sfm_stage.py."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycolmap")
from sfm import mapper, mapping
from sfm.features import FAST, STRONG, extract


def model(registered, points=100):
    return SimpleNamespace(num_reg_images=lambda: registered, num_points3D=lambda: points)


@pytest.mark.parametrize(
    ("quick", "thorough", "used", "runs"),
    [
        ([9], None, 9, [True]),
        ([8, 2], [10], 10, [True, False]),
        ([8], [5, 7], 8, [True, False]),
        ([], [3], 3, [True, False]),
        ([], [], None, [True, False]),
    ],
)
def test_a_quick_run_that_leaves_photos_out_is_followed_by_a_thorough_one(
    monkeypatch, tmp_path, quick, thorough, used, runs
):
    asked = []

    def run_mapper(database, prepared, folder, photos, sooner):
        asked.append(sooner)
        return [model(count) for count in (quick if sooner else thorough)]

    monkeypatch.setattr(mapper, "run_mapper", run_mapper)
    best, _ = mapper.best_model(tmp_path / "d", tmp_path, tmp_path, 10, sooner=True)
    assert asked == runs and (best and best.num_reg_images()) == used


def test_the_strong_settings_ask_for_the_thorough_mapper_only(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(mapper, "run_mapper", lambda *a: asked.append(a[-1]) or [model(4, 10), model(4, 30)])
    best, count = mapper.best_model(tmp_path / "d", tmp_path, tmp_path, 10, STRONG.settle_sooner)
    assert asked == [False] and best.num_points3D() == 30 and count == 2


def test_features_of_large_photos_are_those_of_small_ones_in_the_pixels_of_the_large(tmp_path):
    """More pixels than poses need cost no memory, and keypoints still cover the whole photo."""
    import pycolmap

    small = np.kron(np.random.default_rng(3).integers(0, 256, (60, 80, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    Image.fromarray(small).save(tmp_path / "small.png")  # 1600x1200
    Image.fromarray(small).resize((3200, 2400), Image.Resampling.BICUBIC).save(tmp_path / "large.png")
    pycolmap.Database.open(tmp_path / "d.db").close()
    pycolmap.import_images(tmp_path / "d.db", tmp_path, image_names=["small.png", "large.png"])
    extract(tmp_path / "d.db", tmp_path, ["small.png", "large.png"], FAST)
    with pycolmap.Database.open(tmp_path / "d.db") as database:
        points = {i.name: database.read_keypoints(i.image_id)[:, :2] for i in database.read_all_images()}
    assert len(points["large.png"]) < 1.3 * len(points["small.png"])
    assert points["large.png"].max(0) == pytest.approx(2 * points["small.png"].max(0), abs=20)


def test_selfcheck_tells_a_wheel_that_works_from_one_that_does_not(tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    mapping.selfcheck(whole)
    monkeypatch.setattr(mapping, "match", lambda *arguments, **more: None)
    with pytest.raises(SystemExit, match="two overlapping pictures were not recognised"):
        mapping.selfcheck(broken)
