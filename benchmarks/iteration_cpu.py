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
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recording import read_result, write_result

ROOT = Path(__file__).resolve().parents[1]
NAME = "iteration-cpu"
HERE = ROOT / "containers"
PROGRAM = [sys.executable, "-m", "benchmarks.iteration_steps"]
ROWS = [(count, side) for side in (400, 640) for count in (20_000, 30_000, 60_000, 100_000)]
ROUNDS, STEPS = 3, 10  # each version takes STEPS steps, in turn, ROUNDS times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sfm", type=Path, help="folder that SfM wrote")
    parser.add_argument("--containers", type=Path, help="containers/ of the version to compare with")
    parser.add_argument("--only", nargs="+", choices=[row_name(*row) for row in ROWS])
    arguments = parser.parse_args()
    rows = [row for row in ROWS if not arguments.only or row_name(*row) in arguments.only]
    for count in sorted({count for count, _ in rows}):
        if not model_path(count).is_file():
            model = ["model", str(arguments.sfm), str(model_path(count)), str(count)]
            subprocess.run([*PROGRAM, *model], env=environment(HERE), check=True)
    versions = {"after": HERE}
    if arguments.containers:
        versions = {"before": arguments.containers.resolve(), **versions}
    measured = read_result(NAME).get("rows", {})
    measured |= {row_name(*row): measure(arguments.sfm, versions, *row) for row in rows}
    details = {
        "threads": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),  # well above the threads: trust processor time, not wall time
        "rows": measured,
    }
    write_result(NAME, figures(measured), "python -m benchmarks iteration_cpu SFM_FOLDER", details=details)


def environment(containers: Path) -> dict[str, str]:
    """The environment of a process that runs the stage programs in ``containers``."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(containers)])}


def model_path(count: int) -> Path:
    return ROOT / f"build/iteration-cpu/{count}.ply"


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


def measure(sfm: Path, versions: dict[str, Path], count: int, side: int) -> dict[str, Any]:
    """Each version runs in a process of its own; only one of them works at a time."""
    servers = {}
    for name, containers in versions.items():
        servers[name] = subprocess.Popen(
            [*PROGRAM, "serve", str(sfm)],
            env=environment(containers),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ask(servers[name], {"count": count, "side": side, "model": str(model_path(count))})
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}
    for i in range(ROUNDS):
        for name, server in servers.items():
            rounds[name].append(ask(server, {"first": i * STEPS, "steps": STEPS}))
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


if __name__ == "__main__":
    main()
