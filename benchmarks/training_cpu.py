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
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "containers")]

from benchmarks.recording import RESULTS, write_result  # noqa: E402
from job import Job, JobKind  # noqa: E402
from splat.cameras import Scene, read_scene  # noqa: E402
from splat.threads import available_cores  # noqa: E402
from train import presets  # noqa: E402
from train.dataset import Dataset, initial_gaussians, load_dataset  # noqa: E402
from train.engine import open_engine  # noqa: E402
from train.evaluate import Score, score  # noqa: E402
from train.exposure import compensated, measure  # noqa: E402
from train.presets import Preset  # noqa: E402
from train.stopping import CLOCK_VARIABLE, Clock  # noqa: E402
from train.trainer import Result, Trainer  # noqa: E402

SEED = 1
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
VALIDATION_EVERY, VALIDATION_FROM = 7, 3


def scheduled(**changes: Any) -> Callable[[Preset], Preset]:
    return lambda preset: replace(preset, schedule=replace(preset.schedule, **changes))


# What the ablation changes, against the schedule of the preset. "plain" and "seed 2" show how much is chance.
ABLATION: dict[str, Callable[[Preset], Preset]] = {
    "plain": lambda preset: preset,
    "seed 2": lambda preset: preset,
    "exposure as it is": lambda preset: preset,
    "split by opacity alone": scheduled(score_photos=0),
    "sparse points only": scheduled(gap_share=0.0),
    "twice as many points in gaps": scheduled(gap_share=0.3),
    "full resolution from the start": scheduled(half_from=0.0, full_from=0.0),
    "full resolution from the start, half the steps": lambda preset: replace(
        scheduled(half_from=0.0, full_from=0.0)(preset), max_iterations=preset.max_iterations // 2
    ),
    "full resolution sooner": scheduled(half_from=0.06, full_from=0.25),
    "all Gaussians from the start": scheduled(growth=100.0),
    "no noise": scheduled(noise=0.0),
    "no pull on opacity": scheduled(opacity_pull=0.0),
    "no pull on scale": scheduled(scale_pull=0.0),
    "all SH bands from the start": scheduled(sh_step=0.0),
    "no SH bands": lambda preset: replace(preset, sh_degree=0),
    "lower rates": scheduled(rate=1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sfm", type=Path, nargs="+", help="folder that SfM wrote; for the first form that of plush")
    parser.add_argument("--only", nargs="+", help="rows")
    parser.add_argument("--ablation", action="store_true")
    arguments = parser.parse_args()
    names = list(ABLATION if arguments.ablation else ROWS)
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
    figures = read_figures("training-cpu")
    for name in names:
        row = ROWS[name]
        preset = presets.CPU[row.preset]
        preset = replace(preset, budget_s=row.budget_s, max_gaussians=row.max_gaussians, stop_on_plateau=False)
        side, seconds = preset.long_side, round(row.budget_s)
        data = load_dataset(scene, side, with_validation=False)
        trainer, result = train(scene, data, preset, SEED)
        scores = score(trainer.engine, data.test, preset.sh_degree)
        figures |= figures_of(f"plush{side}", f"{seconds}s", scores)
        figures[f"plush{side}_iterations_{seconds}s"] = result.iterations
        if row.speed:
            figures[row.speed] = round(steps_per_second(trainer, len(data.train)), 2)
        data, spread = measure(scene, data)
        trainer, _ = train(scene, data, preset, SEED)
        scores = score(trainer.engine, data.test, preset.sh_degree)
        figures |= figures_of(f"plush{side}_compensated", f"{seconds}s", scores)
        figures["plush_exposure_spread"] = round(spread, 4)
        print(name, json.dumps(figures), flush=True)
        write_result("training-cpu", figures, "python benchmarks/training_cpu.py SFM_FOLDER", clock=clock_name())


def ablation(folders: list[Path], names: list[str]) -> None:
    table = read_figures("training-cpu-ablation")
    scenes = {folder.absolute().name.removesuffix("-sfm"): read_scene(folder) for folder in folders}
    for name in names:
        for scene_name, scene in scenes.items():
            table.setdefault(scene_name, {})[name] = ablate(scene, name)
            print(scene_name, name, json.dumps(table[scene_name][name]), flush=True)
            write_result(
                "training-cpu-ablation", table, "python benchmarks/training_cpu.py SFM_FOLDER SFM_FOLDER --ablation"
            )


def ablate(scene: Scene, name: str) -> dict[str, Any]:
    """One row of the table: the figures on photos that are neither trained nor test photos."""
    loaded = load_dataset(scene, SMALL.long_side, with_validation=False).train
    hidden = loaded[VALIDATION_FROM::VALIDATION_EVERY]
    seen = [photo for i, photo in enumerate(loaded) if i % VALIDATION_EVERY != VALIDATION_FROM]
    data, preset = Dataset(seen, [], hidden), ABLATION[name](SMALL)
    if name != "exposure as it is":
        data, _ = measure(scene, data)
    began = time.process_time()
    trainer, result = train(scene, data, preset, 2 if name == "seed 2" else SEED)
    cpu_s = time.process_time() - began
    return figures_of("", "", score(trainer.engine, data.test, preset.sh_degree)) | {
        "gaussians": len(result.gaussians),
        "iterations": result.iterations,
        "cpu_s": round(cpu_s, 1),
    }


def train(scene: Scene, data: Dataset, preset: Preset, seed: int) -> tuple[Trainer, Result]:
    """One training from the sparse points, on the CPU."""
    photos = [compensated(photo) for photo in data.train]
    engine = open_engine(photos, preset.max_gaussians, preset.sh_degree, seed, gpu=False)
    with tempfile.TemporaryDirectory() as folder:
        job = Job.open("train", JobKind.TRAINING, Path(folder))
        trainer = Trainer(job, engine, preset, data, available_cores(), seed)
        rng, gap_share = np.random.default_rng(seed), preset.schedule.gap_share
        trainer.start(initial_gaussians(scene, preset.max_gaussians, rng, photos, gap_share))
        return trainer, trainer.run()


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


def steps_per_second(trainer: Trainer, photos: int) -> float:
    rates = trainer.preset.schedule.rates(1.0, trainer.extent)
    clock = Clock(0.0, available_cores())
    for i in range(SPEED_STEPS):
        trainer.engine.step(i % photos, 1, trainer.preset.sh_degree, rates)
    return SPEED_STEPS / max(clock.elapsed_s(), time.get_clock_info("process_time").resolution)


def read_figures(name: str) -> dict[str, Any]:
    """The figures measured before, so that --only replaces single rows."""
    file = RESULTS / f"{name}.json"
    figures: dict[str, Any] = json.loads(file.read_text())["figures"] if file.is_file() else {}
    return figures


def clock_name() -> str:
    return "processor time / cores" if os.environ.get(CLOCK_VARIABLE) == "cpu" else "wall time"


if __name__ == "__main__":
    main()
