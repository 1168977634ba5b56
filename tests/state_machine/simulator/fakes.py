# Longer than 400 lines: each AWS client that the functions hold has its stand-in here.
"""AWS services in memory, behind functions/base/aws.py: only what the functions call, and as strict as the real ones.

Every call goes through ``gate(service, operation)`` first, where a schedule may let it fail, cut the function off
before or after the effect, or let time pass.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime
from decimal import Decimal
from email import message_from_string
from email.policy import default
from typing import Any

from botocore.exceptions import ClientError

from spaceport.asl.stepfunctions import ApiError, StepFunctions
from tests.state_machine.simulator import expressions

Row = dict[str, Any]
_PLAIN = (bool, str, Decimal, type(None))
Gate = Callable[[str, str], Callable[[], None]]
ITEM_LIMIT_BYTES = 400 * 1024


def client_error(code: str, message: str, operation: str, status: int = 400) -> ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)  # type: ignore[arg-type]


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def stored(value: Any) -> Any:
    """A value as DynamoDB keeps it and boto3 gives it back: a copy whose numbers are Decimal."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, set) and value:
        return set(value)
    if isinstance(value, dict):
        return {key: stored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [stored(item) for item in value]
    raise TypeError(f"boto3 does not store {type(value).__name__} (floats must be Decimal): {value!r}")


def from_typed(value: Row) -> Any:
    """{"S": "x"} of the low-level API."""
    ((kind, item),) = value.items()
    return {"S": str, "N": Decimal, "BOOL": bool}[kind](item)


def plain(text: str) -> str:
    """The text of a mail, decoded where that is needed to find a job's name in it."""
    if "Content-Transfer-Encoding: base64" in text:
        part = message_from_string(text, policy=default).get_body(("plain",))
        return part.get_content() if part else ""
    return text.replace("=\r\n", "")


class FakeTable:
    """The job table with its sparse index. ``on_update(pk, expression)`` is told of each change of a row."""

    def __init__(self, gate: Gate, index: str, on_update: Callable[[str, str], None]) -> None:
        self.rows: dict[str, Row] = {}
        self.index = index
        self.gate = gate
        self.on_update = on_update

    def get_item(self, Key: Row, ConsistentRead: bool = False) -> Row:
        after = self.gate("dynamodb", "GetItem")
        row = self.rows.get(Key["pk"])
        answer = {} if row is None else {"Item": stored(row)}
        after()
        return answer

    def put_item(self, Item: Row, ConditionExpression: str = "") -> Row:
        after = self.gate("dynamodb", "PutItem")
        self._check(Item["pk"], ConditionExpression, "", {}, {}, "PutItem")
        self.rows[Item["pk"]] = stored(Item)
        after()
        return {}

    def update_item(
        self,
        Key: Row,
        UpdateExpression: str,
        ConditionExpression: str = "",
        ExpressionAttributeNames: dict[str, str] | None = None,
        ExpressionAttributeValues: Row | None = None,
        ReturnValues: str = "NONE",
    ) -> Row:
        after = self.gate("dynamodb", "UpdateItem")
        names, values = ExpressionAttributeNames or {}, stored(ExpressionAttributeValues or {})
        self._check(Key["pk"], ConditionExpression, UpdateExpression, names, values, "UpdateItem")
        before = self.rows.get(Key["pk"], dict(Key))
        row = stored(before)
        try:
            touched = expressions.update(row, UpdateExpression, names, values)
        except expressions.ExpressionError as error:
            raise client_error("ValidationException", str(error), "UpdateItem") from error
        if "error" in UpdateExpression and len(json.dumps(row, default=str)) > ITEM_LIMIT_BYTES:
            raise client_error("ValidationException", "Item size has exceeded the maximum allowed size", "UpdateItem")
        self.rows[Key["pk"]] = row
        self.on_update(Key["pk"], UpdateExpression)
        after()
        if ReturnValues == "UPDATED_OLD":
            return {"Attributes": stored({name: before[name] for name in touched if name in before})}
        return {}

    def query(self, IndexName: str, KeyConditionExpression: Any, **_: Any) -> Row:
        after = self.gate("dynamodb", "Query")
        assert self.index == IndexName, f"no index {IndexName}"
        parts = KeyConditionExpression.get_expression()
        name, wanted = parts["values"][0].name, parts["values"][1]
        assert parts["operator"] == "=" and name == "open"
        items = [{"pk": pk, name: wanted} for pk, row in sorted(self.rows.items()) if row.get(name) == wanted]
        after()
        return {"Items": items}

    def _check(self, pk: str, condition: str, change: str, names: Row, values: Row, operation: str) -> None:
        unused = set(names) | set(values)
        unused -= expressions.placeholders(condition, change)
        if unused:
            text = f"Value unused in expressions: {', '.join(sorted(unused))}"
            raise client_error("ValidationException", text, operation)
        if not condition:
            return
        try:
            holds = expressions.compile_condition(condition)(self.rows.get(pk, {}), names, values)
        except expressions.ExpressionError as error:
            raise client_error("ValidationException", str(error), operation) from error
        if not holds:
            raise client_error("ConditionalCheckFailedException", "The conditional request failed", operation)

    def call_typed(self, arguments: Row) -> Row:
        """The optimized integration arn:aws:states:::dynamodb:updateItem."""
        arguments = dict(arguments)
        arguments.pop("TableName")
        typed = arguments.get("ExpressionAttributeValues", {})
        values = {name: from_typed(value) for name, value in typed.items()}
        key = {name: from_typed(value) for name, value in arguments["Key"].items()}
        return self.update_item(**{**arguments, "Key": key, "ExpressionAttributeValues": values})


class FakeS3:
    """One bucket. ``on_created(key)`` is told of every object that is put or copied, ``now()`` dates it."""

    def __init__(self, gate: Gate, on_created: Callable[[str], None], now: Callable[[], float]) -> None:
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, float] = {}  # what a test puts into ``objects`` itself has been there since 1970
        self.gate = gate
        self.on_created = on_created
        self.now = now

    def put(self, key: str, body: bytes) -> None:
        """By someone else than the functions: a user, or SageMaker."""
        self.objects[key] = body
        self.modified[key] = self.now()
        self.on_created(key)

    def get_object(self, Bucket: str, Key: str, Range: str = "", IfMatch: str = "") -> Row:
        after = self.gate("s3", "GetObject")
        if Key not in self.objects:
            raise client_error("NoSuchKey", "The specified key does not exist.", "GetObject", 404)
        body = self.objects[Key]
        if IfMatch and IfMatch != etag(body):
            text = "At least one of the pre-conditions you specified did not hold"
            raise client_error("PreconditionFailed", text, "GetObject", 412)
        if Range:
            first, last = (int(text) for text in Range.removeprefix("bytes=").split("-"))
            if first >= len(body):
                raise client_error("InvalidRange", "The requested range is not satisfiable", "GetObject", 416)
            body = body[first : last + 1]
        after()
        return {"Body": io.BytesIO(body)}

    def put_object(self, Bucket: str, Key: str, Body: bytes | io.BytesIO, ContentType: str = "") -> Row:
        after = self.gate("s3", "PutObject")
        self.put(Key, Body if isinstance(Body, bytes) else Body.read())
        after()
        return {}

    def copy_object(self, CopySource: Row, Bucket: str, Key: str, TaggingDirective: str) -> Row:
        after = self.gate("s3", "CopyObject")
        if CopySource["Key"] not in self.objects:
            raise client_error("NoSuchKey", "The specified key does not exist.", "CopyObject", 404)
        self.put(Key, self.objects[CopySource["Key"]])
        after()
        return {}

    def copy(self, CopySource: Row, Bucket: str, Key: str, ExtraArgs: Row | None = None) -> None:
        after = self.gate("s3", "CopyObject")
        if CopySource["Key"] not in self.objects:
            raise client_error("404", "Not Found", "HeadObject", 404)
        self.put(Key, self.objects[CopySource["Key"]])
        after()

    def delete_objects(self, Bucket: str, Delete: Row) -> Row:
        after = self.gate("s3", "DeleteObjects")
        assert 0 < len(Delete["Objects"]) <= 1000
        for item in Delete["Objects"]:
            self.objects.pop(item["Key"], None)
        after()
        return {}

    def get_paginator(self, operation: str) -> FakeS3:
        assert operation == "list_objects_v2"
        return self

    def paginate(self, Bucket: str, Prefix: str) -> Iterator[Row]:
        self.gate("s3", "ListObjectsV2")()
        keys = sorted(key for key in self.objects if key.startswith(Prefix))
        for at in range(0, len(keys), 1000):
            yield {"Contents": [self._listed(key) for key in keys[at : at + 1000]]}
        if not keys:
            yield {}

    def _listed(self, key: str) -> Row:
        body = self.objects[key]
        modified = datetime.fromtimestamp(int(self.modified.get(key, 0)), UTC)
        return {"Key": key, "Size": len(body), "ETag": etag(body), "LastModified": modified}


class FakeMessages:
    """SNS, SESv2 and EventBridge's PutEvents: what was sent, in order, as (channel, subject, text).

    ``on_sent(text)`` and ``on_event(entry)`` are told of each.
    """

    def __init__(self, gate: Gate, on_sent: Callable[[str], None], on_event: Callable[[Row], None]) -> None:
        self.sent: list[tuple[str, str, str]] = []
        self.events: list[Row] = []
        self.gate = gate
        self.on_sent, self.on_event = on_sent, on_event

    def publish(self, TopicArn: str, Subject: str, Message: str) -> Row:
        after = self.gate("sns", "Publish")
        if not Subject.isascii() or not Subject.isprintable() or not 0 < len(Subject) <= 100:
            raise client_error("InvalidParameter", "Invalid parameter: Subject", "Publish")
        if not Message:
            raise client_error("InvalidParameter", "Invalid parameter: Empty message", "Publish")
        self.sent.append(("topic", Subject, Message))
        self.on_sent(Message)
        after()
        return {}

    def send_email(self, FromEmailAddress: str, Destination: Row, Content: Row) -> Row:
        after = self.gate("sesv2", "SendEmail")
        text = Content["Raw"]["Data"].decode(errors="replace")
        self.sent.append((Destination["ToAddresses"][0], "", text))
        self.on_sent(plain(text))
        after()
        return {}

    def put_events(self, Entries: list[Row]) -> Row:
        after = self.gate("events", "PutEvents")
        for entry in Entries:
            self.events.append(entry)
            self.on_event(entry)
        after()
        return {"FailedEntryCount": 0, "Entries": [{} for _ in Entries]}


class FakeStates:
    """The Step Functions API in front of the engine, with botocore's errors."""

    def __init__(self, gate: Gate, engine: StepFunctions) -> None:
        self.gate = gate
        self.engine = engine

    def _call(self, operation: str, call: Callable[[], Any]) -> Any:
        after = self.gate("states", operation)
        try:
            answer = call()
        except ApiError as error:
            raise client_error(error.code, str(error), operation) from error
        after()
        return answer

    def start_execution(self, stateMachineArn: str, name: str, input: str) -> Row:
        return {
            "executionArn": self._call(
                "StartExecution", lambda: self.engine.start_execution(stateMachineArn, name, input)
            )
        }

    def describe_execution(self, executionArn: str) -> Row:
        return self._call("DescribeExecution", lambda: self.engine.describe_execution(executionArn))

    def send_task_success(self, taskToken: str, output: str) -> None:
        self._call("SendTaskSuccess", lambda: self.engine.send_task_success(taskToken, output))

    def send_task_failure(self, taskToken: str, error: str, cause: str) -> None:
        self._call("SendTaskFailure", lambda: self.engine.send_task_failure(taskToken, error, cause))

    def send_task_heartbeat(self, taskToken: str) -> None:
        self._call("SendTaskHeartbeat", lambda: self.engine.send_task_heartbeat(taskToken))


class FakeSageMaker:
    """Jobs whose fate the schedule decides; states, names and errors as SageMaker's API has them.

    ``on_created(kind, name)`` starts the fate, ``on_changed(kind, name)`` tells the bus.
    """

    def __init__(
        self,
        gate: Gate,
        now: Callable[[], float],
        refusal: Callable[[str], ClientError | None],
        on_created: Callable[[str, str], None],
        on_changed: Callable[[str, str], None],
    ) -> None:
        self.jobs: dict[str, Row] = {}
        self.created: list[str] = []  # by the functions, in order
        self.requests: dict[str, Row] = {}
        self.gate, self.now, self.refusal = gate, now, refusal
        self.on_created, self.on_changed = on_created, on_changed

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)

    def _create(self, kind: str, arguments: Row) -> Row:
        after = self.gate("sagemaker", f"Create{kind}Job")
        name = arguments[f"{kind}JobName"]
        refused = self.refusal(name)
        if refused is not None:
            raise refused
        if name in self.jobs:
            code = "ResourceInUse" if kind == "Training" else "ValidationException"
            text = f"Job name must be unique within an AWS account and region, and {name} already exists"
            raise client_error(code, text, f"Create{kind}Job")
        self.created.append(name)
        self.requests[name] = arguments
        self.add(kind, name, arguments)
        self.on_created(kind, name)
        after()
        return {f"{kind}JobArn": f"arn:aws:sagemaker:us-east-1:123456789012:{kind.lower()}-job/{name}"}

    def add(self, kind: str, name: str, arguments: Row) -> None:
        self.jobs[name] = {
            f"{kind}JobName": name,
            f"{kind}JobStatus": "InProgress",
            "StoppingCondition": arguments["StoppingCondition"],
            "CreationTime": self._time(),
            f"{kind}StartTime": self._time(),
            **{key: arguments[key] for key in ("ProcessingResources", "ResourceConfig") if key in arguments},
            **({"SecondaryStatus": "Starting"} if kind == "Training" else {}),
        }

    def kind(self, name: str) -> str:
        return "Training" if "TrainingJobName" in self.jobs[name] else "Processing"

    def status(self, name: str) -> str:
        return str(self.jobs[name][f"{self.kind(name)}JobStatus"])

    def change(self, name: str, status: str, **more: Any) -> None:
        """The job's life goes on; the end is noted with its time."""
        kind = self.kind(name)
        self.jobs[name] |= {f"{kind}JobStatus": status, **more}
        if status in ("Completed", "Failed", "Stopped"):
            self.jobs[name][f"{kind}EndTime"] = self._time()
        self.on_changed(kind, name)

    def create_training_job(self, **arguments: Any) -> Row:
        return self._create("Training", arguments)

    def create_processing_job(self, **arguments: Any) -> Row:
        return self._create("Processing", arguments)

    def _describe(self, kind: str, name: str, operation: str) -> Row:
        after = self.gate("sagemaker", operation)
        if name not in self.jobs:
            text = "Requested resource not found." if kind == "Training" else f"Could not find requested job {name}"
            raise client_error("ValidationException", text, operation)
        answer = deepcopy(self.jobs[name])
        after()
        return answer

    def describe_training_job(self, TrainingJobName: str) -> Row:
        return self._describe("Training", TrainingJobName, "DescribeTrainingJob")

    def describe_processing_job(self, ProcessingJobName: str) -> Row:
        return self._describe("Processing", ProcessingJobName, "DescribeProcessingJob")

    def _stop(self, kind: str, name: str) -> Row:
        after = self.gate("sagemaker", f"Stop{kind}Job")
        if name not in self.jobs:
            raise client_error("ResourceNotFound", f"Could not find job {name}", f"Stop{kind}Job")
        if self.status(name) not in ("InProgress", "Stopping"):
            raise client_error("ValidationException", "The request was rejected: job is in terminal state", "Stop")
        if self.status(name) == "InProgress":
            self.change(name, "Stopping", **({"SecondaryStatus": "Stopping"} if kind == "Training" else {}))
        after()
        return {}

    def stop_training_job(self, TrainingJobName: str) -> Row:
        return self._stop("Training", TrainingJobName)

    def stop_processing_job(self, ProcessingJobName: str) -> Row:
        return self._stop("Processing", ProcessingJobName)
