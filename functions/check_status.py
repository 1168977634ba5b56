"""A SageMaker job changed: tell the state machine.

The schedule sweeps jobs whose event never came and keeps the others alive.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from base import aws, layout, sweeps
from base.events import CheckedAnswer, CheckOneEvent, SageMakerEvent, StageFailureCause
from base.failures import TRANSIENT
from base.settings import settings
from base.stages import StageName
from base.telemetry import count_by, logger, metrics, tracer
from stages import prices, sagemaker_jobs
from stages.tokens import deliver, is_awaited
from stages.verdicts import JobDescription, Verdict, judge
from table import jobs, tasks
from table.rows import StageResult, TaskRow

EVENT_GRACE_S = 120  # a job that ended longer ago than this and is still open has lost its event
CREATION_S = 600  # a task older than this whose job does not exist will never have one
SWEEP_THREADS = 8  # SageMaker allows about ten descriptions a second


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
def handler(event: CheckOneEvent | SageMakerEvent, context: LambdaContext) -> CheckedAnswer:
    """Event: a SageMaker state change, the schedule, or {"job_name"}.

    Answers {"checked": {job name: what was done}}.
    """
    if "job_name" in event:
        names = [event["job_name"]]
    else:
        if event["source"] != "aws.sagemaker":
            return sweep()
        names = [event["detail"].get("TrainingJobName") or event["detail"].get("ProcessingJobName") or ""]
    metrics.add_metric("StatusChecks", MetricUnit.Count, len(names))
    # The event only says which job: it may be late or come twice, the description is what holds now.
    return {"checked": {name: check(name) for name in names}}


def sweep() -> CheckedAnswer:
    """Check every open task."""
    names = tasks.open_task_names()
    metrics.add_metric("StatusChecks", MetricUnit.Count, len(names))
    with ThreadPoolExecutor(max_workers=SWEEP_THREADS) as pool:
        checks = [pool.submit(check, name, swept=True).result for name in names]
        return {"checked": sweeps.look_after_all(names, checks, "tasks could not be checked")}


def check(name: str, swept: bool = False) -> str:
    """Bring one task up to date; returns what was done, for the log."""
    task = tasks.get_task(name)
    if task is None:
        return "unknown"  # another stack's job, or started by hand
    if "open" not in task:
        return "closed"
    description = sagemaker_jobs.describe(task["stage"], name)
    if description is None:
        if aws.now() - aws.epoch_s(task["created_at"]) < CREATION_S:
            return "not created yet"
        lost = Verdict(
            "failed", error=TRANSIENT, code="STAGE_LOST", reason="The SageMaker job of the stage was never created."
        )
        return finish(name, task, lost)
    verdict = judge(description)
    if verdict.status == "running":
        report_time(task["stage"], age_s(started_at(description)))
        return keep_or_stop(name, task)
    if swept and age_s(ended_at(description)) > EVENT_GRACE_S:
        metrics.add_metric("LostEvents", MetricUnit.Count, 1)
        logger.warning("the sweep found a job whose event never came", extra={"job_name": name})
    report_time(task["stage"], verdict.seconds)
    count_by("stage", task["stage"], "StageSeconds", MetricUnit.Seconds, verdict.seconds)
    return finish(name, task, verdict)


def age_s(at: datetime | None) -> float:
    """Seconds since then; 0 when that has not come."""
    return max(0.0, aws.now() - at.timestamp()) if at else 0.0


def started_at(description: JobDescription) -> datetime | None:
    return description.get("TrainingStartTime") or description.get("ProcessingStartTime")


def ended_at(description: JobDescription) -> datetime | None:
    return description.get("TrainingEndTime") or description.get("ProcessingEndTime")


def report_time(stage: StageName, seconds: float) -> None:
    """How much of its maximum run time the stage has used, for the alarm that comes before SageMaker stops it."""
    percent = 100 * seconds / settings().stage(stage).max_runtime_s
    count_by("stage", stage, "StageLimitPercent", MetricUnit.Percent, percent)


def keep_or_stop(name: str, task: TaskRow) -> str:
    """The job runs. If nobody waits for it any more (aborted, timed out, replaced), it is only billed: stop it.

    Its task stays open until it has stopped: only then it is known what it has cost.
    """
    if is_awaited(task["task_token"]):
        return "running"
    sagemaker_jobs.stop(task["stage"], name)
    logger.warning("stopped a job that nobody waits for", extra={"job_name": name})
    return "stopped"


def finish(name: str, task: TaskRow, verdict: Verdict) -> str:
    """Answer the state machine, then close the task: in this order, so that a crash between them loses nothing."""
    stage, job_id = task["stage"], task["job_id"]
    if verdict.status == "succeeded":
        result = result_of(name, task, verdict)
        jobs.put_result(job_id, stage, result)
        heard = deliver(
            lambda: aws.stepfunctions().send_task_success(taskToken=task["task_token"], output=json.dumps(result))
        )
    else:
        jobs.put_interrupted(job_id, stage, name, cost_of(stage, verdict))
        cause: StageFailureCause = {"code": verdict.code, "reason": verdict.reason, "stage": stage, "job_name": name}
        heard = deliver(
            lambda: aws.stepfunctions().send_task_failure(
                taskToken=task["task_token"], error=verdict.error[:256], cause=json.dumps(cause)
            )
        )
    tasks.close_task(name, verdict.status.upper())
    count_late_cost(job_id, cost_of(stage, verdict))
    metrics.add_metric(f"Stages{verdict.status.capitalize()}", MetricUnit.Count, 1)
    logger.info("stage ended", extra={"job_name": name, "status": verdict.status, "code": verdict.code, "heard": heard})
    return verdict.status if heard else f"{verdict.status}, nobody waits"


def result_of(name: str, task: TaskRow, verdict: Verdict) -> StageResult:
    """The result of a stage (docs/contracts.md, "State machine")."""
    job = jobs.get_job(task["job_id"])
    if job is None:
        raise RuntimeError(f"the job table has no row of job {task['job_id']}, to which {name} belongs")
    return {
        "stage": task["stage"],
        "job_name": name,
        "output_uri": layout.uri(job["bucket"], layout.output_prefix(job["job_id"], task["stage"], name)),
        "seconds": verdict.seconds,
        "billable_seconds": verdict.billable_seconds,
        "cost_usd": cost_of(task["stage"], verdict),
    }


def count_late_cost(job_id: str, cost_usd: float) -> None:
    """What a job has cost is counted when its user is told (notify.measure); what ends later is counted here."""
    job = jobs.get_job(job_id)
    if job and "message_sent_at" in job:
        metrics.add_metric("CostUsd", MetricUnit.NoUnit, cost_usd)


def cost_of(stage: StageName, verdict: Verdict) -> float:
    machine = verdict.instance_type or settings().stage(stage).instance_type
    return prices.cost_usd(settings(), machine, verdict.billable_seconds)
