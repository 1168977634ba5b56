"""Where the time of one CPU training iteration goes, and how many there are in a second.

    python -m benchmarks iteration_cpu SFM_FOLDER [--containers FOLDER] [--only 20k-400 …]

The models are trained on the scene first, up to their number of Gaussians (build/iteration-cpu; a few minutes, once);
every row then takes steps from the same model. Per row: median wall milliseconds of a step, mean processor
milliseconds (all threads together; of use on a busy machine) in all and by part, and iterations per second: measured
(wall) and what the processor time allows when every core works all the time. ``--containers`` names the containers/
folder of another version of the code. It is measured in turn with this one, photo by photo, and the report then says
how many times faster this one is.
Results: benchmarks/results/iteration-cpu.json; ``--only`` replaces its rows and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/iteration-cpu.json"
MODELS = ROOT / "build/iteration-cpu"
ROWS = [(count, side) for side in (400, 640) for count in (20_000, 30_000, 60_000, 100_000)]
MODEL_STEPS, MODEL_SIDE = 2_500, 400
ROUNDS, STEPS = 3, 10  # each version takes STEPS steps, in turn, ROUNDS times
SEED = 1
SH_DEGREE = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sfm", type=Path, help="folder that SfM wrote")
    parser.add_argument("--containers", type=Path, help="containers/ of the version to compare with")
    parser.add_argument("--only", nargs="+", choices=[row_name(*row) for row in ROWS])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        sys.path[:0] = [str(arguments.containers)]
        serve(arguments.sfm)
        return
    if arguments.model:
        sys.path[:0] = [str(ROOT / "containers")]
        make_model(arguments.sfm, arguments.model)
        return
    rows = [row for row in ROWS if not arguments.only or row_name(*row) in arguments.only]
    for count in sorted({count for count, _ in rows}):
        if not model_path(count).is_file():
            run_here(arguments.sfm, "--model", str(count))
    versions = {"after": ROOT / "containers"}
    if arguments.containers:
        versions = {"before": arguments.containers.resolve(), **versions}
    measured = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else {}
    measured |= {row_name(*row): measure(arguments.sfm, versions, *row) for row in rows}
    sys.path[:0] = [str(ROOT / "containers")]
    from splat.threads import available_cores
    from train.cpu.engine import cpu_model

    report = {
        "name": "iteration-cpu",
        "date": date.today().isoformat(),
        "machine": cpu_model(),
        "threads": available_cores(),
        "load_average": round(os.getloadavg()[0], 1),  # well above the threads: trust processor time, not wall time
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("numba", "llvmlite", "numpy")}},
        "command": "python -m benchmarks iteration_cpu SFM_FOLDER",
        "figures": figures(measured),
        "rows": measured,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def row_name(count: int, side: int) -> str:
    return f"{count // 1000}k-{side}"


def figures(measured: dict[str, dict[str, Any]]) -> dict[str, float]:
    result = {}
    for row, by_version in measured.items():
        for name, values in by_version.items():
            result[f"its_per_s_{row}_{name}"] = values["its_per_s_by_cpu"]
        if "before" in by_version:
            before, after = by_version["before"]["ms_cpu"], by_version["after"]["ms_cpu"]
            result[f"speedup_{row}"] = round(before / after, 2)
    return result


def run_here(sfm: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "benchmarks", "iteration_cpu", str(sfm), *arguments], check=True)


def measure(sfm: Path, versions: dict[str, Path], count: int, side: int) -> dict[str, Any]:
    """Each version runs in a process of its own; only one of them works at a time."""
    servers = {}
    for name, containers in versions.items():
        command = [sys.executable, __file__, str(sfm), "--serve", "--containers", str(containers)]
        servers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ask(servers[name], {"count": count, "side": side})
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}
    for i in range(ROUNDS):
        for name, server in servers.items():
            rounds[name].append(ask(server, {"first": i * STEPS}))
    for server in servers.values():
        server.communicate("", timeout=30)
    threads = len(os.sched_getaffinity(0))
    result = {}
    for name, answers in rounds.items():
        wall, cpu = np.concatenate([a["wall_ms"] for a in answers]), np.concatenate([a["cpu_ms"] for a in answers])
        parts: dict[str, float] = defaultdict(float)
        for answer in answers:
            for part, value in answer["parts"].items():
                parts[part] += value / (ROUNDS * STEPS)
        parts["rest"] = float(cpu.mean()) - sum(parts.values())
        result[name] = {
            "ms_wall": round(float(np.median(wall)), 2),
            "ms_cpu": round(float(cpu.mean()), 2),
            "its_per_s_wall": round(1000 / float(np.median(wall)), 1),
            "its_per_s_by_cpu": round(1000 * threads / float(cpu.mean()), 1),
            "ms_cpu_parts": {part: round(value, 2) for part, value in parts.items()},
        }
    print(row_name(count, side), json.dumps(result), file=sys.stderr, flush=True)
    return result


def ask(server: subprocess.Popen, question: dict[str, Any]) -> Any:
    assert server.stdin and server.stdout
    server.stdin.write(json.dumps(question) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


# ------------------------------------------------------------------ in the process of one version


def model_path(count: int) -> Path:
    return MODELS / f"{count}.ply"


def make_model(sfm: Path, count: int) -> None:
    """A model of ``count`` Gaussians that is trained far enough to look like the scene."""
    from splat.cameras import read_scene
    from splat.model import write_ply
    from train.dataset import initial_gaussians, load_dataset, scene_extent
    from train.engine import open_engine
    from train.relocation import refine
    from train.schedule import Schedule

    scene = read_scene(sfm)
    photos = load_dataset(scene, MODEL_SIDE, False).train
    rng = np.random.default_rng(SEED)
    engine = open_engine(photos, count, SH_DEGREE, SEED, gpu=False)
    engine.load(initial_gaussians(scene, count, rng))
    schedule, extent = Schedule(full_from=0.7), scene_extent([photo.view for photo in photos])
    for i in range(MODEL_STEPS):
        progress = i / MODEL_STEPS
        rates = schedule.rates(progress, extent)
        engine.step([i % len(photos)], schedule.level(progress), schedule.sh_degree(progress, SH_DEGREE), rates)
        if i % 40 == 39 and progress < schedule.refine_until:
            refine(engine, rng, schedule.growth)
    assert engine.count() == count, engine.count()
    MODELS.mkdir(parents=True, exist_ok=True)
    write_ply(model_path(count), engine.gaussians())


def serve(sfm: Path) -> None:
    """Answer questions on standard input: first what to load, then where in the photos to take the next steps."""
    from splat.cameras import read_scene
    from splat.model import read_ply
    from train.dataset import load_dataset, scene_extent
    from train.engine import open_engine
    from train.schedule import Schedule

    wanted = json.loads(sys.stdin.readline())
    photos = load_dataset(read_scene(sfm), wanted["side"], False).train
    engine = open_engine(photos, wanted["count"], SH_DEGREE, SEED, gpu=False)
    engine.load(read_ply(model_path(wanted["count"])))
    rates = Schedule().rates(0.5, scene_extent([photo.view for photo in photos]))
    for photo in range(3):
        engine.step([photo], 1, SH_DEGREE, rates)
    parts = instrument()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        first = json.loads(line)["first"]
        parts.clear()
        wall, cpu = [], []
        for i in range(first, first + STEPS):
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            engine.step([i % len(photos)], 1, SH_DEGREE, rates)
            wall.append(1000 * (time.perf_counter() - wall_start))
            cpu.append(1000 * (time.process_time() - cpu_start))
        print(json.dumps({"wall_ms": wall, "cpu_ms": cpu, "parts": parts}), flush=True)


def instrument() -> dict[str, float]:
    """Sum processor milliseconds by kernel from now on; what is left of a step is Python and numpy."""
    from splat.threads import Workers

    parts: dict[str, float] = defaultdict(float)
    run = Workers.run

    def timed(self: Workers, kernel: Any, *arguments: Any, **options: Any) -> None:
        start = time.process_time()
        run(self, kernel, *arguments, **options)
        parts[kernel.__name__] += 1000 * (time.process_time() - start)

    Workers.run = timed  # type: ignore[method-assign]
    return parts


if __name__ == "__main__":
    main()
