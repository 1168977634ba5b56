"""The Step Functions API over the interpreter: machines, executions, task tokens, and going on from a journal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from spaceport.asl_tasks import Tasks
from spaceport.clock import Clock
from spaceport.journal import Journal


class ApiError(Exception):
    """An API call that AWS would refuse; ``code`` is the AWS error code."""

    code = "InternalServerError"


class StepFunctions:
    """State machines and their executions, in memory, driven by ``clock``. Every method may be called from any thread.

    ``journal_factory(execution_arn)`` gives each execution its journal (default: MemoryJournal); ``ids()`` returns unique strings
    (default: random UUIDs); ``random()`` in [0, 1) is needed for JitterStrategy FULL and States.MathRandom;
    ``on_status_change(detail)`` gets the detail of each 'Step Functions Execution Status Change' event, on the clock's thread.
    """

    def __init__(
        self,
        clock: Clock,
        tasks: Tasks,
        journal_factory: Callable[[str], Journal] | None = None,
        ids: Callable[[], str] | None = None,
        on_status_change: Callable[[dict[str, Any]], None] | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        raise NotImplementedError

    def create_state_machine(self, arn: str, definition: dict[str, Any], role_arn: str | None = None) -> None:
        """Load ``definition``. Raises DefinitionError with every problem, StateMachineAlreadyExists when it differs from the one there."""
        raise NotImplementedError

    def update_state_machine(self, arn: str, definition: dict[str, Any]) -> None:
        """New executions use ``definition``; running ones keep theirs."""
        raise NotImplementedError

    def start_execution(self, machine_arn: str, name: str | None = None, input: str = "{}") -> str:
        """Start (``input`` is JSON text) and return the execution ARN."""
        raise NotImplementedError

    def describe_execution(self, arn: str) -> dict[str, Any]:
        """As boto3's describe_execution: executionArn, stateMachineArn, name, status, startDate, stopDate, input, output, error, cause."""
        raise NotImplementedError

    def list_executions(self, machine_arn: str, status: str | None = None) -> list[dict[str, Any]]:
        """Newest first."""
        raise NotImplementedError

    def get_execution_history(self, arn: str) -> list[dict[str, Any]]:
        """History events in AWS's shape, oldest first."""
        raise NotImplementedError

    def stop_execution(self, arn: str, error: str | None = None, cause: str | None = None) -> datetime:
        """Abort; returns the stop date. Nothing happens to an execution that is closed."""
        raise NotImplementedError

    def send_task_success(self, token: str, output: str) -> None:
        """``output`` is JSON text. Raises InvalidOutput, InvalidToken, TaskDoesNotExist, TaskTimedOut."""
        raise NotImplementedError

    def send_task_failure(self, token: str, error: str | None = None, cause: str | None = None) -> None:
        """Raises InvalidToken, TaskDoesNotExist, TaskTimedOut."""
        raise NotImplementedError

    def send_task_heartbeat(self, token: str) -> None:
        """Raises InvalidToken, TaskDoesNotExist, TaskTimedOut."""
        raise NotImplementedError

    def resume(self, journal: Journal) -> str:
        """Take over the execution a journal describes and go on with it; returns the execution ARN."""
        raise NotImplementedError
