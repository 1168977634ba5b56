"""Held-out quality of CPU training after a given time, its speed, and what each trick is worth.

    python -m benchmarks training_cpu SFM_FOLDER [--only 400x30 400x60 …] [--seeds 1 2 3]
    python -m benchmarks training_cpu SFM_FOLDER SFM_FOLDER … --ablation [--draft] [--only plain …]

The first form: each row is a training of its own, whose schedule is made for its budget; the budget is the time of the
training loop (loading and the final evaluation come on top). Held out: every 8th photo by name, which nothing but the
figures sees. Each row is trained without and with compensation of exposure (see docs/training.md), once for each seed:
figures are means over the seeds, with the PSNR of each beside. PSNR is given as it is, and after a fit of gain and
offset per channel to each held-out photo. Nothing else should run beside it.
``SPACEPORT_TRAIN_CLOCK=cpu`` counts processor time over the number of cores instead of wall time, for a machine that
has other work; the result says so. Results: benchmarks/results/training-cpu.json.

The second form: one training per trick and scene, all of the same number of steps, so that the result does not depend
on other work on the machine; processor seconds are given beside it. Measured on every 7th of the photos that are no
test photos. Results: benchmarks/results/training-cpu-ablation.json; with --draft, at the size of the preset draft and
with as many steps as it takes in its time, training-cpu-ablation-draft.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recording import read_result, write_result
from benchmarks.trainings import ON_CPU, ablate, figures_of, full_steps, train
from splat.cameras import Scene, read_scene
from splat.threads import available_cores
from train import presets
from train.dataset import Dataset, load_dataset
from train.evaluate import score
from train.exposure import measure
from train.presets import TrainingPreset
from train.stopping import CLOCK_VARIABLE, Stopwatch
from train.trainer import Trainer

SPEED_STEPS = 60


@dataclass(frozen=True)
class TimedTraining:
    preset: str
    budget_s: float
    max_gaussians: int
    speed: str | None = None  # name of the figure: steps per second at full resolution, of the model at the end


ROWS = {
    "400x30": TimedTraining("draft", 30.0, 20_000, "its_per_s_20k"),
    "400x60": TimedTraining("draft", 60.0, 30_000),
    "400x120": TimedTraining("draft", 120.0, 30_000, "its_per_s_30k"),
    "640x120": TimedTraining("standard", 120.0, 60_000, "its_per_s_60k"),
}

DRAFT = replace(presets.CPU["draft"], max_iterations=4_000, budget_s=float("inf"))
SMALL = replace(presets.CPU["draft"], long_side=256, max_gaussians=10_000, max_iterations=800, budget_s=float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sfm", type=Path, nargs="+", help="folder that SfM wrote; for the first form that of plush")
    parser.add_argument("--only", nargs="+", help="rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="one training each; not for ablation")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--draft", action="store_true", help="ablation at the size and length of the preset draft")
    arguments = parser.parse_args()
    names = list(ON_CPU if arguments.ablation else ROWS)
    wrong = [name for name in arguments.only or [] if name not in names]
    if wrong:
        parser.error(f"no such row: {', '.join(wrong)}; there are {', '.join(names)}")
    rows = arguments.only or names
    if arguments.ablation:
        ablation(arguments.sfm, rows, arguments.draft)
    else:
        quality(arguments.sfm[0], rows, arguments.seeds)


def quality(sfm: Path, names: list[str], seeds: list[int]) -> None:
    if os.getloadavg()[0] > 0.5 and clock_name() == "wall time":
        print(f"note: the load average is {os.getloadavg()[0]:.1f}; there will be too few steps in the time")
    scene = read_scene(sfm)
    figures = read_result("training-cpu").get("figures", {})
    for name in names:
        row = ROWS[name]
        preset = presets.CPU[row.preset]
        preset = presets.lengthened(preset, row.budget_s / preset.budget_s)
        preset = replace(preset, budget_s=row.budget_s, max_gaussians=row.max_gaussians, stop_on_plateau=False)
        side, seconds = preset.long_side, round(row.budget_s)
        data = load_dataset(scene, side, with_validation=False)
        found, trainer, iterations = trainings(scene, data, preset, seeds)
        figures |= named(f"plush{side}", f"{seconds}s", found | {"iterations": iterations})
        if row.speed:
            figures[row.speed] = round(steps_per_second(trainer), 2)
        data, spread = measure(scene, data)
        found, _, _ = trainings(scene, data, preset, seeds)
        figures |= named(f"plush{side}_compensated", f"{seconds}s", found)
        figures["plush_exposure_spread"] = round(spread, 4)
        print(name, json.dumps(figures), flush=True)
        write_result("training-cpu", figures, "python -m benchmarks training_cpu SFM_FOLDER", clock=clock_name())


def trainings(
    scene: Scene, data: Dataset, preset: TrainingPreset, seeds: list[int]
) -> tuple[dict[str, Any], Trainer, list[int]]:
    """Figures on the test photos, means over one training for each seed; the last trainer; iterations of each."""
    each, iterations = [], []
    for seed in seeds:
        trainer, result = train(scene, data, preset, seed, gpu=False)
        each.append(figures_of("", "", score(trainer.engine, data.test, preset.sh_degree)))
        iterations.append(result.iterations)
    means = {figure: round(float(np.mean([one[figure] for one in each])), 4) for figure in each[0]}
    return means | {"psnr_of_seeds": [one["psnr"] for one in each]}, trainer, iterations


def named(prefix: str, suffix: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{figure}_{suffix}": value for figure, value in figures.items()}


def ablation(folders: list[Path], names: list[str], at_draft: bool) -> None:
    result, preset, flag = "training-cpu-ablation", SMALL, ""
    if at_draft:
        result, preset, flag = f"{result}-draft", DRAFT, " --draft"
    table = read_result(result).get("figures", {})
    scenes = {folder.absolute().name.removesuffix("-sfm"): read_scene(folder) for folder in folders}
    photos = {name: load_dataset(scene, preset.long_side, with_validation=False) for name, scene in scenes.items()}
    for name in names:
        for scene_name, scene in scenes.items():
            table.setdefault(scene_name, {})[name] = ablate(scene, photos[scene_name], name, preset, gpu=False)
            print(scene_name, name, json.dumps(table[scene_name][name]), flush=True)
            write_result(result, table, f"python -m benchmarks training_cpu SFM_FOLDER SFM_FOLDER --ablation{flag}")


def steps_per_second(trainer: Trainer) -> float:
    rates = trainer.preset.schedule.rates(1.0, trainer.extent)
    stopwatch = Stopwatch(0.0, available_cores())
    full_steps(trainer, SPEED_STEPS, rates)
    return SPEED_STEPS / max(stopwatch.elapsed_s(), time.get_clock_info("process_time").resolution)


def clock_name() -> str:
    return "processor time / cores" if os.environ.get(CLOCK_VARIABLE) == "cpu" else "wall time"


if __name__ == "__main__":
    main()
