"""Is the upload complete? Yes when job.json says it is ready, or when nothing has arrived for the quiet period."""

from __future__ import annotations

import math

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from base import aws, layout
from base.events import ExecutionState, SettleAnswer
from base.failures import JobFailure, failure
from base.service_errors import retried
from base.settings import settings
from base.telemetry import logger, tracer
from table import scenes
from uploads.options import parse_options

UPLOAD_LIMIT_S = 24 * 3600
# A wait is at least this share of the time since the first object: so a day of uploading takes hundreds of rounds, not
# so many that the execution's history (25,000 events) overflows.
WAIT_SHARE = 0.01


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@retried
def handler(event: ExecutionState, context: LambdaContext) -> SettleAnswer:
    """Event: the execution's state. Answers {"complete": bool, "wait_s": whole seconds}."""
    job_id, scene = event["job_id"], event["scene"]
    row = scenes.get_scene(scene)
    if row is None or row.get("job_id") != job_id or "settling" not in row:
        return {"complete": True, "wait_s": 0}  # an earlier call has closed this upload and its answer was lost
    last_object_at, first_object_at = row["last_object_at"], row["first_object_at"]
    now_s = aws.now()
    silent_s = now_s - aws.epoch_s(last_object_at)
    lasted_s = now_s - aws.epoch_s(first_object_at)
    ready = row.get("options_at", "") >= first_object_at and says_ready(event["bucket"], scene)
    needed_s = 1 if ready else settings().quiet_period_s
    if silent_s >= needed_s and scenes.seal_upload(scene, job_id, last_object_at):
        logger.info("upload complete", extra={"job_id": job_id, "ready": ready})
        return {"complete": True, "wait_s": 0}
    if lasted_s > UPLOAD_LIMIT_S:
        raise failure("UPLOAD_NEVER_ENDS", f"Files of the scene have been arriving for {lasted_s / 3600:.0f} hours")
    # When an object came between reading the row and closing the upload, the whole silence is needed again.
    remaining_s = needed_s - silent_s if silent_s < needed_s else needed_s
    wait_s = max(min(remaining_s, needed_s), WAIT_SHARE * lasted_s, 1)
    return {"complete": False, "wait_s": math.ceil(wait_s)}


def says_ready(bucket: str, scene: str) -> bool:
    """True when job.json has "ready": true.

    A wrong one has not; Validate explains what is wrong once everything is there.
    """
    try:
        body = aws.s3().get_object(Bucket=bucket, Key=layout.options_key(scene))["Body"].read()
        return parse_options(body).ready
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return False
        raise
    except JobFailure:
        return False
