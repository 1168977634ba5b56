"""How the interpreter hands a Task state to whatever does the work, and the shape of what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class TaskOk:
    """The work was done; ``output`` is JSON, already in the shape of the resource (see ``wrap_lambda_result``)."""

    output: Any


@dataclass(frozen=True, slots=True)
class TaskError:
    """The work failed; ``error`` is what ErrorEquals matches, ``cause`` is text (JSON text for a Lambda exception)."""

    error: str
    cause: str | None = None


TaskResult = TaskOk | TaskError


class Tasks(Protocol):
    """Does the work of Task states."""

    def invoke(self, resource: str, payload: Any, on_done: Callable[[TaskResult], None], timeout_s: float) -> None:
        """Start the work and return; call ``on_done`` once, from any thread, before or after returning.

        ``resource`` is the ARN as the state has it, without ``.waitForTaskToken``. ``payload`` is the state's effective
        input, a copy that may be kept or changed. The interpreter gives up after ``timeout_s`` seconds and ignores a
        later ``on_done``. For a ``.waitForTaskToken`` state TaskOk only says that the call returned; TaskError fails
        the state at once. An exception out of ``invoke`` is a fault of the implementation: it goes to the clock.
        """
        ...


def wrap_lambda_result(payload: Any) -> dict[str, Any]:
    """What ``arn:aws:states:::lambda:invoke`` returns around a function's result.

    Step Functions developer guide, "Invoke an AWS Lambda function with Step Functions": the API response plus metadata.
    """
    return {
        "ExecutedVersion": "$LATEST",
        "Payload": payload,
        "SdkHttpMetadata": {"HttpHeaders": {}, "HttpStatusCode": 200},
        "SdkResponseMetadata": {"RequestId": "00000000-0000-0000-0000-000000000000"},
        "StatusCode": 200,
    }
