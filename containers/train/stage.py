"""``python -m train``: the training stage. Reads the channel ``sfm``, writes scene.ply, metrics.json and previews/."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from job import Job, StageError, StopRequested
from job.documents import CurvePoint, ExposureSummary, HeldoutRow, Metrics, StragglerRow, write_document
from job.options import TrainOptions
from splat.cameras import Scene, View, read_scene
from splat.model import Gaussians, write_ply
from splat.spread import spread
from splat.threads import available_cores
from train import checkpoint, memory, presets
from train.dataset import Dataset, initial_gaussians, load_dataset, trainable
from train.engine import Engine, Setup, TrainingPhoto
from train.engines import gpu_available, open_engine
from train.evaluate import Score, mean_psnr, score
from train.exposure import compensated, is_compensated, measure
from train.gpu import device
from train.memory import MemoryPlan
from train.presets import TrainingPreset
from train.schedule import Schedule
from train.stragglers import Straggler, find_stragglers
from train.trainer import Trainer, TrainingResult

SEED = 1
OUTPUTS = ("scene.ply", "metrics.json")
TRAIN_PSNR_PHOTOS = 8
LOOK_LEVEL, LOOK_MOST = 4, 200  # training photos that are searched for stragglers, shrunk
Background = tuple[float, float, float]  # red, green, blue in 0..1
BLACK: Background = (0.0, 0.0, 0.0)
WHITE: Background = (1.0, 1.0, 1.0)
NEAR_WHITE, MARGIN_SHARE = 240, 0.75
AROUND_TRAINING_S = 60.0  # loading before and measuring after it, which are paid too


def run(job: Job) -> None:
    """Train a model of the scene that SfM has left, and measure it.

    Where a device has not enough memory for it the training goes on with less, from its last checkpoint.
    """
    options = TrainOptions.model_validate(job.options)
    choice = device.choose()
    gpus = device.count(options.max_gpus) if choice.gpu else 0
    job.log("engine", engine="gpu" if choice.gpu else "cpu", reason=choice.reason, gpus=gpus)
    preset = presets.choose(options, choice.gpu)
    preset = replace(preset, budget_s=min(preset.budget_s, paid_seconds(options)))
    job.progress(0, 1, "sets", "Loading photos")
    training = Training(job, options, preset, open_scene(job), gpus)
    memory.retried_when_full(training.attempt, training.first_plan(), training.smaller_plan)


@dataclass(frozen=True)
class Training:
    """What was asked for; each attempt at it may have less memory than the one before."""

    job: Job
    options: TrainOptions
    preset: TrainingPreset
    scene: Scene
    gpus: int  # 0: on the CPU

    @property
    def wanted(self) -> MemoryPlan:
        return MemoryPlan(self.preset.max_gaussians, self.preset.long_side)

    @property
    def sizes(self) -> list[memory.Size]:
        """Of the photos as they are."""
        return [(view.width, view.height) for view in self.scene.views]

    def first_plan(self) -> MemoryPlan:
        """What fits now, but no more than an interrupted training had."""
        plan = checkpoint.carried_over(self.job.checkpoints, self.wanted)
        if self.gpus:
            free = device.free_memory(self.gpus)
            plan = memory.fitting(plan, self.sizes, self.preset.sh_degree, free, self.gpus)
        self.job.log("memory", wanted=asdict(self.wanted), planned=asdict(plan))
        return plan

    def smaller_plan(self, plan: MemoryPlan, reason: str) -> MemoryPlan:
        """After a device was full. Raises StageError OUT_OF_GPU_MEMORY."""
        host_bytes, gpus = memory.free_host_bytes(), max(self.gpus, 1)
        plan = memory.smaller(plan, self.sizes, self.preset.sh_degree, host_bytes, reason, gpus)
        self.job.log("out of memory", reason=reason, planned=asdict(plan))
        return plan

    def attempt(self, plan: MemoryPlan) -> None:
        """From the photos to the results. Raises OutOfDeviceMemory."""
        job, scene = self.job, self.scene
        preset = replace(self.preset, max_gaussians=plan.max_gaussians, long_side=plan.long_side)
        data, exposure_spread = self._load(preset)
        photos = [compensated(photo) for photo in trainable(data)]
        background = choose_background(self.options.background, trainable(data))
        job.log("background", asked=self.options.background, rgb=background)
        sizes = preset.max_gaussians, preset.sh_degree
        engine = open_engine(Setup(photos, *sizes, SEED, self.gpus, plan.pinned_photos, background))
        job.log(
            "loaded", photos=len(scene.views), points=len(scene.points_xyz), device=engine.device, engine=engine.name
        )
        job.log("exposure", spread=exposure_spread, compensated=is_compensated(data))
        trainer = Trainer(job, engine, preset, data, available_cores())
        if plan != self.wanted:
            checkpoint.carry_over(job.checkpoints, plan, trainer.fingerprint())
        if trainer.resume():
            job.log("resumed", iteration=trainer.at.iteration, elapsed_s=trainer.at.elapsed_s)
        else:
            rng, trained = np.random.default_rng(SEED), photos[: len(data.train)]
            trainer.start(initial_gaussians(scene, preset.max_gaussians, rng, trained, preset.schedule.gap_share))
        result = trainer.run()
        try:
            write_results(job, self.options, Trained(engine, preset, scene, data, exposure_spread, result))
        except StopRequested:
            trainer.save()  # the next attempt has only the measuring left to do
            raise

    def _load(self, preset: TrainingPreset) -> tuple[Dataset, float]:
        """The photos with their gains, and how far the gains spread."""
        test_photos, check_stop = bool(self.options.test_photos), self.job.check_stop
        data = load_dataset(
            self.scene, preset.long_side, preset.stop_on_plateau or not test_photos, test_photos, check_stop
        )
        if self.options.exposure == "off":
            return data, 0.0
        data, exposure_spread = measure(self.scene, data)
        check_stop()
        return data, exposure_spread


def choose_background(asked: str | None, photos: Sequence[TrainingPhoto]) -> Background:
    """The colour behind the Gaussians, black unless it is asked for.

    ``auto``: white where most photos have a white margin, as shots of products do, else black.
    A photo has one when three quarters of the pixels at its edges are near white in each channel: a bright sky is at
    one edge and halfway down two more, and so is not enough. ``photos`` are as they were taken, at any exposure.
    """
    if asked != "auto":
        return WHITE if asked == "white" else BLACK
    white = [white_margin(photo.pixels) >= MARGIN_SHARE for photo in photos]
    return WHITE if 2 * sum(white) > len(white) else BLACK


def white_margin(pixels: NDArray[np.uint8]) -> float:
    """The share of the pixels [H, W, 3] at the four edges that are near white."""
    edges = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    return float((edges.min(axis=1) >= NEAR_WHITE).mean())


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


@dataclass(frozen=True, eq=False)
class Trained:
    """A training at its end, with what measuring it needs."""

    engine: Engine
    preset: TrainingPreset
    scene: Scene
    data: Dataset
    exposure_spread: float
    result: TrainingResult


def write_results(job: Job, options: TrainOptions, trained: Trained) -> None:
    """scene.ply, previews/ and metrics.json, in this order. Raises StopRequested before the last when it comes."""
    measuring = "Measuring quality"
    job.progress(0, 1, "sets", measuring)
    write_ply(job.output / "scene.ply", trained.result.gaussians)
    metrics = measure_quality(job, options, trained)
    job.check_stop()
    write_document(job.output / "metrics.json", metrics)
    job.progress(1, 1, "sets", measuring)
    logged = {"psnr", "psnr_median", "ssim", "gaussians", "iterations", "seconds"}
    job.log("trained", **metrics.model_dump(include=logged))


def measure_quality(job: Job, options: TrainOptions, trained: Trained) -> Metrics:
    """Writes previews/ too. Raises StopRequested between two photos."""
    engine, data, result, degree = trained.engine, trained.data, trained.result, trained.preset.sh_degree
    shown = score(engine, data.test or data.validation, degree, job.output / "previews", job.check_stop)
    scores = shown if data.test else result.validation
    stragglers = all_stragglers(job, trained, shown)
    out_of_money = result.stop_reason == "time_budget" and trained.preset.budget_s == paid_seconds(options)
    view = data.train[0].view
    return Metrics(
        seconds=round(time.time() - job.started_at, 2),
        training_seconds=round(result.seconds, 2),
        iterations=result.iterations,
        stop_reason="cost_limit" if out_of_money else result.stop_reason,
        saved_seconds=round(result.saved_s, 2),
        rollbacks=result.rollbacks,
        device=engine.device,
        engine=engine.name,
        preset=options.preset,
        gaussians=len(result.gaussians),
        sh_degree=result.gaussians.sh_degree,
        background_rgb=list(engine.setup.background),
        image_width=view.width,
        image_height=view.height,
        psnr=float(np.mean([s["psnr"] for s in scores])),
        psnr_median=float(np.median([s["psnr"] for s in scores])),
        ssim=float(np.mean([s["ssim"] for s in scores])),
        psnr_fitted=float(np.mean([s["psnr_fitted"] for s in scores])),
        train_psnr=mean_psnr(engine, spread(data.train, TRAIN_PSNR_PHOTOS), degree),
        heldout=[HeldoutRow(**s) for s in scores],
        heldout_are="test" if data.test else "validation",
        stragglers=[StragglerRow(**straggler) for straggler in stragglers],
        exposure=ExposureSummary(spread=round(trained.exposure_spread, 4), compensated=is_compensated(data)),
        curve=[CurvePoint.model_validate(point) for point in result.curve],
        versions=engine.versions(),
    )


def all_stragglers(job: Job, trained: Trained, shown: list[Score]) -> list[Straggler]:
    """Among the held-out photos, whose scores are ``shown``, and then among the photos of the training, shrunk."""
    engine, scene, data, degree = trained.engine, trained.scene, trained.data, trained.preset.sh_degree
    heldout = find_stragglers(engine, scene, data.test or data.validation, shown, degree, job.check_stop)
    small = [photo.shrunk(LOOK_LEVEL) for photo in spread(data.train, LOOK_MOST)]
    small_scores = score(engine, small, degree, check_stop=job.check_stop)
    return heldout + find_stragglers(engine, scene, small, small_scores, degree, job.check_stop)


def selfcheck() -> None:
    """A few steps on a made-up photo: every kernel is compiled and runs, and the loss falls."""
    device.check_installation()
    rng = np.random.default_rng(SEED)
    view = View("check", 48, 32, np.array([[50.0, 0, 24], [0, 50, 16], [0, 0, 1]]), np.eye(4))
    photo = TrainingPhoto(view, np.full((32, 48, 3), 200, np.uint8))
    engine = open_engine(Setup([photo], 64, 1, SEED, gpus=int(gpu_available())))
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
