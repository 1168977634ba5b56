"""What the lint takes for granted about the world around a definition; each exception from its rules, with a reason.

Each entry is a promise that somebody else keeps; an exception that nothing needs any more is itself reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KIB = 1024
STATE_LIMIT_BYTES = 256 * KIB  # Step Functions quota: input or output of a task, state or execution
# API reference, SendTaskFailure: a cause of 32,768 characters and an error of 256, at most six bytes of JSON each.
ERROR_OUTPUT_BYTES = 6 * (32_768 + 256) + 100

# Errors that may well not happen again: the service was busy or broken, or our code says so itself.
TRANSIENT_ERRORS = frozenset(
    {
        "Spaceport.Transient",
        "Lambda.ServiceException",
        "Lambda.AWSLambdaException",
        "Lambda.SdkClientException",
        "Lambda.TooManyRequestsException",
        "Lambda.Unknown",  # the environment died without a word; the handlers may be called again
        "Sandbox.Timedout",  # the same, with its reason: the function's time was up
        "Runtime.ExitError",  # the same: the process ended
        "DynamoDB.InternalServerErrorException",
        "DynamoDB.ProvisionedThroughputExceededException",
        "DynamoDB.RequestLimitExceededException",
        "DynamoDB.ThrottlingException",
    }
)


@dataclass(frozen=True)
class Assumptions:
    """``execution_input``: the fields that StartExecution is given, and their types.

    ``answer_bytes``: the most bytes of a task's answer, by state; ``other_bytes``: of all else in the state. The other
    tables are exceptions: state (and error name) to reason.
    """

    execution_input: Mapping[str, str] = field(default_factory=dict)
    answer_bytes: Mapping[str, int] = field(default_factory=dict)
    other_bytes: int = ERROR_OUTPUT_BYTES + 1 * KIB
    no_heartbeat: Mapping[str, str] = field(default_factory=dict)
    no_catch: Mapping[str, str] = field(default_factory=dict)
    recovers: Mapping[str, str] = field(default_factory=dict)
    retries: Mapping[tuple[str, str], str] = field(default_factory=dict)
    transient_errors: frozenset[str] = TRANSIENT_ERRORS


MACHINES: dict[str, Assumptions] = {
    "pipeline": Assumptions(
        execution_input={"job_id": "string", "scene": "string", "bucket": "string"},
        # The functions answer small objects (docs/contracts.md); a result of a stage is six short fields.
        answer_bytes={
            "Settle": 1 * KIB,
            "Validate": 4 * KIB,
            "SfM": 4 * KIB,
            "Train": 4 * KIB,
            "Compress": 4 * KIB,
            "Notify": 4 * KIB,
            "NotifyFailure": 4 * KIB,
        },
        recovers={
            "Notify": "Its row may say SUCCEEDED already, when only the answer was lost; FailUnlessDone looks.",
            "FailUnlessDone": "Its conditional write says that the row has said SUCCEEDED before the error.",
        },
        retries={
            ("FailUnlessDone", "DynamoDB.ConditionalCheckFailedException"): "MaxAttempts 0: it is not retried.",
            ("FailUnlessDone", "States.ALL"): "As RecordFailure.",
            ("RecordFailure", "States.ALL"): "One idempotent write of one row, and the last word on the job: "
            "four attempts in 30 s cost less than telling permanent errors of DynamoDB from passing ones.",
        },
    ),
}
