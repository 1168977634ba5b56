"""Which photos are compared."""

import numpy as np
import pytest

from job.options import SfmOptions
from sfm.options import Matcher, long_side_px
from sfm.pairs import choose_matcher, choose_pairs, left_out, more_pairs, nearest_pairs, spanning_tree

RNG = np.random.default_rng(2)


def positions(n, spread=50.0, missing=0):
    result = RNG.uniform(-spread, spread, (n, 2))
    result[:missing] = np.nan
    return result


@pytest.mark.parametrize(
    ("wanted", "where", "used"),
    [
        ("auto", positions(60), "exhaustive"),
        ("auto", positions(61), "retrieval"),
        ("auto", positions(400, missing=390), "retrieval"),
        ("spatial", positions(30), "spatial"),
        ("spatial", positions(30, missing=30), "exhaustive"),
        ("spatial", positions(400, missing=390), "retrieval"),
        ("spatial", positions(400, spread=0.5), "retrieval"),  # a fix that never moved says nothing
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


def likeness(n, dimensions=3):
    """Similarities [n, n] of photos at random places: the nearer the more alike."""
    places = RNG.uniform(0, 1, (n, dimensions))
    return np.exp(-4 * np.linalg.norm(places[:, None] - places[None], axis=2))


def group_of_first(n, pairs):
    """Indices connected with photo 0."""
    links = np.eye(n, dtype=int)
    for i, j in pairs:
        links[i, j] = links[j, i] = 1
    reached = np.zeros(n, bool)
    reached[0] = True
    for _ in range(n):
        reached = reached @ links > 0
    return set(np.flatnonzero(reached))


@pytest.mark.parametrize("missing", [0, 20, 1000])
@pytest.mark.parametrize("n", [61, 150, 500])
def test_retrieval_grows_with_the_photos_not_with_their_square(n, missing):
    where = positions(n, missing=min(n, missing))
    pairs = choose_pairs(Matcher.RETRIEVAL, where, list(RNG.permutation(n)), likeness(n))
    assert len(pairs) == len(set(pairs)) <= 20 * n
    assert all(0 <= i < j < n for i, j in pairs)
    assert group_of_first(n, pairs) == set(range(n))
    assert np.bincount(np.array(pairs).ravel(), minlength=n).min() >= 8


def test_retrieval_takes_the_most_alike_and_some_that_are_less():
    n = 100
    alike = likeness(n)
    pairs = set(choose_pairs(Matcher.RETRIEVAL, positions(n, missing=n), list(range(n)), alike))
    ranked = sorted((j for j in range(n) if j != 30), key=lambda j: -alike[30, j])
    assert {(min(30, j), max(30, j)) for j in ranked[:6]} <= pairs
    assert any((min(30, j), max(30, j)) in pairs for j in ranked[20:50])
    twice = choose_pairs(Matcher.RETRIEVAL, positions(n, missing=n), list(range(n)), alike, generous=True)
    assert pairs < set(twice)


def test_groups_that_look_different_are_joined_by_their_best_link():
    """Two rooms whose photos were taken by turns: only one photo of each shows the door between them."""
    n = 80
    alike = np.full((n, n), -0.2)
    alike[:40, :40] = alike[40:, 40:] = 0.6
    alike[7, 61] = alike[61, 7] = 0.1
    assert (7, 61) in choose_pairs(Matcher.RETRIEVAL, positions(n, missing=n), list(range(n)), alike)


def test_spanning_tree_is_the_best_of_all_trees():
    from itertools import combinations

    alike = likeness(6)
    edges = list(combinations(range(6), 2))
    trees = [tree for tree in combinations(edges, 5) if len(group_of_first(6, tree)) == 6]
    best = max(trees, key=lambda tree: sum(alike[pair] for pair in tree))
    assert spanning_tree(alike) == set(best)


def test_photos_left_out_get_partners_that_were_not_tried():
    n = 50
    ring = [(k, k + 1) for k in range(39)] + [(k, k + 2) for k in range(38)] + [(0, 39), (0, 38), (1, 39)]
    island = [(a, b) for a in range(40, 45) for b in range(a + 1, 45)]
    lost = left_out(n, ring + island + [(3, 45)], few=3)
    assert lost == list(range(40, 50))
    alike = likeness(n)
    tried = {(2, 45), (44, 46)}
    more = more_pairs(alike, tried, lost)
    assert len(more) == len(set(more)) <= 20 * len(lost) and not tried & set(more)
    assert set(np.array(more).ravel()) >= set(lost)
    assert more_pairs(alike, tried, []) == []


def test_options_are_strict_and_empty_means_default():
    options = SfmOptions.model_validate({"preset": "high", "matcher": "", "max_image_long_side": ""})
    assert (long_side_px(options), options.matcher) == (3200, None)
    assert long_side_px(SfmOptions.model_validate({"max_image_long_side": "800"})) == 800
    for bad in ({"matcher": "vocabtree"}, {"max_image_long_side": "12"}, {"quality": "1"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            SfmOptions.model_validate(bad)
