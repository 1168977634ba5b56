"""One stack at the local endpoint: deploy it, look at it, upload to it, delete it."""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

from tests.deploy.environments import ROOT, clean_environment, run

NAME = "spaceport"
# Makefile of the functions: which wheels to fetch. The endpoint runs functions with this Python.
LOCAL_RUNTIME = {"RUNTIME": f"{sys.version_info.major}.{sys.version_info.minor}", "PLATFORM": platform.machine()}
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 60
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@dataclass
class Stack:
    sam: Path
    endpoint: str
    template: Path
    parameters: dict[str, str] = field(default_factory=lambda: {"QuietPeriodSeconds": "1"})
    log: str = ""

    def run_sam(self, *arguments: str | Path) -> str:
        env = clean_environment(AWS_ENDPOINT_URL=self.endpoint, **KEYS)
        done = run([self.sam, *arguments, "--config-file", ROOT / "samconfig.toml"], env=env)
        return done.stdout + done.stderr

    def deploy(self, template: Path | None = None, **parameters: str) -> str:
        values = [f"{name}={value}" for name, value in {**self.parameters, **parameters}.items()]
        self.log = self.run_sam(
            "deploy",
            *("--template-file", template or self.template),
            "--no-confirm-changeset",
            *("--parameter-overrides", *values),
        )
        return self.log

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def outputs(self) -> dict[str, str]:
        (found,) = self.client("cloudformation").describe_stacks(StackName=NAME)["Stacks"]
        return {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]}

    def resources(self) -> dict[str, str]:
        """Physical id by logical id."""
        found = self.client("cloudformation").list_stack_resources(StackName=NAME)["StackResourceSummaries"]
        return {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in found}

    def listen(self) -> str:
        """Subscribe a queue to the topic; returns its URL."""
        sqs = self.client("sqs")
        url = str(sqs.create_queue(QueueName="inbox")["QueueUrl"])
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        self.client("sns").subscribe(TopicArn=self.outputs()["MessageTopicArn"], Protocol="sqs", Endpoint=arn)
        return url

    def message(self, queue: str, wait_s: float = 120) -> dict[str, str]:
        """The next message of the topic: Subject and Message."""
        until = time.monotonic() + wait_s
        sqs = self.client("sqs")
        while time.monotonic() < until:
            for message in sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=2).get("Messages", []):
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
                return dict(json.loads(message["Body"]))
        raise TimeoutError(
            f"no message within {wait_s} s; executions: {self.executions()}; see build/deploy/endpoint.log"
        )

    def upload(self, scene: str, photos: int = 10, **options: Any) -> None:
        s3, bucket = self.client("s3"), self.outputs()["BucketName"]
        for number in range(photos):
            s3.put_object(Bucket=bucket, Key=f"uploads/{scene}/{number}.jpg", Body=JPEG)
        body = json.dumps({"ready": True, **options}).encode()
        s3.put_object(Bucket=bucket, Key=f"uploads/{scene}/job.json", Body=body)

    def executions(self) -> dict[str, str]:
        """Status by name."""
        found = self.client("stepfunctions").list_executions(stateMachineArn=self.outputs()["StateMachineArn"])
        return {one["name"]: one["status"] for one in found["executions"]}

    def ended(self, scene: str, wait_s: float = 30) -> str:
        """Status of the execution of a scene, once it has one."""
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            for name, status in self.executions().items():
                if name.startswith(scene) and status != "RUNNING":
                    return status
            time.sleep(0.5)
        raise TimeoutError(f"the execution of {scene} has not ended within {wait_s} s: {self.executions()}")
