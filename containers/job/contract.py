"""Where a stage finds its input and options, and how it reports progress, failure and results.

The folders are SageMaker's: a processing job has everything under ``/opt/ml/processing``, a training job under
``/opt/ml/input`` and ``/opt/ml/model`` (SageMaker developer guide, "How Amazon SageMaker AI Runs Your Training Image"
and "How Amazon SageMaker Processing Runs Your Processing Container Image").
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from job.documents import ProgressJson, write_document
from job.errors import StageError, StopRequested

REASON_LIMIT = 1024  # characters of FailureReason and ExitMessage that SageMaker keeps
OPTION_PREFIX = "SPACEPORT_OPTION_"
PROGRESS_INTERVAL_S = 0.5
RESERVE_BYTES = 16 * 1024


class JobKind(StrEnum):
    PROCESSING = "processing"
    TRAINING = "training"


@dataclass
class Job:
    """One run of one stage program, with its folders under ``root``."""

    stage: str
    kind: JobKind
    root: Path
    options: dict[str, str]
    stop_requested: bool = False
    started_at: float = field(default_factory=time.time)
    _progress: ProgressJson | None = None
    _progress_written_at: float = 0.0
    _stops_at_once: bool = False

    @classmethod
    def open(cls, stage: str, kind: JobKind, root: Path | None = None) -> Job:
        """The job described by the folders under ``root`` (default ``$SPACEPORT_ML_ROOT`` or ``/opt/ml``)."""
        root = root or Path(os.environ.get("SPACEPORT_ML_ROOT", "/opt/ml"))
        job = cls(stage, kind, root, read_options(kind, root))
        for folder in (job.output, job.progress_folder, job.failure_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        return job

    def input(self, channel: str) -> Path:
        """The folder of an input channel. Raises StageError INPUT_MISSING when the service did not provide it."""
        base = "input/data" if self.kind is JobKind.TRAINING else "processing/input"
        folder = self.root / base / channel
        if not folder.is_dir():
            raise StageError("INPUT_MISSING", f"The {self.stage} stage was started without its input '{channel}'.")
        return folder

    @property
    def output(self) -> Path:
        return self.root / ("model" if self.kind is JobKind.TRAINING else "processing/output")

    @property
    def progress_folder(self) -> Path:
        return self.root / ("checkpoints" if self.kind is JobKind.TRAINING else "processing/progress")

    @property
    def checkpoints(self) -> Path:
        """Kept between attempts of a training job; the service restores it before a restart."""
        if self.kind is not JobKind.TRAINING:
            raise ValueError("processing jobs have no checkpoints")
        return self.root / "checkpoints"

    @property
    def failure_file(self) -> Path:
        return self.root / "output" / ("failure" if self.kind is JobKind.TRAINING else "message")

    @property
    def scratch(self) -> Path:
        """Room for temporary files, thrown away with the job."""
        folder = self.root / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def progress(self, step: int, total: int, unit: str, message: str = "", eta_s: float | None = None) -> None:
        """Replace progress.json; at most every half second, but always for a new unit or message and the last step.

        Without ``eta_s`` the time left is taken from the mean pace since this unit began.
        """
        now = time.time()
        previous = self._progress
        new_phase = previous is None or (previous.unit, previous.message) != (unit, message)
        if new_phase:
            self._phase_started = now
        if not new_phase and step < total and now - self._progress_written_at < PROGRESS_INTERVAL_S:
            return
        if eta_s is None and step > 0:
            eta_s = (now - self._phase_started) / step * (total - step)
        self._progress = ProgressJson(
            stage=self.stage,
            step=step,
            total=total,
            unit=unit,
            started_at=self.started_at,
            eta_s=eta_s,
            message=message,
        )
        self._progress_written_at = now
        write_document(self.progress_folder / "progress.json", self._progress)

    _phase_started: float = 0.0

    def log(self, event: str, **fields: Any) -> None:
        """See ``log_event``."""
        log_event(self.stage, event, **fields)

    def check_stop(self) -> None:
        """Raise StopRequested once SIGTERM has come; for loops that have nothing to save."""
        if self.stop_requested:
            raise StopRequested

    @contextmanager
    def stop_at_once(self) -> Iterator[None]:
        """For a block that has nothing to save: SIGTERM raises StopRequested in it, not only at the next check_stop.

        Libraries that look for signals while they work, such as faiss, are interrupted too.
        """
        self._stops_at_once = True
        try:
            self.check_stop()
            yield
        finally:
            self._stops_at_once = False

    def request_stop(self) -> None:
        """SIGTERM has come."""
        was_requested, self.stop_requested = self.stop_requested, True
        if self._stops_at_once and not was_requested:
            raise StopRequested

    def reserve_failure_space(self) -> None:
        """Keep a few blocks so that the reason can still be written when the disk is full."""
        try:
            self._reserve.write_bytes(b"\0" * RESERVE_BYTES)
        except OSError as error:
            print(f"no space reserved for a failure message: {error}", file=sys.stderr)

    def write_failure(self, text: str) -> None:
        """Leave the reason where the service reads it: UTF-8, at most 1,024 characters."""
        self._reserve.unlink(missing_ok=True)
        self.failure_file.write_text(text[:REASON_LIMIT], encoding="utf-8")

    @property
    def _reserve(self) -> Path:
        return self.failure_file.parent / ".reserve"

    def release_failure_space(self) -> None:
        self._reserve.unlink(missing_ok=True)


def log_event(stage: str, event: str, **fields: Any) -> None:
    """One JSON line on standard output, where CloudWatch Logs picks it up."""
    record = {"time": round(time.time(), 3), "stage": stage, "event": event, **fields}
    print(json.dumps(record, default=str), flush=True)


def read_options(kind: JobKind, root: Path) -> dict[str, str]:
    """Options as strings by lower-case name: hyper-parameters of a training job, environment of a processing job."""
    if kind is JobKind.TRAINING:
        file = root / "input/config/hyperparameters.json"
        return {str(k): str(v) for k, v in json.loads(file.read_text()).items()} if file.is_file() else {}
    return {k[len(OPTION_PREFIX) :].lower(): v for k, v in os.environ.items() if k.startswith(OPTION_PREFIX)}
