"""Error Names of the States Language, and which ErrorEquals matches which."""

from __future__ import annotations

ALL = "States.ALL"
DATA_LIMIT_EXCEEDED = "States.DataLimitExceeded"
HEARTBEAT_TIMEOUT = "States.HeartbeatTimeout"
INTRINSIC_FAILURE = "States.IntrinsicFailure"
NO_CHOICE_MATCHED = "States.NoChoiceMatched"
RESULT_PATH_MATCH_FAILURE = "States.ResultPathMatchFailure"
RUNTIME = "States.Runtime"
TASK_FAILED = "States.TaskFailed"
TIMEOUT = "States.Timeout"


def not_supported(what: str) -> str:
    """Why the loader refuses ``what``."""
    return f"{what} is not supported by the embedded engine: see docs/asl-differences.md"


class StateError(Exception):
    """An error of a state, by its Error Name, as Retry and Catch see it."""

    def __init__(self, error: str, cause: str | None = None) -> None:
        super().__init__(f"{error}: {cause}")
        self.error = error
        self.cause = cause


def error_matches(names: tuple[str, ...], error: str) -> bool:
    """Whether an ErrorEquals with ``names`` matches ``error`` (Step Functions developer guide, "Error names").

    States.Runtime is not asked for: it "will always cause the execution to fail".
    """
    if error in names:
        return True
    if error == DATA_LIMIT_EXCEEDED:
        return False  # "a terminal error that can't be caught by the States.ALL error type"
    if ALL in names:
        return True
    if error == HEARTBEAT_TIMEOUT:
        return TIMEOUT in names  # States Language, Appendix A: States.Timeout covers both limits
    return TASK_FAILED in names and error != TIMEOUT
