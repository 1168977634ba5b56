"""The local endpoint that the deployment tests deploy to: ministack, and the one service that it lacks.

Runs in an environment of its own (requirements/ministack.txt): python endpoint.py. SageMaker is played by short jobs
that read what their request names and write what the stage promises (docs/contracts.md); the rest is ministack's.

IAM is enforced (AUTH=true): ministack gives each function a session of its role, checks signatures, and evaluates the
role's and the resource's policies at each call. Where it does not know which resource or condition key AWS looks at
for a call, `as_aws_checks` says so; the jobs act with sessions of the stages' roles.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import secrets
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import boto3
from ministack import app
from ministack.core import iam_actions, iam_evaluator, responses
from ministack.core.router import extract_access_key_id
from ministack.services import eventbridge, stepfunctions, sts

JOB_S = 0.3
EMPTY_SPZ = b"stand-in"
# Files of each stage's output folder, by docs/contracts.md.
OUTPUTS = {
    "sfm": {"scene.json": b"{}", "photos.json": b"[]"},
    "train": {"scene.ply": b"ply\n", "metrics.json": b'{"psnr": 27.5}'},
    "compress": {
        "index.html": b"<!doctype html><title>stand-in</title>",
        "scene.html": b"<!doctype html><title>all in one</title>",
        "scene.sog": EMPTY_SPZ,
        "scene.spz": EMPTY_SPZ,
        "report.json": b'{"training": {"psnr": 27.5, "gaussians": 1000}}',
    },
}
KINDS = {"TrainingJob": "Training", "ProcessingJob": "Processing"}
jobs: dict[str, dict[str, Any]] = {}
running: set[asyncio.Task[None]] = set()
ACCOUNT, REGION = "000000000000", "us-east-1"
Context = dict[str, Any]
request_body: contextvars.ContextVar[bytes] = contextvars.ContextVar("request_body", default=b"")
extract_resource_arn, enforce = iam_actions.extract_resource_arn, iam_evaluator.enforce


def remember_body(service: str, method: str, path: str, headers: Any, body: bytes, *more: Any) -> str:
    request_body.set(body)
    return str(extract_resource_arn(service, method, path, headers, body, *more))


def as_aws_checks(action: str, resource: str) -> tuple[str, str, Context]:
    """Action, resource and condition keys of a call, by AWS's service authorization reference."""
    if action.startswith("states:SendTask"):
        (machine,) = [arn for arn in stepfunctions._state_machines if ":stateMachine:" in arn]
        return action, machine, {}
    if action == "events:PutEvents":
        (source,) = {entry["Source"] for entry in json.loads(request_body.get())["Entries"]}
        return action, resource, {"events:source": source}
    if action == "ses:SendEmail":
        mail = json.loads(request_body.get())
        sender = mail["FromEmailAddress"]
        action = "ses:SendRawEmail" if "Raw" in mail["Content"] else action
        return action, f"arn:aws:ses:{REGION}:{ACCOUNT}:identity/{sender}", {"ses:FromAddress": sender}
    return action, resource, {}


def enforce_as_aws(
    access_key: str,
    action: str,
    service: str,
    region: str,
    resource_arn: str = "*",
    service_context: Context | None = None,
) -> Any:
    action, resource_arn, keys = as_aws_checks(action, resource_arn)
    return enforce(access_key, action, service, region, resource_arn, {**(service_context or {}), **keys})


def sagemaker_denial(operation: str, kind: str, request: Context, headers: Any, query: Any) -> str | None:
    """What the caller's role does not allow of a call to SageMaker, which ministack does not know."""
    job = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind.lower()}-job/{request[f'{kind}JobName']}"
    checks: list[tuple[str, str, Context]] = [(f"sagemaker:{operation}", job, {})]
    if request.get("Tags"):
        checks.append(("sagemaker:AddTags", job, {}))
    if "RoleArn" in request:
        checks.append(("iam:PassRole", request["RoleArn"], {"iam:PassedToService": "sagemaker.amazonaws.com"}))
    for action, resource, keys in checks:
        denied = enforce(extract_access_key_id(headers, query), action, "sagemaker", REGION, resource, keys)
        if denied is not None:
            return f"{getattr(denied, 'principal_arn', '')} is not authorized to perform {action} on {resource}"
    return None


def session_of(role_arn: str) -> dict[str, str]:
    """Arguments for a boto3 client that acts in a role, as SageMaker does for a job."""
    role, key = role_arn.rpartition("/")[2], f"ASIA{secrets.token_hex(8).upper()}"
    session = {"SecretAccessKey": secrets.token_hex(20), "SessionToken": secrets.token_hex(20)}
    arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/SageMaker"
    sts.register_session(key, {"Arn": arn, "UserId": f"{role}:SageMaker", **session})
    return {
        "aws_access_key_id": key,
        "aws_secret_access_key": session["SecretAccessKey"],
        "aws_session_token": session["SessionToken"],
    }


async def sagemaker(method: str, path: str, headers: Any, body: bytes, query: Any) -> tuple[int, dict[str, str], bytes]:
    """JSON 1.1: Create-, Describe- and StopTrainingJob and -ProcessingJob."""
    operation = {k.lower(): v for k, v in headers.items()}["x-amz-target"].partition(".")[2]
    request = json.loads(body or b"{}")
    for suffix, kind in KINDS.items():
        if operation.endswith(suffix):
            denial = sagemaker_denial(operation, kind, request, headers, query)
            if denial:
                return failure("AccessDeniedException", denial)
            status, answer = ANSWERS[operation.removesuffix(suffix)](kind, request)
            return status, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(answer).encode()
    return failure("UnknownOperationException", operation)


def failure(code: str, message: str) -> tuple[int, dict[str, str], bytes]:
    answer = json.dumps({"__type": code, "message": message}).encode()
    return 400, {"Content-Type": "application/x-amz-json-1.1"}, answer


def create(kind: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    name = request[f"{kind}JobName"]
    if name in jobs:
        return 400, {"__type": "ResourceInUse", "message": f"{name} already exists"}
    arn = f"arn:aws:sagemaker:us-east-1:000000000000:{kind.lower()}-job/{name}"
    jobs[name] = {**request, f"{kind}JobArn": arn, f"{kind}JobStatus": "InProgress", "CreationTime": time.time()}
    task = asyncio.create_task(play(kind, name, responses.get_account_id()))
    running.add(task)
    task.add_done_callback(running.discard)
    return 200, {f"{kind}JobArn": arn}


def describe(kind: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    job = jobs.get(request[f"{kind}JobName"])
    if job is None:
        return 400, {"__type": "ValidationException", "message": "Requested resource not found."}
    return 200, job


def stop(kind: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    job = jobs.get(request[f"{kind}JobName"])
    if job is None or job[f"{kind}JobStatus"] != "InProgress":
        return 400, {"__type": "ValidationException", "message": "The job is not running."}
    job[f"{kind}JobStatus"] = "Stopped"
    return 200, {}


ANSWERS = {"Create": create, "Describe": describe, "Stop": stop}


async def play(kind: str, name: str, account: str) -> None:
    """The job: read every input, write the outputs, set the end, and say so on the bus."""
    job = jobs[name]
    job[f"{kind}StartTime"] = time.time()
    await asyncio.sleep(JOB_S)
    if job[f"{kind}JobStatus"] != "InProgress":
        return
    try:
        await asyncio.to_thread(run_stage, kind, job)
        job[f"{kind}JobStatus"] = "Completed"
    except Exception as error:  # noqa: BLE001 - whatever it was, the job has failed and says why
        job[f"{kind}JobStatus"] = "Failed"
        job["FailureReason"] = f"INTERNAL_ERROR: the stand-in stage failed: {error!r}. Read the endpoint's log."
    job[f"{kind}EndTime"] = time.time()
    detail = {f"{kind}JobName": name, f"{kind}JobStatus": job[f"{kind}JobStatus"]}
    entry = {
        "Source": "aws.sagemaker",
        "DetailType": f"SageMaker {kind} Job State Change",
        "Detail": json.dumps(detail),
        "Resources": [job[f"{kind}JobArn"]],
    }
    eventbridge._put_events({"Entries": [entry]}, allow_aws_source=True)


def run_stage(kind: str, job: dict[str, Any]) -> None:
    address = f"https://127.0.0.1:{os.environ['GATEWAY_PORT']}"
    s3 = boto3.client("s3", endpoint_url=address, region_name=REGION, **session_of(job["RoleArn"]))
    if kind == "Training":
        stage = job["AlgorithmSpecification"]["ContainerEntrypoint"][-1]
        inputs = [channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in job["InputDataConfig"]]
        output = f"{job['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job['TrainingJobName']}/output/model/"
        others = [job["CheckpointConfig"]["S3Uri"]]
    else:
        stage = job["AppSpecification"]["ContainerEntrypoint"][-1]
        inputs = [entry["S3Input"]["S3Uri"] for entry in job["ProcessingInputs"]]
        outputs = {o["OutputName"]: o["S3Output"]["S3Uri"] for o in job["ProcessingOutputConfig"]["Outputs"]}
        output = outputs.pop("output")
        others = list(outputs.values())
    for uri in inputs:
        bucket, prefix = split(uri)
        found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        if not found:
            raise FileNotFoundError(f"the {stage} stage's input {uri} is empty")
        for item in found:
            s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
    if not job["RoleArn"].rpartition("/")[2].lower().count(stage):
        raise PermissionError(f"the {stage} stage got the role {job['RoleArn']}")
    for uri, files in [(output, OUTPUTS[stage]), *((other, {"stand-in.json": b"{}"}) for other in others)]:
        bucket, prefix = split(uri)
        for name, body in files.items():
            s3.put_object(Bucket=bucket, Key=f"{prefix.rstrip('/')}/{name}", Body=body)


def split(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def main() -> None:
    app.SERVICE_HANDLERS["sagemaker"] = sagemaker
    iam_actions.extract_resource_arn = remember_body
    iam_evaluator.enforce = enforce_as_aws
    app._port_is_bindable = lambda *_: False  # with TLS it would listen at port 443 too
    sys.argv = ["ministack"]
    app.main()


if __name__ == "__main__":
    main()
