"""Journal records as AWS history events (API reference, "HistoryEvent"), and executions as AWS describes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from spaceport.asl.errors import HEARTBEAT_TIMEOUT, TIMEOUT
from spaceport.asl.frames import Progress

Events = list[tuple[str, dict[str, Any] | None]]

EVENT_DATA_BYTES = 248 * 1024  # developer guide, "EventBridge payloads": more is left out of the event
INCLUDED = {"included": True}
REDRIVABLE = ("FAILED", "ABORTED", "TIMED_OUT")
EXECUTION_EVENTS = {
    "SUCCEEDED": "ExecutionSucceeded",
    "FAILED": "ExecutionFailed",
    "TIMED_OUT": "ExecutionTimedOut",
    "ABORTED": "ExecutionAborted",
}


def history_events(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of an execution, oldest first, with ``id`` from 1 and the ``previousEventId`` of the same branch."""
    events: list[dict[str, Any]] = []
    last_by_frame: dict[str, int] = {}
    for record in records:
        frame = record.get("frame", "")
        for kind, details in _events_of(record):
            event = {
                "timestamp": datetime.fromtimestamp(record["at"], UTC),
                "type": kind,
                "id": len(events) + 1,
                "previousEventId": _previous(last_by_frame, frame),
            }
            if details is not None:
                event[_details_key(kind)] = details
            events.append(event)
            last_by_frame[frame] = len(events)
    return events


def _previous(last_by_frame: dict[str, int], frame: str) -> int:
    while frame not in last_by_frame and frame:
        frame = frame.rpartition("/")[0]
    return last_by_frame.get(frame, 0)


def _details_key(kind: str) -> str:
    if kind.endswith("StateEntered"):
        return "stateEnteredEventDetails"
    if kind.endswith("StateExited"):
        return "stateExitedEventDetails"
    return f"{kind[0].lower()}{kind[1:]}EventDetails"


def _events_of(record: dict[str, Any]) -> Events:
    """No, one or two AWS events per record; retry, heartbeat, renewed and notified have none."""
    make: dict[str, Callable[[dict[str, Any]], Events]] = {
        "started": _started,
        "entered": _entered,
        "scheduled": _scheduled,
        "submitted": lambda r: [("TaskSubmitted", _resource(r, output="null"))],
        "succeeded": _succeeded,
        "failed": _failed,
        "exited": lambda r: [(f"{r['kind']}StateExited", {"name": r["state"], "output": json.dumps(r["output"])})],
        "finished": _finished,
        "redriven": lambda r: [("ExecutionRedriven", None)],
    }
    return make[record["type"]](record) if record["type"] in make else []


def _started(record: dict[str, Any]) -> Events:
    return [("ExecutionStarted", {"input": json.dumps(record["input"]), "roleArn": record["role_arn"]})]


def _entered(record: dict[str, Any]) -> Events:
    kind = record["kind"]
    events: Events = [(f"{kind}StateEntered", {"name": record["state"], "input": json.dumps(record["input"])})]
    if kind in ("Parallel", "Map"):
        events.append((f"{kind}StateStarted", None))
    return events


def _scheduled(record: dict[str, Any]) -> Events:
    payload = json.dumps(record["payload"])
    if _is_lambda(record):
        details = {"resource": record["resource"], "input": payload}
        return [("LambdaFunctionScheduled", details), ("LambdaFunctionStarted", None)]
    region = "local"
    return [
        ("TaskScheduled", _resource(record, region=region, parameters=payload)),
        ("TaskStarted", _resource(record)),
    ]


def _succeeded(record: dict[str, Any]) -> Events:
    if record["kind"] != "Task":
        return [(f"{record['kind']}StateSucceeded", None)]
    output = json.dumps(record["result"])
    if _is_lambda(record):
        return [("LambdaFunctionSucceeded", {"output": output})]
    return [("TaskSucceeded", _resource(record, output=output))]


def _failed(record: dict[str, Any]) -> Events:
    reason = _without_none(error=record["error"] or None, cause=record["cause"])
    if record["kind"] in ("Parallel", "Map"):
        return [(f"{record['kind']}StateFailed", None)]
    if not record["in_task"]:
        return []
    ending = "TimedOut" if record["error"] in (TIMEOUT, HEARTBEAT_TIMEOUT) else "Failed"
    if _is_lambda(record):
        return [(f"LambdaFunction{ending}", reason)]
    return [(f"Task{ending}", _resource(record, **reason))]


def _finished(record: dict[str, Any]) -> Events:
    if record["status"] == "SUCCEEDED":
        return [("ExecutionSucceeded", {"output": json.dumps(record["output"])})]
    return [(EXECUTION_EVENTS[record["status"]], _without_none(error=record["error"], cause=record["cause"]))]


def _is_lambda(record: dict[str, Any]) -> bool:
    return ":lambda:" in record["resource"] and ":states:" not in record["resource"]


def _resource(record: dict[str, Any], **details: Any) -> dict[str, Any]:
    kind, _, action = str(record["resource"]).rpartition(":")
    return {"resourceType": kind.rpartition(":")[2], "resource": action, **details}


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def describe(progress: Progress) -> dict[str, Any]:
    """The answer of boto3's describe_execution."""
    started, finished = progress.started, progress.finished
    answer = {
        "executionArn": started["execution_arn"],
        "stateMachineArn": started["machine_arn"],
        "name": started["name"],
        "status": progress.status,
        "startDate": datetime.fromtimestamp(started["at"], UTC),
        "input": json.dumps(started["input"]),
        "inputDetails": INCLUDED,
        **_redrive(progress, progress.status),
    }
    if progress.redriven_at:
        answer["redriveDate"] = datetime.fromtimestamp(progress.redriven_at[-1], UTC)
    if finished is not None:
        answer["stopDate"] = datetime.fromtimestamp(finished["at"], UTC)
        answer |= _without_none(error=finished["error"], cause=finished["cause"])
        if finished["status"] == "SUCCEEDED":
            answer |= {"output": json.dumps(finished["output"]), "outputDetails": INCLUDED}
    return answer


def _redrive(progress: Progress, status: str) -> dict[str, Any]:
    count = len(progress.redriven_at)
    if status in REDRIVABLE:
        return {"redriveCount": count, "redriveStatus": "REDRIVABLE"}
    reason = f"Execution is {status} and cannot be redriven"
    return {"redriveCount": count, "redriveStatus": "NOT_REDRIVABLE", "redriveStatusReason": reason}


def status_change_detail(progress: Progress, status: str) -> dict[str, Any]:
    """The ``detail`` of 'Step Functions Execution Status Change' (developer guide, "Step Functions event examples")."""
    started = progress.started
    finished = progress.finished if status != "RUNNING" else None
    succeeded = finished is not None and finished["status"] == "SUCCEEDED"
    source = json.dumps(started["input"])
    output = json.dumps(finished["output"]) if finished is not None and succeeded else None
    keeps_output = output is None or len(output.encode()) <= EVENT_DATA_BYTES
    keeps_input = len(source.encode()) + len((output or "").encode() if keeps_output else b"") <= EVENT_DATA_BYTES
    return {
        "executionArn": started["execution_arn"],
        "stateMachineArn": started["machine_arn"],
        "name": started["name"],
        "status": status,
        "startDate": round(started["at"] * 1000),
        "stopDate": None if finished is None else round(finished["at"] * 1000),
        "input": source if keeps_input else None,
        "inputDetails": {"included": keeps_input},
        "output": output if keeps_output else None,
        "outputDetails": {"included": keeps_output} if succeeded else None,
        "stateMachineVersionArn": None,
        "stateMachineAliasArn": None,
        "redriveDate": round(progress.redriven_at[-1] * 1000) if progress.redriven_at else None,
        "redriveStatusReason": None,
        **_redrive(progress, status),
        "error": finished["error"] if finished else None,
        "cause": finished["cause"] if finished else None,
    }
