"""The training loop's decisions, with an engine that only pretends: what it renders depends on its steps alone."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest

from job import Job, JobKind, StageError
from job.options import TrainOptions
from splat.cameras import View
from splat.model import Gaussians
from train import checkpoint, presets, trainer
from train.dataset import Dataset, split, trainable
from train.engine import Setup, TrainingPhoto
from train.memory import MemoryPlan
from train.stage import paid_seconds
from train.trainer import Trainer, checkpoint_interval_s

HELD_BACK = ("validation", "test")


class PretendedEngine:
    """Renders grey of value ``error(steps)``: against black photos the PSNR is -20 log10 of it."""

    name, device, views = "pretended", "none", 1

    def __init__(self, photos, error=lambda steps: 0.1):
        self.photos, self.error = photos, error
        self.setup = Setup(photos, max_gaussians=8, sh_degree=1, seed=1)
        self.steps, self.offset, self.broken = 0, 0, False
        self.trained, self.rates = [], []
        self.on_step = lambda: None

    def load(self, gaussians):
        self.steps, self.broken = int(gaussians.means[0, 0]), False

    def step(self, photos, level, sh_degree, rates):
        self.steps += len(photos)
        self.trained += [self.photos[photo].view.name for photo in photos]
        self.rates.append(rates)
        self.on_step()

    def mean_loss(self):
        return 0.5

    def is_finite(self):
        return not self.broken

    def error_per_gaussian(self, photo, level, sh_degree):
        return np.zeros(1, np.float32)

    def count(self):
        return 1

    def opacities(self):
        return np.zeros(1, np.float32)  # nothing to relocate

    def render(self, view, sh_degree):
        return np.full((view.height, view.width, 3), self.error(self.steps), np.float32)

    def gaussians(self):
        return model(self.steps)

    def state(self):
        return {"steps": np.array(self.steps)}

    def restore(self, state):
        self.steps, self.broken = int(state["steps"]), False


def model(steps):
    means = np.full((1, 3), steps, np.float32)
    return Gaussians(means, np.zeros((1, 3)), np.ones((1, 4)), np.zeros(1), np.zeros((1, 4, 3)))


def photo(name, grey=0):
    pose = np.eye(4)
    pose[0, 3] = len(name)
    return TrainingPhoto(View(name, 12, 12, np.eye(3), pose), np.full((12, 12, 3), grey, np.uint8))


def make_data(train=6, validation=2, test=2, test_grey=0):
    return Dataset(
        [photo(f"train{i}") for i in range(train)],
        [photo(f"validation{i}") for i in range(validation)],
        [photo(f"test{i}", test_grey) for i in range(test)],
    )


def make_trainer(root, data, error=lambda steps: 0.1, views=1, setup=None, **changes):
    limits = {"budget_s": float("inf"), "max_iterations": 1_000, "stop_on_plateau": True}
    preset = replace(presets.CPU["draft"], **(limits | changes))
    job = Job.open("train", JobKind.TRAINING, root)
    engine = PretendedEngine(trainable(data), error)
    engine.views = views
    engine.setup = replace(engine.setup, **(setup or {}))
    made = Trainer(job, engine, preset, data, threads=1)
    if not made.resume():
        made.start(model(0))
    return made


def better_until(best):
    """Improves up to this step and gets worse from there."""
    return lambda steps: 0.1 * 10 ** (abs(steps - best) / 1_000)


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


def test_the_best_model_survives_an_interruption(tmp_path):
    made = make_trainer(tmp_path, make_data(), better_until(1_200), max_iterations=2_000)
    made.engine.on_step = lambda: setattr(made.job, "stop_requested", made.engine.steps == 1_450)
    with pytest.raises(trainer.StopRequested):
        made.run()
    again = make_trainer(tmp_path, make_data(), better_until(1_200), max_iterations=2_000)
    assert again.at.iteration == 1_450
    parts = again.run()
    whole_trainer = make_trainer(tmp_path / "whole", make_data(), better_until(1_200), max_iterations=2_000)
    whole = whole_trainer.run()
    assert (parts.iterations, parts.validation) == (whole.iterations, whole.validation)
    assert again.engine.trained == whole_trainer.engine.trained[1_450:]
    assert again.engine.steps == whole_trainer.engine.steps


@pytest.mark.parametrize("views", [1, 3, 8])
def test_a_step_of_several_photos_counts_as_many_and_resumes_exactly(tmp_path, monkeypatch, views):
    """A schedule counts photos: as many are trained, refined after and looked at, however many a step has."""
    refined = []
    monkeypatch.setattr(trainer, "refine", lambda *arguments, **_: refined.append(arguments[0].steps))
    whole = make_trainer(tmp_path / "whole", make_data(), views=views, max_iterations=600, stop_on_plateau=False)
    result = whole.run()
    assert 600 <= result.iterations == whole.engine.steps == len(whole.engine.trained) < 600 + views
    schedule = whole.preset.schedule
    assert len(refined) == int(600 * schedule.refine_until / schedule.refine_every)
    assert all(steps % schedule.refine_every < views for steps in refined)
    assert sorted(whole.engine.trained[:6]) == sorted(photo.view.name for photo in whole.data.train)
    parts = make_trainer(tmp_path, make_data(), views=views, max_iterations=600, stop_on_plateau=False)
    parts.engine.on_step = lambda: setattr(parts.job, "stop_requested", parts.engine.steps >= 250)
    with pytest.raises(trainer.StopRequested):
        parts.run()
    again = make_trainer(tmp_path, make_data(), views=views, max_iterations=600, stop_on_plateau=False)
    assert again.at.iteration == parts.engine.steps
    assert again.run().iterations == result.iterations
    assert parts.engine.trained + again.engine.trained == whole.engine.trained
    assert parts.engine.rates + again.engine.rates == whole.engine.rates


def test_a_best_model_that_no_longer_fits_is_forgotten(tmp_path):
    made = make_trainer(tmp_path, make_data(), better_until(1_200), max_iterations=2_000)
    made.engine.on_step = lambda: setattr(made.job, "stop_requested", made.engine.steps == 1_450)
    with pytest.raises(trainer.StopRequested):
        made.run()
    assert make_trainer(tmp_path, make_data(), max_iterations=2_000)._best is not None
    no_room = {"max_gaussians": 0}
    plan = MemoryPlan(0, 400)
    checkpoint.carry_over(
        tmp_path / "checkpoints", plan, make_trainer(tmp_path, make_data(), setup=no_room).fingerprint()
    )
    again = make_trainer(tmp_path, make_data(), setup=no_room, max_iterations=2_000)
    assert again.at.iteration == 1_450 and again._best is None


# ------------------------------------------------------------------ which checkpoint is resumed


def other_view(photo):
    return replace(photo, view=replace(photo.view, width=24, height=24))


def other_name(photo):
    return replace(photo, view=replace(photo.view, name=photo.view.name + " again"))


def other_photos(data, change):
    return replace(data, train=[change(photo) for photo in data.train])


# A training that differs in one thing, by what the fingerprint calls it; a new field of Setup needs a row here.
OTHERS = {
    "engine": lambda made: setattr(made.engine, "name", "another"),
    "photos": lambda made: setattr(made, "data", other_photos(made.data, other_name)),
    "size": lambda made: setattr(made, "data", other_photos(made.data, other_view)),
    "gains": lambda made: setattr(made, "data", other_photos(made.data, lambda p: replace(p, gain=(1.1, 1.0, 1.0)))),
    "max_gaussians": lambda made: setattr(made.engine, "setup", replace(made.engine.setup, max_gaussians=9)),
    "sh_degree": lambda made: setattr(made.engine, "setup", replace(made.engine.setup, sh_degree=2)),
}


def saved_and_again(tmp_path):
    """A new trainer beside a checkpoint of the same training."""
    made = make_trainer(tmp_path, make_data())
    made.save()
    return make_trainer(tmp_path, make_data())


def test_every_field_of_the_setup_is_compared_or_excused():
    compared = set(OTHERS) - {"engine", "size", "gains"} | checkpoint.NOT_COMPARED
    assert {field.name for field in fields(Setup)} == compared
    assert set(OTHERS) > checkpoint.BY_PLAN


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_training_is_not_resumed(tmp_path, name):
    made = saved_and_again(tmp_path)
    assert made.resume() and made.fingerprint().keys() == OTHERS.keys()
    OTHERS[name](made)
    assert not made.resume()


@pytest.mark.parametrize("name", OTHERS)
def test_leaving_a_field_out_of_the_fingerprint_is_noticed(tmp_path, monkeypatch, name):
    """What the test before would do then: it resumes a training that differs in this field alone."""
    whole = checkpoint.fingerprint

    def without(engine, data):
        return {key: value for key, value in whole(engine, data).items() if key != name}

    monkeypatch.setattr(checkpoint, "fingerprint", without)
    made = saved_and_again(tmp_path)
    OTHERS[name](made)
    assert made.resume()


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
