"""The job table: rows JOB#, SCENE# and TASK# (docs/contracts.md, "Job table").

Every change that can race is conditional.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from boto3.dynamodb.conditions import Key
from botocore.exceptions import ClientError

from base import aws
from base.failures import Failure
from base.settings import settings
from base.stages import StageName

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.service_resource import Table

Row = dict[str, Any]
ENDED = ("SUCCEEDED", "FAILED", "ABORTED")
# Longer than claiming, sending by mail and to the topic, and marking can take by the clients' time limits (aws.py), so
# that an older claim belongs to a call that has died; and shorter than all tries of NotifyFailure together.
MESSAGE_CLAIM_S = 120
TASK_DAYS = 30
JOB_DAYS = 400
OPEN_TASKS_INDEX = "open-tasks"
# Values of the attribute `open`, which the index is made of.
OPEN_TASK = "yes"
OPEN_JOB = "job"


class Arrival(NamedTuple):
    """What an object meant: ``opened`` a new upload, ``joined`` the one that is collecting, or came ``late``."""

    kind: Literal["opened", "joined", "late"]
    job_id: str


def job_key(job_id: str) -> dict[str, str]:
    return {"pk": f"JOB#{job_id}"}


def scene_key(scene: str) -> dict[str, str]:
    return {"pk": f"SCENE#{scene}"}


def task_key(job_name: str) -> dict[str, str]:
    return {"pk": f"TASK#{job_name}"}


def get_job(job_id: str) -> Row | None:
    return _get(job_key(job_id))


def get_scene(scene: str) -> Row | None:
    return _get(scene_key(scene))


def get_task(job_name: str) -> Row | None:
    return _get(task_key(job_name))


# Uploads -------------------------------------------------------------------------------------------------------------


def note_object(scene: str, at: str, new_job_id: str) -> Arrival:
    """Record that an object of the scene was created at ``at`` (ISO). Events may come twice, late and in any order.

    The row has `settling` while an upload collects; `sealed_at` says when the last one was closed. An object that
    is not younger than that was already there when Validate listed the folder, so its event starts nothing, and
    belongs to no upload that has been opened since.
    """
    for _ in range(5):
        joined = _update(
            scene_key(scene),
            "SET last_object_at = :at",
            {":at": at},
            "attribute_exists(settling) AND last_object_at < :at",
        )
        row = get_scene(scene) or {}
        if not joined and str(row.get("sealed_at", "")) >= at:
            return Arrival("late", "")
        if joined or "settling" in row:
            if str(row.get("first_object_at", at)) > at:
                _update(
                    scene_key(scene),
                    "SET first_object_at = :at",
                    {":at": at},
                    "attribute_exists(settling) AND first_object_at > :at "
                    "AND (attribute_not_exists(sealed_at) OR sealed_at < :at)",
                )
            return Arrival("joined", str(row.get("job_id", "")))
        opened = _update(
            scene_key(scene),
            "SET job_id = :job, settling = :yes, first_object_at = :at, last_object_at = :at",
            {":job": new_job_id, ":yes": True, ":at": at},
            "attribute_not_exists(settling) AND (attribute_not_exists(sealed_at) OR sealed_at < :at)",
        )
        if opened:
            return Arrival("opened", new_job_id)
    raise RuntimeError(f"the row of scene {scene!r} changed five times in a row; the event is delivered again")


def note_options(scene: str, at: str) -> None:
    """Record that the scene's job.json was created then.

    Called before `note_object`, so that a ready upload need not wait.
    """
    _update(
        scene_key(scene), "SET options_at = :at", {":at": at}, "attribute_not_exists(options_at) OR options_at < :at"
    )


def seal_upload(scene: str, job_id: str, last_object_at: str) -> bool:
    """Close the upload, unless an object has come since ``last_object_at`` was read, or that second is not over.

    From here on new objects are a new upload.
    """
    return _update(
        scene_key(scene),
        "SET sealed_at = :sealed REMOVE settling",
        {":sealed": last_second_before(aws.now()), ":job": job_id, ":seen": last_object_at},
        "job_id = :job AND attribute_exists(settling) AND last_object_at = :seen AND last_object_at <= :sealed",
    )


def last_second_before(epoch_s: float) -> str:
    """The last second that was over then, as ISO 8601; an upload that is closed is closed as of it.

    Event times have whole seconds. Of an object of the closing second nobody can tell whether it came before Validate
    listed the folder: it opens the next upload, for a photo too often is better than one that is lost.
    """
    return aws.timestamp(math.floor(epoch_s) - 1)


def release_scene(scene: str, job_id: str, ended_at: str) -> None:
    """The job ended then: the scene has no running job, and an upload that it was still collecting is closed."""
    _update(
        scene_key(scene),
        "SET sealed_at = :ended REMOVE settling, job_id",
        {":ended": last_second_before(aws.epoch_s(ended_at)), ":job": job_id},
        "job_id = :job AND attribute_exists(settling)",
    )
    _update(scene_key(scene), "REMOVE job_id", {":job": job_id}, "job_id = :job")


def claim_rejection(scene: str) -> bool:
    """True once a day for a folder whose name is no scene name, so that a thousand photos in it make one message."""
    today = aws.timestamp()[:10]
    return _update(
        scene_key(scene),
        "SET rejected_on = :today, expires_at = :expires",
        {":today": today, ":expires": _expires(TASK_DAYS)},
        "attribute_not_exists(rejected_on) OR rejected_on < :today",
    )


# Jobs ----------------------------------------------------------------------------------------------------------------


def create_job(job_id: str, scene: str, bucket: str) -> None:
    """The row of a new job; one that exists is left alone."""
    row = {
        **job_key(job_id),
        "job_id": job_id,
        "scene": scene,
        "bucket": bucket,
        "status": "SETTLING",
        "created_at": aws.timestamp(),
        "results": {},
        "interrupted": {},
        "open": OPEN_JOB,
        "expires_at": _expires(JOB_DAYS),
    }
    _put(row, "attribute_not_exists(pk)")


def reserve_cost(job_id: str, usd: float, limit_usd: float) -> bool:
    """Count the job's estimate (USD) towards today's (UTC); False when the sum would pass the limit.

    The row holds the jobs that it counts, so a repeated call counts once. A job that then fails stays counted: the
    limit is for what may be spent, and the estimate is above what a job costs.
    """
    key = {"pk": f"DAY#{aws.timestamp()[:10]}"}
    if usd > limit_usd:
        return False
    reserved = _update(
        key,
        "SET expires_at = :expires ADD reserved_usd :usd, job_ids :job",
        {
            ":expires": _expires(TASK_DAYS),
            ":usd": _to_dynamo(usd),
            ":job": {job_id},
            ":job_id": job_id,
            ":left": _to_dynamo(round(limit_usd - usd, 6)),
        },
        "attribute_not_exists(pk) OR (reserved_usd <= :left AND NOT contains(job_ids, :job_id))",
    )
    return reserved or job_id in (_get(key) or {}).get("job_ids", ())


def mark_started(job_id: str, execution_arn: str) -> None:
    _update(job_key(job_id), "SET execution_arn = :arn", {":arn": execution_arn}, "attribute_exists(pk)")


def set_checked(job_id: str, checked: Row) -> None:
    """What Validate found: options, photos, estimated_usd, results taken over from another job."""
    names = {f"#{index}": name for index, name in enumerate(checked)}
    values = {f":{index}": _to_dynamo(value) for index, value in enumerate(checked.values())}
    assignments = ", ".join(f"#{index} = :{index}" for index in range(len(checked)))
    _update(job_key(job_id), f"SET {assignments}", values, "attribute_exists(pk)", names)


def begin_stage(job_id: str, stage: StageName, job_name: str, execution_arn: str, ended_at: str) -> str | None:
    """The stage runs as SageMaker job ``job_name``; returns the name of the job before it, or an empty text.

    None when the job has ended meanwhile (an execution that is aborted does not stop a call that is going on).
    ``ended_at``: the end of a redriven job, which runs again here; empty for a job that has not ended.
    """
    try:
        answer = _table().update_item(
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
        _condition_failed(error)
        return None
    return str(answer.get("Attributes", {}).get("job_name", ""))


def resume_job(job_id: str, ended_at: str) -> bool:
    """The execution that had ended then was redriven: the job runs again, and its user will hear of its new end."""
    return _update(
        job_key(job_id),
        "SET #status = :running, #open = :open "
        "REMOVE failure, raw_error, ended_at, message_sent_at, message_claimed_until, announced_at",
        {":running": "RUNNING", ":open": OPEN_JOB, ":ended": ended_at},
        "ended_at = :ended",
        {"#status": "status", "#open": "open"},
    )


def put_interrupted(job_id: str, stage: StageName, job_name: str, cost_usd: float) -> None:
    """What an attempt that left no result has cost."""
    _update(
        job_key(job_id),
        "SET interrupted.#name = :cost",
        {":cost": _to_dynamo({"stage": stage, "cost_usd": cost_usd})},
        "attribute_exists(interrupted)",
        {"#name": job_name},
    )


def put_result(job_id: str, stage: StageName, result: Row) -> None:
    _update(
        job_key(job_id),
        "SET results.#stage = :result",
        {":result": _to_dynamo(result)},
        "attribute_exists(results)",
        {"#stage": stage},
    )


def end_job(job_id: str, status: str, failure: Failure | None = None, **more: Any) -> bool:
    """Give the job its last status and free its scene; False when the job has ended otherwise before.

    FAILED after FAILED is allowed: RecordFailure writes the bare status first, notify adds the reason.
    """
    values: Row = {":status": status, ":now": aws.timestamp(), ":settling": "SETTLING", ":running": "RUNNING"}
    sets = ["#status = :status", "ended_at = if_not_exists(ended_at, :now)"]
    for name, value in {"failure": failure.as_dict() if failure else None, **more}.items():
        if value is not None:
            values[f":{name}"] = _to_dynamo(value)
            sets.append(f"{name} = :{name}")
    ended = _update(
        job_key(job_id),
        f"SET {', '.join(sets)}",
        values,
        "attribute_not_exists(#status) OR #status IN (:settling, :running, :status)",
        {"#status": "status"},
    )
    job = get_job(job_id) or {}
    if "scene" in job:
        release_scene(job["scene"], job_id, job["ended_at"])
    return ended


def claim_message(job_id: str, status: str) -> Literal["claimed", "sent", "busy"]:
    """Take the right to send the one message of this job, which says that it ended with ``status``.

    The claim runs out, so that a call that dies before `mark_message_sent` does not lose the message: it is then sent
    by whoever
    tries next. Dying between sending and marking sends it twice (docs/decisions/0004).
    """
    now = aws.now()
    claimed = _update(
        job_key(job_id),
        "SET message_claimed_until = :until",
        {":until": aws.timestamp(now + MESSAGE_CLAIM_S), ":now": aws.timestamp(now), ":status": status},
        "attribute_not_exists(message_sent_at) AND #status = :status AND "
        "(attribute_not_exists(message_claimed_until) OR message_claimed_until <= :now)",
        {"#status": "status"},
    )
    if claimed:
        return "claimed"
    return "sent" if "message_sent_at" in (get_job(job_id) or {}) else "busy"


def mark_message_sent(job_id: str) -> None:
    _update(job_key(job_id), "SET message_sent_at = :now REMOVE message_claimed_until", {":now": aws.timestamp()})


def mark_announced(job_id: str, status: str) -> bool:
    """Other systems have been told of the end with ``status``; False when the job runs again."""
    return _update(
        job_key(job_id),
        "SET announced_at = :now",
        {":now": aws.timestamp(), ":status": status},
        "#status = :status",
        {"#status": "status"},
    )


def close_job(job_id: str) -> None:
    """The job needs no more attention: it leaves the index that the sweep reads."""
    _update(job_key(job_id), "REMOVE #open", {}, "attribute_exists(message_sent_at)", {"#open": "open"})


def release_message(job_id: str) -> None:
    """Sending failed and said so: the next try need not wait until the claim runs out."""
    _update(job_key(job_id), "REMOVE message_claimed_until")


# Tasks ---------------------------------------------------------------------------------------------------------------


def put_task(job_name: str, job_id: str, stage: StageName, attempt: int, token: str) -> bool:
    """Store the token under the job's name, before the job exists. False when the name belongs to another token."""
    row = {
        **task_key(job_name),
        "task_token": token,
        "job_id": job_id,
        "stage": stage,
        "attempt": attempt,
        "status": "STARTED",
        "open": OPEN_TASK,
        "created_at": aws.timestamp(),
        "expires_at": _expires(TASK_DAYS),
    }
    if _put(row, "attribute_not_exists(pk)"):
        return True
    return (get_task(job_name) or {}).get("task_token") == token


def close_task(job_name: str, status: str) -> None:
    """The task needs no more attention: it leaves the index that the sweep reads."""
    _update(
        task_key(job_name),
        "SET #status = :status REMOVE #open",
        {":status": status},
        "attribute_exists(pk)",
        {"#status": "status", "#open": "open"},
    )


def open_task_names() -> list[str]:
    """SageMaker job names of the tasks that still run."""
    return _open(OPEN_TASK)


def open_job_ids() -> list[str]:
    """Jobs that have not ended, whose user has not been told, or that may have left something behind."""
    return _open(OPEN_JOB)


def _open(kind: str) -> list[str]:
    """Keys in the sparse index without what stands before #, page by page."""
    names: list[str] = []
    start: dict[str, Any] = {}
    while True:
        page = _table().query(IndexName=OPEN_TASKS_INDEX, KeyConditionExpression=Key("open").eq(kind), **start)
        names += [str(item["pk"]).partition("#")[2] for item in page["Items"]]
        if "LastEvaluatedKey" not in page:
            return names
        start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


# DynamoDB ------------------------------------------------------------------------------------------------------------


def _table() -> Table:
    return aws.table(settings().table_name)


def _get(key: dict[str, str]) -> Row | None:
    item = _table().get_item(Key=key, ConsistentRead=True).get("Item")
    return None if item is None else _from_dynamo(item)


def _put(row: Row, condition: str) -> bool:
    try:
        _table().put_item(Item=row, ConditionExpression=condition)
    except ClientError as error:
        return _condition_failed(error)
    return True


def _update(
    key: dict[str, str],
    expression: str,
    values: Row | None = None,
    condition: str | None = None,
    names: dict[str, str] | None = None,
) -> bool:
    """Update one row; False when the condition does not hold."""
    arguments: Row = {"Key": key, "UpdateExpression": expression}
    if values:
        arguments["ExpressionAttributeValues"] = values
    if condition:
        arguments["ConditionExpression"] = condition
    if names:
        arguments["ExpressionAttributeNames"] = names
    try:
        _table().update_item(**arguments)
    except ClientError as error:
        return _condition_failed(error)
    return True


def _condition_failed(error: ClientError) -> bool:
    if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
        raise error
    return False


def _to_dynamo(value: Any) -> Any:
    """JSON values as DynamoDB takes them: numbers are Decimal there."""
    return json.loads(json.dumps(value), parse_float=Decimal)


def _from_dynamo(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {key: _from_dynamo(item) for key, item in value.items()}
    return [_from_dynamo(item) for item in value] if isinstance(value, list) else value


def _expires(days: int) -> int:
    return int(aws.now()) + days * 86_400
