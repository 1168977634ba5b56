"""The end of a job: publish the result or explain the failure, close the row, and tell the user once."""

from __future__ import annotations

import json
from functools import partial

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from base import aws, failures, sweeps
from base.events import CheckedAnswer, ExecutionChange, ExecutionEnd, ExecutionEvent, NotifyAnswer, NotifyRequest
from base.failures import Failure
from base.service_errors import retried
from base.telemetry import count_by, logger, metrics, tracer
from notifications import bus, mails, results
from notifications.report import ReportSummary
from stages import prices, sagemaker_jobs
from table import jobs, tasks
from table.rows import EndStatus, JobRow

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
def handler(event: NotifyRequest | ExecutionEvent, context: LambdaContext) -> NotifyAnswer | CheckedAnswer:
    """Event: {"kind": succeeded | failed, "job_id", "state"}, the execution's status change, or the schedule.

    Answers {"status", "message"}, for the schedule {"checked": {job id: what was done}}.
    """
    if "kind" not in event:
        return execution_ended(event["detail"]) if event["source"] == "aws.states" else sweep()
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


def execution_ended(change: ExecutionChange) -> NotifyAnswer:
    """Aborted or timed out: no state could tell. Failed: the state NotifyFailure has told, unless it failed too."""
    job_id = change["name"]
    job = jobs.get_job(job_id)
    if job is None:
        logger.warning("execution without a job", extra={"job_id": job_id})
        return {"status": "unknown", "message": "none"}
    # The event may be late: the execution may have been redriven since.
    execution = describe(change["executionArn"]) or change
    if execution["status"] == "RUNNING":
        return {"status": "RUNNING", "message": "none"}
    return conclude(job, execution)


def conclude(job: JobRow, execution: ExecutionEnd) -> NotifyAnswer:
    """Bring the row of a job to the end that its execution has come to, and tell the user."""
    status = execution["status"]
    if job["status"] != "SUCCEEDED":
        failed_before = job["status"] == "FAILED"  # the state RecordFailure was reached; the rest came too late
        reason = None if failed_before else ENDED_FROM_OUTSIDE.get(status)
        row_status: EndStatus = "ABORTED" if status == "ABORTED" and not failed_before else "FAILED"
        end_without_result(job["job_id"], row_status, reason or failure_of(job, execution))
    return tell_once(job["job_id"])


def describe(execution_arn: str) -> ExecutionEnd | None:
    """What Step Functions says of an execution; None when the execution is forgotten (after 90 days)."""
    try:
        answer = aws.stepfunctions().describe_execution(executionArn=execution_arn)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ExecutionDoesNotExist":
            return None
        raise
    return {
        "status": answer["status"],
        "error": answer.get("error"),
        "cause": answer.get("cause"),
        "redriveCount": answer.get("redriveCount", 0),
    }


def is_redriven(job: JobRow) -> bool:
    """True when the job's execution runs again after it had ended."""
    execution = describe(job["execution_arn"])
    return execution is not None and execution["status"] == "RUNNING" and execution.get("redriveCount", 0) > 0


def sweep() -> CheckedAnswer:
    """Look after every job that is not done with: its execution's last event may have been lost, or all its tries."""
    job_ids = jobs.open_job_ids()
    checks = [partial(look_after, job_id) for job_id in job_ids]
    return {"checked": sweeps.look_after_all(job_ids, checks, "jobs could not be looked after")}


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


def close_when_done(job: JobRow) -> str:
    """Take an ended job off the sweep's list once nothing is left to be done for it."""
    if job["status"] != "SUCCEEDED":
        if aws.now() - aws.epoch_s(job["ended_at"]) < CALL_LIMIT_S:
            return "told"  # a call of its last state may still be publishing
        results.unpublish(job)
    if not is_announced(job):
        return "told, not announced"
    jobs.close_job(job["job_id"])
    return "closed"


def failure_of(job: JobRow, execution: ExecutionEnd | None = None) -> Failure:
    """The failure in the row, else the error that RecordFailure left there, else the execution's own."""
    if "failure" in job:
        return Failure(**job["failure"])
    if "raw_error" in job:
        return failures.parse(json.loads(job["raw_error"]))
    return failures.parse({"Error": execution.get("error"), "Cause": execution.get("cause")} if execution else "")


def end_without_result(job_id: str, status: EndStatus, reason: Failure) -> None:
    """Write the status and the reason to the row, stop the SageMaker job that is still billed, remove half results.

    The job's task stays open: a call may be about to create the job just now, which the sweep then finds and stops.
    """
    jobs.end_job(job_id, status, reason)
    job = ended_row(job_id)
    if job["status"] == "SUCCEEDED":
        return  # it had succeeded before it was aborted
    task = tasks.get_task(job.get("job_name", ""))
    if task and "open" in task:
        stopped = sagemaker_jobs.stop(task["stage"], job["job_name"])
        logger.info("stopped the running stage", extra={"job_name": job["job_name"], "stopped": stopped})
    if "bucket" in job:
        results.unpublish(job)


def ended_row(job_id: str) -> JobRow:
    """The row of a job whose end has been written; the state RecordFailure makes one without the id."""
    job = jobs.get_job(job_id)
    if job is None:
        raise RuntimeError(f"the job table has no row of job {job_id}, whose end has just been written")
    return {**job, "job_id": job_id}


def tell_once(job_id: str) -> NotifyAnswer:
    """Send the message that fits the row's last status, and the event for other systems, unless that has happened.

    A failed call sends them when it is repeated.
    """
    job = ended_row(job_id)
    channel = "sent before" if "message_sent_at" in job else send_once(job)
    announced = "announced_at" in job
    # Whoever has sent the message announces next; if that call has died, its claim on doing so has run out by then.
    own_turn = channel != "sent before" or aws.now() - told_at_s(job) >= jobs.MESSAGE_CLAIM_S
    if not announced and own_turn and announce(job):
        announced = jobs.mark_announced(job_id, job["status"])
    if job["status"] == "SUCCEEDED" and announced:
        jobs.close_job(job_id)
    return {"status": job["status"], "message": channel}


def told_at_s(job: JobRow) -> float:
    """When the user was told; now, when that has happened since the row was read."""
    return aws.epoch_s(job["message_sent_at"]) if "message_sent_at" in job else aws.now()


def send_once(job: JobRow) -> str:
    """Send the message of this row; returns its channel. All that it says is read before the right to send is claimed.

    Raises Spaceport.Transient while another call has that right, or when the row has changed since it was read.
    """
    job_id, succeeded = job["job_id"], job["status"] == "SUCCEEDED"
    report = results.read_report(job) if succeeded else ReportSummary()
    if succeeded:
        message = mails.succeeded(job, results.link(job), report, job["cost_usd"])
    else:
        message = mails.failed(job, failure_of(job))
    claim = jobs.claim_message(job_id, job["status"])
    if claim == "busy":
        raise failures.transient("MESSAGE_BUSY", f"Another call is sending the message of job {job_id}")
    if claim == "sent":
        return "sent before"
    try:
        channel = mails.send(message, recipient(job))
    except Exception:
        jobs.release_message(job_id)
        raise
    jobs.mark_message_sent(job_id)
    measure(job, report)
    return channel


def recipient(job: JobRow) -> str | None:
    email = job.get("options", {}).get("email")
    return email if isinstance(email, str) else None


def measure(job: JobRow, report: ReportSummary) -> None:
    """The metrics behind the dashboard and the alarm on spending; a failed job has cost what its stages have."""
    succeeded = job["status"] == "SUCCEEDED"
    metrics.add_metric("JobsSucceeded" if succeeded else "JobsFailed", MetricUnit.Count, 1)
    metrics.add_metric("CostUsd", MetricUnit.NoUnit, job.get("cost_usd", prices.spent_usd(job)))
    if report.training.psnr is not None:
        metrics.add_metric("PsnrDb", MetricUnit.NoUnit, report.training.psnr)
    if not succeeded:
        count_by("code", failure_of(job).code, "Failures", MetricUnit.Count, 1)


def announce(job: JobRow) -> bool:
    """One event on the bus for other systems; False when it was refused, and the sweep has to try again."""
    return bus.put_succeeded(job) if job["status"] == "SUCCEEDED" else bus.put_failed(job, failure_of(job))


def is_announced(job: JobRow) -> bool:
    """True when nothing is left to be done for other systems: they have been told, or it was tried for a day."""
    if "announced_at" in job:
        return True
    if aws.now() - aws.epoch_s(job["ended_at"]) < ANNOUNCE_LIMIT_S:
        return False
    metrics.add_metric("EventsLost", MetricUnit.Count, 1)
    logger.error("event given up", extra={"job_id": job["job_id"]})
    return True
