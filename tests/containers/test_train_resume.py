"""Which checkpoint a training goes on from, and that it goes on exactly, with an engine that only pretends."""

from dataclasses import fields, replace

import pytest

from tests.containers.pretended_training import better_until, make_data, make_trainer
from train import checkpoint, trainer
from train.engine import Setup
from train.memory import MemoryPlan


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
    "background": lambda made: setattr(made.engine, "setup", replace(made.engine.setup, background=(1.0, 1.0, 1.0))),
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
