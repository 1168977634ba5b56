"""What SageMaker says about jobs: its checks of requests, descriptions, and events.

Shapes of events: SageMaker developer guide, "Events that SageMaker AI sends to Amazon EventBridge".
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator

from spaceport.base.errors import ServiceError
from spaceport.jobs.files import model_uri


@dataclass
class Record:
    """Everything that outlives the engine about one job. Times are seconds since 1970."""

    name: str
    kind: str  # training or processing
    request: dict[str, Any]
    created_at: float
    status: str = "InProgress"
    secondary_status: str = "Starting"
    modified_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    program_s: float = 0.0  # time inside the program, over all attempts
    failure_reason: str | None = None
    exit_message: str | None = None
    transitions: list[dict[str, Any]] = field(default_factory=list)


@functools.cache
def service_model() -> ServiceModel:
    return ServiceModel(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")


def validate(operation: str, request: dict[str, Any]) -> None:
    """Raise ServiceError ValidationException unless ``request`` fits the service description of ``operation``."""
    shape = service_model().operation_model(operation).input_shape
    assert shape is not None
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise ServiceError("ValidationException", report.generate_report())
    problems = _limits(request, shape, "")
    if problems:
        count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected: "
        raise ServiceError("ValidationException", count + "; ".join(problems))
    names = [key for key in ("AlgorithmSpecification", "AppSpecification") if key in request]
    for key in names:
        if not request[key].get("ContainerEntrypoint"):
            message = f"{key}.ContainerEntrypoint is missing; without a container image it cannot be known"
            raise ServiceError("ValidationException", message)


def _limits(value: Any, shape: Shape, path: str) -> list[str]:
    """Enumerations, patterns and lengths, which ParamValidator does not look at."""
    found: list[str] = []
    if shape.type_name == "structure":
        for name, item in value.items():
            member = shape.members[name]  # type: ignore[attr-defined]
            found += _limits(item, member, f"{path}.{name}" if path else name)
    elif shape.type_name == "list":
        for index, item in enumerate(value):
            found += _limits(item, shape.member, f"{path}[{index}]")  # type: ignore[attr-defined]
    elif shape.type_name == "map":
        for key, item in value.items():
            found += _limits(item, shape.value, f"{path}.{key}")  # type: ignore[attr-defined]
    elif shape.type_name == "string":
        allowed = getattr(shape, "enum", None)
        if allowed and value not in allowed:
            found.append(
                f"Value '{value}' at '{path}' failed to satisfy constraint: Member must satisfy enum value set"
            )
        pattern = shape.metadata.get("pattern")
        # Patterns are Java's; \p{L} and the like, in tags alone, mean nothing to `re`.
        if pattern and "\\p{" not in pattern and not re.fullmatch(pattern, value):
            found.append(f"Value '{value}' at '{path}' failed to satisfy constraint: must satisfy pattern: {pattern}")
    if shape.type_name in ("string", "list", "map") and len(value) > shape.metadata.get("max", len(value)):
        found.append(f"Value at '{path}' failed to satisfy constraint: length at most {shape.metadata['max']}")
    return found


def _times(record: Record) -> dict[str, float]:
    title = record.kind.capitalize()
    times = {"CreationTime": record.created_at, "LastModifiedTime": record.modified_at}
    if record.started_at:
        times[f"{title}StartTime"] = record.started_at
    if record.ended_at:
        times[f"{title}EndTime"] = record.ended_at
    return times


def describe(record: Record, arn: str) -> dict[str, Any]:
    """The answer of DescribeTrainingJob or DescribeProcessingJob."""
    title = record.kind.capitalize()
    answer = {
        **{key: value for key, value in record.request.items() if key != "Tags"},
        f"{title}JobArn": arn,
        f"{title}JobStatus": record.status,
        **_times(record),
    }
    if record.failure_reason:
        answer["FailureReason"] = record.failure_reason
    if record.exit_message:
        answer["ExitMessage"] = record.exit_message
    if record.kind == "training":
        answer["SecondaryStatus"] = record.secondary_status
        answer["SecondaryStatusTransitions"] = record.transitions
        answer["ModelArtifacts"] = {"S3ModelArtifacts": model_uri(record.request)}
        if record.ended_at:
            seconds = max(1, round(record.program_s))
            answer |= {"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": seconds}
    return answer


TRAINING_EVENT_KEYS = (
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "VpcConfig",
)
PROCESSING_EVENT_KEYS = (
    "ProcessingInputs",
    "ProcessingOutputConfig",
    "ProcessingResources",
    "StoppingCondition",
    "AppSpecification",
    "NetworkConfig",
    "RoleArn",
    "ExperimentConfig",
)


def summary(record: Record, arn: str) -> dict[str, Any]:
    """One entry of ListTrainingJobs or ListProcessingJobs."""
    title = record.kind.capitalize()
    return {
        f"{title}JobName": record.name,
        f"{title}JobArn": arn,
        "CreationTime": record.created_at,
        "LastModifiedTime": record.modified_at,
        f"{title}JobStatus": record.status,
        **({f"{title}EndTime": record.ended_at} if record.ended_at else {}),
    }


def event_detail(record: Record, arn: str) -> dict[str, Any]:
    """Detail of the state-change event. Times are milliseconds: text for training, numbers for processing."""
    title = record.kind.capitalize()
    is_training = record.kind == "training"
    keys = TRAINING_EVENT_KEYS if is_training else PROCESSING_EVENT_KEYS
    detail: dict[str, Any] = {f"{title}JobName": record.name, f"{title}JobArn": arn}
    detail[f"{title}JobStatus"] = record.status
    detail |= {key: record.request[key] for key in keys if key in record.request}
    for key, seconds in _times(record).items():
        detail[key] = str(round(seconds * 1000)) if is_training else round(seconds * 1000)
    if record.failure_reason:
        detail["FailureReason"] = record.failure_reason
    if is_training:
        detail["HyperParameters"] = record.request.get("HyperParameters", {})
        detail["SecondaryStatus"] = record.secondary_status
        detail["SecondaryStatusTransitions"] = [
            {key: round(value * 1000) if key.endswith("Time") else value for key, value in transition.items()}
            for transition in record.transitions
        ]
        detail["Tags"] = {}
    return detail
