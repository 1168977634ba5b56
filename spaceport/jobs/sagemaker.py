"""SageMaker on one machine: training and processing jobs with SageMaker's API, statuses, events and failure texts.

Requests are checked against the service description of botocore. What a job does is left to a runner (runner.py);
its files are moved by files.py. All state changes happen on the clock's thread. Life of a job: API reference,
SecondaryStatus.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any

from spaceport.aws.storage import Storage, StorageError
from spaceport.base.clock import Clock, Timer
from spaceport.base.durable import write_json
from spaceport.base.errors import ServiceError
from spaceport.jobs.files import JobFiles, TransferError
from spaceport.jobs.runner import Exit, Handle, Runner, job_start, kill_leftover
from spaceport.jobs.shapes import Record, describe, event_detail, summary, validate

STOP_GRACE_S = 120.0  # SIGTERM to SIGKILL, as `docker stop -t 120`
ENDED = ("Completed", "Failed", "Stopped")
Emit = Callable[[str, str, dict[str, Any], list[str]], object]  # source, detail-type, detail, resources


@dataclass
class Running:
    """A SageMaker job in progress."""

    files: JobFiles | None
    handle: Handle | None = None
    stop_reason: str | None = None  # user, limit, interrupted, suspended
    program_started_at: float = 0.0
    timers: list[Timer] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)  # the program has ended: stop watching its files
    watcher: threading.Thread | None = None
    released: threading.Event = field(default_factory=threading.Event)  # nothing of the job goes on any more


def in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="sagemaker-files", daemon=True).start()


@dataclass(eq=False)
class SageMaker:
    """The API (``call``), and the life of each job. ``call`` may be used from any thread.

    Without ``jobs_dir`` jobs have no files: the runner is a stand-in that knows what a program would write.
    ``background`` runs a function that moves files, off the clock's thread, or at once for a virtual clock.
    ``on_progress(job name, progress.json)`` is called from the watching thread of a job.
    """

    clock: Clock
    storage: Storage
    runner: Runner
    emit: Emit
    _: KW_ONLY
    jobs_dir: Path | None = None
    records_dir: Path | None = None
    logs: Path | None = None
    on_progress: Callable[[str, dict[str, Any]], None] = lambda name, progress: None
    background: Callable[[Callable[[], None]], None] = in_thread

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.jobs: dict[tuple[str, str], Record] = {}
        self.running: dict[tuple[str, str], Running] = {}
        self.seconds_in_programs = 0.0
        self._suspended = False

    # API

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """One operation of the SageMaker API. Raises ServiceError with SageMaker's codes and texts."""
        match = re.fullmatch(r"(Create|Describe|Stop|List)(Training|Processing)Jobs?", operation)
        if not match:
            raise ServiceError("UnknownOperationException", f"{operation} is not played locally")
        validate(operation, request)
        verb, kind = match.group(1), match.group(2).lower()
        with self.lock:
            if verb == "Create":
                return self._create(kind, request)
            if verb == "List":
                return self._list(kind, request)
            record = self._find(kind, request[_name_key(kind)])
            if verb == "Describe":
                return describe(record, self.arn(kind, record.name))
            self._stop(record)
            return {}

    def _create(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        name = request[_name_key(kind)]
        arn = self.arn(kind, name)
        if (kind, name) in self.jobs:
            raise ServiceError(
                "ResourceInUse",
                f"{kind.capitalize()} job names must be unique within an AWS account and region, and a {kind} job "
                f"with this name already exists ({arn})",
            )
        record = Record(name, kind, request, self._now())
        self.jobs[kind, name] = record
        self._change(record, "InProgress", "Starting", "Starting the instances")
        self.clock.call_soon(lambda: self._begin(record))
        return {f"{kind.capitalize()}JobArn": arn}

    def _find(self, kind: str, name: str) -> Record:
        if (kind, name) not in self.jobs:
            missing = f"Could not find requested job with name: {name}"
            message = "Requested resource not found." if kind == "training" else missing
            raise ServiceError("ValidationException", message)
        return self.jobs[kind, name]

    def _stop(self, record: Record) -> None:
        if record.status in ENDED:
            message = f"The request was rejected because the {record.kind} job is in status {record.status}."
            raise ServiceError("ValidationException", message)
        if record.status == "InProgress":
            self._change(record, "Stopping", "Stopping", "Stopping the job")
            self._end_program(record, "user")

    def _list(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        found = [
            summary(record, self.arn(kind, record.name))
            for (job_kind, _), record in self.jobs.items()
            if job_kind == kind
            and request.get("NameContains", "") in record.name
            and request.get("StatusEquals", record.status) == record.status
        ]
        found.sort(key=lambda job: str(job["CreationTime"]), reverse=True)
        return {f"{kind.capitalize()}JobSummaries": found[: request.get("MaxResults", 100)]}

    def arn(self, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.storage.region}:{self.storage.account_id}:{kind}-job/{name}"

    # Life of a job

    def _now(self) -> float:
        return self.clock.now().timestamp()

    def _folder(self, record: Record) -> Path | None:
        return self.jobs_dir / record.name if self.jobs_dir else None

    def _begin(self, record: Record) -> None:
        """Download the inputs, then start the program."""
        with self.lock:
            if self._suspended:
                return  # its record says InProgress: `resume` takes it from there
            if record.status != "InProgress":
                self._finish(record, "Stopped", "Stopped")
                return
            folder = self._folder(record)
            files = JobFiles(self.storage, folder, record.kind, record.request) if folder else None
            running = self.running[record.kind, record.name] = Running(files)
            record.started_at = record.started_at or self._now()
            if record.kind == "training":
                self._change(record, "InProgress", "Downloading", "Downloading input data")
        if files is None:
            self._start_program(record, running)
        else:
            self.background(lambda: self._download(record, running, files))

    def _download(self, record: Record, running: Running, files: JobFiles) -> None:
        try:
            files.prepare()
        except (TransferError, OSError) as error:
            reason = f"ClientError: Data download failed: {error}"
            self.clock.call_soon(lambda: self._release(record, running, "Failed", "Failed", reason))
            return
        self.clock.call_soon(lambda: self._start_program(record, running))

    def _start_program(self, record: Record, running: Running) -> None:
        with self.lock:
            if running.stop_reason:
                self._after_program(record, running, Exit(143))
                return
            if record.kind == "training":
                self._change(record, "InProgress", "Training", "Training image download completed.")
            running.program_started_at = self._now()
            arn, log = self.arn(record.kind, record.name), self.logs / f"{record.name}.log" if self.logs else None
            start = job_start(record, arn, self.storage.region, self._folder(record), log)

            def on_exit(result: Exit) -> None:
                self.clock.call_soon(lambda: self._after_program(record, running, result))

            try:
                running.handle = self.runner.start(start, on_exit)
            except OSError as error:
                reason = f"InternalServerError: the program could not be started: {error}"
                self._release(record, running, "Failed", "Failed", reason)
                return
            limit_s = record.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86400) - record.program_s
            running.timers.append(self.clock.call_later(limit_s, lambda: self._over_limit(record)))
        if running.files:
            running.watcher = threading.Thread(
                target=running.files.watch,
                args=(running.ended, lambda progress: self.on_progress(record.name, progress)),
                name=f"watch-{record.name}",
                daemon=True,
            )
            running.watcher.start()

    def _over_limit(self, record: Record) -> None:
        with self.lock:
            if record.status == "InProgress":
                secondary = "MaxRuntimeExceeded" if record.kind == "training" else "Stopping"
                self._change(record, "Stopping", secondary, "Training job runtime exceeded MaxRuntimeInSeconds")
                self._end_program(record, "limit")

    def interrupt(self, name: str) -> None:
        """Take the machine away from a training job, as spot does; it starts again from its checkpoint."""
        with self.lock:
            record = self._find("training", name)
            self._change(record, "InProgress", "Interrupted", "Training job was interrupted")
            self._end_program(record, "interrupted")

    def _end_program(self, record: Record, reason: str) -> None:
        running = self.running.get((record.kind, record.name))
        if running is None or running.stop_reason:
            return
        running.stop_reason = reason
        if running.handle:
            running.handle.stop()
            running.timers.append(self.clock.call_later(STOP_GRACE_S, running.handle.kill))

    def _after_program(self, record: Record, running: Running, result: Exit) -> None:
        """The program has ended, or will not be started: store what it left."""
        with self.lock:
            for timer in running.timers:
                timer.cancel()
            if running.program_started_at:
                seconds = self._now() - running.program_started_at
                record.program_s += seconds
                self.seconds_in_programs += seconds
            if record.kind == "training" and result.status == 0 and not running.stop_reason:
                self._change(record, "InProgress", "Uploading", "Uploading generated training model")
        self.background(lambda: self._store(record, running, result))

    def _store(self, record: Record, running: Running, result: Exit) -> None:
        running.ended.set()
        if running.watcher:
            running.watcher.join()
        message, problem = result.message, None
        if running.files:
            try:
                if progress := running.files.progress():
                    self.on_progress(record.name, progress)
                message = message or running.files.message()
                running.files.sync()
                if result.status == 0 and not running.stop_reason:
                    running.files.upload_outputs()
            except (TransferError, OSError, ValueError) as error:
                problem = f"ClientError: Artifact upload failed: {error}"
        self.clock.call_soon(lambda: self._conclude(record, running, result, message, problem))

    def _conclude(self, record: Record, running: Running, result: Exit, message: str, problem: str | None) -> None:
        if record.kind == "processing" and message:
            record.exit_message = message
        if running.stop_reason == "suspended":
            self._let_go(running)
        elif running.stop_reason == "interrupted":
            self._restart(record, running)
        elif running.stop_reason:
            limit = running.stop_reason == "limit" and record.kind == "training"
            self._release(record, running, "Stopped", "MaxRuntimeExceeded" if limit else "Stopped")
        elif result.status != 0:
            text = message or "See job logs for more information"
            self._release(record, running, "Failed", "Failed", f"AlgorithmError: {text}, exit code: {result.status}")
        elif problem:
            self._release(record, running, "Failed", "Failed", problem)
        else:
            self._release(record, running, "Completed", "Completed")

    def _restart(self, record: Record, running: Running) -> None:
        self._let_go(running)
        with self.lock:
            self._change(record, "InProgress", "Restarting", "Restarting the training job")
        self._begin(record)

    def _release(
        self, record: Record, running: Running, status: str, secondary: str, reason: str | None = None
    ) -> None:
        if running.files:
            running.files.remove()
        self._finish(record, status, secondary, reason)
        self._let_go(running)

    @staticmethod
    def _let_go(running: Running) -> None:
        running.ended.set()
        running.released.set()

    def _finish(self, record: Record, status: str, secondary: str, reason: str | None = None) -> None:
        with self.lock:
            record.ended_at = self._now()
            record.failure_reason = reason[:1024] if reason else None
            self.running.pop((record.kind, record.name), None)
            self._change(record, status, secondary, reason or f"Job {status.lower()}")

    def _change(self, record: Record, status: str, secondary: str, message: str) -> None:
        """Note a status on the disk, then tell the bus."""
        now = self._now()
        changed = (record.status, record.secondary_status) != (status, secondary) or not record.transitions
        record.status, record.secondary_status, record.modified_at = status, secondary, now
        if changed:
            if record.transitions:
                record.transitions[-1].setdefault("EndTime", now)
            record.transitions.append({"Status": secondary, "StartTime": now, "StatusMessage": message[:1024]})
        if self.records_dir:
            self.storage.sync()  # a record says Completed when the outputs are there
            write_json(self.records_dir / f"{record.name}.json", asdict(record))
        self._tell(record)

    def _tell(self, record: Record) -> None:
        title = record.kind.capitalize()
        arn = self.arn(record.kind, record.name)
        self.emit("aws.sagemaker", f"SageMaker {title} Job State Change", event_detail(record, arn), [arn])

    # Going on after the engine was stopped or killed

    def suspend(self, timeout_s: float = STOP_GRACE_S) -> None:
        """Let running programs save what they can and end, without a status change, so that ``resume`` goes on.

        Called from any thread but the clock's. A program that has not ended after ``timeout_s`` is killed.
        """
        with self.lock:
            self._suspended = True
            running = list(self.running.items())
            for key, _job in running:
                self._end_program(self.jobs[key], "suspended")
        for _key, job in running:
            if not job.released.wait(timeout_s) and job.handle:
                job.handle.kill()
                job.released.wait(timeout_s)

    def close(self) -> None:
        """Kill what still runs."""
        with self.lock:
            for job in self.running.values():
                if job.handle:
                    job.handle.kill()

    def resume(self) -> None:
        """Take over the jobs of an earlier engine.

        A job in progress starts again under its name, a training from its checkpoint as after a spot interruption. That
        the user's machine was switched off is no fault of the job: a failure would use up the retries of its state, and
        let the user wait until they are due. The last event of ended jobs is sent again, because it may not have been
        delivered. Raises StorageError for a record that cannot be read.
        """
        assert self.records_dir is not None
        for file in sorted(self.records_dir.glob("*.json")):
            try:
                record = Record(**json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise StorageError(f"{file} is no record of a SageMaker job ({error!r})") from error
            self.jobs[record.kind, record.name] = record
            folder = self._folder(record)
            if folder and record.status not in ENDED:
                kill_leftover(folder)
            self.clock.call_soon(lambda record=record: self._resume(record))  # type: ignore[misc]

    def _resume(self, record: Record) -> None:
        if record.status in ENDED:
            self._tell(record)
        elif record.status == "Stopping":
            self._finish(record, "Stopped", "Stopped")
        elif record.kind == "processing":
            self._begin(record)
        else:
            with self.lock:
                self._change(record, "InProgress", "Interrupted", "Training job was interrupted")
            self._save_checkpoints(record)
            with self.lock:
                self._change(record, "InProgress", "Restarting", "Restarting the training job")
            self._begin(record)

    def _save_checkpoints(self, record: Record) -> None:
        """Store what the killed program had written after the last upload."""
        folder = self._folder(record)
        if folder and folder.is_dir():
            with contextlib.suppress(OSError):  # an older checkpoint is stored already
                JobFiles(self.storage, folder, record.kind, record.request).sync()
            shutil.rmtree(folder, ignore_errors=True)


def _name_key(kind: str) -> str:
    return f"{kind.capitalize()}JobName"
