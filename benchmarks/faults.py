"""Random schedules of faults against the control plane: ``python -m benchmarks faults [--schedules 20000]``.

Runs the table state x fault, the schedules of seeds 0 .. n-1 on all cores, and the planted bugs; writes
benchmarks/results/faults.json. A failing seed is printed with the command that replays it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version

from benchmarks.recording import write_result
from tests.state_machine.simulator import planted, schedules, table
from tests.state_machine.simulator.catalog import CATALOG
from tests.state_machine.simulator.code import deployed

CHUNK = 250


def run_seeds(first: int, count: int) -> dict[int, list[str]]:
    """Violations by seed."""
    found = {seed: schedules.run_seed(deployed(), seed)[1] for seed in range(first, first + count)}
    return {seed: violations for seed, violations in found.items() if violations}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=schedules.WHOLE)
    arguments = parser.parse_args()
    started = time.monotonic()
    bad: dict[int, list[str]] = {}
    with ProcessPoolExecutor() as pool:
        chunks = range(0, arguments.schedules, CHUNK)
        counts = [min(CHUNK, arguments.schedules - first) for first in chunks]
        for found in pool.map(run_seeds, chunks, counts):
            bad |= found
        schedules_s = time.monotonic() - started
        caught = sum(bool(text) for text in pool.map(planted.find, planted.BUGS))
    cells = table.run_table(deployed())
    for seed, violations in bad.items():
        print(f"python -m tests.state_machine.simulator {seed}: {violations}")
    violated = sum(map(len, bad.values())) + sum(len(cell.violations) for cell in cells)
    figures = {
        "states": len(table.states(deployed())),
        "faults": len(CATALOG),
        "cells_run": sum(not cell.reason for cell in cells),
        "table_runs": sum(cell.runs for cell in cells),
        "schedules": arguments.schedules,
        "schedules_wall_s": round(schedules_s, 1),
        "violations": violated,
        "planted_bugs": len(planted.BUGS),
        "caught": caught,
    }
    command = "python -m benchmarks faults"
    if arguments.schedules >= schedules.WHOLE:
        write_result("faults", figures, command, powertools=version("aws-lambda-powertools"))
    else:
        print(json.dumps(figures, indent=2))
    return 1 if violated or caught < len(planted.BUGS) else 0


if __name__ == "__main__":
    sys.exit(main())
