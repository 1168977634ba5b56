"""Quality, time and size of GPU training, against gsplat's own trainer, and what each trick is worth there.

    python -m benchmarks training_gpu plush=SFM_FOLDER caliterra=SFM_FOLDER [--only ROW …] [--resume] [--out FOLDER]
    python -m benchmarks training_gpu plush=SFM_FOLDER caliterra=SFM_FOLDER --ablation [--only ROW …] [--resume] …
    python -m benchmarks training_gpu --adopt FOLDER …

**Rows** (the first form; each is kept as soon as it is there, and --only replaces single ones):

* ``plush``, ``caliterra``: 1200 and 1600 pixels, photos as they are; plush with three seeds, its figures are those of
  the median PSNR. Beside them what baseline_gsplat.py has left in the same folder: time and size ratios.
* ``… compensated``: with measured exposure, as the product trains. ``psnr`` is at each photo's own exposure,
  ``psnr_raw`` without it, ``psnr_fitted`` after a fit of gain and offset to the photo, which other trainers have too.
* ``… 100k``, ``… 80k``: fewer Gaussians. ``draft``, ``standard``, ``high``: the product's presets on the plush photos.
* ``speed``: milliseconds of a step at full resolution of 300,000 Gaussians with SH of degree 3, by kernel, and how far
  each is from the time its bytes take (training_floor.py).
* ``sizes``: PLY and SOG (the compression stage's encoder) of the models that the rows before left in OUT/ply.

Seconds are those of the training loop: loading and evaluation come on top. Held out: every 8th photo by name, which
nothing but the figures sees. **The ablation** is one training per trick and scene, as the preset ``draft`` but for the
trick, measured on every 7th photo that is no test photo.

**--adopt** takes the rows of other folders, all of one kind of GPU, into benchmarks/results; it wants at least
``plush`` and ``speed``. Results: training-h200.json and training-h200-ablation.json, by the GPU's name;
training-h100.json is of 2026-11-23 and of commit 8d00c80.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import gpus
from benchmarks.baseline_gsplat import OUT
from benchmarks.recording import RESULTS, commit, read_result, write_json, write_result
from benchmarks.training_floor import against_floor, floor_us
from benchmarks.training_report import ablation_table, baselines, parts_table, report, rows_table, wanted_table
from benchmarks.trainings import ON_GPU, SEED, ablate, figures_of, full_steps, train
from job import Job, JobKind
from splat.cameras import Scene, read_scene
from splat.model import read_ply, write_ply
from train import presets
from train.dataset import Dataset, load_dataset
from train.engine import Engine
from train.engines import gpu_available
from train.evaluate import mean_psnr, score
from train.exposure import UNIT, measure
from train.presets import TrainingPreset
from train.trainer import Trainer

NAME, ABLATION = "training-gpu", "-ablation"  # of the files in OUT; in benchmarks/results by the GPU
SEEDS = (1, 2, 3)
SPEED_STEPS, PROFILED_STEPS = 420, 42
LONGEST = 16  # kernels that the result names
PLY = "ply"  # folder below OUT
FROM_ENGINE = ("torch", "cuda", "gsplat")


@dataclass(frozen=True)
class ScoredTraining:
    """A training on ``scene``. ``as_product``: exposure is measured, and the stop rule has its validation photos."""

    scene: str
    preset: TrainingPreset
    seeds: tuple[int, ...] = (SEED,)
    as_product: bool = False


@dataclass(frozen=True)
class Plan:
    """What is measured, and with which engine; tests have a smaller one."""

    rows: dict[str, ScoredTraining]
    speed: ScoredTraining
    ablation: TrainingPreset
    gpu: bool = True


QUALITY = replace(presets.GPU["draft"], max_iterations=8_000, budget_s=20.0)
AT_1600 = replace(QUALITY, long_side=1600, max_gaussians=300_000, budget_s=60.0)
SPEED = replace(presets.GPU["draft"], max_gaussians=300_000, sh_degree=3, max_iterations=4_000)
PLAN = Plan(
    rows={
        "plush": ScoredTraining("plush", QUALITY, SEEDS),
        "caliterra": ScoredTraining("caliterra", AT_1600),
        "plush compensated": ScoredTraining("plush", QUALITY, as_product=True),
        "caliterra compensated": ScoredTraining("caliterra", AT_1600, as_product=True),
        "plush 100k": ScoredTraining("plush", replace(QUALITY, max_gaussians=100_000)),
        "plush 80k": ScoredTraining("plush", replace(QUALITY, max_gaussians=80_000)),
        **{name: ScoredTraining("plush", preset, as_product=True) for name, preset in presets.GPU.items()},
    },
    speed=ScoredTraining("plush", SPEED),
    ablation=presets.GPU["draft"],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", help="NAME=FOLDER that SfM wrote")
    parser.add_argument("--only", nargs="+", help="rows")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--resume", action="store_true", help="leave out rows that OUT has")
    parser.add_argument("--adopt", type=Path, nargs="+", help="folders with results of other runs")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for results, models and the baselines' results")
    arguments = parser.parse_args()
    if arguments.adopt:
        adopt(arguments.adopt)
        return
    pairs = [text.split("=", maxsplit=1) for text in arguments.scenes]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        parser.error("name the scenes: plush=FOLDER caliterra=FOLDER")
    if arguments.only != ["sizes"] and not gpu_available():
        sys.exit("error: no CUDA device, or no torch and gsplat: install spaceport[gpu] on a machine with a GPU")
    bench = Bench({name: Path(folder) for name, folder in pairs}, arguments.out, PLAN)
    names = bench.ablation_rows() if arguments.ablation else bench.quality_rows()
    wrong = [name for name in arguments.only or [] if name not in names]
    if wrong:
        parser.error(f"no such row of these scenes: {', '.join(wrong)}; there are {', '.join(names)}")
    (bench.ablation if arguments.ablation else bench.quality)(arguments.only or names, arguments.resume)


class Bench:
    """Measures rows and keeps each as soon as it is there."""

    def __init__(self, folders: dict[str, Path], out: Path, plan: Plan) -> None:
        self.out, self.plan = out, plan
        self.scenes = {name: read_scene(folder) for name, folder in folders.items()}
        self._photos: dict[tuple[str, int, bool], Dataset] = {}
        self._warm = False
        before = read_result(NAME, out)  # a row that needs no device keeps what the others were measured with
        self.device: str = before.get("machine", "")
        self.versions: dict[str, str] = {k: v for k, v in before.get("versions", {}).items() if k in FROM_ENGINE}

    def quality_rows(self) -> list[str]:
        rows = [name for name, row in self.plan.rows.items() if row.scene in self.scenes]
        return [*rows, *(["speed"] if self.plan.speed.scene in self.scenes else []), "sizes"]

    def ablation_rows(self) -> list[str]:
        return list(ON_GPU)

    def quality(self, names: list[str], resume: bool = False) -> None:
        special: dict[str, Callable[[], dict[str, Any]]] = {"speed": self.measure_speed, "sizes": self.measure_sizes}
        done = read_result(NAME, self.out).get("rows", {}) if resume else {}
        for name in (name for name in names if name not in done):
            row = special[name]() if name in special else self.measure_row(name)
            rows = {**read_result(NAME, self.out).get("rows", {}), name: self.stamped(row)}
            baseline = baselines(self.out)
            figures, details = report(rows, baseline)
            self.keep(NAME, figures, {"rows": rows, **details}, "")
            show(rows, baseline, figures)

    def ablation(self, names: list[str], resume: bool = False) -> None:
        done = read_result(NAME + ABLATION, self.out).get("figures", {}) if resume else {}
        for name in names:
            for scene_name, scene in self.scenes.items():
                if name in done.get(scene_name, {}):
                    continue
                photos = self.photos(scene_name, self.plan.ablation.long_side, False)
                self.warm_up(scene, photos, self.plan.ablation)
                row = ablate(scene, photos, name, self.plan.ablation, self.plan.gpu)
                table = read_result(NAME + ABLATION, self.out).get("figures", {})
                table.setdefault(scene_name, {})[name] = self.stamped(row)
                print(scene_name, name)
                self.keep(NAME + ABLATION, table, {}, " --ablation")
        print(ablation_table(read_result(NAME + ABLATION, self.out).get("figures", {})))

    def keep(self, name: str, figures: dict[str, Any], details: dict[str, Any], option: str) -> None:
        scenes = " ".join(f"{scene}=SFM_FOLDER" for scene in self.scenes)
        command = f"python -m benchmarks training_gpu {scenes}{option}"
        write_result(name, figures, command, folder=self.out, machine=self.device, details=details, **self.versions)

    def stamped(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"date": date.today().isoformat(), "commit": commit(), "device": self.device}

    def photos(self, scene: str, long_side: int, with_validation: bool) -> Dataset:
        key = scene, long_side, with_validation
        if key not in self._photos:
            self._photos[key] = load_dataset(self.scenes[scene], long_side, with_validation)
        return self._photos[key]

    def warm_up(self, scene: Scene, data: Dataset, preset: TrainingPreset) -> None:
        """Compile every kernel, once."""
        if not self._warm:
            short = replace(preset, max_iterations=60)
            trainer, _ = train(scene, Dataset(data.train, [], []), short, SEED, self.plan.gpu)
            self.look_at(trainer.engine)
            self._warm = True

    def look_at(self, engine: Engine) -> None:
        self.device = engine.device
        self.versions = {name: version for name, version in engine.versions().items() if name in FROM_ENGINE}

    def measure_row(self, name: str) -> dict[str, Any]:
        """The trainings of a row; its figures are those of the seed with the median PSNR, whose model is kept."""
        row, preset = self.plan.rows[name], self.plan.rows[name].preset
        scene = self.scenes[row.scene]
        data = self.photos(row.scene, preset.long_side, row.as_product and preset.stop_on_plateau)
        self.warm_up(scene, data, preset)
        spread = None
        if row.as_product:
            data, spread = measure(scene, data)
        runs = []
        with tempfile.TemporaryDirectory() as folder:
            for seed in row.seeds:
                # Without test photos: no curve is wanted, and nothing else would look at them.
                seen = Dataset(data.train, data.validation, [])
                trainer, result = train(scene, seen, preset, seed, self.plan.gpu)
                write_ply(Path(folder) / f"{seed}.ply", result.gaussians)
                runs.append(self.run_figures(trainer, data, seed) | result_figures(result))
            median = sorted(runs, key=lambda run: run["psnr"])[len(runs) // 2]
            ply = self.out / PLY / f"{name.replace(' ', '-')}.ply"
            ply.parent.mkdir(parents=True, exist_ok=True)
            ply.write_bytes((Path(folder) / f"{median['seed']}.ply").read_bytes())
        view = data.train[0].view
        return {
            **median,
            "image": [view.width, view.height],
            "sh_degree": preset.sh_degree,
            "exposure_spread": spread if spread is None else round(spread, 4),
            "ply_bytes": ply.stat().st_size,
            "runs": runs,
        }

    @staticmethod
    def run_figures(trainer: Trainer, data: Dataset, seed: int) -> dict[str, Any]:
        degree = trainer.preset.sh_degree
        scores = score(trainer.engine, data.test, degree)
        figures = figures_of("", "", scores)
        raw = figures["psnr"]
        if any(photo.gain != UNIT for photo in data.test):
            raw = round(mean_psnr(trainer.engine, [replace(photo, gain=UNIT) for photo in data.test], degree), 3)
        lowest = round(min(photo["psnr"] for photo in scores), 3)
        return {"seed": seed, **figures, "psnr_lowest": lowest, "psnr_raw": raw}

    def measure_speed(self) -> dict[str, Any]:
        """Milliseconds of a step, and microseconds of each kernel in it."""
        row = self.plan.speed
        scene, data = self.scenes[row.scene], self.photos(row.scene, row.preset.long_side, False)
        self.warm_up(scene, data, row.preset)
        trainer, result = train(scene, Dataset(data.train, [], []), row.preset, SEED, self.plan.gpu)
        rates, view = row.preset.schedule.rates(0.5, trainer.extent), data.train[0].view

        def steps(count: int) -> float:
            started = time.perf_counter()
            full_steps(trainer, count, rates)
            trainer.engine.mean_loss()  # waits for the device
            return time.perf_counter() - started

        steps(PROFILED_STEPS)
        milliseconds = steps(SPEED_STEPS) / SPEED_STEPS * 1e3
        kernels = profiled(lambda: steps(PROFILED_STEPS)) if self.plan.gpu else {}
        longest = sorted(kernels.items(), key=lambda item: -item[1])[:LONGEST]
        return {
            "ms_per_iteration": round(milliseconds, 3),
            "gaussians": len(result.gaussians),
            "sh_degree": row.preset.sh_degree,
            "image": [view.width, view.height],
            "kernels_us": {name[:60]: round(us, 1) for name, us in longest},
            "all_kernels_us": round(sum(kernels.values()), 1),
            "parts": against_floor(kernels, gpus.model_of(self.device)) if kernels else {},
            "floor_us": floor_us(gpus.model_of(self.device)) if kernels else 0.0,
        }

    def measure_sizes(self) -> dict[str, Any]:
        """Bytes of each model's PLY and SOG file. Needs no GPU."""
        from compress.clean import clean
        from compress.evaluate import encode_to_quality, heldout_views

        rows = read_result(NAME, self.out).get("rows", {})
        found: dict[str, Any] = {}
        for name, row in self.plan.rows.items():
            ply = self.out / PLY / f"{name.replace(' ', '-')}.ply"
            if name not in rows or not ply.is_file() or row.scene not in self.scenes:
                continue
            scene, gaussians = self.scenes[row.scene], read_ply(ply)
            views = heldout_views(scene, [view.name for view in scene.views[::8]])
            with tempfile.TemporaryDirectory() as folder:
                job = Job.open("compress", JobKind.PROCESSING, Path(folder))
                encoded, _ = encode_to_quality(clean(gaussians), gaussians, views, job)
            found[name] = {"ply_bytes": ply.stat().st_size, "sog_bytes": len(encoded.data)}
        return {"files": found}


def result_figures(result: Any) -> dict[str, Any]:
    return {
        "seconds": round(result.seconds, 2),
        "iterations": result.iterations,
        "ms_per_iteration": round(1e3 * result.seconds / max(result.iterations, 1), 3),
        "gaussians": len(result.gaussians),
        "stop_reason": result.stop_reason,
    }


def profiled(work: Callable[[], Any]) -> dict[str, float]:
    """Microseconds on the device of each kernel in one of PROFILED_STEPS steps."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
    return {event.key: event.self_device_time_total / PROFILED_STEPS for event in profiler.key_averages()}


def adopt(folders: list[Path], into: Path = RESULTS) -> None:
    """Take the rows of other folders into ``into``. Raises SystemExit where the main ones are missing."""
    found = [read_result(NAME, folder) for folder in folders]
    names = {gpus.result_name(result["machine"]) for result in found if result}
    if len(names) != 1:
        sys.exit(f"error: the results are of {len(names)} kinds of device; adopt those of one")
    (name,) = names
    results = [read_result(name, into), *found]
    rows = merged([result.get("rows", {}) for result in results])
    rows |= sizes_of([result.get("rows", {}) for result in results])
    baseline = merged([results[0].get("baselines", {}), *map(baselines, folders)])
    lacking = [row for row in ("plush", "speed") if row not in rows]
    if lacking:
        sys.exit(f"error: without the rows {' and '.join(lacking)} the result would lose figures that it has now")
    figures, details = report(rows, baseline)
    newest = [result for result in results if result][-1]
    write_json(into / f"{name}.json", {**newest, "name": name, "figures": figures, "rows": rows, **details})
    ablations = [read_result(name + ABLATION, into), *(read_result(NAME + ABLATION, folder) for folder in folders)]
    ablations = [result for result in ablations if result]
    if ablations:
        scenes = {scene for result in ablations for scene in result["figures"]}
        table = {scene: merged([result["figures"].get(scene, {}) for result in ablations]) for scene in sorted(scenes)}
        write_json(into / f"{name}{ABLATION}.json", {**ablations[-1], "name": name + ABLATION, "figures": table})
        print(ablation_table(table))
    show(rows, baseline, figures)


def sizes_of(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The row "sizes" of all of them: a model that was trained anew has the size that was measured with it, or none."""
    files: dict[str, Any] = {}
    stamps: dict[str, Any] = {}
    for rows in parts:
        sizes = rows.get("sizes", {})
        files = {name: size for name, size in files.items() if name not in rows} | sizes.get("files", {})
        stamps |= sizes
    return {"sizes": stamps | {"files": files}} if files else {}


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """All keys; of equal ones the last."""
    return {key: value for part in parts for key, value in part.items()}


def show(rows: dict[str, Any], baseline: dict[str, dict[str, Any]], figures: dict[str, Any]) -> None:
    print(wanted_table(figures), rows_table(rows, baseline), sep="\n\n", flush=True)
    if rows.get("speed", {}).get("parts"):
        print(f"\n{parts_table(rows['speed'])}", flush=True)


if __name__ == "__main__":
    main()
