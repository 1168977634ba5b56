"""Start the SageMaker job of a stage; the state machine then waits until check_status answers with the task token."""

from __future__ import annotations

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from base import aws, layout
from base.events import StartJobAnswer, StartJobEvent
from base.failures import JobFailure, failure
from base.service_errors import retried
from base.settings import settings
from base.stages import StageName
from base.telemetry import logger, metrics, tracer
from stages import sagemaker_jobs
from stages.tokens import is_awaited
from table import jobs, tasks
from table.rows import JobRow

ATTEMPT_LIMIT = 100  # two digits fit into the job's name


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
@retried
def handler(event: StartJobEvent, context: LambdaContext) -> StartJobAnswer:
    """Event: {"state", "stage", "attempt", "task_token", "execution_arn"}. Answers {"job_name", "created"}."""
    job_id, stage, token = event["state"]["job_id"], event["stage"], event["task_token"]
    job = jobs.get_job(job_id)
    if job is None:
        raise failure("INTERNAL_ERROR", f"The job table has no row of job {job_id}. This is a fault of Spaceport.")
    if job["status"] in jobs.ENDED and not is_awaited(token):
        raise ended(job_id)
    for number in range(int(event["attempt"]), ATTEMPT_LIMIT):
        name = layout.job_name(settings().job_prefix, job_id, stage, number)
        # The token is stored before the job exists. The same token means the same start, so a repeated call changes
        # nothing; another one is that of a redriven execution, which counts its retries from 0 again.
        if not tasks.put_task(name, job_id, stage, number, token):
            continue
        created = start(job, stage, name, event["execution_arn"])
        if created is None:
            continue
        metrics.add_metric("StagesStarted", MetricUnit.Count, 1)
        logger.info("stage started", extra={"job_id": job_id, "stage": stage, "job_name": name, "attempt": number})
        return {"job_name": name, "created": created}
    raise failure(
        "INTERNAL_ERROR", f"The {stage} stage was started {ATTEMPT_LIMIT} times. This is a fault of Spaceport."
    )


def start(job: JobRow, stage: StageName, name: str, execution_arn: str) -> bool | None:
    """Create the SageMaker job.

    False when an earlier call with this token has done so, None when the name is another job's.
    """
    try:
        arguments = sagemaker_jobs.request(stage, job, name, settings())
        before = jobs.begin_stage(job["job_id"], stage, name, execution_arn, job.get("ended_at", ""))
        if before is None:
            raise ended(job["job_id"])
        stop_leftover(before, name)
        created = sagemaker_jobs.create(stage, arguments)
    except JobFailure:
        tasks.close_task(name, "REJECTED")
        raise
    task = tasks.get_task(name)
    if not created and task and sagemaker_jobs.is_older(stage, name, aws.epoch_s(task["created_at"])):
        tasks.close_task(name, "REJECTED")
        logger.warning("the name belongs to another job, the next one is taken", extra={"job_name": name})
        return None
    return created


def ended(job_id: str) -> JobFailure:
    """The execution was aborted or has timed out while this call was going on."""
    return failure("EXECUTION_ENDED", f"The job {job_id} has ended; no stage is started for it")


def stop_leftover(before: str, name: str) -> None:
    """An earlier attempt that nobody waits for any more must not go on being billed.

    Its task stays open: the call that belongs to it may still be about to create the job, which the sweep then finds.
    """
    task = tasks.get_task(before) if before and before != name else None
    if task and "open" in task:
        stopped = sagemaker_jobs.stop(task["stage"], before)
        logger.warning("stopped an earlier attempt", extra={"job_name": before, "stopped": stopped})
