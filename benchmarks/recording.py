"""How a benchmark's result is kept: benchmarks/results/NAME.json, the same for all of them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

from spaceport import machine as this_machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COMMIT = "SPACEPORT_COMMIT"  # of the code, for a machine that has no git repository


def write_result(
    name: str,
    figures: dict[str, Any],
    command: str,
    *,
    folder: Path = RESULTS,
    machine: str = "",
    details: dict[str, Any] | None = None,
    **versions: str,
) -> None:
    """Write ``folder``/NAME.json and print the figures.

    ``machine``: in place of this machine's processor; ``details``: what stands beside the figures. A program that is
    killed meanwhile leaves the file as it was.
    """
    result = {
        "name": name,
        "date": date.today().isoformat(),
        "machine": machine or f"{this_machine.cpu_model()}, {this_machine.cores()} cores, {platform.system()}",
        "versions": {"python": platform.python_version(), **this_machine.versions(), **versions},
        "command": command,
        "figures": figures,
        **(details or {}),
    }
    write_json(folder / f"{name}.json", result)
    print(json.dumps(figures, indent=2), flush=True)


def write_json(file: Path, value: Any) -> None:
    """``file`` is either as it was or has all of ``value``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}")
    beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    beside.replace(file)


def read_result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """What ``write_result`` wrote, or an empty dictionary."""
    file = folder / f"{name}.json"
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return result


def commit() -> str:
    """Of the code that is measured; "+" after it: with changes."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = "unknown"
    return os.environ.get(COMMIT) or found
