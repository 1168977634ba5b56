"""How a training ends before its last step: stopped, out of time or money, diverged; and how it goes on."""

import json
import signal
import sys
import time

import numpy as np
import pytest

from splat.images import load_photo
from splat.model import read_ply
from tests.containers.training_runs import (
    prepare,
    run,
    set_options,
    start,
)


def test_sigterm_leaves_a_checkpoint_and_the_next_run_goes_on(tmp_path, scene):
    root = prepare(tmp_path, scene, max_iterations=20_000, max_gaussians=2_000)
    process = start(root)
    progress = root / "checkpoints/progress.json"
    deadline = time.monotonic() + 200
    while not (progress.is_file() and json.loads(progress.read_text())["step"] >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert (root / "checkpoints/checkpoint.npz").is_file()
    assert not (root / "output/failure").exists() and not (root / "model/scene.ply").exists()

    with np.load(root / "checkpoints/checkpoint.npz") as saved:
        reached = json.loads(str(saved["trainer"]))["position"]["iteration"]
    set_options(root, max_iterations=reached + 100, max_gaussians=2_000)
    status, log, err = run(root)
    assert status == 0, err
    resumed = [entry for entry in log if entry["event"] == "resumed"]
    assert resumed and resumed[0]["iteration"] == reached > 0
    metrics = json.loads((root / "model/metrics.json").read_text())
    assert metrics["iterations"] == reached + 100 and metrics["psnr"] > 14


@pytest.mark.parametrize("when", ["train.stage.write_ply", "train.evaluate.save_photo", "train.stage.mean_psnr"])
def test_a_stop_while_measuring_is_heard_and_only_the_measuring_is_done_again(tmp_path, scene, monkeypatch, when):
    """The stop comes during the first call of ``when``: as measuring begins, at the first photo, before the report."""
    from job import Job, JobKind, StopRequested
    from train import stage

    root = prepare(tmp_path, scene, max_iterations=40, max_gaussians=1_000)
    job = Job.open("train", JobKind.TRAINING, root)
    module, name = when.rsplit(".", 1)
    called = getattr(sys.modules[module], name)

    def call_and_stop(*arguments, **more):
        job.stop_requested = True
        return called(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(when, call_and_stop)
        with pytest.raises(StopRequested):
            stage.run(job)
    assert not (root / "model/metrics.json").exists()
    previews = {"write_ply": 0, "save_photo": 1, "mean_psnr": 2}[name]
    assert len(list(root.glob("model/previews/*"))) == previews

    logged = []
    job = Job.open("train", JobKind.TRAINING, root)
    monkeypatch.setattr(job, "log", lambda event, **fields: logged.append((event, fields)))
    stage.run(job)
    assert [fields["iteration"] for event, fields in logged if event == "resumed"] == [40]
    metrics = json.loads((root / "model/metrics.json").read_text())
    assert (metrics["iterations"], metrics["stop_reason"]) == (40, "max_iterations")


def test_a_stop_while_photos_are_loaded_is_heard(tmp_path, scene, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from job import Job, JobKind, StopRequested
    from train import dataset, stage

    monkeypatch.setattr(dataset, "ThreadPoolExecutor", lambda: ThreadPoolExecutor(1))
    job = Job.open("train", JobKind.TRAINING, prepare(tmp_path, scene))
    loaded = []

    def load_and_stop(path, *size):
        job.stop_requested = True
        loaded.append(path)
        return load_photo(path, *size)

    monkeypatch.setattr(dataset, "load_photo", load_and_stop)
    with pytest.raises(StopRequested):
        stage.run(job)
    assert len(loaded) == 1


def test_a_time_budget_ends_the_training(tmp_path, scene):
    """Called in this process, with a preset that allows two seconds."""
    from dataclasses import replace

    from job import Job, JobKind
    from splat.cameras import read_scene
    from train import presets
    from train.dataset import initial_gaussians, load_dataset
    from train.engine import Setup
    from train.engines import open_engine
    from train.trainer import Trainer

    job = Job.open("train", JobKind.TRAINING, tmp_path)
    preset = replace(presets.CPU["draft"], budget_s=2.0, max_gaussians=1_000)
    loaded = read_scene(scene)
    data = load_dataset(loaded, preset.long_side, False)
    engine = open_engine(Setup(data.train, preset.max_gaussians, 1, 1))
    trainer = Trainer(job, engine, preset, data, threads=1)
    trainer.start(initial_gaussians(loaded, 1_000, np.random.default_rng(0)))
    result = trainer.run()
    assert result.stop_reason == "time_budget"
    assert 2.0 <= result.seconds < 4.0
    assert result.iterations > 10


def test_money_ends_the_training_with_a_model(tmp_path, scene):
    """62 s at this price: two beside the minute that is counted for loading and measuring."""
    root = prepare(tmp_path, scene, max_gaussians=1_000, max_training_usd=62 * 0.736 / 3600, price_usd_per_hour=0.736)
    status, _log, err = run(root)
    assert status == 0, err
    metrics = json.loads((root / "model/metrics.json").read_text())
    assert metrics["stop_reason"] == "cost_limit"
    assert 2.0 <= metrics["training_seconds"] < 10
    assert read_ply(root / "model/scene.ply").means.shape == (metrics["gaussians"], 3)


def make_trainer(root, scene, **changes):
    from dataclasses import replace

    from job import Job, JobKind
    from splat.cameras import read_scene
    from train import presets
    from train.dataset import initial_gaussians, load_dataset, trainable
    from train.engine import Setup
    from train.engines import open_engine
    from train.trainer import Trainer

    job = Job.open("train", JobKind.TRAINING, root)
    preset = replace(presets.CPU["draft"], **{"budget_s": float("inf"), "max_gaussians": 1_000, **changes})
    loaded = read_scene(scene)
    data = load_dataset(loaded, preset.long_side, preset.stop_on_plateau)
    engine = open_engine(Setup(trainable(data), preset.max_gaussians, 1, 1))
    trainer = Trainer(job, engine, preset, data, threads=2)
    if not trainer.resume():
        trainer.start(initial_gaussians(loaded, 1_000, np.random.default_rng(0)))
    return trainer


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, scene):
    from job import StopRequested

    whole = make_trainer(tmp_path / "whole", scene, max_iterations=150).run()
    first = make_trainer(tmp_path / "parts", scene, max_iterations=150)
    step = first.engine.step

    def step_and_stop(*arguments):
        step(*arguments)
        first.job.stop_requested = first.engine.state()["steps"] == 77

    first.engine.step = step_and_stop
    with pytest.raises(StopRequested):
        first.run()
    second = make_trainer(tmp_path / "parts", scene, max_iterations=150)
    assert second.at.iteration == 77
    parts = second.run()
    assert parts.iterations == whole.iterations == 150
    for name, value in vars(whole.gaussians).items():
        assert np.array_equal(value, getattr(parts.gaussians, name)), name
    assert [p["psnr"] for p in parts.curve] == [p["psnr"] for p in whole.curve]


def test_a_checkpoint_of_other_options_is_not_used(tmp_path, scene):
    trainer = make_trainer(tmp_path, scene, max_iterations=5)
    trainer.run()
    trainer.save()
    assert make_trainer(tmp_path, scene, max_iterations=5).at.iteration == 5
    assert make_trainer(tmp_path, scene, max_iterations=5, max_gaussians=900).at.iteration == 0


def test_a_model_that_diverges_once_is_mended(tmp_path, scene):
    trainer = make_trainer(tmp_path, scene, max_iterations=400)
    step = trainer.engine.step

    def step_and_spoil(*arguments):
        step(*arguments)
        if trainer.at.iteration == 150 and not trainer.at.rollbacks:
            trainer.engine._rows[0, 100] = np.nan

    trainer.engine.step = step_and_spoil
    result = trainer.run()
    assert (result.rollbacks, result.iterations) == (1, 400)
    assert all(np.isfinite(value).all() for value in vars(result.gaussians).values())
    assert result.curve[-1]["psnr"] > 18


def test_a_training_that_keeps_diverging_says_so(tmp_path, scene):
    from job import StageError

    trainer = make_trainer(tmp_path, scene, max_iterations=150)
    load = trainer.engine.load

    def load_spoilt(gaussians):
        load(gaussians)
        trainer.engine._rows[0, 100] = np.nan

    trainer.engine.load = load_spoilt
    load_spoilt(trainer.engine.gaussians())
    with pytest.raises(StageError) as caught:
        trainer.run()
    assert caught.value.code == "TRAINING_DIVERGED"
