"""Read template.yaml: the resources of the stack, with parameters and intrinsic functions resolved.

What cannot be played here is an error that names the resource.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spaceport.stack.functions import Resolver, TemplateError
from spaceport.stack.sam import LOCAL_CODE_BUCKET, parameter_values, read_template, transform

REGION = "us-east-1"
ACCOUNT_ID = "123456789012"

# Resources with no effect on one machine: permissions are not enforced, alarms and dashboards have nobody to tell.
WITHOUT_EFFECT = (
    "AWS::IAM::",
    "AWS::Logs::",
    "AWS::CloudWatch::",
    "AWS::Lambda::Permission",
    "AWS::Lambda::LayerVersion",
    "AWS::S3::BucketPolicy",
    "AWS::SNS::TopicPolicy",
    "AWS::SQS::",
    "AWS::Budgets::",
    "AWS::ECR::",
    "AWS::KMS::",
    "AWS::SES::",
    "AWS::ResourceGroups::",
    "AWS::ServiceCatalogAppRegistry::",
    "AWS::CloudFront::",
    "AWS::CodeBuild::",
)


@dataclass(frozen=True)
class Bucket:
    logical_id: str
    name: str
    eventbridge: bool


@dataclass(frozen=True)
class Table:
    logical_id: str
    name: str
    properties: dict[str, Any]  # arguments of dynamodb.CreateTable


@dataclass(frozen=True)
class Topic:
    logical_id: str
    name: str
    arn: str
    emails: tuple[str, ...]  # endpoints of its subscriptions with protocol email


@dataclass(frozen=True)
class Function:
    logical_id: str
    name: str
    arn: str
    handler: str  # module.attribute
    code: Path
    environment: dict[str, str]
    timeout_s: float
    memory_mb: int
    async_retries: int


@dataclass(frozen=True)
class Target:
    function_arn: str
    input: Any = None  # constant event instead of the matched one


@dataclass(frozen=True)
class Rule:
    logical_id: str
    name: str
    arn: str
    pattern: dict[str, Any] | None
    schedule: str | None
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class StateMachine:
    logical_id: str
    name: str
    arn: str
    role_arn: str
    definition: dict[str, Any]


@dataclass
class Stack:
    """The stack of one template with one set of parameters."""

    name: str
    region: str
    account_id: str
    parameters: dict[str, str]
    outputs: dict[str, str] = field(default_factory=dict)
    buckets: list[Bucket] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    topics: list[Topic] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    state_machines: list[StateMachine] = field(default_factory=list)

    def function(self, logical_id: str) -> Function:
        """The function with this logical id; KeyError names the ones there are."""
        return _by_logical_id(self.functions, logical_id, "function")

    def function_by_arn(self, arn: str) -> Function:
        """The function that an ARN, a qualified ARN or a name means; KeyError when there is none."""
        for function in self.functions:
            if arn in (function.arn, function.name) or arn.startswith(function.arn + ":"):
                return function
        raise KeyError(f"no function {arn} in the template")


def _by_logical_id(resources: list[Any], logical_id: str, kind: str) -> Any:
    for resource in resources:
        if resource.logical_id == logical_id:
            return resource
    raise KeyError(f"no {kind} {logical_id}; the template has {', '.join(r.logical_id for r in resources) or 'none'}")


def load_stack(
    template: Path,
    parameters: Mapping[str, str] | None = None,
    *,
    stack_name: str = "spaceport",
    region: str = REGION,
    account_id: str = ACCOUNT_ID,
) -> Stack:
    """The resources of ``template`` after the SAM transform, with every value resolved.

    ``parameters`` overrides the template's defaults, as ``sam deploy --parameter-overrides`` does; unknown names,
    values outside AllowedValues or AllowedPattern and missing values are a TemplateError. Nothing is asked of AWS.
    """
    document = read_template(template)
    values = parameter_values(document, parameters or {})
    transformed = transform(document, values, template.parent, region)
    resolver = Resolver(transformed, values, stack_name, region, account_id)
    stack = Stack(stack_name, region, account_id, values)
    subscriptions: list[tuple[str, dict[str, Any]]] = []
    retries: dict[str, int] = {}
    for logical_id, resource in transformed["Resources"].items():
        if not resolver.is_created(logical_id):
            continue
        kind = resource["Type"]
        if kind == "AWS::SNS::Subscription":
            subscriptions.append((logical_id, resolver.properties(logical_id)))
        elif kind == "AWS::Lambda::EventInvokeConfig":
            config = resolver.properties(logical_id)
            retries[config["FunctionName"]] = int(config.get("MaximumRetryAttempts", 2))
        elif not kind.startswith(WITHOUT_EFFECT) and kind not in READERS:
            raise TemplateError(f"{logical_id}: resources of type {kind} are not played locally")
    for logical_id, resource in transformed["Resources"].items():
        if resource["Type"] in READERS and resolver.is_created(logical_id):
            READERS[resource["Type"]](stack, resolver, logical_id, template.parent)
    _subscribe(stack, subscriptions)
    stack.functions = [
        Function(**{**f.__dict__, "async_retries": retries.get(f.name, f.async_retries)}) for f in stack.functions
    ]
    stack.outputs = {
        name: resolver.resolve(output["Value"], f"Outputs.{name}.Value")
        for name, output in transformed.get("Outputs", {}).items()
        if resolver.condition(output.get("Condition"), f"Outputs.{name}.Condition")
    }
    return stack


def _read_bucket(stack: Stack, resolver: Resolver, logical_id: str, _folder: Path) -> None:
    properties = resolver.properties(logical_id)
    configuration = properties.get("NotificationConfiguration", {}).get("EventBridgeConfiguration")
    # CloudFormation: EventBridgeEnabled is true when the configuration is there at all.
    enabled = configuration is not None and str(configuration.get("EventBridgeEnabled", True)).lower() == "true"
    stack.buckets.append(Bucket(logical_id, resolver.physical_name(logical_id), enabled))


TABLE_PROPERTIES = (
    "AttributeDefinitions",
    "KeySchema",
    "BillingMode",
    "GlobalSecondaryIndexes",
    "LocalSecondaryIndexes",
    "ProvisionedThroughput",
)


def _read_table(stack: Stack, resolver: Resolver, logical_id: str, _folder: Path) -> None:
    properties = resolver.properties(logical_id)
    arguments = {key: properties[key] for key in TABLE_PROPERTIES if key in properties}
    name = resolver.physical_name(logical_id)
    stack.tables.append(Table(logical_id, name, {"TableName": name, **arguments}))


def _read_topic(stack: Stack, resolver: Resolver, logical_id: str, _folder: Path) -> None:
    properties = resolver.properties(logical_id)
    emails = tuple(s["Endpoint"] for s in properties.get("Subscription", []) if s["Protocol"] == "email")
    name, arn = resolver.physical_name(logical_id), resolver.arn(logical_id, logical_id)
    stack.topics.append(Topic(logical_id, name, arn, emails))


def _subscribe(stack: Stack, subscriptions: list[tuple[str, dict[str, Any]]]) -> None:
    for logical_id, subscription in subscriptions:
        if subscription["Protocol"] != "email":
            raise TemplateError(f"{logical_id}: only e-mail subscriptions are played, not {subscription['Protocol']}")
        for i, topic in enumerate(stack.topics):
            if topic.arn == subscription["TopicArn"]:
                emails = (*topic.emails, subscription["Endpoint"])
                stack.topics[i] = Topic(topic.logical_id, topic.name, topic.arn, emails)


def _read_function(stack: Stack, resolver: Resolver, logical_id: str, folder: Path) -> None:
    properties = resolver.properties(logical_id)
    code = properties.get("Code", {})
    if code.get("S3Bucket") != LOCAL_CODE_BUCKET:
        raise TemplateError(f"{logical_id}: CodeUri is not a folder of this checkout")
    environment = properties.get("Environment", {}).get("Variables", {})
    stack.functions.append(
        Function(
            logical_id,
            resolver.physical_name(logical_id),
            resolver.arn(logical_id, logical_id),
            properties["Handler"],
            (folder / code["S3Key"]).resolve(),
            {key: _environment_value(value) for key, value in environment.items()},
            float(properties.get("Timeout", 3)),
            int(properties.get("MemorySize", 128)),
            2,
        )
    )


def _environment_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_rule(stack: Stack, resolver: Resolver, logical_id: str, _folder: Path) -> None:
    properties = resolver.properties(logical_id)
    targets = tuple(
        _target(target, f"{logical_id}.Targets[{i}]") for i, target in enumerate(properties.get("Targets", []))
    )
    if properties.get("State", "ENABLED") == "DISABLED":
        return
    if properties.get("EventBusName", "default") != "default":
        raise TemplateError(f"{logical_id}: only the default event bus is played")
    name, arn = resolver.physical_name(logical_id), resolver.arn(logical_id, logical_id)
    pattern, schedule = properties.get("EventPattern"), properties.get("ScheduleExpression")
    stack.rules.append(Rule(logical_id, name, arn, pattern, schedule, targets))


def _read_schedule(stack: Stack, resolver: Resolver, logical_id: str, _folder: Path) -> None:
    properties = resolver.properties(logical_id)
    target = _target(properties["Target"], f"{logical_id}.Target")
    name = resolver.physical_name(logical_id)
    arn = f"arn:aws:scheduler:{stack.region}:{stack.account_id}:schedule/default/{name}"
    if properties.get("State", "ENABLED") == "ENABLED":
        stack.rules.append(Rule(logical_id, name, arn, None, properties["ScheduleExpression"], (target,)))


def _target(target: dict[str, Any], path: str) -> Target:
    unknown = sorted(set(target) - {"Arn", "Id", "Input", "RetryPolicy", "DeadLetterConfig", "RoleArn"})
    if unknown:
        raise TemplateError(f"{path}: {', '.join(unknown)} is not supported")
    if ":lambda:" not in target["Arn"]:
        raise TemplateError(f"{path}: only functions can be targets, not {target['Arn']}")
    return Target(target["Arn"], json.loads(target["Input"]) if "Input" in target else None)


def _read_state_machine(stack: Stack, resolver: Resolver, logical_id: str, _folder: Path) -> None:
    properties = resolver.properties(logical_id)
    text = properties.get("DefinitionString")
    if text is None:
        raise TemplateError(f"{logical_id}: neither Definition nor a local DefinitionUri")
    substitutions = properties.get("DefinitionSubstitutions", {})

    def replace(match: re.Match[str]) -> str:
        if match.group(1) not in substitutions:
            raise TemplateError(f"{logical_id}: the definition uses ${{{match.group(1)}}}, which is not substituted")
        return json.dumps(str(substitutions[match.group(1)]))[1:-1]

    definition = json.loads(re.sub(r"\$\{([A-Za-z0-9_]+)\}", replace, text))
    name, arn = resolver.physical_name(logical_id), resolver.arn(logical_id, logical_id)
    stack.state_machines.append(StateMachine(logical_id, name, arn, properties.get("RoleArn", ""), definition))


READERS = {
    "AWS::S3::Bucket": _read_bucket,
    "AWS::DynamoDB::Table": _read_table,
    "AWS::SNS::Topic": _read_topic,
    "AWS::Lambda::Function": _read_function,
    "AWS::Events::Rule": _read_rule,
    "AWS::Scheduler::Schedule": _read_schedule,
    "AWS::StepFunctions::StateMachine": _read_state_machine,
}
