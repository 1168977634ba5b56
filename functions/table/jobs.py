"""Rows JOB#: the state of each job. Every change that can race is conditional."""

from __future__ import annotations

from typing import Literal

from botocore.exceptions import ClientError

from base import aws
from base.failures import Failure
from base.stages import StageName
from table import scenes, store
from table.rows import Checked, EndStatus, JobRow, JobStatus, StageResult

ENDED = ("SUCCEEDED", "FAILED", "ABORTED")
# Longer than claiming, sending by mail and to the topic, and marking can take by the clients' time limits (aws.py), so
# that an older claim belongs to a call that has died; and shorter than all tries of NotifyFailure together.
MESSAGE_CLAIM_S = 120
JOB_DAYS = 400
OPEN_JOB: Literal["job"] = "job"  # value of the attribute `open`, which the index that the sweep reads is made of


def job_key(job_id: str) -> dict[str, str]:
    return {"pk": f"JOB#{job_id}"}


def get_job(job_id: str) -> JobRow | None:
    row: JobRow | None = store.get(job_key(job_id))
    return row


def create_job(job_id: str, scene: str, bucket: str) -> None:
    """The row of a new job; one that exists is left alone."""
    row: JobRow = {
        "pk": job_key(job_id)["pk"],
        "job_id": job_id,
        "scene": scene,
        "bucket": bucket,
        "status": "SETTLING",
        "created_at": aws.timestamp(),
        "results": {},
        "interrupted": {},
        "open": OPEN_JOB,
        "expires_at": store.expires_at(JOB_DAYS),
    }
    store.put(row, "attribute_not_exists(pk)")


def mark_started(job_id: str, execution_arn: str) -> None:
    store.update(job_key(job_id), "SET execution_arn = :arn", {":arn": execution_arn}, "attribute_exists(pk)")


def set_checked(job_id: str, checked: Checked) -> None:
    """What Validate found: options, photos, estimated_usd, results taken over from another job."""
    names = {f"#{index}": name for index, name in enumerate(checked)}
    values = {f":{index}": store.to_dynamo(value) for index, value in enumerate(checked.values())}
    assignments = ", ".join(f"#{index} = :{index}" for index in range(len(checked)))
    store.update(job_key(job_id), f"SET {assignments}", values, "attribute_exists(pk)", names)


def begin_stage(job_id: str, stage: StageName, job_name: str, execution_arn: str, ended_at: str) -> str | None:
    """The stage runs as SageMaker job ``job_name``; returns the name of the job before it, or an empty text.

    None when the job has ended meanwhile (an execution that is aborted does not stop a call that is going on).
    ``ended_at``: the end of a redriven job, which runs again here; empty for a job that has not ended.
    """
    try:
        answer = store.table().update_item(
            Key=job_key(job_id),
            UpdateExpression="SET #status = :running, stage = :stage, job_name = :name, execution_arn = :arn, "
            "#open = :open REMOVE failure, raw_error, ended_at, message_sent_at, message_claimed_until, announced_at",
            ConditionExpression="#status IN (:settling, :running) OR ended_at = :ended",
            ExpressionAttributeNames={"#status": "status", "#open": "open"},
            ExpressionAttributeValues={
                ":running": "RUNNING",
                ":settling": "SETTLING",
                ":stage": stage,
                ":name": job_name,
                ":arn": execution_arn,
                ":open": OPEN_JOB,
                ":ended": ended_at,
            },
            ReturnValues="UPDATED_OLD",
        )
    except ClientError as error:
        store.condition_failed(error)
        return None
    return str(answer.get("Attributes", {}).get("job_name", ""))


def resume_job(job_id: str, ended_at: str) -> bool:
    """The execution that had ended then was redriven: the job runs again, and its user will hear of its new end."""
    return store.update(
        job_key(job_id),
        "SET #status = :running, #open = :open "
        "REMOVE failure, raw_error, ended_at, message_sent_at, message_claimed_until, announced_at",
        {":running": "RUNNING", ":open": OPEN_JOB, ":ended": ended_at},
        "ended_at = :ended",
        {"#status": "status", "#open": "open"},
    )


def put_interrupted(job_id: str, stage: StageName, job_name: str, cost_usd: float) -> None:
    """What an attempt that left no result has cost."""
    store.update(
        job_key(job_id),
        "SET interrupted.#name = :cost",
        {":cost": store.to_dynamo({"stage": stage, "cost_usd": cost_usd})},
        "attribute_exists(interrupted)",
        {"#name": job_name},
    )


def put_result(job_id: str, stage: StageName, result: StageResult) -> None:
    store.update(
        job_key(job_id),
        "SET results.#stage = :result",
        {":result": store.to_dynamo(result)},
        "attribute_exists(results)",
        {"#stage": stage},
    )


def end_job(
    job_id: str,
    status: EndStatus,
    failure: Failure | None = None,
    result_url: str | None = None,
    cost_usd: float | None = None,
) -> bool:
    """Give the job its last status and free its scene; False when the job has ended otherwise before.

    FAILED after FAILED is allowed: RecordFailure writes the bare status first, notify adds the reason.
    """
    values: dict[str, object] = {
        ":status": status,
        ":now": aws.timestamp(),
        ":settling": "SETTLING",
        ":running": "RUNNING",
    }
    sets = ["#status = :status", "ended_at = if_not_exists(ended_at, :now)"]
    found = {"failure": failure.as_dict() if failure else None, "result_url": result_url, "cost_usd": cost_usd}
    for name, value in found.items():
        if value is not None:
            values[f":{name}"] = store.to_dynamo(value)
            sets.append(f"{name} = :{name}")
    ended = store.update(
        job_key(job_id),
        f"SET {', '.join(sets)}",
        values,
        "attribute_not_exists(#status) OR #status IN (:settling, :running, :status)",
        {"#status": "status"},
    )
    job = get_job(job_id)
    if job and "scene" in job:
        scenes.release_scene(job["scene"], job_id, job["ended_at"])
    return ended


def claim_message(job_id: str, status: JobStatus) -> Literal["claimed", "sent", "busy"]:
    """Take the right to send the one message of this job, which says that it ended with ``status``.

    The claim runs out, so that a call that dies before `mark_message_sent` does not lose the message: whoever tries
    next sends it. Dying between sending and marking sends it twice (docs/decisions/0004).
    """
    now = aws.now()
    claimed = store.update(
        job_key(job_id),
        "SET message_claimed_until = :until",
        {":until": aws.timestamp(now + MESSAGE_CLAIM_S), ":now": aws.timestamp(now), ":status": status},
        "attribute_not_exists(message_sent_at) AND #status = :status AND "
        "(attribute_not_exists(message_claimed_until) OR message_claimed_until <= :now)",
        {"#status": "status"},
    )
    if claimed:
        return "claimed"
    job = get_job(job_id)
    return "sent" if job and "message_sent_at" in job else "busy"


def mark_message_sent(job_id: str) -> None:
    store.update(job_key(job_id), "SET message_sent_at = :now REMOVE message_claimed_until", {":now": aws.timestamp()})


def mark_announced(job_id: str, status: JobStatus) -> bool:
    """Other systems have been told of the end with ``status``; False when the job runs again."""
    return store.update(
        job_key(job_id),
        "SET announced_at = :now",
        {":now": aws.timestamp(), ":status": status},
        "#status = :status",
        {"#status": "status"},
    )


def close_job(job_id: str) -> None:
    """The job needs no more attention: it leaves the index that the sweep reads."""
    store.update(job_key(job_id), "REMOVE #open", {}, "attribute_exists(message_sent_at)", {"#open": "open"})


def release_message(job_id: str) -> None:
    """Sending failed and said so: the next try need not wait until the claim runs out."""
    store.update(job_key(job_id), "REMOVE message_claimed_until")


def open_job_ids() -> list[str]:
    """Jobs that have not ended, whose user has not been told, or that may have left something behind."""
    return store.open_names(OPEN_JOB)
