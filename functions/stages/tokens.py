"""Task tokens: whether anybody in Step Functions still waits for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

from base import aws

NOBODY_WAITS = ("TaskTimedOut", "InvalidToken", "TaskDoesNotExist")


def tell(call: Callable[[], Any]) -> bool:
    """Call Step Functions.

    False when the task has ended already (a duplicate event, a timeout, an aborted execution).
    """
    try:
        call()
    except ClientError as error:
        if error.response["Error"]["Code"] in NOBODY_WAITS:
            return False
        raise
    return True


def is_awaited(token: str) -> bool:
    """Whether the execution still waits for this token; counts as a sign of life of the task."""
    return tell(lambda: aws.stepfunctions().send_task_heartbeat(taskToken=token))
