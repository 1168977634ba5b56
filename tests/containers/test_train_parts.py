"""The parts of training: relocation, optimiser, stop rule, schedule, checkpoints, options."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from job import StageError
from job.options import TrainOptions
from splat.cameras import Scene, View, rotation_matrix
from splat.model import Gaussians
from splat.projection import LOGIT, QUAT, SCALE
from splat.threads import Workers
from train import checkpoint, presets
from train.checkpoint import Checkpoint, Position
from train.cpu.engine import CpuEngine
from train.cpu.optimizer import adam, regularise
from train.dataset import initial_gaussians, neighbour_distances_squared, scene_extent
from train.engine import LEVELS, Rates, Setup, TrainingPhoto
from train.gaps import points_in_gaps
from train.relocation import DEAD_OPACITY, refine, split_values
from train.schedule import Schedule
from train.stopping import Plateau, Stopwatch


def random_gaussians(n, seed=0, degree=1):
    rng = np.random.default_rng(seed)
    return Gaussians(
        rng.normal(size=(n, 3)),
        rng.uniform(-4, -2, (n, 3)),
        rng.normal(size=(n, 4)),
        rng.uniform(-7, 2, n),
        rng.normal(size=(n, (degree + 1) ** 2, 3)),
    )


def make_engine(capacity, n):
    view = View("v", 20, 16, np.array([[20.0, 0, 10], [0, 20, 8], [0, 0, 1]]), np.eye(4))
    engine = CpuEngine(Setup([TrainingPhoto(view, np.zeros((16, 20, 3), np.uint8))], capacity, 1, seed=1))
    engine.load(random_gaussians(n))
    return engine


# ------------------------------------------------------------------ relocation


@pytest.mark.parametrize("opacity", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("copies", [1, 2, 5, 20])
def test_split_gaussians_look_like_the_one_before(opacity, copies):
    """Kheradmand et al. 2024: equal opacity at the centre and equal integral along a line through it."""
    new, factor = split_values(np.array([opacity]), np.array([copies]))
    x = np.linspace(-12, 12, 200_001)
    before = opacity * np.exp(-(x**2) / 2)
    after = 1 - (1 - new * np.exp(-((x / factor) ** 2) / 2)) ** copies
    assert after[len(x) // 2] == pytest.approx(opacity, rel=1e-9)
    assert after.sum() == pytest.approx(before.sum(), rel=1e-6)


def test_dead_gaussians_move_to_opaque_ones_and_growth_stops_at_the_cap():
    engine = make_engine(capacity=230, n=200)
    dead = engine.opacities() <= DEAD_OPACITY
    assert dead.any()
    assert refine(engine, np.random.default_rng(1), growth=0.1, most=100) == (dead.sum(), 0)  # nothing is taken away
    assert engine.count() == 200
    assert refine(engine, np.random.default_rng(1), growth=0.1, most=210)[1] == 10
    assert refine(engine, np.random.default_rng(1), growth=0.05)[1] == 10
    assert engine.count() == 220
    assert (engine.opacities() > DEAD_OPACITY * 0.99).all()
    for _ in range(5):
        refine(engine, np.random.default_rng(2), growth=0.1)
    assert engine.count() == 230 == len(engine.gaussians())


def test_growth_alone_hardly_changes_the_image():
    engine = make_engine(capacity=400, n=300)
    view = View("v", 64, 48, np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]), np.eye(4))
    view.world_to_camera[2, 3] = 4
    live = engine.gaussians()
    engine.load(live.select(live.opacity_logits > -4))
    before = engine.render(view, 1)
    refine(engine, np.random.default_rng(3), growth=0.2)
    assert np.abs(engine.render(view, 1) - before).mean() < 0.01
    assert before.std() > 0.05


def test_a_model_without_any_live_gaussian_is_left_alone():
    engine = make_engine(capacity=100, n=50)
    gaussians = engine.gaussians()
    gaussians.opacity_logits[:] = -9
    engine.load(gaussians)
    assert refine(engine, np.random.default_rng(0), 0.1) == (0, 0)


# ------------------------------------------------------------------ optimiser


def test_adam_agrees_with_the_paper():
    rng = np.random.default_rng(0)
    rows, stride, steps = 3, 64, 4
    params = rng.normal(size=(rows, stride)).astype(np.float32)
    rates = np.array([1e-2, 0, 3e-4], np.float32)
    wanted, m, v = params.astype(np.float64), np.zeros((rows, stride)), np.zeros((rows, stride))
    first, second = np.zeros((rows, stride), np.float32), np.zeros((rows, stride), np.float32)
    for t in range(1, steps + 1):
        g = rng.normal(size=(rows, stride)) * [[1], [1], [1e-6]]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        wanted -= rates[:, None] * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-15)
        flat = [a.reshape(-1) for a in (params, g.astype(np.float32), first, second)]
        Workers(2).run(adam, stride // 16, stride, rates, *flat, 1 / (1 - 0.9**t), 1 / (1 - 0.999**t))
    assert np.allclose(params, wanted, atol=1e-6)


def test_noise_has_the_shape_of_the_gaussian_and_spares_opaque_ones():
    n, amount = 40_000, 0.5
    quat, log_scales = np.array([0.9, 0.3, -0.2, 0.4]), np.log([0.5, 0.1, 0.2])
    rows = np.zeros((23, n), np.float32)
    rows[QUAT : QUAT + 4] = quat[:, None] * 2
    rows[SCALE : SCALE + 3] = log_scales[:, None]
    rows[LOGIT] = np.where(np.arange(n) % 2, -20.0, 0.0)
    Workers(2).run(regularise, n, n, rows.reshape(-1), np.zeros(23 * n, np.float32), 0.0, 0.0, amount, np.uint64(7))
    assert not rows[:3, ::2].any()
    moved = rows[:3, 1::2].astype(np.float64)
    R = rotation_matrix(quat)
    covariance = R @ np.diag(np.exp(2 * log_scales)) @ R.T
    factor = amount / (1 + math.exp(-100 * (1 - 0.995)))
    wanted = factor**2 * covariance @ covariance
    assert np.abs(moved.mean(axis=1)).max() < 5e-3 * factor
    assert np.linalg.norm(np.cov(moved) - wanted) < 0.05 * np.linalg.norm(wanted)


def test_regularisation_is_the_gradient_of_the_mean_opacity_and_scale():
    n = 40
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(23, 48)).astype(np.float32)
    grads = np.zeros_like(rows)
    Workers(1).run(regularise, n, 48, rows.reshape(-1), grads.reshape(-1), 0.7 / n, 0.2 / (3 * n), 0.0, np.uint64(0))
    opacity = 1 / (1 + np.exp(-rows[LOGIT, :n].astype(np.float64)))
    assert np.allclose(grads[LOGIT, :n], 0.7 * opacity * (1 - opacity) / n, rtol=1e-5)
    assert np.allclose(grads[SCALE : SCALE + 3, :n], 0.2 * np.exp(rows[SCALE : SCALE + 3, :n]) / (3 * n), rtol=1e-5)
    assert not grads[:3].any()


# ------------------------------------------------------------------ stop rule, clock, schedule


def test_plateau_needs_patience_and_counts_from_the_best():
    rule = Plateau(delta_db=0.1, patience=3)
    assert [rule.update(v) for v in (20.0, 21.0, 21.05, 21.09)] == [False] * 4
    assert rule.update(21.2) is False  # 0.2 over the best that counted: starts again
    assert [rule.update(v) for v in (21.25, 20.0, 21.29)] == [False, False, True]
    assert rule.best_db == 21.2


def test_clock_goes_on_from_a_restart_and_leaves_out_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("train.stopping.time.monotonic", lambda: now[0])
    clock = Stopwatch(already_s=30, threads=2)
    now[0] += 5
    assert clock.elapsed_s() == 35
    clock.pause()
    now[0] += 50
    assert clock.elapsed_s() == 35
    clock.go_on()
    now[0] += 1
    assert clock.elapsed_s() == 36


def test_schedule_goes_from_coarse_to_fine():
    schedule = Schedule(half_from=0.1, full_from=0.3, sh_step=0.2, refine_until=0.8)
    assert [schedule.level(p) for p in (0, 0.11, 0.31, 1)] == [4, 2, 1, 1]
    assert {schedule.level(p / 100) for p in range(101)} == set(LEVELS)
    assert [schedule.sh_degree(p, 2) for p in (0, 0.19, 0.21, 0.41, 0.9)] == [0, 0, 1, 2, 2]
    start, end = schedule.rates(0, extent=2.0), schedule.rates(1, extent=2.0)
    assert start.means == pytest.approx(2 * schedule.means_rate)
    assert end.means == pytest.approx(start.means * schedule.means_final)
    assert start.noise > 0 and end.noise == 0


# ------------------------------------------------------------------ data


def make_scene(points, rgb=None):
    rgb = np.full((len(points), 3), 255, np.uint8) if rgb is None else rgb
    return Scene(Path(), [], np.asarray(points, float), rgb)


def test_initial_gaussians_are_as_wide_as_their_neighbourhood():
    grid = np.stack(np.meshgrid(*[np.arange(5.0)] * 3, indexing="ij"), -1).reshape(-1, 3) * 0.5
    gaussians = initial_gaussians(make_scene(grid), 1000, np.random.default_rng(0))
    assert np.allclose(np.exp(gaussians.log_scales), 0.5, rtol=1e-4)
    assert np.allclose(0.5 + 0.28209479 * gaussians.sh[:, 0], 1.0)
    assert len(initial_gaussians(make_scene(grid), 40, np.random.default_rng(0))) == 40


def test_neighbours_of_many_points_agree_with_the_exact_ones():
    points = np.random.default_rng(0).random((21_000, 3)).astype(np.float32)
    found = neighbour_distances_squared(points)
    for i in range(0, 21_000, 3_000):
        exact = np.sort(((points - points[i]) ** 2).sum(axis=1))[1:4]
        assert np.median(found[i] / exact) < 1.5 and (found[i] >= exact * 0.999 - 1e-9).all()


def test_too_few_points_is_an_error_to_act_on():
    with pytest.raises(StageError, match="only 3 points") as caught:
        initial_gaussians(make_scene(np.eye(3)), 10, np.random.default_rng(0))
    assert caught.value.code == "TOO_FEW_POINTS"


def test_scene_extent_is_the_largest_distance_from_the_centroid():
    views = []
    for x in (-1.0, 0.0, 4.0):
        pose = np.eye(4)
        pose[:3, :3] = rotation_matrix(np.array([1.0, x, 0.3, 0]))
        pose[:3, 3] = -pose[:3, :3] @ [x, 2, 3]
        views.append(View("v", 4, 4, np.eye(3), pose))
    assert scene_extent(views) == pytest.approx(1.1 * 3)


def test_a_shrunk_photo_has_the_camera_of_its_true_size():
    view = View("v", 101, 50, np.array([[80.0, 0, 50.5], [0, 80, 25], [0, 0, 1]]), np.eye(4))
    small = TrainingPhoto(view, np.zeros((50, 101, 3), np.uint8)).shrunk(4)
    assert small.pixels.shape == (12, 25, 3)
    assert small.view.K[0, 0] == pytest.approx(80 * 25 / 101) and small.view.K[1, 2] == pytest.approx(6)


# ------------------------------------------------------------------ checkpoints, presets


def test_an_engine_goes_on_exactly_from_its_state(tmp_path):
    rates = Rates(1e-3, 5e-3, 1e-3, 5e-2, 2.5e-3, 1e-4, 0.1, 0.01, 0.01)
    one, two = make_engine(150, 100), make_engine(150, 10)
    for _ in range(3):
        one.step([0], 1, 1, rates)
    refine(one, np.random.default_rng(0), 0.2)
    checkpoint.save(
        tmp_path, Checkpoint({"engine": "cpu"}, one.state(), Position(iteration=3), {}, one.gaussians(), 5.0)
    )
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    assert (saved.fingerprint, saved.position, saved.best_db) == ({"engine": "cpu"}, Position(iteration=3), 5.0)
    assert np.array_equal(saved.best.means, one.gaussians().means)
    two.restore(saved.engine)
    for engine in (one, two):
        for _ in range(3):
            engine.step([0], 2, 1, rates)
    for name, value in vars(one.gaussians()).items():
        assert np.array_equal(value, getattr(two.gaussians(), name)), name


def test_a_damaged_or_foreign_checkpoint_is_not_used(tmp_path):
    assert checkpoint.load(tmp_path) is None
    (tmp_path / checkpoint.FILE).write_bytes(b"PK\x03\x04 half a file")
    assert checkpoint.load(tmp_path) is None
    with (tmp_path / checkpoint.FILE).open("wb") as file:
        np.savez(file, trainer=np.array(json.dumps({"version": 99})))
    assert checkpoint.load(tmp_path) is None


def test_options_replace_the_presets_values():
    plain = presets.choose(TrainOptions(preset="draft"), gpu=False)
    assert plain == presets.CPU["draft"]
    given = TrainOptions(preset="draft", max_gaussians=5_000, max_iterations=100, max_image_long_side=320, sh_degree=0)
    changed = presets.choose(given, gpu=False)
    assert (changed.max_gaussians, changed.max_iterations, changed.long_side, changed.sh_degree) == (5_000, 100, 320, 0)
    assert presets.choose(TrainOptions(preset="high"), gpu=True) == presets.GPU["high"]


@pytest.mark.parametrize(
    ("name", "gpu", "max_iterations", "budget_s", "means_rate"),
    [
        ("draft", False, None, 108.0, 5e-4),  # twice the time: half the steps of the means
        ("draft", False, None, 27.0, 1e-3),  # never longer steps than the preset's
        ("draft", False, 40_000, None, 1e-3),  # time ends a training on a CPU
        ("standard", False, None, 117.5, 5e-4),
        ("draft", True, 20_000, None, 2.5e-4),
        ("draft", True, None, 1_200.0, 1e-3),  # the number of steps ends one on a GPU
        ("high", True, 10_000, None, 3e-4),
    ],
)
def test_longer_trainings_take_shorter_steps(name, gpu, max_iterations, budget_s, means_rate):
    chosen = presets.choose(
        TrainOptions(preset=name, max_iterations=max_iterations, max_training_seconds=budget_s), gpu
    )
    assert chosen.schedule.means_rate == pytest.approx(means_rate)


def test_splits_go_where_the_weights_are():
    engine = make_engine(capacity=400, n=200)
    live = engine.gaussians()
    live.opacity_logits[:] = 0
    engine.load(live)
    weights = np.zeros(200, np.float32)
    weights[[7, 50]] = 1, 3
    refine(engine, np.random.default_rng(0), growth=0.2, weights=weights)
    new = engine.gaussians().means[200:]
    of = [int(np.abs(live.means - mean).sum(axis=1).argmin()) for mean in new]
    assert set(of) == {7, 50} and 20 < of.count(50) < 38


def test_blame_is_the_error_weighted_as_the_colours_are():
    """Against finite differences of the mean of |render - photo| taken as a constant weight image."""
    view = View("v", 40, 33, np.array([[40.0, 0, 20], [0, 40, 16], [0, 0, 1]]), np.eye(4))
    view.world_to_camera[2, 3] = 4
    photo = np.random.default_rng(0).integers(0, 256, (33, 40, 3)).astype(np.uint8)
    engine = CpuEngine(Setup([TrainingPhoto(view, photo)], 60, 0, seed=1))
    gaussians = random_gaussians(60, degree=0)
    gaussians.sh[:] = np.abs(gaussians.sh) + 0.5
    gaussians.opacity_logits[:] = -1
    engine.load(gaussians)
    found = engine.error_per_gaussian(0, 1, 0)
    error = np.abs(engine.render(view, 0) - photo / 255).mean(axis=2)
    for i in (3, 20, 41):
        brighter = engine.gaussians()
        brighter.sh[i] += 0.1 / 0.28209479177387814
        engine.load(brighter)
        change = engine.render(view, 0)
        engine.load(gaussians)
        weight = (change - engine.render(view, 0)).mean(axis=2) / 0.1
        assert found[i] == pytest.approx((weight * error).sum(), rel=2e-3, abs=1e-3)


def test_gaps_are_filled_with_the_photos_colours_at_the_depth_beside_them():
    """A wall at depth 5 whose left half has sparse points: the new points lie on the right, near the wall."""
    K = np.array([[50.0, 0, 30], [0, 50, 20], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = rotation_matrix(np.array([0.9, 0.1, -0.3, 0.2]))
    pose[:3, 3] = 1, 2, 3
    view = View("v", 60, 40, K, pose)
    u, v = np.meshgrid(np.arange(2, 30, 2), np.arange(1, 40, 2))
    camera = 5 * np.stack([(u.ravel() - 30) / 50, (v.ravel() - 20) / 50, np.ones(u.size)], axis=1)
    xyz = (camera - pose[:3, 3]) @ pose[:3, :3]
    seen = {"v": (np.zeros((len(xyz), 2)), np.arange(len(xyz)))}
    scene = Scene(Path(), [view], xyz, np.zeros((len(xyz), 3), np.uint8), seen)
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :, 0] = np.arange(60)
    found, rgb, width = points_in_gaps(scene, [TrainingPhoto(view, pixels)], 100, np.random.default_rng(0))
    there = found @ pose[:3, :3].T + pose[:3, 3]
    at = there[:, :2] / there[:, 2:] * 50 + [30, 20]
    assert len(found) == 100 and at[:, 0].min() > 29.9 and at[:, 0].max() < 60
    assert (there[:, 2] > 4).all() and (there[:, 2] < 8).all()
    assert np.abs(rgb[:, 0] - at[:, 0]).max() <= 1
    assert width == pytest.approx(0.5 * 5 * there[:, 2] / 50)
    grown = initial_gaussians(scene, 300, np.random.default_rng(0), [TrainingPhoto(view, pixels)], 0.2)
    assert len(grown) == 300 and (grown.sh[:, 0, 0] > 0.5 / -0.2821).sum() == 60
