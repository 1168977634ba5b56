"""Held-out quality and speed of GPU training.

    python benchmarks/training_gpu.py SFM_FOLDER

Quality: three trainings of the same photos at 1200 pixels (seeds 1, 2, 3); the figures are those of the run with the
median PSNR. Seconds are those of the training loop: loading and evaluation come on top. Held out: every 8th photo by
name. Speed: steps at full resolution of a model that was trained to 300,000 Gaussians with SH of degree 3, and where
the device spends them. Results: benchmarks/results/training-h100.json; the one of 2026-11-23 names no commit, it was
recorded with 8d00c80.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "containers")]

from job import Job, JobKind  # noqa: E402
from splat.cameras import Scene, read_scene  # noqa: E402
from train import presets  # noqa: E402
from train.dataset import Dataset, initial_gaussians, load_dataset  # noqa: E402
from train.engine import gpu_available, open_engine  # noqa: E402
from train.evaluate import score  # noqa: E402
from train.presets import Preset  # noqa: E402
from train.trainer import Result, Trainer  # noqa: E402

RESULT = ROOT / "benchmarks/results/training-h100.json"
LONG_SIDE = 1200
QUALITY = replace(presets.GPU["draft"], long_side=LONG_SIDE, max_iterations=8_000, budget_s=20.0)
SPEED = replace(presets.GPU["draft"], long_side=LONG_SIDE, max_gaussians=300_000, sh_degree=3, max_iterations=4_000)
SPEED_STEPS, PROFILED_STEPS = 420, 42
SEEDS = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sfm", type=Path, help="folder that SfM wrote for the plush photos")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if not gpu_available():
        sys.exit("error: no CUDA device, or no torch and gsplat: install spaceport[gpu] on a machine with a GPU")
    scene = read_scene(arguments.sfm)
    data = load_dataset(scene, LONG_SIDE, with_validation=False)
    train(scene, data, replace(QUALITY, max_iterations=60), 1)  # compiles every kernel
    runs = [measure_quality(scene, data, seed) for seed in SEEDS]
    median = sorted(runs, key=lambda run: run["psnr"])[len(runs) // 2]
    speed, trainer = measure_speed(scene, data)
    report = {
        "name": "training-h100",
        "date": date.today().isoformat(),
        "machine": trainer.engine.device,
        "versions": trainer.engine.versions(),
        "commit": commit(),
        "command": "python benchmarks/training_gpu.py SFM_FOLDER",
        "figures": {
            "plush_psnr": median["psnr"],
            "plush_train_s": median["seconds"],
            "plush_gaussians": median["gaussians"],
            "ms_per_iteration_300k": speed["ms_per_iteration"],
        },
        "runs": runs,
        "speed": speed,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def commit() -> str:
    """Of the code that is measured; "+" after it: with changes."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def train(scene: Scene, data: Dataset, preset: Preset, seed: int) -> tuple[Trainer, Result]:
    """One training from the sparse points."""
    engine = open_engine(data.train, preset.max_gaussians, preset.sh_degree, seed, gpu=True)
    with tempfile.TemporaryDirectory() as folder:
        job = Job.open("train", JobKind.TRAINING, Path(folder))
        trainer = Trainer(job, engine, preset, data, 1, seed)
        trainer.start(initial_gaussians(scene, preset.max_gaussians, np.random.default_rng(seed)))
        return trainer, trainer.run()


def measure_quality(scene: Scene, data: Dataset, seed: int) -> dict[str, Any]:
    trainer, result = train(scene, data, QUALITY, seed)
    scores = score(trainer.engine, data.test, QUALITY.sh_degree)
    psnr = [s["psnr"] for s in scores]
    return {
        "seed": seed,
        "seconds": round(result.seconds, 2),
        "iterations": result.iterations,
        "gaussians": len(result.gaussians),
        "psnr": round(float(np.mean(psnr)), 3),
        "psnr_median": round(float(np.median(psnr)), 3),
        "psnr_lowest": round(min(psnr), 3),
        "ssim": round(float(np.mean([s["ssim"] for s in scores])), 4),
    }


def measure_speed(scene: Scene, data: Dataset) -> tuple[dict[str, Any], Trainer]:
    """Milliseconds of a step, and microseconds of each kernel in it."""
    trainer, result = train(scene, data, SPEED, 1)
    engine, rates = trainer.engine, SPEED.schedule.rates(0.5, trainer.extent)

    def steps(count: int) -> None:
        for i in range(count):
            engine.step(i % len(data.train), 1, SPEED.sh_degree, rates)
        torch.cuda.synchronize()

    steps(PROFILED_STEPS)
    started = time.perf_counter()
    steps(SPEED_STEPS)
    milliseconds = (time.perf_counter() - started) / SPEED_STEPS * 1e3
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        steps(PROFILED_STEPS)
    kernels = {event.key[:60]: event.self_device_time_total / PROFILED_STEPS for event in profiler.key_averages()}
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:16]
    return {
        "ms_per_iteration": round(milliseconds, 3),
        "gaussians": len(result.gaussians),
        "sh_degree": SPEED.sh_degree,
        "image": [data.train[0].view.width, data.train[0].view.height],
        "kernels_us": {name: round(microseconds, 1) for name, microseconds in longest},
        "all_kernels_us": round(sum(kernels.values()), 1),
    }, trainer


if __name__ == "__main__":
    main()
