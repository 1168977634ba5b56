"""What Step Functions itself fixes: the Context Object of a state, and the answers of its service integrations."""

from __future__ import annotations

from typing import Any

from tests.state_machine.pathproof.assumptions import KIB, TOKEN_CHARACTERS, Assumptions
from tests.state_machine.pathproof.shapes import (
    Field,
    Object,
    Shape,
    closed_object,
    number,
    of_json,
    repeated,
    text,
    unknown,
)

WAIT_FOR_TASK_TOKEN = ".waitForTaskToken"
INTEGRATION = "arn:aws:states:::"
CAN_BE_RETRIED = ("Task", "Parallel", "Map")


def waits_for_token(body: dict[str, Any]) -> bool:
    """Whether the state is a callback task."""
    return body.get("Type") == "Task" and str(body.get("Resource", "")).endswith(WAIT_FOR_TASK_TOKEN)


def context(body: dict[str, Any], name: str, assumptions: Assumptions) -> Shape:
    """``$$`` ("Accessing execution data from the Context object"), less what one field alone may read."""
    state = {"EnteredTime": text(30, timestamp=True), "Name": of_json(name)}
    if body.get("Type") in CAN_BE_RETRIED:
        attempts = sum(int(retrier.get("MaxAttempts", 3)) for retrier in body.get("Retry", []))
        state["RetryCount"] = number(0, attempts, whole=True)
    execution = {
        "Id": text(256),
        "Input": assumptions.execution_input,
        "Name": text(80),
        "RoleArn": text(256),
        "StartTime": text(30, timestamp=True),
        "RedriveCount": number(0, 2**31 - 1, whole=True),
    }
    machine = {"Id": text(256), "Name": text(80)}
    return closed_object(
        {
            "Execution": closed_object(execution),
            "State": closed_object(state),
            "StateMachine": closed_object(machine),
        }
    )


def add_token(context_shape: Shape, body: dict[str, Any]) -> Shape:
    """``$$.Task.Token`` exists in Parameters of a callback task, and nowhere else."""
    if not waits_for_token(body):
        return context_shape
    return _add(context_shape, "Task", closed_object({"Token": text(TOKEN_CHARACTERS, plain=True)}))


def add_item(context_shape: Shape, item: Shape) -> Shape:
    """``$$.Map.Item`` exists in the ItemSelector of a Map, and nowhere else."""
    index = number(0, 2**31 - 1, whole=True)
    return _add(context_shape, "Map", closed_object({"Item": closed_object({"Index": index, "Value": item})}))


def _add(shape: Shape, name: str, value: Shape) -> Shape:
    assert shape.object is not None
    return Shape(object=Object({**shape.object.fields, name: Field(value)}))


def answer(body: dict[str, Any], declared_bytes: int | None) -> Shape | None:
    """The shape of a Task's result; None where its size is neither fixed by the integration nor declared.

    A Lambda function, and whoever holds a token, may answer any JSON value.
    """
    resource = str(body.get("Resource", ""))
    if waits_for_token(body) or not resource.startswith(INTEGRATION):
        return None if declared_bytes is None else unknown(declared_bytes)
    action = resource.removeprefix(INTEGRATION)
    if action == "lambda:invoke":
        return None if declared_bytes is None else _lambda_answer(unknown(declared_bytes))
    if action == "dynamodb:updateItem" and body.get("Parameters", {}).get("ReturnValues", "NONE") == "NONE":
        return open_object({}, 4 * KIB)
    if action == "sns:publish":
        return open_object({"MessageId": text(100, plain=True)}, 4 * KIB)
    if action == "events:putEvents":
        entries = repeated(open_object({}, 4 * KIB), 0, 10)  # EventBridge: at most ten entries in a call
        return open_object({"FailedEntryCount": number(0, 10, whole=True), "Entries": entries}, 4 * KIB)
    if action == "states:startExecution":
        return open_object({"ExecutionArn": text(256), "StartDate": unknown(64)}, 4 * KIB)
    return None if declared_bytes is None else open_object({}, declared_bytes)


def open_object(fields: dict[str, Shape], rest_bytes: float) -> Shape:
    """An object with at least ``fields``, and up to ``rest_bytes`` of others."""
    return Shape(object=Object({name: Field(shape) for name, shape in fields.items()}, rest_bytes))


def _lambda_answer(payload: Shape) -> Shape:
    """Developer guide, "Invoke an AWS Lambda function with Step Functions": the API's response around the payload."""
    return open_object({"Payload": payload, "StatusCode": number(100, 599, whole=True)}, 4 * KIB)
