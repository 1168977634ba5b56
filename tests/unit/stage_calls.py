"""Calls of start_job and check_status, and what a stage's result looks like."""

import check_status
import start_job
from tests.unit.cloud import (
    BUCKET,
    JOB,
    MACHINE,
    ULID,
    Cloud,
)

NAME = f"spaceport-{ULID.lower()}-sfm-0"
TRAIN = f"spaceport-{ULID.lower()}-train-0"
SFM_RESULT = {
    "stage": "sfm",
    "job_name": NAME,
    "output_uri": f"s3://{BUCKET}/work/{JOB}/sfm/",
    "seconds": 600,
    "billable_seconds": 600,
    "cost_usd": 0,
}
TRAIN_RESULT = {**SFM_RESULT, "stage": "train", "output_uri": f"s3://{BUCKET}/work/{JOB}/train/{TRAIN}/output/model/"}


def start(cloud: Cloud, stage: str = "sfm", attempt: int = 0, token: str = "token-0") -> dict:
    payload = {
        "state": {"job_id": JOB, "scene": "my-house", "bucket": BUCKET},
        "stage": stage,
        "attempt": attempt,
        "task_token": token,
        "execution_arn": MACHINE.replace("stateMachine", "execution") + ":" + JOB,
    }
    return start_job.handler(payload, cloud.context)


def check(cloud: Cloud, name: str = NAME) -> str:
    return check_status.handler({"job_name": name}, cloud.context)["checked"][name]
