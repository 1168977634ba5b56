"""What the benchmarks of training share: one training, its figures, and what the ablation changes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from job import Job, JobKind
from splat.cameras import Scene
from splat.threads import available_cores
from train.dataset import Dataset, initial_gaussians
from train.engine import Rates, Setup
from train.engines import open_engine
from train.evaluate import Score, score
from train.exposure import compensated, measure
from train.presets import TrainingPreset
from train.trainer import Trainer, TrainingResult, trainable

SEED = 1
HIDDEN_EVERY, HIDDEN_FROM = 7, 3  # photos that the ablation measures on: of those that are no test photos


def scheduled(**changes: Any) -> Callable[[TrainingPreset], TrainingPreset]:
    return lambda preset: replace(preset, schedule=replace(preset.schedule, **changes))


def capped(factor: float) -> Callable[[TrainingPreset], TrainingPreset]:
    return lambda preset: replace(preset, max_gaussians=round(factor * preset.max_gaussians))


def same(preset: TrainingPreset) -> TrainingPreset:
    return preset


# What a row of the ablation changes, against the preset. "plain" and "seed 2" show how much is chance; "exposure as it
# is" leaves out the compensation that all the others have.
UNCHANGED = ("plain", "seed 2", "exposure as it is")
ABLATION: dict[str, Callable[[TrainingPreset], TrainingPreset]] = {
    **dict.fromkeys(UNCHANGED, same),
    "split by opacity alone": scheduled(error_photos=0),
    "split by the error of 4 photos": scheduled(error_photos=4),
    "sparse points only": scheduled(gap_share=0.0),
    "points in gaps": scheduled(gap_share=0.15),
    "split by the error of 4 photos, points in gaps": scheduled(error_photos=4, gap_share=0.15),
    "twice as many points in gaps": scheduled(gap_share=0.3),
    "full resolution from the start": scheduled(half_from=0.0, full_from=0.0),
    "full resolution from the start, half the steps": lambda preset: replace(
        scheduled(half_from=0.0, full_from=0.0)(preset), max_iterations=preset.max_iterations // 2
    ),
    "full resolution sooner": scheduled(half_from=0.06, full_from=0.25),
    "all Gaussians from the start": scheduled(growth=100.0),
    "no noise": scheduled(noise=0.0),
    "no pull on opacity": scheduled(opacity_reg=0.0),
    "no pull on scale": scheduled(scale_reg=0.0),
    "all SH bands from the start": scheduled(sh_step=0.0),
    "SH bands one after the other": scheduled(sh_step=0.08),
    "no SH bands": lambda preset: replace(preset, sh_degree=0),
    "lower rates": scheduled(rate=1.5),
    "higher rates": scheduled(rate=2.5),
    "half the cap": capped(0.5),
    "twice the cap": capped(2.0),
}
# The presets of the GPU begin without scores and points in gaps, with all SH bands and with the lower rates; those of
# the CPU the other way round.
CHANGES_CPU = ("split by opacity alone", "sparse points only", "all SH bands from the start", "lower rates")
CHANGES_GPU = (
    "SH bands one after the other",
    "split by the error of 4 photos",
    "points in gaps",
    "split by the error of 4 photos, points in gaps",
    "higher rates",
    "half the cap",
    "twice the cap",
)
ON_CPU = tuple(name for name in ABLATION if name not in CHANGES_GPU)
ON_GPU = tuple(name for name in ABLATION if name not in CHANGES_CPU)


def train(scene: Scene, data: Dataset, preset: TrainingPreset, seed: int, gpu: bool) -> tuple[Trainer, TrainingResult]:
    """One training from the sparse points, as the stage does it."""
    photos = [compensated(photo) for photo in trainable(data)]
    engine = open_engine(Setup(photos, preset.max_gaussians, preset.sh_degree, seed, gpus=int(gpu)))
    with tempfile.TemporaryDirectory() as folder:
        job = Job.open("train", JobKind.TRAINING, Path(folder))
        trainer = Trainer(job, engine, preset, data, available_cores())
        rng, trained = np.random.default_rng(seed), photos[: len(data.train)]
        trainer.start(initial_gaussians(scene, preset.max_gaussians, rng, trained, preset.schedule.gap_share))
        return trainer, trainer.run()


def ablate(scene: Scene, photos: Dataset, name: str, preset: TrainingPreset, gpu: bool) -> dict[str, Any]:
    """One row of the table: the figures on photos that are neither trained nor test photos."""
    hidden = photos.train[HIDDEN_FROM::HIDDEN_EVERY]
    seen = [photo for i, photo in enumerate(photos.train) if i % HIDDEN_EVERY != HIDDEN_FROM]
    data, preset = Dataset(seen, [], hidden), ABLATION[name](preset)
    if name != "exposure as it is":
        data, _ = measure(scene, data)
    began = time.process_time()
    # Without test photos: a curve takes a fifth of the time on a GPU.
    trainer, result = train(scene, Dataset(data.train, [], []), preset, 2 if name == "seed 2" else SEED, gpu)
    cpu_s = time.process_time() - began
    return figures_of("", "", score(trainer.engine, data.test, preset.sh_degree)) | {
        "gaussians": len(result.gaussians),
        "iterations": result.iterations,
        "seconds": round(result.seconds, 2),
        "cpu_s": round(cpu_s, 1),
    }


def full_steps(trainer: Trainer, count: int, rates: Rates) -> None:
    """``count`` steps at full resolution, through all photos; the device may still be at it."""
    engine, photos = trainer.engine, len(trainer.data.train)
    for i in range(count):
        numbers = [(i * engine.views + k) % photos for k in range(engine.views)]
        engine.step(numbers, 1, trainer.preset.sh_degree, rates)


def figures_of(prefix: str, suffix: str, scores: list[Score]) -> dict[str, Any]:
    """Mean and median PSNR in dB, mean SSIM, and mean PSNR after the exposure fit."""

    def name(figure: str) -> str:
        return "_".join(part for part in (prefix, figure, suffix) if part)

    psnr = [photo["psnr"] for photo in scores]
    return {
        name("psnr"): round(float(np.mean(psnr)), 3),
        name("psnr_median"): round(float(np.median(psnr)), 3),
        name("psnr_fitted"): round(float(np.mean([photo["psnr_fitted"] for photo in scores])), 3),
        name("ssim"): round(float(np.mean([photo["ssim"] for photo in scores])), 4),
    }
