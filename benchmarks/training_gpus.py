"""Time of a step on 1 to N GPUs of one machine, on the same photos and Gaussians.

    python -m benchmarks training_gpus SFM_FOLDER [--gpus N] [--gaussians 300000] [--long-side 1600]

The model begins with the sparse points and grows to so many Gaussians at once. A step has one photo a GPU, at full
resolution: what several GPUs save is time by photo. Prints a JSON line for each number of GPUs.
Results: benchmarks/results/training-gpus.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recording import RESULTS, write_result
from splat.cameras import read_scene
from splat.model import Gaussians
from train import presets
from train.dataset import initial_gaussians, load_dataset, scene_extent
from train.engine import Engine, Setup
from train.engines import gpu_available, open_engine
from train.gpu import device
from train.relocation import refine

SEED, SH_DEGREE, PROGRESS = 1, 3, 0.5
WARM_STEPS, STEPS = 40, 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sfm", type=Path, help="folder that SfM wrote")
    parser.add_argument("--gpus", type=int, help="all when it is missing")
    parser.add_argument("--gaussians", type=int, default=300_000)
    parser.add_argument("--long-side", type=int, default=1600)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not gpu_available():
        sys.exit("error: no CUDA device, or no torch and gsplat: install spaceport[gpu] on a machine with GPUs")
    scene = read_scene(arguments.sfm)
    photos = load_dataset(scene, arguments.long_side, with_validation=False).train
    start = initial_gaussians(scene, arguments.gaussians, np.random.default_rng(SEED))
    extent = scene_extent([photo.view for photo in photos])
    runs: list[dict[str, Any]] = []
    for gpus in range(1, device.count(arguments.gpus) + 1):
        engine = open_engine(Setup(photos, arguments.gaussians, SH_DEGREE, SEED, gpus))
        runs.append({"gpus": gpus, "device": engine.device} | measured(engine, start, len(photos), extent))
        print(json.dumps(runs[-1]), flush=True)
        versions = {name: version for name, version in engine.versions().items() if name in ("torch", "cuda", "gsplat")}
        del engine
    size = f"--gaussians {arguments.gaussians} --long-side {arguments.long_side}"
    command = f"python -m benchmarks training_gpus SFM_FOLDER {size}"
    figures = {f"ms_per_photo_{run['gpus']}_gpus": run["ms_per_photo"] for run in runs}
    figures["times_faster"] = round(runs[0]["ms_per_photo"] / runs[-1]["ms_per_photo"], 2)
    machine, details = runs[-1]["device"], {"runs": runs}
    write_result("training-gpus", figures, command, folder=arguments.out, machine=machine, details=details, **versions)


def measured(engine: Engine, start: Gaussians, photos: int, extent: float) -> dict[str, Any]:
    """Milliseconds of a step and of a photo, and the mean loss meanwhile."""
    engine.load(start)
    rng, rates = np.random.default_rng(SEED), presets.GPU["high"].schedule.rates(PROGRESS, extent)
    while engine.count() < engine.setup.max_gaussians:
        refine(engine, rng, growth=1.0)

    def steps(count: int) -> float:
        """Takes them, waits for the device, and returns the mean loss."""
        for i in range(count):
            engine.step([(i * engine.views + k) % photos for k in range(engine.views)], 1, SH_DEGREE, rates)
        return engine.mean_loss()

    steps(WARM_STEPS)
    began = time.perf_counter()
    loss = steps(STEPS)
    step_ms = (time.perf_counter() - began) / STEPS * 1e3
    return {
        "gaussians": engine.count(),
        "ms_per_step": round(step_ms, 3),
        "ms_per_photo": round(step_ms / engine.views, 3),
        "loss": round(loss, 4),
    }


if __name__ == "__main__":
    main()
