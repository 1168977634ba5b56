"""The contract between a stage program and the service that runs it (SageMaker, or the embedded engine)."""

from job.contract import Job, JobKind
from job.entry import run_stage
from job.errors import StageError, StopRequested

__all__ = ["Job", "JobKind", "StageError", "StopRequested", "run_stage"]
