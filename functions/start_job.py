"""Start the SageMaker job of a stage; the state machine then waits until check_status answers with the task token."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

import jobs
import layout
import sagemaker_jobs
from failures import JobFailure, failure
from settings import Stage, settings
from telemetry import logger, metrics, tracer

ATTEMPT_LIMIT = 100  # two digits fit into the job's name


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Event: {"state", "stage", "attempt", "task_token", "execution_arn"}. Answers {"job_name", "created"}."""
    job_id, stage, token = event["state"]["job_id"], event["stage"], event["task_token"]
    job = jobs.get_job(job_id)
    if job is None:
        raise failure("INTERNAL_ERROR", f"The job table has no row of job {job_id}. This is a fault of Spaceport.")
    name, attempt = reserve_name(job_id, stage, int(event["attempt"]), token)
    try:
        arguments = sagemaker_jobs.request(stage, job, name, settings())
        stop_leftover(jobs.begin_stage(job_id, stage, name), name)
        created = sagemaker_jobs.create(stage, arguments)
    except JobFailure:
        jobs.close_task(name, "REJECTED")
        raise
    metrics.add_metric("StagesStarted", MetricUnit.Count, 1)
    logger.info("stage started", extra={"job_id": job_id, "stage": stage, "job_name": name, "attempt": attempt})
    return {"job_name": name, "created": created}


def reserve_name(job_id: str, stage: Stage, attempt: int, token: str) -> tuple[str, int]:
    """Store the token under the name of the SageMaker job, before the job exists; returns (name, attempt).

    The token tells starts apart: the same token means the same job, so a repeated call changes nothing. A redriven
    execution counts
    its retries from 0 again, with new tokens; it takes the next free number.
    """
    for number in range(attempt, ATTEMPT_LIMIT):
        name = layout.job_name(settings().job_prefix, job_id, stage, number)
        if jobs.put_task(name, job_id, stage, number, token):
            return name, number
    raise failure(
        "INTERNAL_ERROR", f"The {stage} stage was started {ATTEMPT_LIMIT} times. This is a fault of Spaceport."
    )


def stop_leftover(before: str, name: str) -> None:
    """An earlier attempt that nobody waits for any more must not go on being billed."""
    task = jobs.get_task(before) if before and before != name else None
    if task and "open" in task:
        stopped = sagemaker_jobs.stop(task["stage"], before)
        jobs.close_task(before, "REPLACED")
        logger.warning("stopped an earlier attempt", extra={"job_name": before, "stopped": stopped})
