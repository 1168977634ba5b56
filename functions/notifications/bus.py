"""Our own events on the EventBridge bus, for other systems (docs/events.md)."""

from __future__ import annotations

import json
from typing import Annotated, Literal, NotRequired

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import Field
from typing_extensions import TypedDict

from base import aws
from base.failures import Failure, FailureRecord
from base.telemetry import logger
from table.rows import JobRow

SOURCE = "spaceport"  # the role of notify may put events of this source alone

JobId = Annotated[str, Field(description="id of the job, and name of its execution")]


class SceneSucceeded(TypedDict):
    """A scene is published: its page can be opened."""

    job_id: JobId
    scene: Annotated[str, Field(description="the scene's folder under uploads/")]
    status: Annotated[Literal["SUCCEEDED"], Field(description="as in the job table")]
    result_url: Annotated[
        str,
        Field(description="https:// of the scene's page; s3:// of its scene.html where no web server serves results"),
    ]
    cost_usd: Annotated[
        float, Field(ge=0, description="billed machine time of all attempts at this installation's prices, in USD")
    ]


class SceneFailed(TypedDict):
    """A job ended without a result, or was cancelled. Sent again when the job is redriven and ends once more."""

    job_id: JobId
    scene: NotRequired[
        Annotated[
            str,
            Field(description="the scene's folder under uploads/; missing where an execution was started by hand"),
        ]
    ]
    status: Annotated[Literal["FAILED", "ABORTED"], Field(description="`ABORTED` when somebody cancelled the job")]
    failure: FailureRecord


# By detail-type.
EVENTS: dict[str, type] = {"SceneSucceeded": SceneSucceeded, "SceneFailed": SceneFailed}


def put_succeeded(job: JobRow) -> bool:
    """Put SceneSucceeded; False when the bus refused it."""
    detail: SceneSucceeded = {
        "job_id": job["job_id"],
        "scene": job["scene"],
        "status": "SUCCEEDED",
        "result_url": job["result_url"],
        "cost_usd": job["cost_usd"],
    }
    return _put("SceneSucceeded", detail)


def put_failed(job: JobRow, failure: Failure) -> bool:
    """Put SceneFailed; False when the bus refused it."""
    detail: SceneFailed = {
        "job_id": job["job_id"],
        "status": "ABORTED" if job["status"] == "ABORTED" else "FAILED",
        "failure": failure.as_dict(),
    }
    if "scene" in job:
        detail["scene"] = job["scene"]
    return _put("SceneFailed", detail)


def _put(detail_type: Literal["SceneSucceeded", "SceneFailed"], detail: SceneSucceeded | SceneFailed) -> bool:
    try:
        answer = aws.events().put_events(
            Entries=[{"Source": SOURCE, "DetailType": detail_type, "Detail": json.dumps(detail)}]
        )
        refused = answer["Entries"] if answer["FailedEntryCount"] else None
    except (ClientError, BotoCoreError) as error:
        refused = str(error)
    if refused:  # the user has been told: the job must not fail because a listener was not
        logger.error("event refused", extra={"job_id": detail["job_id"], "refused": refused})
    return not refused
