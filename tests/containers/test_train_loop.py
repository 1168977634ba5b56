"""The training loop's decisions, with an engine that only pretends."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from job import StageError
from job.options import TrainOptions
from tests.containers.pretended_training import better_until, make_data, make_trainer
from train import presets, trainer
from train.dataset import Dataset, split, trainable
from train.stage import paid_seconds
from train.trainer import checkpoint_interval_s

HELD_BACK = ("validation", "test")


# ------------------------------------------------------------------ the split


@pytest.mark.parametrize(("count", "validation"), [(4, 1), (12, 1), (48, 3), (200, 8), (1_000, 8)])
def test_every_eighth_photo_is_a_test_photo_and_the_validation_comes_out_of_the_rest(count, validation):
    photos = [f"{i:04}" for i in range(count)]
    data = split(photos, with_validation=True, with_test=True)
    assert data.test == photos[::8]
    assert len(data.validation) == validation
    assert sorted(data.train + data.validation + data.test) == photos
    assert len(data.train) >= len(data.validation)


@pytest.mark.parametrize(("count", "validation"), [(4, 1), (12, 1), (48, 4), (1_000, 8)])
def test_a_users_run_wastes_no_photo(count, validation):
    photos = [f"{i:04}" for i in range(count)]
    data = split(photos, with_validation=True, with_test=False)
    assert data.test == [] and len(data.validation) == validation
    assert sorted(trainable(data)) == photos


def test_without_a_stop_rule_a_benchmark_trains_all_photos_but_the_test_photos():
    data = split(list(range(16)), with_validation=False, with_test=True)
    assert data == Dataset([i for i in range(16) if i % 8], [], [0, 8])


def test_shrunk_photos_hold_fewer_gaussians(tmp_path, monkeypatch):
    """12 training photos of 12x12 pixels: 108 pixels at a quarter, 432 at a half of their sides."""
    asked = {}
    monkeypatch.setattr(trainer, "refine", lambda *arguments: asked.setdefault(level[0], set()).add(arguments[-1]))
    level = [0]
    schedule = replace(presets.CPU["draft"].schedule, pixels_per_gaussian=9.0, refine_every=10)
    cap, changes = {"max_gaussians": 1_000}, {"max_iterations": 400, "stop_on_plateau": False, "schedule": schedule}
    made = make_trainer(tmp_path, make_data(train=12), setup=cap, **changes)
    made.engine.step = lambda photos, now, *rest: level.__setitem__(0, now)
    made.run()
    assert asked == {4: {12}, 2: {48}, 1: {1_000}}


def test_validation_photos_join_at_the_cool_down_and_test_photos_never(tmp_path):
    made = make_trainer(tmp_path, make_data())
    made.run()
    start = next(i for i, name in enumerate(made.engine.trained) if name.startswith("validation"))
    assert set(made.engine.trained[:start]) == {f"train{i}" for i in range(6)}
    assert set(made.engine.trained[start:]) == {photo.view.name for photo in trainable(made.data)}
    assert len(made.engine.trained) - start <= 0.11 * len(made.engine.trained)


def test_test_photos_change_no_decision(tmp_path):
    """Black test photos get better and then worse; white ones the other way round."""
    runs = []
    for grey in (0, 255):
        made = make_trainer(tmp_path / str(grey), make_data(test_grey=grey), better_until(500))
        result = made.run()
        runs.append((made.engine.trained, made.engine.rates, result.iterations, result.validation, made.engine.steps))
        assert len(result.curve) > 3
    assert runs[0] == runs[1]


# ------------------------------------------------------------------ the stop rule


def test_a_plateau_goes_back_to_the_best_model_cools_down_and_says_what_it_saved(tmp_path):
    made = make_trainer(tmp_path, make_data(), better_until(1_200), max_iterations=2_000)
    result = made.run()
    assert result.stop_reason == "plateau" and 1_200 < result.iterations < 1_900
    cooled = result.iterations - made.engine.trained.index(next(n for n in made.engine.trained if "valid" in n))
    assert cooled < 0.12 * result.iterations
    evaluated_every = 2_000 / trainer.STOP_EVALUATIONS
    assert abs(made.engine.steps - cooled - 1_200) <= evaluated_every
    assert made.engine.rates[-1].means == pytest.approx(made.preset.schedule.rates(1.0, made.extent).means, rel=0.1)
    assert result.saved_s == pytest.approx(result.seconds * (2_000 / result.iterations - 1))
    before = -20 * np.log10(better_until(1_200)(1_200))
    assert result.validation[0]["psnr"] == pytest.approx(before, abs=1)


def test_steady_improvement_is_not_stopped(tmp_path):
    result = make_trainer(tmp_path, make_data(), lambda steps: 0.5 * 10 ** (-steps / 1_000)).run()
    assert (result.stop_reason, result.iterations, result.saved_s) == ("max_iterations", 1_000, 0.0)


# ------------------------------------------------------------------ budgets


@pytest.mark.parametrize("stop_on_plateau", [False, True])
def test_a_time_budget_ends_after_a_cool_down(tmp_path, monkeypatch, stop_on_plateau):
    now = [0.0]
    monkeypatch.setattr("train.stopping.time.monotonic", lambda: now[0])
    made = make_trainer(tmp_path, make_data(), budget_s=60.0, max_iterations=10**6, stop_on_plateau=stop_on_plateau)
    made.engine.error = lambda steps: 1 / (1 + steps)
    made.engine.on_step = lambda: now.__setitem__(0, now[0] + 0.25)
    result = made.run()
    assert result.stop_reason == "time_budget"
    assert 60 <= result.seconds < 60.25 and result.iterations == 240
    final = made.preset.schedule.rates(1.0, made.extent)
    assert made.engine.rates[-1].means == pytest.approx(final.means, rel=0.05)
    assert made.engine.rates[-1].noise == final.noise == 0
    assert any("validation" in name for name in made.engine.trained)


def test_the_time_before_the_first_step_does_not_show_in_it(tmp_path, monkeypatch):
    seconds = itertools.count(step=10.0)  # each look at the clock takes ten
    monkeypatch.setattr("train.stopping.time.monotonic", lambda: next(seconds))
    made = make_trainer(tmp_path, make_data(), budget_s=1e5, max_iterations=50, stop_on_plateau=False)
    made.run()
    assert made.engine.rates[0] == made.preset.schedule.rates(0.0, made.extent)
    assert made.engine.rates[1] == made.preset.schedule.rates(1 / 50, made.extent)


def test_money_becomes_time():
    assert paid_seconds(TrainOptions(max_training_seconds=90)) == float("inf")
    # what surrounds the training is paid too
    assert paid_seconds(TrainOptions(max_training_usd=0.5, price_usd_per_hour=1.0)) == 1_800 - 60
    assert paid_seconds(TrainOptions(max_training_usd=0.01, price_usd_per_hour=1.0)) == 1
    assert presets.choose(TrainOptions(preset="draft", max_training_seconds=90.0), gpu=False).budget_s == 90


# ------------------------------------------------------------------ divergence


def test_a_model_of_no_numbers_goes_back_to_the_last_good_state_with_shorter_steps(tmp_path):
    made = make_trainer(tmp_path, make_data(), stop_on_plateau=False)
    seen = []

    def break_once():
        if made.engine.steps == 300:
            made.save()
        if made.engine.steps == 520 and not seen:
            seen.append(len(made.engine.trained))
            made.engine.broken = True

    made.engine.on_step = break_once
    result = made.run()
    assert result.rollbacks == 1 and result.iterations == 1_000
    undone = len(made.engine.trained) - 1_000
    assert 220 <= undone <= 220 + 2 * trainer.LOSS_CHECK_EVERY
    before, after = made.engine.rates[300], made.engine.rates[300 + undone]
    assert after.means == pytest.approx(0.5 * before.means) and after.opacities == pytest.approx(0.5 * before.opacities)
    assert after.opacity_reg == before.opacity_reg


def test_without_a_checkpoint_it_starts_again(tmp_path):
    made = make_trainer(tmp_path, make_data(), stop_on_plateau=False)
    broken = iter([False] * 149 + [True])
    made.engine.on_step = lambda: setattr(made.engine, "broken", made.engine.broken or next(broken, False))
    assert made.run().rollbacks == 1
    assert len(made.engine.trained) == 1_200


def test_divergence_again_and_again_is_an_error_and_never_a_checkpoint(tmp_path):
    made = make_trainer(tmp_path, make_data())

    def break_it():
        made.engine.broken = made.engine.broken or made.engine.steps == 150
        made.save()

    made.engine.on_step = break_it
    with pytest.raises(StageError) as caught:
        made.run()
    assert caught.value.code == "TRAINING_DIVERGED"
    assert len(made.engine.trained) < 149 + (trainer.MOST_ROLLBACKS + 1) * trainer.LOSS_CHECK_EVERY
    assert make_trainer(tmp_path, make_data()).engine.steps == 149


def test_an_untrained_model_is_never_a_result(tmp_path, monkeypatch):
    """Time runs out in the very first steps, which have diverged: there is no good state to give."""
    now = [0.0]
    monkeypatch.setattr("train.stopping.time.monotonic", lambda: now[0])
    made = make_trainer(tmp_path, make_data(), budget_s=1.0)

    def break_it():
        now[0] += 0.3
        made.engine.broken = True

    made.engine.on_step = break_it
    with pytest.raises(StageError) as caught:
        made.run()
    assert caught.value.code == "TRAINING_DIVERGED"


@pytest.mark.parametrize(("took_s", "wanted_s"), [(0.01, 20), (2, 40), (9, 60)])
def test_checkpoints_are_cheap_and_never_more_than_a_minute_apart(took_s, wanted_s):
    assert checkpoint_interval_s(took_s) == wanted_s
