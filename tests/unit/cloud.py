"""A cloud for the function tests: moto with the template's table, and stand-ins for running jobs and task tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator
from moto import mock_aws
from samtranslator.yaml_helper import yaml_parse

from base import aws, telemetry
from base import settings as settings_module
from base.stages import STAGE_NAMES
from table import jobs

ROOT = Path(__file__).parents[2]
EVENTS = ROOT / "events"
BUCKET = "spaceport-bucket"
TABLE = "jobs"
MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:pipeline"
TOPIC = "arn:aws:sns:us-east-1:123456789012:messages"
SENDER = "spaceport@example.com"
ULID = "01KD8E7J9Q3M5V8X2Z4B6C7D9F"
JOB = f"my-house-{ULID}"
PHYSICAL = {
    "JobTable": TABLE,
    "MessageTopic": TOPIC,
    "StateMachine": MACHINE,
    "Bucket": BUCKET,
    **{f"{name.capitalize()}Role.Arn": f"arn:aws:iam::123456789012:role/{name}" for name in STAGE_NAMES},
    "ResultPages.DomainName": "pages.example.net",
    "AWS::AccountId": "123456789012",
    "AWS::Region": "us-east-1",
    "AWS::URLSuffix": "amazonaws.com",
}
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 60


@cache
def _parsed_template() -> dict[str, Any]:
    return yaml_parse((ROOT / "template.yaml").read_text())


@cache
def _session() -> boto3.Session:
    """One session for all tests: it keeps the service models, which take longer to read than a test to run."""
    return boto3.Session("testing", "testing", region_name="us-east-1")


@cache
def _service_model(service: str) -> Any:
    return botocore.session.get_session().get_service_model(service)


def load_template() -> dict[str, Any]:
    return deepcopy(_parsed_template())


def load_event(name: str) -> dict[str, Any]:
    return json.loads((EVENTS / f"{name}.json").read_text())


def resolve(template: dict[str, Any], value: Any) -> Any:
    """The few intrinsic functions that environments and rule patterns use, with the parameters' defaults."""
    if isinstance(value, list):
        return [resolve(template, item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, argument),) = value.items()
        if name == "Ref":
            parameter = template["Parameters"].get(argument)
            return str(parameter["Default"]) if parameter else PHYSICAL[argument]
        if name == "Fn::GetAtt":
            return PHYSICAL[argument if isinstance(argument, str) else ".".join(argument)]
        if name == "Fn::If":
            condition, when_true, when_false = argument
            return resolve(template, when_true if resolve(template, template["Conditions"][condition]) else when_false)
        if name == "Fn::Equals":
            left, right = (resolve(template, item) for item in argument)
            return left == right
        if name == "Condition" and isinstance(argument, str):
            return resolve(template, template["Conditions"][argument])
        if name == "Fn::And":
            return all(resolve(template, argument))
        if name == "Fn::Not":
            return not resolve(template, argument[0])
        if name == "Fn::Sub":
            names = {**{key: str(p["Default"]) for key, p in template["Parameters"].items()}, **PHYSICAL}
            for key, text in names.items():
                argument = argument.replace("${" + key + "}", text)
            assert "${" not in argument, argument
            return argument
    return {key: resolve(template, item) for key, item in value.items()}


@cache
def environment(function: str) -> dict[str, str]:
    """The environment that template.yaml gives a function, by the defaults of the parameters."""
    template = load_template()
    variables = {
        **template["Globals"]["Function"]["Environment"]["Variables"],
        **template["Resources"][function]["Properties"].get("Environment", {}).get("Variables", {}),
    }
    return {name: str(resolve(template, value)) for name, value in variables.items()}


def client_error(code: str, message: str, operation: str, status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        operation,
    )


def assert_valid(service: str, operation: str, arguments: dict[str, Any]) -> None:
    """Check arguments against the service's own model; enumerations and lengths too, which botocore leaves out."""
    model = _service_model(service).operation_model(operation)
    report = ParamValidator().validate(arguments, model.input_shape)
    assert not report.has_errors(), report.generate_report()
    _assert_enums(model.input_shape, arguments)


def _assert_enums(shape: Any, value: Any) -> None:
    if shape.type_name == "structure":
        for name, item in value.items():
            _assert_enums(shape.members[name], item)
    elif shape.type_name == "list":
        for item in value:
            _assert_enums(shape.member, item)
    elif shape.type_name == "string":
        assert not shape.enum or value in shape.enum, f"{value} is not one of {shape.name}"
        limit = shape.metadata.get("max")
        assert limit is None or len(value) <= limit, f"{shape.name}: {len(value)} > {limit}"


class FakeSageMaker:
    """SageMaker's answers for jobs whose state a test sets; every request is checked against the service model."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: dict[str, dict[str, Any]] = {}
        self.stopped: list[str] = []
        self.refuse: ClientError | None = None

    def _create(self, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
        operation = f"Create{kind}Job"
        assert_valid("sagemaker", operation, arguments)
        name = arguments[f"{kind}JobName"]
        if self.refuse:
            raise self.refuse
        if name in self.jobs:
            raise client_error("ResourceInUse", f"Job name {name} must be unique", operation)
        self.requests[name] = arguments
        self.jobs[name] = {**arguments, f"{kind}JobStatus": "InProgress"}
        return {f"{kind}JobArn": f"arn:aws:sagemaker:us-east-1:123456789012:{kind.lower()}-job/{name}"}

    def _get(self, operation: str, name: str) -> dict[str, Any]:
        if name not in self.jobs:
            raise client_error("ValidationException", "Requested resource not found.", operation)
        return self.jobs[name]

    def create_training_job(self, **arguments: Any) -> dict[str, Any]:
        return self._create("Training", arguments)

    def create_processing_job(self, **arguments: Any) -> dict[str, Any]:
        return self._create("Processing", arguments)

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        return self._get("DescribeTrainingJob", TrainingJobName)

    def describe_processing_job(self, ProcessingJobName: str) -> dict[str, Any]:
        return self._get("DescribeProcessingJob", ProcessingJobName)

    def stop_training_job(self, TrainingJobName: str) -> None:
        self._stop("Training", TrainingJobName)

    def stop_processing_job(self, ProcessingJobName: str) -> None:
        self._stop("Processing", ProcessingJobName)

    def _stop(self, kind: str, name: str) -> None:
        job = self._get(f"Stop{kind}Job", name)
        if job[f"{kind}JobStatus"] != "InProgress":
            raise client_error(
                "ValidationException", "The request was rejected: the job is in a terminal state", "Stop"
            )
        job[f"{kind}JobStatus"] = "Stopping"
        self.stopped.append(name)

    def end(self, name: str, status: str, seconds: int = 120, **more: Any) -> None:
        kind = "Training" if "TrainingJobName" in self.jobs[name] else "Processing"
        started = datetime(2026, 11, 12, 10, 0, tzinfo=UTC)
        times = {
            f"{kind}StartTime": started,
            f"{kind}EndTime": datetime.fromtimestamp(started.timestamp() + seconds, UTC),
        }
        self.jobs[name] |= {f"{kind}JobStatus": status, **times, **more}


class FakeTokens:
    """Step Functions' side of the task tokens: each is answered once."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.answers: list[tuple[str, str, Any]] = []
        self.heartbeats: list[str] = []

    def _use(self, token: str, operation: str) -> None:
        if token not in self.open:
            raise client_error("TaskTimedOut", "Task Timed Out: 'Provided task does not exist anymore'", operation)

    def send_task_success(self, **arguments: Any) -> None:
        assert_valid("stepfunctions", "SendTaskSuccess", arguments)
        self._use(arguments["taskToken"], "SendTaskSuccess")
        self.open.remove(arguments["taskToken"])
        self.answers.append(("success", arguments["taskToken"], json.loads(arguments["output"])))

    def send_task_failure(self, **arguments: Any) -> None:
        assert_valid("stepfunctions", "SendTaskFailure", arguments)
        self._use(arguments["taskToken"], "SendTaskFailure")
        self.open.remove(arguments["taskToken"])
        self.answers.append((arguments["error"], arguments["taskToken"], json.loads(arguments["cause"])))

    def send_task_heartbeat(self, taskToken: str) -> None:
        self._use(taskToken, "SendTaskHeartbeat")
        self.heartbeats.append(taskToken)


@dataclass
class Context:
    """What Lambda passes beside the event."""

    function_name: str = "function"
    memory_limit_in_mb: int = 512
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:123456789012:function:function"
    aws_request_id: str = "52fdfc07-2182-154f-163f-5f0f9a621d72"


@dataclass
class Cloud:
    sagemaker: FakeSageMaker
    tokens: FakeTokens
    clock_s: float = 1_794_474_000.0  # 2026-11-12T09:00:00Z
    context: Context = field(default_factory=Context)

    def wait(self, seconds: float) -> None:
        self.clock_s += seconds

    def put(self, key: str, body: bytes | str | dict[str, Any]) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=data)

    def read(self, key: str) -> Any:
        return json.loads(boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def keys(self, prefix: str) -> list[str]:
        return [o["Key"] for o in boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]

    def created(self, key: str, at_s: float | None = None) -> dict[str, Any]:
        """The event of an object created at ``at_s``, by default now."""
        event = load_event("s3-object-created")
        event["detail"]["object"]["key"] = key
        event["time"] = datetime.fromtimestamp(at_s or self.clock_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return event

    def messages(self) -> list[str]:
        """Texts published to the topic."""
        from moto.sns.models import sns_backends

        return [entry[1] for entry in sns_backends["123456789012"]["us-east-1"].topics[TOPIC].sent_notifications]

    def mails(self) -> list[Any]:
        from moto.ses.models import ses_backends

        return ses_backends["123456789012"]["us-east-1"].sent_messages

    def executions(self) -> list[str]:
        return [e["name"] for e in boto3.client("stepfunctions").list_executions(stateMachineArn=MACHINE)["executions"]]

    def use_tokens(self, monkeypatch: pytest.MonkeyPatch, *tokens: str) -> None:
        self.tokens.open |= set(tokens)
        monkeypatch.setattr(aws, "stepfunctions", lambda: self.tokens)

    def set(self, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        settings_module.settings.cache_clear()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name, value in environment("IngestFunction").items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("POWERTOOLS_TRACE_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    # Read once, when the module is imported, which other tests may have done without this environment.
    monkeypatch.setattr(telemetry.metrics.provider, "namespace", os.environ["POWERTOOLS_METRICS_NAMESPACE"])
    with mock_aws():
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", _session())
        aws.reset()
        settings_module.settings.cache_clear()
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        create_table()
        boto3.client("sns").create_topic(Name="messages")
        boto3.client("sesv2").create_email_identity(EmailIdentity=SENDER)
        boto3.client("stepfunctions").create_state_machine(
            name="pipeline",
            definition=json.dumps({"StartAt": "End", "States": {"End": {"Type": "Succeed"}}}),
            roleArn="arn:aws:iam::123456789012:role/machine",
        )
        made = Cloud(FakeSageMaker(), FakeTokens())
        monkeypatch.setattr(aws, "now", lambda: made.clock_s)
        monkeypatch.setattr(aws, "sagemaker", lambda: made.sagemaker)
        yield made
        monkeypatch.undo()  # reset() needs the real functions
        aws.reset()
        settings_module.settings.cache_clear()


def create_table() -> None:
    """The table exactly as template.yaml declares it."""
    declared = load_template()["Resources"]["JobTable"]["Properties"]
    names = ("BillingMode", "AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes")
    boto3.client("dynamodb").create_table(TableName=TABLE, **{name: declared[name] for name in names})


def add_job(status: str = "RUNNING", **more: Any) -> None:
    """The row of JOB, as ingest and validate leave it."""
    row = {
        "pk": f"JOB#{JOB}",
        "job_id": JOB,
        "scene": "my-house",
        "bucket": BUCKET,
        "status": status,
        "created_at": "2026-11-12T08:59:00.000Z",
        "results": {},
        "interrupted": {},
        "options": {"preset": "draft"},
        "photos": 20,
        "rejected": 0,
        "execution_arn": "arn:aws:states:us-east-1:123456789012:execution:pipeline:" + JOB,
        **more,
    }
    boto3.resource("dynamodb").Table(TABLE).put_item(Item=row)


def row(pk: str) -> dict[str, Any]:
    return boto3.resource("dynamodb").Table(TABLE).get_item(Key={"pk": pk}).get("Item", {})


def job_row() -> dict[str, Any]:
    """The row of JOB as the functions read it."""
    found = jobs.get_job(JOB)
    assert found is not None
    return found
