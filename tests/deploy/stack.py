"""One stack at the local endpoint: deploy it, look at it, upload to it, delete it."""

from __future__ import annotations

import json
import os
import platform
import ssl
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

from tests.deploy.environments import BUILD, ROOT, clean_environment, run

NAME = "spaceport"
WAIT_S = 300  # a scene takes seconds; on a busy machine each function may need half a minute to start
CERTIFICATE = BUILD / "endpoint.pem"
LOG, FIGURES = BUILD / "deploy.log", BUILD / "deploy.json"  # what `sam` printed, and how long it took
# Makefile of the functions: which wheels to fetch. The endpoint runs functions with this Python.
LOCAL_RUNTIME = {"RUNTIME": f"{sys.version_info.major}.{sys.version_info.minor}", "PLATFORM": platform.machine()}
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 60
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@dataclass
class Stack:
    sam: Path
    endpoint: str
    template: Path
    parameters: dict[str, str] = field(default_factory=lambda: {"QuietPeriodSeconds": "1", "MinPhotos": "3"})
    log: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)

    def run_sam(self, *arguments: str | Path) -> str:
        env = clean_environment(AWS_ENDPOINT_URL=self.endpoint, AWS_CA_BUNDLE=str(CERTIFICATE), **KEYS)
        started = time.monotonic()
        done = run([self.sam, *arguments, "--config-file", ROOT / "samconfig.toml"], env=env, timeout_s=900)
        took_s = round(time.monotonic() - started, 1)
        self.runs.append({"command": f"sam {arguments[0]}", "wall_s": took_s})
        with LOG.open("w" if len(self.runs) == 1 else "a") as log:
            log.write(f"$ sam {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}\n[{took_s} s]\n\n")
        machine = {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version()}
        FIGURES.write_text(json.dumps({"runs": self.runs, "machine": machine}, indent=1) + "\n")
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
            verify=str(CERTIFICATE),
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
        from_topic = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}}
        policy = {"Version": "2012-10-17", "Statement": [{**from_topic, "Action": "sqs:SendMessage", "Resource": arn}]}
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps(policy)})
        self.client("sns").subscribe(TopicArn=self.outputs()["MessageTopicArn"], Protocol="sqs", Endpoint=arn)
        return url

    def message(self, queue: str, scene: str) -> dict[str, str]:
        """The next message of the topic about a scene (Subject and Message); others are dropped."""
        until = time.monotonic() + WAIT_S
        sqs = self.client("sqs")
        while time.monotonic() < until:
            for message in sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=2).get("Messages", []):
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
                body = dict(json.loads(message["Body"]))
                if scene in body["Subject"]:
                    return body
        raise TimeoutError(f"no message about {scene} within {WAIT_S} s: {self.executions()}; see endpoint.log")

    def mails(self) -> list[dict[str, Any]]:
        """What SES has sent."""
        trust = ssl.create_default_context(cafile=str(CERTIFICATE))
        with urllib.request.urlopen(f"{self.endpoint}/_ministack/ses/messages", context=trust) as answer:
            return [mail for of_account in json.load(answer)["messages"].values() for mail in of_account]

    def opened(self, link: str) -> bytes:
        """What a link gives to whoever has it and nothing else."""
        with urllib.request.urlopen(link, context=ssl.create_default_context(cafile=str(CERTIFICATE))) as answer:
            return bytes(answer.read())

    def without(self, role: str, sid: str) -> str:
        """Take a statement away from a role; returns its policy as it was, for `give_back`."""
        iam, name = self.client("iam"), self.resources()[role]
        (policy,) = iam.list_role_policies(RoleName=name)["PolicyNames"]
        document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
        fewer = [statement for statement in document["Statement"] if statement["Sid"] != sid]
        assert len(fewer) == len(document["Statement"]) - 1, f"{role} has no statement {sid}"
        self.give_back(role, json.dumps({**document, "Statement": fewer}))
        return json.dumps(document)

    def give_back(self, role: str, document: str) -> None:
        iam, name = self.client("iam"), self.resources()[role]
        (policy,) = iam.list_role_policies(RoleName=name)["PolicyNames"]
        iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=document)

    def upload(self, scene: str, photos: int = 3, **options: Any) -> None:
        s3, bucket = self.client("s3"), self.outputs()["BucketName"]
        for number in range(photos):
            s3.put_object(Bucket=bucket, Key=f"uploads/{scene}/{number}.jpg", Body=JPEG)
        body = json.dumps({"ready": True, **options}).encode()
        s3.put_object(Bucket=bucket, Key=f"uploads/{scene}/job.json", Body=body)

    def executions(self) -> dict[str, str]:
        """Status by name."""
        found = self.client("stepfunctions").list_executions(stateMachineArn=self.outputs()["StateMachineArn"])
        return {one["name"]: one["status"] for one in found["executions"]}

    def job(self, scene: str, stage: str) -> str:
        """Name of the SageMaker job that was the first try of a scene's stage."""
        (execution,) = (name for name in self.executions() if name.startswith(scene))
        return f"spaceport-{execution.rpartition('-')[2].lower()}-{stage}-0"

    def ended(self, scene: str) -> str:
        """Status of the execution of a scene, once it has one."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            for name, status in self.executions().items():
                if name.startswith(scene) and status != "RUNNING":
                    return status
            time.sleep(0.5)
        raise TimeoutError(f"the execution of {scene} has not ended within {WAIT_S} s: {self.executions()}")
