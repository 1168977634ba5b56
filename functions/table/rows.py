"""The rows of the job table, as they are stored (docs/contracts.md, "Job table"). Times are ISO 8601 in UTC.

`typing_extensions`, because pydantic makes the published JSON Schema of `JobRow` from it on Python 3.11 too.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, Required

from pydantic import Field, JsonValue
from typing_extensions import TypedDict

from base.failures import FailureRecord
from base.stages import StageName

JobStatus = Literal["SETTLING", "RUNNING", "SUCCEEDED", "FAILED", "ABORTED"]
EndStatus = Literal["SUCCEEDED", "FAILED", "ABORTED"]


class StageResult(TypedDict):
    """What a stage's successful attempt answers to the state machine, and leaves in the job's row."""

    stage: StageName
    job_name: Annotated[str, Field(description="SageMaker job")]
    output_uri: Annotated[str, Field(description="s3:// of the folder that the stage filled")]
    seconds: float
    billable_seconds: float
    cost_usd: float
    reused_from: NotRequired[Annotated[str, Field(description="the job whose result it is; it cost nothing again")]]


class InterruptedAttempt(TypedDict):
    """An attempt that left no result."""

    stage: StageName
    cost_usd: float


class Checked(TypedDict, total=False):
    """What Validate finds out about a job."""

    options: Annotated[
        dict[str, JsonValue],
        Field(description="job.json as it was checked, absent keys left out; of a wrong job.json the address alone"),
    ]
    photos: Annotated[int, Field(description="photos accepted")]
    rejected: Annotated[int, Field(description="uploaded files that are not used")]
    results: Annotated[
        dict[str, StageResult],
        Field(description="results by stage, also those taken over from the job that job.json names"),
    ]
    estimated_usd: float
    estimated_s: Annotated[dict[str, float], Field(description="seconds that each stage is expected to be billed for")]
    training_shortened: Annotated[bool, Field(description="the cost limit pays for a part of the training only")]


class JobRow(Checked, total=False):
    """JOB#<job id>: all that is known of one job.

    Only `pk` and `status` are sure to be there: the state RecordFailure makes a row where somebody has started an
    execution by hand.
    """

    pk: Required[Annotated[str, Field(description="JOB#<job id>")]]
    status: Required[JobStatus]
    job_id: str
    scene: str
    bucket: str
    stage: Annotated[StageName, Field(description="the stage that was started last")]
    job_name: Annotated[str, Field(description="the SageMaker job that was started last")]
    execution_arn: str
    created_at: str
    ended_at: str
    interrupted: Annotated[
        dict[str, InterruptedAttempt], Field(description="attempts that left no result, by SageMaker job name")
    ]
    cost_usd: Annotated[float, Field(description="what a job that succeeded has cost, interrupted attempts included")]
    result_url: Annotated[
        str, Field(description="https:// of the page, or s3:// of scene.html where no web server serves results")
    ]
    failure: FailureRecord
    raw_error: Annotated[str, Field(description="JSON text of what a Catch has written, by the state RecordFailure")]
    message_claimed_until: Annotated[
        str, Field(description="a call is sending the message to the user, and may take until then")
    ]
    message_sent_at: str
    announced_at: Annotated[str, Field(description="when the event SceneSucceeded or SceneFailed was put on the bus")]
    open: Annotated[Literal["job"], Field(description="there until the job has ended and everybody knows")]
    expires_at: Annotated[int, Field(description="seconds since 1970, from which DynamoDB may delete the row")]


class SceneRow(TypedDict, total=False):
    """SCENE#<scene>: the upload that collects, and when the last one was closed (docs/decisions/0001)."""

    pk: Required[str]
    settling: Literal[True]  # there while an upload collects
    job_id: str  # the job that collects or runs
    first_object_at: str
    last_object_at: str
    options_at: str  # when job.json was created last
    sealed_at: str  # when the last upload was closed
    rejected_on: str  # the day (UTC) on which its owner was told that the folder cannot be a scene
    expires_at: int  # seconds since 1970


class TaskRow(TypedDict, total=False):
    """TASK#<SageMaker job name>: the token that the state machine waits for."""

    pk: Required[str]
    task_token: Required[str]
    job_id: Required[str]
    stage: Required[StageName]
    attempt: Required[int]
    status: Required[str]  # STARTED, SUCCEEDED, FAILED, REJECTED
    created_at: Required[str]
    expires_at: Required[int]  # seconds since 1970
    open: Literal["yes"]  # there while the job runs


class DayRow(TypedDict):
    """DAY#<date, UTC>: what the jobs of that day may cost."""

    pk: str
    reserved_usd: float
    job_ids: set[str]
    expires_at: int  # seconds since 1970
