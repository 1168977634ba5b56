"""Roles of the functions in the transformed template, and what the recorded calls need of them."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from spaceport.stack.functions import Resolver
from spaceport.stack.sam import parameter_values, read_template, transform
from tests.deploy.environments import ROOT

REGION, ACCOUNT, SENDER = "us-east-1", "123456789012", "spaceport@example.com"
FUNCTIONS = {
    "ingest": "IngestFunction",
    "settle": "SettleFunction",
    "validate": "ValidateFunction",
    "start_job": "StartJobFunction",
    "check_status": "CheckStatusFunction",
    "notify": "NotifyFunction",
}
# Granted, though no test calls it: why it must be there.
UNCALLED = {
    ("SettleFunction", "s3:ListBucket"): "without it a job.json that is missing answers 403 instead of 404",
    ("NotifyFunction", "ses:SendEmail"): "named for SendEmail by the reference; raw mails are checked as SendRawEmail",
}
# Used by AWS in the name of the role, never by our code.
WRITES_LOG = "Lambda writes what the function prints, into the function's own log group"
WRITES_TRACE = "Lambda sends the trace of the call; traces are no resources"
BY_LAMBDA = {
    "sqs:SendMessage": "Lambda itself puts events that failed for good into the dead-letter queue",
    "logs:CreateLogStream": WRITES_LOG,
    "logs:PutLogEvents": WRITES_LOG,
    "xray:PutTraceSegments": WRITES_TRACE,
    "xray:PutTelemetryRecords": WRITES_TRACE,
}
SERVICES = {"stepfunctions": "states", "table": "dynamodb"}
SAME_ACTION = {
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "sesv2:SendEmail": "ses:SendRawEmail",
}


# What AWS compares in a condition, which the recorded calls show. Another key in a role needs its source in `of_call`.
CONDITION_KEYS = ("ses:FromAddress", "events:source", "iam:PassedToService")
Keys = frozenset[tuple[str, str]]  # condition keys with their values


@dataclass(frozen=True)
class Need:
    """One action on one resource that a call of a handler needs, and a test in which it happened."""

    function: str
    action: str
    resource: str
    test: str
    keys: Keys = frozenset()


@dataclass(frozen=True)
class Grant:
    """One action on one resource of one function's role. ``sid`` names the statement."""

    function: str
    sid: str
    action: str
    resource: str
    conditions: Keys = frozenset()

    def covers(self, need: Need) -> bool:
        named = self.function == need.function and self.action == need.action
        return named and fnmatch.fnmatchcase(need.resource, self.resource) and self.conditions <= need.keys


def resolver(**parameters: str) -> Resolver:
    document = read_template(ROOT / "template.yaml")
    values = parameter_values(document, {"SenderEmail": SENDER, **parameters})
    return Resolver(transform(document, values, ROOT, REGION), values, "spaceport", REGION, ACCOUNT)


def grants(names: Resolver) -> list[Grant]:
    """Everything that the inline policies of the functions' roles, and those attached to the roles, allow."""
    found = []
    for function in FUNCTIONS.values():
        role = f"{function}Role"
        policies = [policy["PolicyDocument"] for policy in names.properties(role).get("Policies", [])]
        for logical_id, resource in names.resources.items():
            if resource["Type"] == "AWS::IAM::Policy" and names.is_created(logical_id):
                attached = resource["Properties"]["Roles"]
                if {"Ref": role} in attached:
                    policies.append(names.properties(logical_id)["PolicyDocument"])
        for statement in (statement for policy in policies for statement in policy["Statement"]):
            assert statement["Effect"] == "Allow"
            for action in as_list(statement["Action"]):
                for resource in as_list(statement["Resource"]):
                    if fits(action, resource):
                        found.append(Grant(function, statement["Sid"], action, resource, conditions(statement)))
    return found


def conditions(statement: dict[str, Any]) -> Keys:
    """Keys and values of a statement's condition; KeyError for an operator or a key that is not known here."""
    wanted = dict(statement.get("Condition", {}))
    pairs = frozenset(wanted.pop("StringEquals", {}).items())
    unknown = [*wanted, *(key for key, _ in pairs if key not in CONDITION_KEYS)]
    if unknown:
        raise KeyError(f"{statement['Sid']}: say in tests/deploy/iam.py where the value of {unknown} is to be seen")
    return pairs


def fits(action: str, resource: str) -> bool:
    """Whether IAM can match the two: actions on training jobs know no processing jobs, and the other way round."""
    kinds = {"TrainingJob": "training-job/", "ProcessingJob": "processing-job/"}
    return all(kind not in action or part in resource for kind, part in kinds.items())


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def needs(names: Resolver, calls: list[list[Any]]) -> set[Need]:
    """What the recorded calls need, with resources of the stack in the place of those of the tests."""
    return {
        Need(FUNCTIONS[handler], action, resource, test, of_condition(action, service, parameters))
        for handler, service, operation, parameters, error, test in calls
        for action, resource in of_call(names, service, operation, parameters, error)
    }


def of_call(
    names: Resolver, service: str, operation: str, parameters: dict[str, Any], error: str
) -> list[tuple[str, str]]:
    """(action, resource ARN) pairs of one call. KeyError for a service that is not known here."""
    prefix = SERVICES.get(service, service)
    action = SAME_ACTION.get(f"{service}:{operation}", f"{prefix}:{operation}")
    bucket = names.arn("Bucket", "iam")
    if service == "s3":
        if operation == "ListObjectsV2":
            return [(action, bucket)]
        if operation == "DeleteObjects":
            return [("s3:DeleteObject", f"{bucket}/{key}") for key in parameters["Delete"]]
        pairs = [(action, f"{bucket}/{parameters['Key']}")]
        if operation == "CopyObject":
            source = parameters["CopySource"]
            key = source["Key"] if isinstance(source, dict) else source.partition("/")[2]
            pairs = [("s3:GetObject", f"{bucket}/{key}"), ("s3:PutObject", f"{bucket}/{parameters['Key']}")]
        missing = error in ("NoSuchKey", "404")  # S3 says so only to those who may list
        return pairs + ([("s3:ListBucket", bucket)] if missing else [])
    if service == "sagemaker":
        return of_sagemaker(names, operation, parameters, action)
    resource = {
        "dynamodb": names.arn("JobTable", "iam")
        + (f"/index/{parameters['IndexName']}" if "IndexName" in parameters else ""),
        "states": names.arn("StateMachine", "iam"),
        "sns": names.arn("MessageTopic", "iam"),
        "sesv2": f"arn:aws:ses:{REGION}:{ACCOUNT}:identity/{parameters.get('FromEmailAddress')}",
        "events": f"arn:aws:events:{REGION}:{ACCOUNT}:event-bus/default",
    }[prefix]
    if operation == "DescribeExecution":
        resource = f"{resource.replace(':stateMachine:', ':execution:')}:a-job"
    return [(action, resource)]


def of_condition(action: str, service: str, parameters: dict[str, Any]) -> Keys:
    """Values of the condition keys of one call."""
    if action.startswith("ses:"):
        return frozenset({("ses:FromAddress", parameters["FromEmailAddress"].replace("SENDER_EMAIL", SENDER))})
    if action == "events:PutEvents":
        return frozenset(("events:source", source) for source in parameters["Entries"])
    if action == "iam:PassRole":  # to the service whose call names the role
        return frozenset({("iam:PassedToService", f"{service}.amazonaws.com")})
    return frozenset()


def of_sagemaker(names: Resolver, operation: str, parameters: dict[str, Any], action: str) -> list[tuple[str, str]]:
    kind = "training" if "Training" in operation else "processing"
    name = parameters[f"{kind.capitalize()}JobName"]
    job = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}-job/{name}"
    pairs = [(action, job)]
    if parameters.get("Tags"):
        pairs.append(("sagemaker:AddTags", job))
    if "RoleArn" in parameters:
        role = str(parameters["RoleArn"]).rpartition("/")[2].lower()  # its name differs from test to test
        (stage,) = (stage for stage in ("Sfm", "Train", "Compress") if stage.lower() in role)
        pairs.append(("iam:PassRole", names.arn(f"{stage}Role", "iam")))
    return pairs


def missing(granted: list[Grant], needed: set[Need]) -> list[Need]:
    """What a handler does and its role does not allow: it would fail in AWS."""
    return sorted(
        (need for need in needed if not any(grant.covers(need) for grant in granted)),
        key=lambda need: (need.function, need.action, need.resource),
    )


def uses(granted: list[Grant], needed: set[Need]) -> dict[Grant, list[str]]:
    """Tests in which each grant was used, the most telling first."""
    tests: dict[Grant, set[str]] = {grant: set() for grant in granted}
    by_function = defaultdict(list)
    for need in needed:
        by_function[need.function].append(need)
    for grant in granted:
        tests[grant] |= {need.test for need in by_function[grant.function] if grant.covers(need)}
    return {
        grant: sorted(found, key=lambda test: (not test.startswith("test_functions_"), test))
        for grant, found in tests.items()
    }


def why_uncalled(grant: Grant) -> str | None:
    return UNCALLED.get((grant.function, grant.action)) or BY_LAMBDA.get(grant.action)


def page(used: dict[Grant, list[str]], names: Resolver) -> str:
    """docs/iam.md."""
    lines = [
        "# What each function may do, and the test in which it does it",
        "",
        "Generated by `make iam` from template.yaml (after AWS's own transform) and the calls that the handlers make",
        "in the function tests and in the whole suite of [faults](faults.md). `tests/deploy/test_deploy_iam.py` fails",
        "when a handler calls what its role does not allow, when a role allows what no test calls (except what is",
        "explained here), and when this page is old. `tests/deploy/test_deploy_local.py` runs the deployed functions",
        "at an endpoint that enforces these roles. Roles of the stages: [security](security.md).",
        "",
        "Conditions are compared too, by what a recorded call shows of them; that a role is lent to SageMaker is",
        "taken from the call that names it. What AWS itself does in a role's name (its rows say so) no call shows.",
        "",
        "| function | action | resource | used in, or why it is granted |",
        "|---|---|---|---|",
    ]
    for grant, tests in sorted(used.items(), key=lambda item: (item[0].function, item[0].action, item[0].resource)):
        evidence = f"`{tests[0]}`" if tests else f"({why_uncalled(grant) or 'NOT USED'})"
        only = "".join(f", only `{key}` = `{value}`" for key, value in sorted(grant.conditions))
        lines.append(f"| {grant.function} | `{grant.action}` | `{short(grant.resource)}`{only} | {evidence} |")
    return "\n".join(lines) + "\n"


def short(arn: str) -> str:
    """An ARN without what differs between accounts."""
    return arn.replace(f":{REGION}:{ACCOUNT}:", ":").replace(f"-{ACCOUNT}", "").removeprefix("arn:aws:")
