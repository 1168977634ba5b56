"""``python -m train``: the training stage. Reads the channel ``sfm``, writes scene.ply, metrics.json and previews/."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace

import numpy as np

from job import Job, StageError, StopRequested
from job.documents import write_json_atomically
from job.options import TrainOptions
from splat.cameras import Scene, View, read_scene
from splat.model import Gaussians, write_ply
from splat.spread import spread
from splat.threads import available_cores
from train import memory, presets
from train.dataset import Dataset, initial_gaussians, load_dataset
from train.engine import Engine, Photo, gpu_available, open_engine
from train.evaluate import mean_psnr, score
from train.exposure import compensated, is_compensated, measure
from train.gpu import device
from train.memory import Plan
from train.presets import Preset
from train.schedule import Schedule
from train.stragglers import find_stragglers
from train.trainer import Result, Trainer, trainable

SEED = 1
OUTPUTS = ("scene.ply", "metrics.json")
TRAIN_PSNR_PHOTOS = 8
LOOK_LEVEL, LOOK_MOST = 4, 200  # training photos that are searched for stragglers, shrunk
AROUND_TRAINING_S = 60.0  # loading before and measuring after it, which are paid too


def run(job: Job) -> None:
    options = TrainOptions.model_validate(job.options)
    choice = device.choose()
    gpus = device.count(options.max_gpus) if choice.gpu else 0
    job.log("engine", engine="gpu" if choice.gpu else "cpu", reason=choice.reason, gpus=gpus)
    preset = presets.choose(
        options.preset,
        choice.gpu,
        options.max_gaussians,
        options.max_iterations,
        options.max_image_long_side,
        options.sh_degree,
        options.max_training_seconds,
    )
    preset = replace(preset, budget_s=min(preset.budget_s, paid_seconds(options)))
    job.progress(0, 1, "sets", "Loading photos")
    scene = open_scene(job)
    sizes = [(view.width, view.height) for view in scene.views]
    wanted = Plan(preset.max_gaussians, preset.long_side)
    plan = memory.carried_over(job.checkpoints, wanted)
    if gpus:
        plan = memory.choose(plan, sizes, preset.sh_degree, device.room(gpus), gpus)
    job.log("memory", wanted=asdict(wanted), planned=asdict(plan))

    def attempt(plan: Plan) -> None:
        fitting = replace(preset, max_gaussians=plan.max_gaussians, long_side=plan.long_side)
        train(job, options, fitting, scene, gpus, None if plan == wanted else plan)

    def with_less(plan: Plan, reason: str) -> Plan:
        plan = memory.less(plan, sizes, preset.sh_degree, memory.host_room(), reason, max(gpus, 1))
        job.log("out of memory", reason=reason, planned=asdict(plan))
        return plan

    memory.with_less_when_full(attempt, plan, with_less)


def train(job: Job, options: TrainOptions, preset: Preset, scene: Scene, gpus: int, smaller: Plan | None) -> None:
    """From the photos to the results, on the CPU when ``gpus`` is 0.

    ``smaller``: the plan when it is not what was asked for. Raises OutOfDeviceMemory.
    """
    with_validation = preset.stop_on_plateau or not options.test_photos
    data = load_dataset(scene, preset.long_side, with_validation, bool(options.test_photos), job.check_stop)
    exposure_spread = 0.0
    if options.exposure == "auto":
        data, exposure_spread = measure(scene, data)
        job.check_stop()
    photos, pinned = [compensated(photo) for photo in trainable(data)], smaller is not None and smaller.pinned_photos
    engine = open_engine(photos, preset.max_gaussians, preset.sh_degree, SEED, gpus > 0, pinned, gpus)
    job.log("loaded", photos=len(scene.views), points=len(scene.points_xyz), device=engine.device, engine=engine.name)
    job.log("exposure", spread=exposure_spread, compensated=is_compensated(data))
    trainer = Trainer(job, engine, preset, data, available_cores(), SEED)
    if smaller:
        memory.carry_over(job.checkpoints, smaller, trainer.fingerprint())
    if trainer.resume():
        job.log("resumed", iteration=trainer.at.iteration, elapsed_s=trainer.at.elapsed_s)
    else:
        rng, trained = np.random.default_rng(SEED), photos[: len(data.train)]
        trainer.start(initial_gaussians(scene, preset.max_gaussians, rng, trained, preset.schedule.gap_share))
    result = trainer.run()
    try:
        write_results(job, engine, options, preset, scene, data, exposure_spread, result)
    except StopRequested:
        trainer.save()  # the next attempt has only the measuring left to do
        raise


def paid_seconds(options: TrainOptions) -> float:
    """How long the training loop may be for its money, which only ever shortens it; inf when that is not limited."""
    if not options.max_training_usd or not options.price_usd_per_hour:
        return math.inf
    return max(1.0, options.max_training_usd / options.price_usd_per_hour * 3600 - AROUND_TRAINING_S)


def open_scene(job: Job) -> Scene:
    folder = job.input("sfm")
    try:
        return read_scene(folder)
    except (FileNotFoundError, ValueError) as error:
        raise StageError("BAD_SFM_OUTPUT", f"The output of SfM cannot be used: {error}.") from error


def write_results(
    job: Job,
    engine: Engine,
    options: TrainOptions,
    preset: Preset,
    scene: Scene,
    data: Dataset,
    exposure_spread: float,
    result: Result,
) -> None:
    """scene.ply, previews/ and metrics.json, in this order. Raises StopRequested before the last when it comes."""
    measuring = "Measuring quality"
    job.progress(0, 1, "sets", measuring)
    write_ply(job.output / "scene.ply", result.gaussians)
    degree = preset.sh_degree
    shown = score(engine, data.test or data.validation, degree, job.output / "previews", job.check_stop)
    scores = shown if data.test else result.validation
    view = data.train[0].view
    small = [photo.shrunk(LOOK_LEVEL) for photo in spread(data.train, LOOK_MOST)]
    stragglers = find_stragglers(engine, scene, data.test or data.validation, shown, degree, job.check_stop)
    small_scores = score(engine, small, degree, check_stop=job.check_stop)
    stragglers += find_stragglers(engine, scene, small, small_scores, degree, job.check_stop)
    out_of_money = result.stop_reason == "time_budget" and preset.budget_s == paid_seconds(options)
    metrics = {
        "seconds": round(time.time() - job.started_at, 2),
        "training_seconds": round(result.seconds, 2),
        "iterations": result.iterations,
        "stop_reason": "cost_limit" if out_of_money else result.stop_reason,
        "saved_seconds": round(result.saved_s, 2),
        "rollbacks": result.rollbacks,
        "device": engine.device,
        "engine": engine.name,
        "preset": options.preset,
        "gaussians": len(result.gaussians),
        "sh_degree": result.gaussians.sh_degree,
        "image_width": view.width,
        "image_height": view.height,
        "psnr": float(np.mean([s["psnr"] for s in scores])),
        "psnr_median": float(np.median([s["psnr"] for s in scores])),
        "ssim": float(np.mean([s["ssim"] for s in scores])),
        "psnr_fitted": float(np.mean([s["psnr_fitted"] for s in scores])),
        "train_psnr": mean_psnr(engine, spread(data.train, TRAIN_PSNR_PHOTOS), degree),
        "heldout": scores,
        "heldout_are": "test" if data.test else "validation",
        "stragglers": stragglers,
        "exposure": {"spread": round(exposure_spread, 4), "compensated": is_compensated(data)},
        "curve": result.curve,
        "versions": engine.versions(),
    }
    job.check_stop()
    write_json_atomically(job.output / "metrics.json", metrics)
    job.progress(1, 1, "sets", measuring)
    job.log("trained", **{k: metrics[k] for k in ("psnr", "psnr_median", "ssim", "gaussians", "iterations", "seconds")})


def selfcheck() -> None:
    """A few steps on a made-up photo: every kernel is compiled and runs, and the loss falls."""
    device.check_installation()
    rng = np.random.default_rng(SEED)
    view = View("check", 48, 32, np.array([[50.0, 0, 24], [0, 50, 16], [0, 0, 1]]), np.eye(4))
    photo = Photo(view, np.full((32, 48, 3), 200, np.uint8))
    engine = open_engine([photo], 64, 1, SEED, gpu_available())
    means = rng.uniform([-1, -1, 2], [1, 1, 4], (64, 3))
    quats = np.tile(np.array([1, 0, 0, 0], np.float32), (64, 1))
    scales, logits, sh = np.full((64, 3), -1.5), np.zeros(64, np.float32), np.zeros((64, 1, 3), np.float32)
    engine.load(Gaussians(means.astype(np.float32), scales.astype(np.float32), quats, logits, sh))
    losses = []
    for _ in range(10):
        engine.step([0], 1, 1, Schedule().rates(0.1, 1.0))
        losses.append(engine.mean_loss())
    if not losses[-1] < losses[0]:
        raise SystemExit(f"training does not work on this machine: the loss went from {losses[0]} to {losses[-1]}")
