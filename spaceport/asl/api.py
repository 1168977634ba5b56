"""The Step Functions API as JSON requests, as far as functions use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spaceport.asl.stepfunctions import ApiError, StepFunctions
from spaceport.base.errors import ServiceError


class StatesApi:
    """Answers each operation from ``step_functions``."""

    def __init__(self, step_functions: StepFunctions) -> None:
        self.step_functions = step_functions

    def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer of one operation. Raises ServiceError."""
        states = self.step_functions
        operations: dict[str, Callable[[], Any]] = {
            "StartExecution": lambda: self._start(request),
            "DescribeExecution": lambda: states.describe_execution(request["executionArn"]),
            "StopExecution": lambda: {
                "stopDate": states.stop_execution(request["executionArn"], request.get("error"), request.get("cause"))
            },
            "RedriveExecution": lambda: {"redriveDate": states.redrive_execution(request["executionArn"])},
            "ListExecutions": lambda: {
                "executions": states.list_executions(request["stateMachineArn"], request.get("statusFilter"))
            },
            "GetExecutionHistory": lambda: {"events": states.get_execution_history(request["executionArn"])},
            "SendTaskSuccess": lambda: states.send_task_success(request["taskToken"], request["output"]),
            "SendTaskFailure": lambda: states.send_task_failure(
                request["taskToken"], request.get("error"), request.get("cause")
            ),
            "SendTaskHeartbeat": lambda: states.send_task_heartbeat(request["taskToken"]),
        }
        if operation not in operations:
            raise ServiceError("UnknownOperationException", f"{operation} is not played locally")
        try:
            return operations[operation]() or {}
        except ApiError as error:
            raise ServiceError(error.code, str(error)) from error

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        arn = self.step_functions.start_execution(
            request["stateMachineArn"], request.get("name"), request.get("input", "{}")
        )
        return {"executionArn": arn, "startDate": self.step_functions.describe_execution(arn)["startDate"]}
