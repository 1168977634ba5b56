"""What the handlers are called with and what they answer: the state machine's payloads, and the parts of AWS's own
events that are read (docs/contracts.md, "State machine")."""

from __future__ import annotations

from typing import Literal, NotRequired, Required, final

from typing_extensions import TypedDict

from base.stages import StageName


class ExecutionInput(TypedDict):
    """Input of an execution of the state machine."""

    job_id: str
    scene: str
    bucket: str


class CaughtError(TypedDict, total=False):
    """What a Catch of the state machine writes."""

    Error: str
    Cause: str


class ExecutionState(ExecutionInput):
    """The state that the execution has come to; answers of earlier states, which no handler reads, are left out."""

    error: NotRequired[CaughtError]


class SettleAnswer(TypedDict):
    complete: bool
    wait_s: int


class ValidateAnswer(TypedDict):
    start_at: StageName
    photos: int
    rejected: int
    estimated_usd: float
    training_shortened: bool


class StartJobEvent(TypedDict):
    state: ExecutionState
    stage: StageName
    attempt: int
    task_token: str
    execution_arn: str


class StartJobAnswer(TypedDict):
    job_name: str
    created: bool  # False when an earlier call with this token has created the job


class StageFailureCause(TypedDict):
    """`cause` of SendTaskFailure, as JSON."""

    code: str
    reason: str
    stage: StageName
    job_name: str


@final
class CheckOneEvent(TypedDict):
    job_name: str


class SageMakerChange(TypedDict, total=False):
    """`detail` of a SageMaker job's state change; the rest of it may be out of date and is not read."""

    TrainingJobName: str
    ProcessingJobName: str


@final
class SageMakerEvent(TypedDict):
    """A SageMaker job's state change, or, with another source, the schedule."""

    source: str
    detail: SageMakerChange


class CheckedAnswer(TypedDict):
    checked: dict[str, str]  # what was done, by SageMaker job name (check_status) or job id (notify)


class ExecutionEnd(TypedDict, total=False):
    """What an execution has come to, as Step Functions' description and its event say."""

    status: Required[str]
    error: str | None
    cause: str | None
    redriveCount: int


class ExecutionChange(ExecutionEnd):
    """`detail` of an execution's status change."""

    executionArn: str
    name: str


@final
class NotifyRequest(TypedDict):
    """From the states Notify and NotifyFailure."""

    kind: Literal["succeeded", "failed"]
    job_id: str
    state: ExecutionState


@final
class ExecutionEvent(TypedDict):
    """An execution's status change, or, with another source, the schedule."""

    source: str
    detail: ExecutionChange


class NotifyAnswer(TypedDict):
    status: str
    message: str  # how the user was told: email, topic, sent before, none


class IngestAnswer(TypedDict):
    action: Literal["ignored", "rejected", "opened", "joined", "late"]
    job_id: str
