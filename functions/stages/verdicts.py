"""What SageMaker's description of a job means: still running, a result, or a failure with a code and a reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from typing_extensions import TypedDict

from base.failures import TRANSIENT, stage_reason

# Processing does not say why it stopped; within this of the limit it was the limit.
LIMIT_TOLERANCE_S = 30
# (error, code, reason) of a program that ended without a reason of its own.
EXIT_CODES = {
    126: ("IMAGE_BROKEN", "IMAGE_BROKEN", "The program of the stage could not be started."),
    127: ("IMAGE_BROKEN", "IMAGE_BROKEN", "The program of the stage was not found in its image."),
    137: ("OUT_OF_MEMORY", "OUT_OF_MEMORY", "The machine of the stage ran out of memory."),
    143: (TRANSIENT, "STAGE_INTERRUPTED", "The machine of the stage was taken away."),
}
# (marks in SageMaker's own FailureReason, error to answer with or empty for the code itself, code); the first counts.
SERVICE_REASONS = (
    (("OutOfMemory", "out of memory", "more memory"), "", "OUT_OF_MEMORY"),
    (("InternalServerError",), TRANSIENT, "SAGEMAKER_INTERNAL"),
    (("CapacityError", "InsufficientCapacity", "nsufficient capacity"), TRANSIENT, "NO_CAPACITY"),
    (("ClientError",), "", "SAGEMAKER_REJECTED"),
)


class ClusterDescription(TypedDict, total=False):
    InstanceType: str


class ResourcesDescription(TypedDict, total=False):
    ClusterConfig: ClusterDescription


class LimitDescription(TypedDict, total=False):
    MaxRuntimeInSeconds: int


class JobDescription(TypedDict, total=False):
    """What is read of the answers of DescribeTrainingJob and DescribeProcessingJob."""

    CreationTime: datetime
    StoppingCondition: LimitDescription
    FailureReason: str
    TrainingJobStatus: str
    SecondaryStatus: str
    ResourceConfig: ClusterDescription
    TrainingStartTime: datetime
    TrainingEndTime: datetime
    TrainingTimeInSeconds: int
    BillableTimeInSeconds: int
    ProcessingJobStatus: str
    ProcessingResources: ResourcesDescription
    ProcessingStartTime: datetime
    ProcessingEndTime: datetime
    ExitMessage: str


@dataclass(frozen=True)
class Verdict:
    """``status``: running, succeeded or failed.

    ``error`` is what the state machine matches, ``code`` what the user is told.
    """

    status: str
    instance_type: str = ""
    seconds: float = 0.0
    billable_seconds: float = 0.0
    error: str = ""
    code: str = ""
    reason: str = ""


def judge(description: JobDescription) -> Verdict:
    """Verdict on the answer of DescribeTrainingJob or DescribeProcessingJob."""
    status = description.get("TrainingJobStatus") or description.get("ProcessingJobStatus")
    if status in ("InProgress", "Stopping"):
        return Verdict("running")
    seconds = _seconds(description)
    cluster = description.get("ProcessingResources", {}).get("ClusterConfig") or description.get("ResourceConfig") or {}
    # Training says what is billed (less than the time it took, on spare capacity); processing bills every second.
    measured = (str(cluster.get("InstanceType", "")), seconds, float(description.get("BillableTimeInSeconds", seconds)))
    if status == "Completed":
        return Verdict("succeeded", *measured)
    if status == "Stopped":
        return Verdict("failed", *measured, *_why_stopped(description, seconds))
    return Verdict("failed", *measured, *_why_failed(description))


def _seconds(description: JobDescription) -> float:
    if "TrainingTimeInSeconds" in description:
        return float(description["TrainingTimeInSeconds"])
    start = description.get("TrainingStartTime") or description.get("ProcessingStartTime")
    end = description.get("TrainingEndTime") or description.get("ProcessingEndTime")
    if isinstance(start, datetime) and isinstance(end, datetime):
        return max(0.0, (end - start).total_seconds())
    return 0.0


def _why_stopped(description: JobDescription, seconds: float) -> tuple[str, str, str]:
    """(error, code, reason). A job that ran into its limit ends as Stopped, not as Failed."""
    secondary = description.get("SecondaryStatus", "")
    limit_s = description.get("StoppingCondition", {}).get("MaxRuntimeInSeconds")
    at_limit = "ProcessingJobStatus" in description and limit_s and seconds >= limit_s - LIMIT_TOLERANCE_S
    if secondary == "MaxRuntimeExceeded" or at_limit:
        return _same("STAGE_TIMEOUT", f"The stage was stopped at its limit of {limit_s} seconds.")
    if secondary == "MaxWaitTimeExceeded":
        return TRANSIENT, "NO_CAPACITY", "No spare machine became free in the time that the training may wait for one."
    return _same("STAGE_STOPPED", "The SageMaker job was stopped by hand.")


def _why_failed(description: JobDescription) -> tuple[str, str, str]:
    """(error, code, reason).

    A stage's own reason is the ExitMessage of processing, and part of the FailureReason of training.
    """
    failure_reason = str(description.get("FailureReason") or "")
    texts = [str(description.get("ExitMessage") or ""), failure_reason]
    for text in texts:
        found = stage_reason(text)
        if found:
            return _same(*found)
    exit_code = next((int(m[1]) for t in texts if (m := re.search(r"exit code:?\s*(\d+)", t, re.IGNORECASE))), None)
    if exit_code in EXIT_CODES:
        return EXIT_CODES[exit_code]
    for marks, error, code in SERVICE_REASONS:
        if any(mark in failure_reason for mark in marks):
            return error or code, code, failure_reason
    detail = next((text for text in texts if text), "it gave no reason")
    return _same("INTERNAL_ERROR", f"The stage ended with an error: {detail}")


def _same(code: str, reason: str) -> tuple[str, str, str]:
    return code, code, reason
