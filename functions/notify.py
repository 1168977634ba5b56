"""The end of a job: publish the result or explain the failure, close the row, and tell the user once."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.data_classes import EventBridgeEvent
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import BotoCoreError, ClientError

from base import aws, failures, sweeps
from base.failures import Failure
from base.service_errors import retried
from base.telemetry import count_by, logger, metrics, tracer
from notifications import mails, results
from stages import prices, sagemaker_jobs
from table import jobs

EVENT_SOURCE = "spaceport"  # the role may put events of this source alone
START_LIMIT_S = 3600  # a job whose execution has not started by then never will
CALL_LIMIT_S = 960  # longer than a call of this function can take
ANNOUNCE_LIMIT_S = 86_400  # an event that the bus refuses for so long is given up
ENDED_FROM_OUTSIDE = {
    "ABORTED": Failure("EXECUTION_ABORTED", "The job was cancelled.", failures.ADVICE["EXECUTION_ABORTED"]),
    "TIMED_OUT": Failure(
        "EXECUTION_TIMED_OUT", "The job took longer than a job may take.", failures.ADVICE["EXECUTION_TIMED_OUT"]
    ),
}


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
@retried
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Event: {"kind": succeeded | failed, "job_id", "state"}, the execution's status change, or the schedule.

    Answers {"status", "message"}, for the schedule {"checked": {job id: what was done}}.
    """
    if "kind" not in event:
        change = EventBridgeEvent(event)
        return execution_ended(change.detail) if change.source == "aws.states" else sweep()
    job_id = event["job_id"]
    if event["kind"] == "succeeded":
        job = jobs.get_job(job_id)
        if job is None:
            raise failures.failure(
                "INTERNAL_ERROR", f"The job table has no row of job {job_id}. This is a fault of Spaceport."
            )
        if job["status"] in ("ABORTED", "FAILED") and is_redriven(job):
            jobs.resume_job(job_id, job["ended_at"])  # it was stopped while it was published
        results.publish(job)
        link = results.address(job)
        # From here on the job has succeeded, whatever becomes of this call (state FailUnlessDone).
        if not jobs.end_job(job_id, "SUCCEEDED", result_url=link, cost_usd=round(prices.spent_usd(job), 6)):
            results.unpublish(job)  # it was aborted while it was published
    else:
        end_without_result(job_id, "FAILED", failures.parse(event["state"].get("error")))
    return tell_once(job_id)


def execution_ended(event: dict[str, Any]) -> dict[str, Any]:
    """Aborted or timed out: no state could tell. Failed: the state NotifyFailure has told, unless it failed too."""
    job_id = event["name"]
    job = jobs.get_job(job_id)
    if job is None:
        logger.warning("execution without a job", extra={"job_id": job_id})
        return {"status": "unknown", "message": "none"}
    # The event may be late: the execution may have been redriven since.
    execution = describe(event["executionArn"]) or event
    if execution["status"] == "RUNNING":
        return {"status": "RUNNING", "message": "none"}
    return conclude(job, execution)


def conclude(job: dict[str, Any], execution: dict[str, Any]) -> dict[str, Any]:
    """Bring the row of a job to the end that its execution has come to, and tell the user."""
    status = execution["status"]
    if job["status"] != "SUCCEEDED":
        failed_before = job["status"] == "FAILED"  # the state RecordFailure was reached; the rest came too late
        reason = None if failed_before else ENDED_FROM_OUTSIDE.get(status)
        row_status = "ABORTED" if status == "ABORTED" and not failed_before else "FAILED"
        end_without_result(job["job_id"], row_status, reason or failure_of(job, execution))
    return tell_once(job["job_id"])


def describe(execution_arn: str) -> dict[str, Any] | None:
    """Step Functions' description; None when the execution is forgotten (after 90 days)."""
    try:
        return dict(aws.stepfunctions().describe_execution(executionArn=execution_arn))
    except ClientError as error:
        if error.response["Error"]["Code"] == "ExecutionDoesNotExist":
            return None
        raise


def is_redriven(job: dict[str, Any]) -> bool:
    """Whether the job's execution runs again after it had ended."""
    execution = describe(job["execution_arn"]) or {}
    return execution.get("status") == "RUNNING" and execution.get("redriveCount", 0) > 0


def sweep() -> dict[str, Any]:
    """Look after every job that is not done with: its execution's last event may have been lost, or all its tries."""
    job_ids = jobs.open_job_ids()
    checks = [partial(look_after, job_id) for job_id in job_ids]
    return {"checked": sweeps.each(job_ids, checks, "jobs could not be looked after")}


def look_after(job_id: str) -> str:
    """One job of the sweep; returns what was done, for the log."""
    job = jobs.get_job(job_id)
    if job is None:
        return "gone"
    if "created_at" not in job:  # RecordFailure made the row: somebody started an execution by hand, without an upload
        jobs.close_job(job_id)
        return "no upload"
    age_s = aws.now() - aws.epoch_s(job["created_at"])
    execution = describe(job["execution_arn"]) if "execution_arn" in job else None
    if execution is None and age_s < START_LIMIT_S:
        return "starting"
    execution = execution or {"status": "FAILED", "error": "NOT_STARTED", "cause": "The job could not be started."}
    if execution["status"] == "RUNNING":
        return "running"
    conclude(job, execution)
    return close_when_done(jobs.get_job(job_id) or job)


def close_when_done(job: dict[str, Any]) -> str:
    """Take an ended job off the sweep's list once nothing is left to be done for it."""
    if job["status"] != "SUCCEEDED":
        if aws.now() - aws.epoch_s(job["ended_at"]) < CALL_LIMIT_S:
            return "told"  # a call of its last state may still be publishing
        results.unpublish(job)
    if not is_announced(job):
        return "told, not announced"
    jobs.close_job(job["job_id"])
    return "closed"


def failure_of(job: dict[str, Any], execution: dict[str, Any]) -> Failure:
    """The failure in the row, else the error that RecordFailure left there, else the execution's own."""
    if "failure" in job:
        return Failure(**job["failure"])
    if "raw_error" in job:
        return failures.parse(json.loads(job["raw_error"]))
    return failures.parse({"Error": execution.get("error"), "Cause": execution.get("cause")})


def end_without_result(job_id: str, status: str, reason: Failure) -> None:
    """Write the status and the reason to the row, stop the SageMaker job that is still billed, remove half results.

    The job's task stays open: a call may be about to create the job just now, which the sweep then finds and stops.
    """
    jobs.end_job(job_id, status, reason)
    job = jobs.get_job(job_id) or {}
    if job.get("status") == "SUCCEEDED":
        return  # it had succeeded before it was aborted
    task = jobs.get_task(job.get("job_name", ""))
    if task and "open" in task:
        stopped = sagemaker_jobs.stop(task["stage"], job["job_name"])
        logger.info("stopped the running stage", extra={"job_name": job["job_name"], "stopped": stopped})
    if "bucket" in job:
        results.unpublish(job)


def tell_once(job_id: str) -> dict[str, Any]:
    """Send the message that fits the row's last status, and the event for other systems, unless that has happened.

    A failed call sends them when it is repeated.
    """
    job = {"job_id": job_id, **(jobs.get_job(job_id) or {})}
    channel = "sent before" if "message_sent_at" in job else send_once(job)
    announced = "announced_at" in job
    # Whoever has sent the message announces next; if that call has died, its claim on doing so has run out by then.
    own_turn = channel != "sent before" or aws.now() - told_at_s(job) >= jobs.MESSAGE_CLAIM_S
    if not announced and own_turn and announce(job):
        announced = jobs.mark_announced(job_id, job["status"])
    if job["status"] == "SUCCEEDED" and announced:
        jobs.close_job(job_id)
    return {"status": job["status"], "message": channel}


def told_at_s(job: dict[str, Any]) -> float:
    """When the user was told; now, when that has happened since the row was read."""
    return aws.epoch_s(job["message_sent_at"]) if "message_sent_at" in job else aws.now()


def send_once(job: dict[str, Any]) -> str:
    """Send the message of this row; returns its channel. All that it says is read before the right to send is claimed.

    Raises Spaceport.Transient while another call has that right, or when the row has changed since it was read.
    """
    job_id, succeeded = job["job_id"], job["status"] == "SUCCEEDED"
    report = results.read_report(job) if succeeded else {}
    if succeeded:
        message = mails.succeeded(job, results.link(job), report, job["cost_usd"])
    else:
        message = mails.failed(job, failure_of(job, {}))
    claim = jobs.claim_message(job_id, job["status"])
    if claim == "busy":
        raise failures.transient("MESSAGE_BUSY", f"Another call is sending the message of job {job_id}")
    if claim == "sent":
        return "sent before"
    try:
        channel = mails.send(message, (job.get("options") or {}).get("email"))
    except Exception:
        jobs.release_message(job_id)
        raise
    jobs.mark_message_sent(job_id)
    measure(job, report)
    return channel


def measure(job: dict[str, Any], report: dict[str, Any]) -> None:
    """The metrics behind the dashboard and the alarm on spending; a failed job has cost what its stages have."""
    succeeded = job["status"] == "SUCCEEDED"
    metrics.add_metric("JobsSucceeded" if succeeded else "JobsFailed", MetricUnit.Count, 1)
    metrics.add_metric("CostUsd", MetricUnit.NoUnit, float(job.get("cost_usd", prices.spent_usd(job))))
    training = report.get("training")
    psnr = training.get("psnr") if isinstance(training, dict) else None
    if isinstance(psnr, int | float):
        metrics.add_metric("PsnrDb", MetricUnit.NoUnit, psnr)
    if not succeeded:
        count_by("code", failure_of(job, {}).code, "Failures", MetricUnit.Count, 1)


def announce(job: dict[str, Any]) -> bool:
    """One event on the bus for other systems; False when it was refused, and the sweep has to try again."""
    detail = {
        name: job[name] for name in ("job_id", "scene", "status", "failure", "result_url", "cost_usd") if name in job
    }
    kind = "SceneSucceeded" if job["status"] == "SUCCEEDED" else "SceneFailed"
    try:
        answer = aws.events().put_events(
            Entries=[{"Source": EVENT_SOURCE, "DetailType": kind, "Detail": json.dumps(detail)}]
        )
        refused = answer["Entries"] if answer["FailedEntryCount"] else None
    except (ClientError, BotoCoreError) as error:
        refused = str(error)
    if refused:  # the user has been told: the job must not fail because a listener was not
        logger.error("event refused", extra={"job_id": job["job_id"], "refused": refused})
    return not refused


def is_announced(job: dict[str, Any]) -> bool:
    """Whether nothing is left to be done for other systems: they have been told, or it was tried for a day."""
    if "announced_at" in job:
        return True
    if aws.now() - aws.epoch_s(job["ended_at"]) < ANNOUNCE_LIMIT_S:
        return False
    metrics.add_metric("EventsLost", MetricUnit.Count, 1)
    logger.error("event given up", extra={"job_id": job["job_id"]})
    return True
