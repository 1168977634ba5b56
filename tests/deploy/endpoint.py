"""The local endpoint that the deployment tests deploy to: ministack, and the one service that it lacks.

Runs in an environment of its own (requirements/ministack.txt): python endpoint.py. SageMaker is played by short jobs
that read what their request names and write what the stage promises (docs/contracts.md); the rest is ministack's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import boto3
from ministack import app
from ministack.core import responses
from ministack.services import eventbridge

JOB_S = 0.3
EMPTY_SPZ = b"stand-in"
# Files of each stage's output folder, by docs/contracts.md.
OUTPUTS = {
    "sfm": {"scene.json": b"{}", "photos.json": b"[]"},
    "train": {"scene.ply": b"ply\n", "metrics.json": b'{"psnr": 27.5}'},
    "compress": {
        "index.html": b"<!doctype html><title>stand-in</title>",
        "scene.sog": EMPTY_SPZ,
        "scene.spz": EMPTY_SPZ,
        "report.json": b'{"training": {"psnr": 27.5, "gaussians": 1000}}',
    },
}
KINDS = {"TrainingJob": "Training", "ProcessingJob": "Processing"}
jobs: dict[str, dict[str, Any]] = {}
running: set[asyncio.Task[None]] = set()


async def sagemaker(method: str, path: str, headers: Any, body: bytes, query: Any) -> tuple[int, dict[str, str], bytes]:
    """JSON 1.1: Create-, Describe- and StopTrainingJob and -ProcessingJob."""
    operation = {k.lower(): v for k, v in headers.items()}["x-amz-target"].partition(".")[2]
    request = json.loads(body or b"{}")
    for suffix, kind in KINDS.items():
        if operation.endswith(suffix):
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
    s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{os.environ['GATEWAY_PORT']}", region_name="us-east-1")
    if kind == "Training":
        stage = job["AlgorithmSpecification"]["ContainerEntrypoint"][-1]
        inputs = [channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in job["InputDataConfig"]]
        output = f"{job['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job['TrainingJobName']}/output/model/"
    else:
        stage = job["AppSpecification"]["ContainerEntrypoint"][-1]
        inputs = [entry["S3Input"]["S3Uri"] for entry in job["ProcessingInputs"]]
        outputs = {o["OutputName"]: o["S3Output"]["S3Uri"] for o in job["ProcessingOutputConfig"]["Outputs"]}
        output = outputs["output"]
    for uri in inputs:
        bucket, prefix = split(uri)
        found = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        if not found:
            raise FileNotFoundError(f"the {stage} stage's input {uri} is empty")
    if not job["RoleArn"].rpartition("/")[2].lower().count(stage):
        raise PermissionError(f"the {stage} stage got the role {job['RoleArn']}")
    bucket, prefix = split(output)
    for name, body in OUTPUTS[stage].items():
        s3.put_object(Bucket=bucket, Key=prefix + name, Body=body)


def split(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def main() -> None:
    app.SERVICE_HANDLERS["sagemaker"] = sagemaker
    sys.argv = ["ministack"]
    app.main()


if __name__ == "__main__":
    main()
