"""S3 object created under uploads/: note the time, and start one execution per upload."""

from __future__ import annotations

import json

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.data_classes import S3EventBridgeNotificationEvent, event_source
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from base import aws, layout
from base.events import ExecutionInput, IngestAnswer
from base.settings import settings
from base.telemetry import logger, metrics, tracer
from notifications import mails
from table import jobs, scenes


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
@event_source(data_class=S3EventBridgeNotificationEvent)
def handler(event: S3EventBridgeNotificationEvent, context: LambdaContext) -> IngestAnswer:
    """Answers {"action": ignored | rejected | opened | joined | late, "job_id"}."""
    metrics.add_metric("ObjectsReceived", MetricUnit.Count, 1)
    # Not `.key`: that decodes %20 and +, but EventBridge delivers keys as they are.
    place = layout.split_upload_key(event.detail.object["key"])
    if place is None or not layout.starts_a_job(place[1]):
        return {"action": "ignored", "job_id": ""}
    scene, path = place
    if not layout.is_scene(scene):
        return reject(scene)
    at = aws.timestamp(aws.epoch_s(event.time))
    if path == layout.OPTIONS_FILE:
        scenes.note_options(scene, at)
    arrival = scenes.note_object(scene, at, layout.job_id(scene, aws.new_ulid()))
    job = jobs.get_job(arrival.job_id)
    if job and job["status"] in jobs.ENDED:  # it died without freeing the scene
        scenes.release_scene(scene, arrival.job_id, job["ended_at"])
        arrival, job = scenes.note_object(scene, at, layout.job_id(scene, aws.new_ulid())), None
    # Also for objects that only join: whoever opened the upload may have died before the execution was started.
    if arrival.job_id and not (job and "execution_arn" in job):
        start(arrival.job_id, scene, event.detail.bucket.name)
    return {"action": arrival.kind, "job_id": arrival.job_id}


def start(job_id: str, scene: str, bucket: str) -> None:
    """Start the execution called like the job; one that exists already is that one."""
    jobs.create_job(job_id, scene, bucket)
    execution_input: ExecutionInput = {"job_id": job_id, "scene": scene, "bucket": bucket}
    machine = settings().state_machine_arn
    try:
        execution_arn = aws.stepfunctions().start_execution(
            stateMachineArn=machine,
            name=job_id,
            input=json.dumps(execution_input),
        )["executionArn"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ExecutionAlreadyExists":
            raise
        execution_arn = f"{machine.replace(':stateMachine:', ':execution:')}:{job_id}"
    jobs.mark_started(job_id, execution_arn)
    metrics.add_metric("JobsStarted", MetricUnit.Count, 1)
    logger.info("job started", extra={"job_id": job_id})


def reject(folder: str) -> IngestAnswer:
    """The folder's name cannot be a scene: say so to the topic, once a day."""
    logger.warning("not a scene name", extra={"folder": folder})
    if scenes.claim_rejection(folder):
        mails.publish(mails.wrong_folder(folder, layout.suggest_scene(folder)))
    return {"action": "rejected", "job_id": ""}
