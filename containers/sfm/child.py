"""Run the mapping program in a child process: its crash becomes a reason, and a stop reaches it at once."""

from __future__ import annotations

import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from job import Job, StageError
from sfm.messages import MapMessage, Watch
from sfm.request import MapAnswer, MapRequest, MapResult

GRACE_S = 5.0
POLL_S = 0.5


def run_mapping(job: Job, request: MapRequest) -> MapResult:
    """Start ``python -m sfm.mapping`` with ``request``, pass its messages on and return its result.

    pycolmap replaces signal handlers when it is imported and can abort the whole process, so it only ever runs there.
    Raises StageError (the child's own, or SFM_CRASHED, OUT_OF_MEMORY) and StopRequested.
    """
    request_file = request.work / "request.json"
    request_file.write_text(request.model_dump_json(), encoding="utf-8")
    packages = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [sys.executable, "-m", "sfm.mapping", str(request_file)],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    assert child.stdout is not None
    reader = threading.Thread(target=read_lines, args=(child.stdout, lines), daemon=True)
    reader.start()
    try:
        forward_messages(job, lines)
        status = child.wait()
    finally:
        stop(child)
        reader.join(GRACE_S)
    if status != 0:
        raise crash(status)
    answer = MapAnswer.model_validate_json(request.answer.read_text(encoding="utf-8"))
    if answer.error:
        raise StageError(answer.error.code, answer.error.reason)
    assert answer.result is not None
    return answer.result


def read_lines(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def forward_messages(job: Job, lines: queue.Queue[str | None]) -> None:
    """Pass progress and log lines on until the child closes its output; raise StopRequested when the job is to stop."""
    watched: Watch | None = None
    looked_at = 0.0
    while True:
        job.check_stop()
        if watched and time.monotonic() - looked_at > POLL_S:
            looked_at = time.monotonic()
            report_watched(job, watched)
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            return
        try:
            message = MapMessage.model_validate_json(line)
        except ValidationError:
            print(line, end="", file=sys.stderr)  # a library that prints
            continue
        if message.watch:
            watched = message.watch  # a phase is told as it begins, however short it is
            job.progress(0, watched.total, watched.unit, watched.message)
        if message.progress:
            watched, at = None, message.progress
            job.progress(at.step, at.total, at.unit, at.message)
        if message.log:
            job.log(message.log.event, **message.log.fields)


def report_watched(job: Job, watched: Watch) -> None:
    """Progress by counting what the library has written: rows of a database table, or files of a folder."""
    if watched.folder:
        done = sum(1 for _ in watched.folder.iterdir()) if watched.folder.is_dir() else 0
    else:
        try:
            with closing(sqlite3.connect(f"file:{watched.database}?mode=ro", uri=True, timeout=0.1)) as connection:
                done = connection.execute(f"SELECT COUNT(*) FROM {watched.table}").fetchone()[0]
        except sqlite3.OperationalError:
            return  # locked for a moment; the next look will do
    job.progress(min(done, watched.total), watched.total, watched.unit, watched.message)


def stop(child: subprocess.Popen[str]) -> None:
    """End the child if it still runs: SIGTERM, and SIGKILL after a grace period. It keeps nothing worth saving."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def crash(status: int) -> StageError:
    """The reason for a child that ended without a result."""
    if status == -signal.SIGKILL:
        return StageError(
            "OUT_OF_MEMORY",
            "Finding the camera positions was killed, most likely because memory ran out. "
            "Use fewer or smaller photos (option max_image_long_side), or a larger instance.",
        )
    ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return StageError(
        "SFM_CRASHED",
        f"The program that finds the camera positions ended with {ended}. The job's log has its last messages. "
        "Try again with another matcher (option matcher), or without the photos that the log names.",
    )
