"""Which photos are compared."""

import numpy as np
import pytest

from sfm.options import Matcher, Options
from sfm.pairs import choose_matcher, choose_pairs, nearest_pairs

RNG = np.random.default_rng(2)


def positions(n, spread=50.0, missing=0):
    result = RNG.uniform(-spread, spread, (n, 2))
    result[:missing] = np.nan
    return result


@pytest.mark.parametrize(
    ("wanted", "where", "used"),
    [
        ("auto", positions(60), "exhaustive"),
        ("auto", positions(100), "spatial"),
        ("auto", positions(100, missing=90), "exhaustive"),
        ("auto", positions(400, missing=390), "sequential"),
        ("auto", positions(400, spread=0.5), "sequential"),  # a fix that never moved says nothing
        ("spatial", positions(30), "spatial"),
        ("spatial", positions(30, missing=30), "exhaustive"),
        ("sequential", positions(30), "sequential"),
        ("exhaustive", positions(400), "exhaustive"),
    ],
)
def test_matcher(wanted, where, used):
    assert choose_matcher(Matcher(wanted), where) is Matcher(used)


def test_exhaustive_has_every_pair_once():
    pairs = choose_pairs(Matcher.EXHAUSTIVE, positions(90), list(range(90)))
    assert len(pairs) == len(set(pairs)) == 90 * 89 // 2
    assert all(i < j for i, j in pairs)


def test_sequential_follows_the_order_taken():
    order = [3, 0, 4, 1, 2, *list(range(5, 40))]
    pairs = set(choose_pairs(Matcher.SEQUENTIAL, positions(40), order))
    for k in range(30):
        for step in range(1, 11):
            assert tuple(sorted((order[k], order[k + step]))) in pairs
    assert (order[0], order[39]) not in pairs and len(pairs) < 40 * 39 // 2


def test_spatial_takes_the_nearest_and_keeps_photos_without_position_connected():
    where = positions(80)
    where[17] = np.nan
    pairs = choose_pairs(Matcher.SPATIAL, where, list(range(80)))
    distance = np.linalg.norm(where[40] - where, axis=1)
    nearest = np.argsort(np.where(np.isnan(distance), np.inf, distance))[1:13]
    assert {(min(40, j), max(40, j)) for j in nearest} <= set(pairs)
    assert sum(17 in pair for pair in pairs) >= 20
    assert len(pairs) < 80 * 79 // 4
    assert not any(17 in pair for pair in nearest_pairs(where, 12))


def test_options_are_strict_and_empty_means_default():
    options = Options.model_validate({"preset": "high", "matcher": "", "max_image_long_side": ""})
    assert (options.long_side_px, options.matcher) == (3200, Matcher.AUTO)
    assert Options.model_validate({"max_image_long_side": "800"}).long_side_px == 800
    for bad in ({"matcher": "vocabtree"}, {"max_image_long_side": "12"}, {"quality": "1"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Options.model_validate(bad)
