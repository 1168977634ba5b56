"""The CPU training steps that iteration_cpu.py times, in a process whose PYTHONPATH names the version to be timed.

PYTHONPATH=.:containers python -m benchmarks.iteration_steps model SFM_FOLDER PLY GAUSSIANS
PYTHONPATH=.:containers python -m benchmarks.iteration_steps serve SFM_FOLDER   # answers questions on standard input
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from splat.cameras import read_scene
from splat.model import read_ply, write_ply
from splat.threads import Workers
from train.dataset import initial_gaussians, load_dataset, scene_extent
from train.engine import Setup
from train.engines import open_engine
from train.relocation import refine
from train.schedule import Schedule

MODEL_STEPS, MODEL_SIDE = 2_500, 400
SEED = 1
SH_DEGREE = 1


def make_model(sfm: Path, file: Path, count: int) -> None:
    """Write a model of ``count`` Gaussians that is trained far enough to look like the scene."""
    scene = read_scene(sfm)
    photos = load_dataset(scene, MODEL_SIDE, False).train
    rng = np.random.default_rng(SEED)
    engine = open_engine(Setup(photos, count, SH_DEGREE, SEED))
    engine.load(initial_gaussians(scene, count, rng))
    schedule, extent = Schedule(full_from=0.7), scene_extent([photo.view for photo in photos])
    for i in range(MODEL_STEPS):
        progress = i / MODEL_STEPS
        rates = schedule.rates(progress, extent)
        engine.step([i % len(photos)], schedule.level(progress), schedule.sh_degree(progress, SH_DEGREE), rates)
        if i % 40 == 39 and progress < schedule.refine_until:
            refine(engine, rng, schedule.growth)
    assert engine.count() == count, engine.count()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_ply(file, engine.gaussians())


def serve(sfm: Path) -> None:
    """Answer questions on standard input: first what to load, then where in the photos to take the next steps."""
    wanted = json.loads(sys.stdin.readline())
    photos = load_dataset(read_scene(sfm), wanted["side"], False).train
    engine = open_engine(Setup(photos, wanted["count"], SH_DEGREE, SEED))
    engine.load(read_ply(wanted["model"]))
    rates = Schedule().rates(0.5, scene_extent([photo.view for photo in photos]))
    for photo in range(3):  # warm-up
        engine.step([photo], 1, SH_DEGREE, rates)
    parts = instrument()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        first, steps = question["first"], question["steps"]
        parts.clear()
        wall, cpu = [], []
        for i in range(first, first + steps):
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            engine.step([i % len(photos)], 1, SH_DEGREE, rates)
            wall.append(1000 * (time.perf_counter() - wall_start))
            cpu.append(1000 * (time.process_time() - cpu_start))
        print(json.dumps({"wall_ms": wall, "cpu_ms": cpu, "parts": parts}), flush=True)


def instrument() -> dict[str, float]:
    """Sum processor milliseconds by kernel from now on; what is left of a step is Python and numpy."""
    parts: dict[str, float] = defaultdict(float)
    run = Workers.run

    def timed(self: Workers, kernel: Any, *arguments: Any, **options: Any) -> None:
        start = time.process_time()
        run(self, kernel, *arguments, **options)
        parts[kernel.__name__] += 1000 * (time.process_time() - start)

    Workers.run = timed  # type: ignore[method-assign]
    return parts


if __name__ == "__main__":
    if sys.argv[1] == "model":
        make_model(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        serve(Path(sys.argv[2]))
