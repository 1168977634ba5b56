"""The scene frame, against synthetic reconstructions whose gravity, scale and place are known."""

import numpy as np
import pytest

from sfm.align import SCENE_FROM_ENU, align, find_down, umeyama

RNG = np.random.default_rng(4)


def look(eye, target, up=(0, 0, 1)):
    """World-to-camera rotation [3, 3], x right, y down, z forward."""
    forward = (np.asarray(target, float) - eye) / np.linalg.norm(np.asarray(target, float) - eye)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def rotation(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def orbit(n=20, radius=30.0, height=15.0):
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    eyes = np.stack([radius * np.cos(angles), radius * np.sin(angles), height + 2 * np.sin(3 * angles)], 1)
    return eyes, np.array([look(eye, (0, 0, 0)) for eye in eyes])


def as_model(eyes, rotations, points, seed=1, scale=0.17):
    """The same scene as a mapper would return it: turned, shifted, scaled."""
    turn = rotation(seed)
    shift = np.array([3.0, -2.0, 7.0])
    return scale * eyes @ turn.T + shift, rotations @ turn.T, scale * points @ turn.T + shift, turn


def ground(n=500):
    return np.column_stack([RNG.normal(0, 8, (n, 2)), RNG.normal(0, 0.5, n)])


def test_scene_frame_is_right_handed_with_y_down():
    assert np.linalg.det(SCENE_FROM_ENU) == pytest.approx(1)
    assert (SCENE_FROM_ENU @ [0, 0, 1]).tolist() == [0, -1, 0]


def test_good_gps_gives_metres_and_place_despite_outliers():
    eyes, rotations = orbit()
    points = ground()
    centres, model_rotations, model_points, _ = as_model(eyes, rotations, points)
    gps = eyes + RNG.normal(0, 0.1, eyes.shape)
    gps[3] += [80, -50, 20]
    gps[11] = np.nan
    result = align(centres, model_rotations, model_points, gps)
    assert result.georeferenced and result.gravity == "gps"
    assert 0.05 < result.gps_residual_m < 0.4
    enu = result.scene_from_model.apply(centres) @ SCENE_FROM_ENU + result.origin_enu_m
    assert np.abs(enu - eyes).max() < 0.25
    assert np.linalg.norm(result.origin_enu_m) < 1.5  # the middle of the ground
    origin_model = -result.scene_from_model.rotation.T @ result.scene_from_model.translation
    steps = model_points - origin_model / result.scene_from_model.scale
    assert np.linalg.norm((steps / np.linalg.norm(steps, axis=1, keepdims=True)).mean(0)) < 1e-3  # geometric median


def test_poor_gps_gives_no_metres_but_its_residual():
    eyes, rotations = orbit()
    centres, model_rotations, points, turn = as_model(eyes, rotations, ground())
    result = align(centres, model_rotations, points, eyes + RNG.normal(0, 12, eyes.shape))
    assert not result.georeferenced and result.origin_enu_m is None
    assert result.gps_residual_m > 5
    down = result.scene_from_model.rotation @ turn @ [0, 0, -1]
    assert down == pytest.approx([0, 1, 0], abs=0.01)


def test_positions_on_a_line_are_no_reference():
    eyes = np.stack([np.linspace(0, 50, 12), np.zeros(12), np.full(12, 20.0)], 1)
    rotations = np.array([look(eye, eye + np.array([0, 30, -10])) for eye in eyes])
    centres, model_rotations, points, _ = as_model(eyes, rotations, ground())
    result = align(centres, model_rotations, points, eyes)
    assert not result.georeferenced and result.gps_residual_m is None


@pytest.mark.parametrize("seed", range(4))
def test_gravity_of_an_orbit_without_gps(seed):
    eyes, rotations = orbit()
    rotations = np.array([roll(RNG.normal(0, 0.04)) @ r for r in rotations])
    centres, model_rotations, points, turn = as_model(eyes, rotations, ground(), seed)
    result = align(centres, model_rotations, points, np.full_like(eyes, np.nan))
    assert result.gravity == "horizon"
    assert result.scene_from_model.rotation @ turn @ [0, 0, -1] == pytest.approx([0, 1, 0], abs=0.05)
    assert np.linalg.det(result.scene_from_model.rotation) == pytest.approx(1)
    assert np.median(np.linalg.norm(result.scene_from_model.apply(centres), axis=1)) == pytest.approx(5, rel=1e-6)


def roll(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def test_gravity_of_part_of_an_orbit_is_not_biased_by_the_pitch():
    _eyes, rotations = orbit(40)
    part = slice(0, 12)  # about a quarter of the circle, looking 27 degrees down
    down, how = find_down(rotations[part], None)
    assert how == "horizon" and down == pytest.approx([0, 0, -1], abs=0.02)


@pytest.mark.parametrize("headings", [(0, 90, 180, 270), (0, 180), (10, 40, 200)])
def test_gravity_of_a_flight_that_looks_straight_down(headings):
    """Rows of a survey flown to and fro: the tops of the photos cancel out and say nothing."""
    eyes = np.column_stack([RNG.uniform(-50, 50, (40, 2)), np.full(40, 60.0)])
    angles = np.radians([headings[k % len(headings)] for k in range(40)])
    rotations = np.array(
        [look(e, e + np.array([0, 0, -1]), up=(np.cos(a), np.sin(a), 0)) for e, a in zip(eyes, angles, strict=True)]
    )
    centres, model_rotations, points, turn = as_model(eyes, rotations, ground())
    result = align(centres, model_rotations, points, np.full_like(eyes, np.nan))
    assert result.scene_from_model.rotation @ turn @ [0, 0, -1] == pytest.approx([0, 1, 0], abs=1e-6)


def test_one_heading_straight_down_needs_the_hint():
    rotations = np.array([look((0, 0, 60), (0, 0, 0), up=(0, 1, 0))] * 10)
    assert find_down(rotations, None)[1] == "camera up"
    down, how = find_down(rotations, np.array([0.2, 0.1, -1.0]))
    assert how == "view direction" and down == pytest.approx([0, 0, -1])


def test_umeyama_recovers_a_similarity_and_never_a_mirror():
    source = RNG.normal(size=(7, 3))
    turn = rotation(9)
    fit = umeyama(source, 2.5 * source @ turn.T + [1, 2, 3])
    assert fit.scale == pytest.approx(2.5) and fit.rotation == pytest.approx(turn)
    assert np.linalg.det(umeyama(source, source * [-1, 1, 1]).rotation) == pytest.approx(1)
    assert umeyama(np.outer(np.arange(5), [1, 1, 1]), np.outer(np.arange(5), [1, 0, 0])) is None
