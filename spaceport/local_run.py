"""One run of the whole service on this machine: photos in, result folder out, resumable after any kind of death."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spaceport.asl.journal import JournalError
from spaceport.aws.storage import StorageError
from spaceport.base.clock import RealClock
from spaceport.local_cloud import LocalCloud
from spaceport.out_folder import WORK, LocalRunError, RunPlan, clear_finished, locked, publish
from spaceport.stack.root import TEMPLATE
from spaceport.stack.stages import STAGES
from spaceport.stack.template import load_stack

Listener = Callable[[dict[str, Any]], None]

OWNER = "you@spaceport.local"  # who is told when no e-mail option is given; mail lands in the outbox either way
MAIL_TIMEOUT_S = 60.0
POLL_S = 0.2
# Nothing is billed here and nobody else uploads: no waiting for stragglers, no price, and a laptop's time instead of
# a cluster's.
PARAMETERS = {
    "QuietPeriodSeconds": "1",
    "PricesUsdPerHour": "*=0",
    "UseSpot": "false",
    "SenderEmail": "spaceport@spaceport.local",
    "NotificationEmail": OWNER,
    **{stage.parameter("MaxRuntimeSeconds"): "172800" if stage.is_training else "86400" for stage in STAGES},
}


@dataclass
class Outcome:
    """How a run ended.

    ``status`` is SUCCEEDED, FAILED, ABORTED, TIMED_OUT, or STOPPED when ``stop`` was set. ``seconds`` is the wall
    time of this call, ``control_plane_s`` the part of it that was not inside stage programs. ``seconds_by_state``
    covers the whole execution.
    """

    status: str
    job_id: str | None = None
    results: Path | None = None
    error_code: str | None = None
    reason: str | None = None
    seconds: float = 0.0
    seconds_by_state: dict[str, float] = field(default_factory=dict)
    control_plane_s: float = 0.0


def run(
    photos: Path,
    out: Path,
    options: dict[str, Any],
    listener: Listener,
    jobs_dir: Path | None = None,
    stop: threading.Event | None = None,
    **engine_options: Any,
) -> Outcome:
    """Turn a folder of photos, or a zip archive of them, into the result folder ``out``, and wait for it.

    ``options`` are those of job.json. ``jobs_dir`` is where stage programs work, by default inside ``out``. Once
    ``stop`` is set, by a signal handler or a thread, the run saves its checkpoint and returns; ``resume`` goes on
    later. Raises LocalRunError when there is nothing to start with, or ``out`` holds a run that is not finished.
    ``engine_options`` are for tests (see LocalCloud).
    """
    started = time.monotonic()
    if not photos.is_dir() and not is_archive(photos):
        raise LocalRunError(f"There is no folder {photos}. Name the folder, or the zip archive, that holds the photos.")
    with locked(out):
        clear_finished(out)
        jobs_folder = str(jobs_dir.resolve()) if jobs_dir else None
        plan = RunPlan(str(photos.resolve()), scene_name(photos), options, jobs_folder)
        plan.write(out / WORK)
        return _Run(out, plan, listener, started, stop, engine_options).go(take_over=False)


def resume(out: Path, listener: Listener, stop: threading.Event | None = None, **engine_options: Any) -> Outcome:
    """Go on with the run in ``out`` where it was: finished stages stay, training goes on from its checkpoint.

    Raises LocalRunError when there is no run in ``out``, or another process works on it.
    """
    started = time.monotonic()
    if not (out / WORK / "run.json").is_file():
        raise LocalRunError(f"There is no run in {out}. Start one with: spaceport run PHOTOS --out {out}")
    with locked(out):
        plan = RunPlan.read(out / WORK)
        return _Run(out, plan, listener, started, stop, engine_options).go(take_over=True)


def is_archive(photos: Path) -> bool:
    return photos.is_file() and photos.suffix.lower() == ".zip"


def scene_name(photos: Path) -> str:
    """The folder's (or archive's) name as a scene name: lower case, digits and hyphens, at most 40 characters."""
    whole = photos.resolve()
    name = whole.stem if is_archive(photos) else whole.name
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return name or "scene"


class _Run:
    """One call of ``run`` or ``resume``."""

    def __init__(
        self,
        out: Path,
        plan: RunPlan,
        listener: Listener,
        started: float,
        stop: threading.Event | None,
        engine_options: dict[str, Any],
    ) -> None:
        self.out = out.resolve()
        self.work = self.out / WORK
        self.plan = plan
        self.listener = listener
        self.started = started
        self.stop = stop or threading.Event()
        self.engine_options = engine_options
        self.wake = threading.Event()
        self.problem: str | None = None

    def go(self, take_over: bool) -> Outcome:
        try:
            return self._go(take_over)
        except (StorageError, JournalError) as error:
            raise LocalRunError(
                f"What is stored in {self.work} cannot be used: {error}. Delete that folder and start again: "
                f"spaceport run {shlex.quote(self.plan.photos)} --out {shlex.quote(str(self.out))}"
            ) from error
        except OSError as error:
            if error.errno is None:
                raise  # no word of the operating system: a time-out inside the engine is not the user's to mend
            raise LocalRunError(
                f"A file could not be read or written: {error}. When that is mended, go on with: "
                f"spaceport resume {shlex.quote(str(self.out))}"
            ) from error

    def _go(self, take_over: bool) -> Outcome:
        clock = RealClock(on_error=self._on_clock_error)
        engine = self._engine(clock, take_over)
        try:
            clock.start()
            try:
                self._upload(engine)
                execution = self._wait(engine)
                if execution is None:
                    engine.sagemaker.suspend()
                    return self._outcome(engine, None, "STOPPED")
                self._let_mail_out(engine, clock)
                return self._finish(engine, execution)
            finally:
                clock.stop()
        finally:
            engine.close()

    def _engine(self, clock: RealClock, take_over: bool) -> LocalCloud:
        # The result's address names the bucket, whose name only the template knows, and is a parameter of the template.
        bucket = load_stack(self.engine_options.get("template", TEMPLATE), PARAMETERS).buckets[0].name
        objects = self.work / "objects" / bucket / "results"
        parameters = {**PARAMETERS, "ResultBaseUrl": objects.as_uri()}
        jobs_dir = self.plan.jobs_dir
        return LocalCloud(
            self.work,
            parameters,
            clock,
            self._on_event,
            jobs_dir=Path(jobs_dir) if jobs_dir else None,
            mail_dir=self.out / "outbox",
            take_over=take_over,
            **self.engine_options,
        )

    def _on_clock_error(self, error: BaseException) -> None:
        self.problem = self.problem or f"The engine failed: {type(error).__name__}: {error}"
        self.listener({"type": "log", "time": time.time(), "text": self.problem})
        self.wake.set()

    def _on_event(self, event: dict[str, Any]) -> None:
        if event.get("fault"):
            self.problem = self.problem or f"The engine failed: {event['text']}"
        if event["type"] == "execution_ended" or event.get("fault"):
            self.wake.set()
        self.listener(event)

    # Photos in

    def _upload(self, engine: LocalCloud) -> None:
        """Store the photos under uploads/<scene>/, then job.json, which starts the job.

        Only job.json makes an event. A thousand events for photos would be a thousand calls of `ingest`, and those that
        arrive after the short quiet period would each begin another job for the same scene. The event lives in memory:
        whoever ends before the execution is on the disk takes it along, so job.json is stored again as long as there is
        no execution. `ingest` joins the upload that the lost event may have opened.
        """
        if _newest(engine):
            return
        prefix = f"uploads/{self.plan.scene}/"
        if not self.plan.uploaded:
            for path, name in self._photos(Path(self.plan.photos)):
                if self.stop.is_set():
                    return
                if not engine.storage.exists(engine.bucket, prefix + name):
                    engine.storage.put_file(engine.bucket, prefix + name, path, tell=False)
            engine.storage.sync()
            self.plan.uploaded = True
            self.plan.write(self.work)
        job = {**self.plan.options, "ready": True}
        engine.storage.put_bytes(engine.bucket, prefix + "job.json", json.dumps(job).encode())

    def _photos(self, photos: Path) -> Iterator[tuple[Path, str]]:
        """Files with their names below the folder, without hidden ones and without our own. Or the archive.

        Ours is the output folder when it lies inside ``photos``, else the mail in it: what an earlier run published is
        removed when the next one begins.
        """
        if is_archive(photos):
            yield photos, photos.name
            return
        ours = self.out if self.out != photos and self.out.is_relative_to(photos) else self.out / "outbox"
        for path in sorted(photos.rglob("*")):
            name = path.relative_to(photos)
            hidden = any(part.startswith(".") for part in name.parts)
            if path.is_file() and not hidden and not path.resolve().is_relative_to(ours) and str(name) != "job.json":
                yield path, name.as_posix()

    # Waiting

    def _wait(self, engine: LocalCloud) -> dict[str, Any] | None:
        """The execution once it has ended; None when ``stop`` was set before."""
        while not self.stop.is_set():
            execution = _newest(engine)
            if execution and execution["status"] != "RUNNING":
                return execution
            if self.problem:
                log = self.work / "logs"
                raise LocalRunError(f"{self.problem}. The logs are in {log}; spaceport resume tries again.")
            self.wake.wait(POLL_S)
            self.wake.clear()
        return None

    def _let_mail_out(self, engine: LocalCloud, clock: RealClock) -> None:
        """The mail of an execution that was aborted or timed out is sent after its end."""
        delivered = threading.Event()
        clock.call_soon(delivered.set)  # runs after the events that the end of the execution has queued
        delivered.wait(MAIL_TIMEOUT_S)
        engine.wait_idle(MAIL_TIMEOUT_S)

    # Results out

    def _finish(self, engine: LocalCloud, execution: dict[str, Any]) -> Outcome:
        outcome = self._outcome(engine, execution, execution["status"])
        if outcome.status == "SUCCEEDED":
            publish(self.out, engine.storage, engine.bucket, self.plan, execution["name"])
            outcome.results = self.out
        else:
            row = engine.row(f"JOB#{execution['name']}") or {}
            failure = row.get("failure") or {}
            outcome.error_code = failure.get("code") or execution.get("error") or outcome.status
            outcome.reason = failure.get("reason") or execution.get("cause") or ""
        self.plan.finished = True
        self.plan.write(self.work)
        outcome.seconds = time.monotonic() - self.started
        outcome.control_plane_s = outcome.seconds - engine.sagemaker.seconds_in_programs
        return outcome

    def _outcome(self, engine: LocalCloud, execution: dict[str, Any] | None, status: str) -> Outcome:
        execution = execution or _newest(engine)
        seconds = time.monotonic() - self.started
        outcome = Outcome(status, execution["name"] if execution else None, seconds=seconds)
        outcome.control_plane_s = seconds - engine.sagemaker.seconds_in_programs
        if execution:
            outcome.seconds_by_state = seconds_by_state(engine, execution["executionArn"])
        return outcome


def _newest(engine: LocalCloud) -> dict[str, Any] | None:
    executions = engine.step_functions.list_executions(engine.machine_arn)
    return engine.step_functions.describe_execution(executions[0]["executionArn"]) if executions else None


def seconds_by_state(engine: LocalCloud, execution_arn: str) -> dict[str, float]:
    """Wall-clock seconds between entering and leaving each Task state, in order, with the time when no engine ran."""
    seconds: dict[str, float] = {}
    entered: dict[str, float] = {}
    for event in engine.step_functions.get_execution_history(execution_arn):
        if event["type"] == "TaskStateEntered":
            entered[event["stateEnteredEventDetails"]["name"]] = event["timestamp"].timestamp()
        elif event["type"] == "TaskStateExited":
            name = event["stateExitedEventDetails"]["name"]
            seconds[name] = seconds.get(name, 0.0) + event["timestamp"].timestamp() - entered[name]
    return seconds
