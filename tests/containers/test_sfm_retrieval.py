"""Which photos look alike."""

import json
from itertools import combinations

import numpy as np
import pytest

from sfm.pairs import most_similar
from sfm.retrieval import similarities

RNG = np.random.default_rng(5)


def test_photos_of_the_same_things_are_alike():
    """Each photo shows 6 of 12 things in a row, each thing with its own kinds of features."""
    things = RNG.integers(0, 128, (12, 20, 128))
    first = [0, 0, 1, 1, 2, 3, 4, 5, 5, 6, 6]

    def descriptors(k):
        seen = things[first[k] : first[k] + 6].reshape(-1, 128)
        noisy = seen + RNG.normal(0, 8, seen.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)[: 40 if k == 4 else 120]

    alike = similarities(descriptors, len(first))
    assert alike.shape == (11, 11) and np.allclose(alike, alike.T) and np.allclose(np.diag(alike), 1, atol=1e-5)
    for a, b, c in [(0, 1, 8), (0, 3, 9), (9, 10, 0), (9, 8, 2)]:
        assert alike[a, b] > alike[a, c]


def test_photos_without_features_are_like_no_other():
    blocks = [RNG.integers(0, 255, (count, 128)).astype(np.uint8) for count in (300, 0, 500, 1)]
    alike = similarities(lambda k: blocks[k], 4)
    assert np.isfinite(alike).all() and not alike[1].any()
    assert not similarities(lambda k: blocks[1], 3).any()


def test_one_feature_over_and_over_is_no_obstacle():
    """A plain wall or a test picture: fewer different descriptors than words."""
    block = np.repeat(RNG.integers(0, 255, (2, 128)).astype(np.uint8), 200, axis=0)
    alike = similarities(lambda k: block, 3)
    assert np.isfinite(alike).all()
    again = similarities(lambda k: block, 3)
    assert np.array_equal(alike, again), "the same photos give the same pairs"


@pytest.mark.slow
def test_overlapping_sample_photos_are_found(tmp_path):
    """The truth is where the cameras stood: two that see the hamlet from nearly the same side overlap."""
    pycolmap = pytest.importorskip("pycolmap")
    from benchmarks.hamlet import render_photos

    n = 30
    render_photos(tmp_path, photos=n, width_px=400, height_px=300)
    options = pycolmap.FeatureExtractionOptions()
    options.sift.first_octave = 0
    pycolmap.extract_features(tmp_path / "d.db", tmp_path, extraction_options=options)
    poses = {
        c["name"]: np.array(c["world_to_camera"]) for c in json.loads((tmp_path / "truth.json").read_text())["cameras"]
    }
    with pycolmap.Database.open(tmp_path / "d.db") as database:
        images = [image for image in database.read_all_images() if image.name in poses]
        blocks = [database.read_descriptors(image.image_id).data for image in images]
    forward = np.array([poses[image.name][2, :3] for image in images])
    ranked = most_similar(similarities(lambda k: blocks[k], n))
    turned = np.degrees(np.arccos(np.clip(forward @ forward.T, -1, 1)))
    near = {(a, b) for a, b in combinations(range(n), 2) if turned[a, b] < 20}
    found = {(a, b) for a, b in near if b in ranked[a, :8] or a in ranked[b, :8]}
    assert len(near) > 20 and len(found) >= 0.9 * len(near)
    assert np.median(turned[np.arange(n), ranked[:, 0]]) < np.median(turned) / 3
