"""Cleaning, codebooks, orders and equivalent rotations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compress.clean import clean, visibility
from compress.codebook import fit_codebook, nearest, optimal_starts, palette_labels
from compress.order import canonical_axes, cube_rotations, morton_order, quat_multiply
from job import StageError
from tests.synthetic import covariances, make_gaussians


def test_rows_that_cannot_be_shown_are_dropped_and_counted() -> None:
    gaussians = make_gaussians(40, 1)
    gaussians.means[3, 1] = np.nan
    gaussians.sh[5, 2, 0] = np.inf
    gaussians.quats[7] = 0
    gaussians.opacity_logits[11] = -6  # sigmoid 0.0025 < 1/255
    gaussians.opacity_logits[12] = -5.5  # 0.00407 > 1/255 = 0.00392
    scene = clean(gaussians)
    assert scene.dropped == {"not_finite": 3, "transparent": 1, "outlier": 0}
    assert len(scene.gaussians) == 196
    assert not {3, 5, 7, 11} & set(scene.index.tolist())
    assert 12 in scene.index


def test_far_specks_go_but_a_visible_sky_stays() -> None:
    speck = make_gaussians(400, 0)
    speck.means[0] = [900, 0, 0]
    speck.log_scales[0] = -9
    assert clean(speck).dropped["outlier"] == 1
    sky = make_gaussians(400, 0)
    sky.means[0] = [900, 0, 0]
    sky.log_scales[0] = 5
    assert clean(sky).dropped["outlier"] == 0


def test_nothing_visible_is_an_error_with_a_code() -> None:
    gaussians = make_gaussians(4, 0)
    gaussians.opacity_logits[:] = -20
    with pytest.raises(StageError) as error:
        clean(gaussians)
    assert error.value.code == "EMPTY_SCENE"


def test_visibility_grows_with_opacity_and_area_and_falls_with_distance() -> None:
    gaussians = make_gaussians(40, 0)
    base = visibility(gaussians)
    assert base.sum() == pytest.approx(1)
    gaussians.log_scales[0] += 1
    gaussians.means[1] *= 100
    changed = visibility(gaussians)
    assert changed[0] / changed[2] == pytest.approx(base[0] / base[2] * np.exp(2), rel=1e-3)
    assert changed[1] < base[1] / 1000


def brute_force_cost(values: np.ndarray, weights: np.ndarray, entries: int) -> float:
    """The least weighted squared error over every way to cut the sorted values."""
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), entries - 1):
        cost = 0.0
        for part in np.split(np.arange(len(values)), cuts):
            mean = np.average(values[part], weights=weights[part])
            cost += float((weights[part] * (values[part] - mean) ** 2).sum())
        best = min(best, cost)
    return best


@pytest.mark.parametrize("entries", [1, 2, 3, 5])
def test_codebook_search_finds_the_optimum(entries: int) -> None:
    rng = np.random.default_rng(entries)
    for _ in range(10):
        values, weights = np.sort(rng.normal(size=11)), rng.uniform(0.1, 3, size=11)
        starts = optimal_starts(values, weights, entries)
        cost = 0.0
        for part in np.split(np.arange(11), starts[1:]):
            mean = np.average(values[part], weights=weights[part])
            cost += float((weights[part] * (values[part] - mean) ** 2).sum())
        assert cost == pytest.approx(brute_force_cost(values, weights, entries), rel=1e-9)


def test_codebook_beats_equal_steps_and_follows_the_weights() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(0, 0.1, 20_000), rng.uniform(-8, 8, 200)])
    table = fit_codebook(values, np.ones(len(values)))
    assert len(table) == 256 and np.all(np.diff(table) >= 0)
    error = np.mean((table[nearest(table, values)] - values) ** 2)
    equal = np.linspace(values.min(), values.max(), 256)
    assert error < 0.15 * np.mean((equal[nearest(equal, values)] - values) ** 2)
    heavy = fit_codebook(values, np.where(np.abs(values) > 4, 1e4, 1.0))
    far = np.abs(values) > 4
    assert np.mean((heavy[nearest(heavy, values[far])] - values[far]) ** 2) < 0.5 * np.mean(
        (table[nearest(table, values[far])] - values[far]) ** 2
    )


def test_codebook_of_few_values_is_exact() -> None:
    table = fit_codebook(np.array([3.0, -1.0, 3.0, 0.5]), np.ones(4))
    assert set(table.tolist()) == {-1.0, 0.5, 3.0}
    assert table[nearest(table, np.array([0.4, 2.9]))].tolist() == [0.5, 3.0]


def test_labels_are_the_nearest_entries() -> None:
    rng = np.random.default_rng(3)
    rows, palette = rng.normal(size=(200, 9)).astype(np.float32), rng.normal(size=(30, 9)).astype(np.float32)
    distance = ((rows[:, None].astype(float) - palette[None]) ** 2).sum(axis=2)
    assert np.array_equal(palette_labels(rows, palette), distance.argmin(axis=1))


def test_morton_order_of_a_small_cube() -> None:
    """The Z-order of the eight corners: x changes first, then y, then z."""
    corners = np.array(list(itertools.product((0, 1), repeat=3)), dtype=float)[:, ::-1]
    shuffled = np.random.default_rng(0).permutation(8)
    order = morton_order(corners[shuffled])
    assert np.array_equal(corners[shuffled][order], corners)


def test_there_are_24_rotations_of_the_cube() -> None:
    quats = np.stack([quat for quat, _ in cube_rotations()])
    assert len(quats) == 24
    assert np.allclose(np.linalg.norm(quats, axis=1), 1)
    alike = np.abs(quats @ quats.T) > 1 - 1e-9
    assert np.array_equal(alike, np.eye(24, dtype=bool))


def test_canonical_axes_keep_the_ellipsoid_and_shrink_the_rotation() -> None:
    gaussians = make_gaussians(200, 0)
    quats, log_scales = canonical_axes(gaussians.quats, gaussians.log_scales)
    wanted = covariances(gaussians)
    gaussians.quats, gaussians.log_scales = quats.astype(np.float32), log_scales
    assert np.abs(covariances(gaussians) - wanted).max() < 1e-6 * np.abs(wanted).max() * 10
    # the largest rotation of the cubic fundamental zone is 62.8 degrees (Mackenzie 1958)
    assert np.degrees(2 * np.arccos(quats[:, 0].min())) <= 62.81


def test_quaternion_product_turns_in_the_right_order() -> None:
    half = np.sqrt(0.5)
    about_x, about_y = np.array([half, half, 0, 0]), np.array([half, 0, half, 0])
    assert np.allclose(quat_multiply(about_x, about_y), [0.5, 0.5, 0.5, 0.5])
    assert np.allclose(quat_multiply(about_y, about_x), [0.5, 0.5, 0.5, -0.5])
