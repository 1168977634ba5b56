"""Held-out quality of CPU training after a given time, and its speed.

    python benchmarks/training_cpu.py SFM_FOLDER [--only 400x30 400x60 …]

Each row is a training of its own, whose schedule is made for its budget; the budget is the time of the training loop
(loading and the final evaluation come on top). Held out: every 8th photo by name. ``SPACEPORT_TRAIN_CLOCK=cpu`` counts
processor time over the number of cores instead of wall time, for a machine that has other work; the report says so.
Results: benchmarks/results/training-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "containers")]

from job import Job, JobKind  # noqa: E402
from splat.cameras import read_scene  # noqa: E402
from splat.threads import available_cores  # noqa: E402
from train import presets  # noqa: E402
from train.dataset import initial_gaussians, load_dataset  # noqa: E402
from train.engine import open_engine  # noqa: E402
from train.engine_cpu import cpu_model  # noqa: E402
from train.evaluate import mean_psnr  # noqa: E402
from train.stopping import CLOCK_VARIABLE, Clock  # noqa: E402
from train.trainer import Trainer  # noqa: E402

RESULT = ROOT / "benchmarks/results/training-cpu.json"
# figure -> (preset, budget in seconds, cap of Gaussians or None for the preset's, figure of speed at the end or None)
RUNS = {
    "400x30": ("plush400_psnr_30s", "draft", 30.0, 20_000, "its_per_s_20k"),
    "400x60": ("plush400_psnr_60s", "draft", 60.0, None, None),
    "400x120": ("plush400_psnr_120s", "draft", 120.0, None, None),
    "640x120": ("plush640_psnr_120s", "standard", 120.0, 60_000, "its_per_s_60k"),
}
SPEED_STEPS = 60
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sfm", type=Path, help="folder that SfM wrote for the plush photos")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    arguments = parser.parse_args()
    figures = json.loads(RESULT.read_text())["figures"] if RESULT.is_file() else {}
    for name in arguments.only:
        figures |= train(arguments.sfm, *RUNS[name])
        print(name, figures, flush=True)
    clock = "processor time / cores" if os.environ.get(CLOCK_VARIABLE) == "cpu" else "wall time"
    report = {
        "name": "training-cpu",
        "date": date.today().isoformat(),
        "machine": cpu_model(),
        "clock": clock,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("numba", "numpy", "pycolmap")}},
        "command": "python benchmarks/training_cpu.py SFM_FOLDER",
        "figures": figures,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def train(
    sfm: Path, figure: str, preset_name: str, budget_s: float, cap: int | None, speed_figure: str | None
) -> dict[str, float]:
    """One training; its held-out PSNR in dB, and when asked for the steps per second at full resolution at its end."""
    preset = presets.CPU[preset_name]
    preset = replace(preset, budget_s=budget_s, max_gaussians=cap or preset.max_gaussians, stop_on_plateau=False)
    scene = read_scene(sfm)
    data = load_dataset(scene, preset.long_side, False)
    engine = open_engine(data.train, preset.max_gaussians, preset.sh_degree, SEED, gpu=False)
    with tempfile.TemporaryDirectory() as folder:
        job = Job.open("train", JobKind.TRAINING, Path(folder))
        trainer = Trainer(job, engine, preset, data, available_cores(), SEED)
        trainer.start(initial_gaussians(scene, preset.max_gaussians, np.random.default_rng(SEED)))
        trainer.run()
    result = {figure: round(mean_psnr(engine, data.test, preset.sh_degree), 3)}
    if speed_figure:
        result[speed_figure] = round(steps_per_second(trainer, len(data.train)), 2)
    return result


def steps_per_second(trainer: Trainer, photos: int) -> float:
    rates = trainer.preset.schedule.rates(1.0, trainer.extent)
    clock = Clock(0.0, available_cores())
    for i in range(SPEED_STEPS):
        trainer.engine.step(i % photos, 1, trainer.preset.sh_degree, rates)
    return SPEED_STEPS / max(clock.elapsed_s(), time.get_clock_info("process_time").resolution)


if __name__ == "__main__":
    main()
