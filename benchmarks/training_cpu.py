"""Held-out quality of CPU training after a given time, its speed, and what each trick is worth.

    python benchmarks/training_cpu.py SFM_FOLDER [--only 400x30 400x60 …]
    python benchmarks/training_cpu.py SFM_FOLDER SFM_FOLDER … --ablation [--only plain …]

The first form: each row is a training of its own, whose schedule is made for its budget; the budget is the time of the
training loop (loading and the final evaluation come on top). Held out: every 8th photo by name, which nothing but the
figures sees. Each row is trained without and with compensation of exposure (see docs/training.md); PSNR is given as it
is, and after a fit of gain and offset per channel to each held-out photo. Nothing else should run beside it.
``SPACEPORT_TRAIN_CLOCK=cpu`` counts processor time over the number of cores instead of wall time, for a machine that
has other work; the result says so. Results: benchmarks/results/training-cpu.json.

The second form: one training per trick and scene, all of the same number of steps, so that the result does not depend
on other work on the machine; processor seconds are given beside it. Measured on every 7th of the photos that are no
test photos. Results: benchmarks/results/training-cpu-ablation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "containers")]

from benchmarks.recording import read_result, write_result  # noqa: E402
from benchmarks.trainings import ON_CPU, SEED, ablate, figures_of, full_steps, train  # noqa: E402
from splat.cameras import read_scene  # noqa: E402
from splat.threads import available_cores  # noqa: E402
from train import presets  # noqa: E402
from train.dataset import load_dataset  # noqa: E402
from train.evaluate import score  # noqa: E402
from train.exposure import measure  # noqa: E402
from train.stopping import CLOCK_VARIABLE, Clock  # noqa: E402
from train.trainer import Trainer  # noqa: E402

SPEED_STEPS = 60


@dataclass(frozen=True)
class Row:
    preset: str
    budget_s: float
    max_gaussians: int
    speed: str | None = None  # name of the figure: steps per second at full resolution, of the model at the end


ROWS = {
    "400x30": Row("draft", 30.0, 20_000, "its_per_s_20k"),
    "400x60": Row("draft", 60.0, 30_000),
    "400x120": Row("draft", 120.0, 30_000, "its_per_s_30k"),
    "640x120": Row("standard", 120.0, 60_000, "its_per_s_60k"),
}

SMALL = replace(presets.CPU["draft"], long_side=256, max_gaussians=10_000, max_iterations=800, budget_s=float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sfm", type=Path, nargs="+", help="folder that SfM wrote; for the first form that of plush")
    parser.add_argument("--only", nargs="+", help="rows")
    parser.add_argument("--ablation", action="store_true")
    arguments = parser.parse_args()
    names = list(ON_CPU if arguments.ablation else ROWS)
    wrong = [name for name in arguments.only or [] if name not in names]
    if wrong:
        parser.error(f"no such row: {', '.join(wrong)}; there are {', '.join(names)}")
    rows = arguments.only or names
    if arguments.ablation:
        ablation(arguments.sfm, rows)
    else:
        quality(arguments.sfm[0], rows)


def quality(sfm: Path, names: list[str]) -> None:
    if os.getloadavg()[0] > 0.5 and clock_name() == "wall time":
        print(f"note: the load average is {os.getloadavg()[0]:.1f}; there will be too few steps in the time")
    scene = read_scene(sfm)
    figures = read_result("training-cpu").get("figures", {})
    for name in names:
        row = ROWS[name]
        preset = presets.CPU[row.preset]
        preset = replace(preset, budget_s=row.budget_s, max_gaussians=row.max_gaussians, stop_on_plateau=False)
        side, seconds = preset.long_side, round(row.budget_s)
        data = load_dataset(scene, side, with_validation=False)
        trainer, result = train(scene, data, preset, SEED, gpu=False)
        scores = score(trainer.engine, data.test, preset.sh_degree)
        figures |= figures_of(f"plush{side}", f"{seconds}s", scores)
        figures[f"plush{side}_iterations_{seconds}s"] = result.iterations
        if row.speed:
            figures[row.speed] = round(steps_per_second(trainer), 2)
        data, spread = measure(scene, data)
        trainer, _ = train(scene, data, preset, SEED, gpu=False)
        scores = score(trainer.engine, data.test, preset.sh_degree)
        figures |= figures_of(f"plush{side}_compensated", f"{seconds}s", scores)
        figures["plush_exposure_spread"] = round(spread, 4)
        print(name, json.dumps(figures), flush=True)
        write_result("training-cpu", figures, "python benchmarks/training_cpu.py SFM_FOLDER", clock=clock_name())


def ablation(folders: list[Path], names: list[str]) -> None:
    table = read_result("training-cpu-ablation").get("figures", {})
    scenes = {folder.absolute().name.removesuffix("-sfm"): read_scene(folder) for folder in folders}
    photos = {name: load_dataset(scene, SMALL.long_side, with_validation=False) for name, scene in scenes.items()}
    for name in names:
        for scene_name, scene in scenes.items():
            table.setdefault(scene_name, {})[name] = ablate(scene, photos[scene_name], name, SMALL, gpu=False)
            print(scene_name, name, json.dumps(table[scene_name][name]), flush=True)
            write_result(
                "training-cpu-ablation", table, "python benchmarks/training_cpu.py SFM_FOLDER SFM_FOLDER --ablation"
            )


def steps_per_second(trainer: Trainer) -> float:
    rates = trainer.preset.schedule.rates(1.0, trainer.extent)
    clock = Clock(0.0, available_cores())
    full_steps(trainer, SPEED_STEPS, rates)
    return SPEED_STEPS / max(clock.elapsed_s(), time.get_clock_info("process_time").resolution)


def clock_name() -> str:
    return "processor time / cores" if os.environ.get(CLOCK_VARIABLE) == "cpu" else "wall time"


if __name__ == "__main__":
    main()
