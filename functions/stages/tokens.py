"""Task tokens: answer the one that Step Functions waits for, or ask whether it still does."""

from __future__ import annotations

from collections.abc import Callable

from botocore.exceptions import ClientError

from base import aws

NOBODY_WAITS = ("TaskTimedOut", "InvalidToken", "TaskDoesNotExist")


def deliver(call: Callable[[], object]) -> bool:
    """Make one call of Step Functions about a token.

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
    """Send a heartbeat; True when the execution still waits for this token."""
    return deliver(lambda: aws.stepfunctions().send_task_heartbeat(taskToken=token))
