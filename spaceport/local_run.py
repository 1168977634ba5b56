"""One run of the whole service on this machine: photos in, result folder out, resumable after any kind of death."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Listener = Callable[[dict[str, Any]], None]


class LocalRunError(Exception):
    """The run could not be started or resumed; the text says why and what to do."""


@dataclass
class Outcome:
    """How a run ended. ``status`` is SUCCEEDED, FAILED, ABORTED, TIMED_OUT, or STOPPED when ``stop`` was called."""

    status: str
    job_id: str | None = None
    results: Path | None = None
    error_code: str | None = None
    reason: str | None = None
    seconds: float = 0.0
    seconds_by_state: dict[str, float] = field(default_factory=dict)
    control_plane_s: float = 0.0


def run(
    photos: Path, out: Path, options: dict[str, Any], listener: Listener, jobs_dir: Path | None = None
) -> Outcome:
    raise NotImplementedError


def resume(out: Path, listener: Listener) -> Outcome:
    raise NotImplementedError


def stop() -> None:
    raise NotImplementedError
