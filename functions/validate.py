"""Check options, photos and cost before anything is paid, and write the manifest that SfM reads."""

from __future__ import annotations

import json

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError

from base import aws, layout
from base.events import ExecutionState, ValidateAnswer
from base.failures import JobFailure, failure
from base.objects import list_keys
from base.service_errors import retried
from base.settings import settings
from base.stages import stages_before
from base.telemetry import logger, metrics, tracer
from stages import prices
from table import days, jobs
from table.rows import Checked, StageResult
from uploads import archives, photos
from uploads.options import JobOptions, find_email, parse_options


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
@retried
def handler(event: ExecutionState, context: LambdaContext) -> ValidateAnswer:
    """Event: the execution's state.

    Answers {"start_at", "photos", "rejected", "estimated_usd", "training_shortened"}; raises what is wrong.
    """
    job_id, scene, bucket = event["job_id"], event["scene"], event["bucket"]
    options = read_options(job_id, bucket, scene)
    jobs.set_checked(job_id, {"options": options.model_dump(exclude_none=True)})
    if options.start_at == "sfm":
        accepted, rejected = check_photos(job_id, bucket, scene)
        checked: Checked = {"photos": accepted, "rejected": rejected}
    else:
        checked = reuse(options, bucket, scene)
    estimate = prices.within_limit(settings(), options, checked["photos"])
    check_day(job_id, estimate.usd)
    cost: Checked = {
        "estimated_usd": estimate.usd,
        "training_shortened": estimate.shortened,
        "estimated_s": estimate.seconds,
    }
    jobs.set_checked(job_id, {**checked, **cost})
    metrics.add_metric("PhotosAccepted", MetricUnit.Count, checked["photos"])
    answer: ValidateAnswer = {
        "start_at": options.start_at,
        "photos": checked["photos"],
        "rejected": checked["rejected"],
        "estimated_usd": estimate.usd,
        "training_shortened": estimate.shortened,
    }
    logger.info("job checked", extra={"job_id": job_id, **answer})
    return answer


def read_options(job_id: str, bucket: str, scene: str) -> JobOptions:
    """The scene's job.json, or the defaults.

    From a wrong one at least the address is kept, so that its owner hears of it.
    """
    try:
        body = aws.s3().get_object(Bucket=bucket, Key=layout.options_key(scene))["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return JobOptions()
        raise
    try:
        return parse_options(body)
    except JobFailure:
        email = find_email(body)
        if email:
            jobs.set_checked(job_id, {"options": {"email": email}})
        raise


def check_photos(job_id: str, bucket: str, scene: str) -> tuple[int, int]:
    """Write manifest.json and rejected.json.

    Returns (accepted, rejected). Raises when the photos cannot make a scene.
    """
    objects = list_keys(bucket, layout.uploads_prefix(scene))
    limit = settings().max_photos
    if len(objects) > 2 * limit:  # checked before every object is read
        raise failure("TOO_MANY_PHOTOS", f"The scene has {len(objects):,} files; {limit:,} photos are allowed")
    found = photos.inspect(bucket, scene, objects)
    packed = archives.inspect(bucket, found.archives, found.accepted)
    prefix = layout.uploads_prefix(scene)
    if packed.members:  # a manifest has one prefix, so all photos come together under the job's own
        check_count(len(found.accepted) + len(packed.members))  # checked before anything is unpacked
        prefix = layout.photos_prefix(job_id)
        copied = photos.copy(bucket, scene, job_id, found.accepted)
        unpacked = archives.unpack(bucket, job_id, packed.members)
        found.accepted = copied.accepted + unpacked.accepted
        found.rejected += copied.rejected + unpacked.rejected
    found.rejected += packed.rejected
    misplaced = photos.below_files(found.accepted)
    for name in misplaced:
        found.reject(name, "its folder has the name of another photo")
    found.accepted = sorted(set(found.accepted) - misplaced)
    found.rejected.sort(key=lambda entry: entry["name"])
    put_json(bucket, layout.rejected_key(job_id), found.rejected)
    if not found.accepted:
        if found.videos:
            raise failure("UNSUPPORTED_INPUT", "The upload holds a video, which cannot be processed yet, and no photos")
        if not found.rejected:
            raise failure("NO_PHOTOS", "The upload holds no photos")
        raise failure("NO_PHOTOS", f"None of the {len(found.rejected)} files is a readable photo{example(found)}")
    if len(found.accepted) < settings().min_photos:
        counts = f"{len(found.accepted)} of the uploaded files are readable photos; {settings().min_photos} are needed"
        raise failure("TOO_FEW_PHOTOS", f"Only {counts}{example(found)}")
    check_count(len(found.accepted))
    manifest: photos.Manifest = [{"prefix": layout.uri(bucket, prefix)}, *found.accepted]
    put_json(bucket, layout.manifest_key(job_id), manifest)
    return len(found.accepted), len(found.rejected)


def check_count(count: int) -> None:
    limit = settings().max_photos
    if count > limit:
        raise failure("TOO_MANY_PHOTOS", f"The scene has {count:,} photos; {limit:,} are allowed")


def example(found: photos.Inspection) -> str:
    """The first rejected file with its reason, for the end of a sentence."""
    return f" (for example {found.rejected[0]['name'][:80]!r}: {found.rejected[0]['reason']})" if found.rejected else ""


def reuse(options: JobOptions, bucket: str, scene: str) -> Checked:
    """Results of the stages before ``start_at``, from an earlier job of the same scene; they cost nothing again."""
    job_id = options.reuse_job or ""
    other = jobs.get_job(job_id)
    if other is None or other["scene"] != scene:
        raise failure("REUSE_JOB", f"The scene {scene} has no job {job_id}")
    taken: dict[str, StageResult] = {}
    for stage in stages_before(options.start_at):
        result = other["results"].get(stage)
        if result is None or not list_keys(bucket, layout.split_uri(result["output_uri"])[1]):
            raise failure("REUSE_JOB", f"The result of the {stage} stage of job {job_id} does not exist any more")
        taken[stage] = {**result, "cost_usd": 0, "reused_from": job_id}
    return {"photos": other.get("photos", 0), "rejected": other.get("rejected", 0), "results": taken}


def check_day(job_id: str, estimated_usd: float) -> None:
    """Refuse what would cost more than the rest of the day (UTC) allows."""
    limit = settings().max_usd_per_day
    if not days.reserve_cost(job_id, estimated_usd, limit):
        raise failure(
            "DAILY_COST_LIMIT",
            f"The job would cost about {estimated_usd:.2f} USD, and the jobs of today may cost {limit:.2f} USD in all",
        )


def put_json(bucket: str, key: str, value: photos.Manifest | list[photos.RejectedFile]) -> None:
    aws.s3().put_object(
        Bucket=bucket, Key=key, Body=json.dumps(value, ensure_ascii=False).encode(), ContentType="application/json"
    )
