"""Run one stage to its end: signals, exit status and the reason of a failure."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Protocol, cast

from pydantic import ValidationError

from job.contract import Job, JobKind, log_event
from job.documents import Document, describe_problems
from job.errors import StageError, StopRequested

STOPPED_EXIT_STATUS = 143  # 128 + SIGTERM, as a shell reports it


class Program(Protocol):
    """What the module of a stage holds. OUTPUTS are paths below the output folder, promised on success."""

    OUTPUTS: Sequence[str]

    def run(self, job: Job) -> None: ...

    def selfcheck(self) -> None: ...


def run_stage(stage: str, kind: JobKind, module: str) -> int:
    """Import ``module`` (see Program), run it and return the exit status: 0 only when every promised output exists.

    ``--selfcheck`` as the only argument calls ``selfcheck`` instead: the image is built with it, so that an image that
    cannot start is never pushed. The argument ``train``, which SageMaker passes, is accepted.
    """
    exit_on_sigterm()
    is_selfcheck = sys.argv[1:] == ["--selfcheck"]
    if not is_selfcheck:
        log_event(stage, "loading")  # from here on a stop is heard
    program = cast(Program, importlib.import_module(module))
    if is_selfcheck:
        program.selfcheck()
        print(f"{stage}: ready")
        return 0
    job = Job.open(stage, kind)
    install_stop_handler(job)
    job.reserve_failure_space()
    job.log("started", options=job.options)
    try:
        program.run(job)
        require_outputs(job, program.OUTPUTS)
    except StopRequested:
        job.release_failure_space()
        job.log("stopped")
        return STOPPED_EXIT_STATUS
    except Exception as error:  # noqa: BLE001 - the boundary of the program: every error becomes a reason and a status
        traceback.print_exc()
        failure = as_stage_error(error)
        job.write_failure(f"{failure.code}: {failure.reason}")
        job.log("failed", code=failure.code, reason=failure.reason)
        return 1
    job.release_failure_space()
    job.log("finished")
    return 0


def exit_on_sigterm() -> None:
    """While modules load and kernels compile there is nothing to save.

    Without a handler process 1 of a container ignores SIGTERM. Not sys.exit: its exception is lost where a module calls
    Python from C.
    """

    def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
        os._exit(STOPPED_EXIT_STATUS)

    signal.signal(signal.SIGTERM, on_sigterm)


def install_stop_handler(job: Job) -> None:
    """Let SIGTERM call ``job.request_stop``.

    Importing pycolmap replaces the handler (its glog installs one), so a stage may import it only in a child process.
    """

    def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
        job.request_stop()

    signal.signal(signal.SIGTERM, on_sigterm)


def require_outputs(job: Job, promised: Sequence[str]) -> None:
    missing = [name for name in promised if not (job.output / name).exists()]
    if missing:
        raise StageError(
            "OUTPUT_MISSING",
            f"The {job.stage} stage ended without {', '.join(missing)}. This is a fault of Spaceport.",
        )


def as_stage_error(error: BaseException) -> StageError:
    """The code and reason of any exception."""
    if isinstance(error, StageError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(
            "DISK_FULL",
            "The disk is full. Free some space, give the job a larger volume, or use fewer or smaller photos.",
        )
    if isinstance(error, MemoryError):
        return StageError("OUT_OF_MEMORY", "Memory ran out. Use fewer or smaller photos, or a larger instance.")
    if isinstance(error, ValidationError) and error.title in document_names():
        return StageError("INTERNAL_ERROR", f"{error.title} {describe_problems(error)}. This is a fault of Spaceport.")
    if isinstance(error, ValidationError):
        return StageError("BAD_OPTION", describe_validation_error(error))
    return StageError(
        "INTERNAL_ERROR",
        f"{type(error).__name__}: {error}. This is a fault of Spaceport; the job's log has the details.",
    )


def document_names(model: type[Document] = Document) -> set[str]:
    return {model.__name__}.union(*map(document_names, model.__subclasses__()))


def describe_validation_error(error: ValidationError) -> str:
    """Each wrong option by name, with what was expected."""
    parts = [f"'{'.'.join(str(p) for p in e['loc'])}' {e['msg']} (got {e['input']!r})" for e in error.errors()]
    return f"Wrong option: {'; '.join(parts)}."
