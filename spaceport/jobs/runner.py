"""Where the program of a SageMaker job runs: a child process here, a container behind the same interface elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spaceport.jobs.shapes import Record

LAUNCHER = Path(__file__).with_name("process.py")
PRIVATE_PREFIXES = ("AWS_", "SPACEPORT_", "PYTHONPATH")


@dataclass(frozen=True)
class JobStart:
    """Everything that a runner needs to start the program of one job."""

    name: str
    request: dict[str, Any]  # of CreateTrainingJob or CreateProcessingJob
    command: list[str]
    environment: dict[str, str]
    folder: Path | None  # holds `ml`, the job's /opt/ml, filled with its inputs; None when the engine keeps no files
    log: Path | None


def job_start(record: Record, arn: str, region: str, folder: Path | None, log: Path | None) -> JobStart:
    """The program that a job's request names, and its environment."""
    request = record.request
    specification = request["AlgorithmSpecification" if record.kind == "training" else "AppSpecification"]
    arguments = specification.get("ContainerArguments", ["train"] if record.kind == "training" else [])
    title = record.kind.upper()
    environment = {
        "AWS_REGION": region,
        f"{title}_JOB_NAME": record.name,
        f"{title}_JOB_ARN": arn,
        **request.get("Environment", {}),
    }
    command = [*specification["ContainerEntrypoint"], *arguments]
    return JobStart(record.name, request, command, environment, folder, log)


@dataclass(frozen=True)
class Exit:
    """The end of a program: ``status`` as a shell reports it, ``message`` when the runner read the reason itself."""

    status: int
    message: str = ""


class Handle(Protocol):
    """A program that runs."""

    def stop(self) -> None:
        """SIGTERM to the program; no effect once it has ended."""
        ...

    def kill(self) -> None:
        """SIGKILL to all processes of the job; no effect once they have ended."""
        ...


class Runner(Protocol):
    def start(self, job: JobStart, on_exit: Callable[[Exit], None]) -> Handle:
        """Start the program and return; ``on_exit`` is called once when it has ended, from any thread."""
        ...


class ProcessRunner:
    """Runs stage programs as child processes of the engine, with its interpreter and with ``code`` as PYTHONPATH."""

    def __init__(self, code: Path) -> None:
        self.code = code

    def start(self, job: JobStart, on_exit: Callable[[Exit], None]) -> Handle:
        if job.folder is None:
            raise ValueError(f"{job.name}: a process needs a folder; give the engine a work_dir")
        command = [sys.executable if job.command[0] in ("python3", "python") else job.command[0], *job.command[1:]]
        log = job.log.open("ab") if job.log else subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment(job),
                cwd=job.folder / "ml",
                start_new_session=True,  # Ctrl-C is for the engine, which decides what ends
            )
        finally:
            if not isinstance(log, int):
                log.close()
        write_pid(job.folder, process.pid)
        handle = _ProcessHandle(process)
        threading.Thread(target=lambda: on_exit(Exit(process.wait())), name=f"wait-{job.name}", daemon=True).start()
        return handle

    def _environment(self, job: JobStart) -> dict[str, str]:
        """The user's environment, for CUDA and library paths, without what concerns AWS or the engine itself."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE_PREFIXES)}
        own = {"PYTHONPATH": str(self.code), "SPACEPORT_ML_ROOT": str(job.folder / "ml") if job.folder else ""}
        return {**inherited, "PYTHONUNBUFFERED": "1", **job.environment, **own}


class _ProcessHandle:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def stop(self) -> None:
        self._order(b"T")

    def kill(self) -> None:
        self._order(b"K")

    def _order(self, order: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(order)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # the launcher has ended, and the program with it


def write_pid(folder: Path, pid: int) -> None:
    (folder / "pid").write_text(json.dumps({"pid": pid, "started": _start_ticks(pid)}))


def kill_leftover(folder: Path) -> bool:
    """Kill what an engine that was itself killed left running in this job folder; True when there was something.

    The launcher of a job ends with its engine; this is for the case that the launcher was killed as well.
    """
    file = folder / "pid"
    if not file.is_file():
        return False
    record = json.loads(file.read_text())
    leftover = _processes_with_root(folder / "ml")
    if record["started"] is not None and _start_ticks(record["pid"]) == record["started"]:
        leftover.append(record["pid"])
    for pid in leftover:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(leftover)


def _start_ticks(pid: int) -> str | None:
    """When a process started, in ticks since boot (proc(5), field 22); None when it is gone or /proc is missing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _processes_with_root(root: Path) -> list[int]:
    """Processes whose SPACEPORT_ML_ROOT is this job's; empty where there is no /proc."""
    wanted = f"SPACEPORT_ML_ROOT={root}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*") if Path("/proc").is_dir() else []:
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # another user's process, or one that has just ended
        if wanted in variables and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
