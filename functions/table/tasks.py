"""Rows TASK#: the token of each SageMaker job, which the state machine waits for."""

from __future__ import annotations

from typing import Literal

from base import aws
from base.stages import StageName
from table import store
from table.rows import TaskRow

TASK_DAYS = 30
OPEN_TASK: Literal["yes"] = "yes"  # value of the attribute `open`, which the index that the sweep reads is made of


def task_key(job_name: str) -> dict[str, str]:
    return {"pk": f"TASK#{job_name}"}


def get_task(job_name: str) -> TaskRow | None:
    row: TaskRow | None = store.get(task_key(job_name))
    return row


def put_task(job_name: str, job_id: str, stage: StageName, attempt: int, token: str) -> bool:
    """Store the token under the job's name, before the job exists. False when the name belongs to another token."""
    row: TaskRow = {
        "pk": task_key(job_name)["pk"],
        "task_token": token,
        "job_id": job_id,
        "stage": stage,
        "attempt": attempt,
        "status": "STARTED",
        "open": OPEN_TASK,
        "created_at": aws.timestamp(),
        "expires_at": store.expires_at(TASK_DAYS),
    }
    if store.put(row, "attribute_not_exists(pk)"):
        return True
    task = get_task(job_name)
    return task is not None and task["task_token"] == token


def close_task(job_name: str, status: str) -> None:
    """The task needs no more attention: it leaves the index that the sweep reads."""
    store.update(
        task_key(job_name),
        "SET #status = :status REMOVE #open",
        {":status": status},
        "attribute_exists(pk)",
        {"#status": "status", "#open": "open"},
    )


def open_task_names() -> list[str]:
    """SageMaker job names of the tasks that still run."""
    return store.open_names(OPEN_TASK)
