"""Publish what the stages made: copy it to results/, the page last, so that nobody ever opens half a result."""

from __future__ import annotations

import mimetypes
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from base import aws, layout
from base.failures import failure
from base.objects import list_keys
from base.settings import settings
from base.stages import STAGES, WHOLE_OUTPUT
from notifications.report import ReportSummary, summary_of
from table.rows import JobRow

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

DELETE_LIMIT = 1000  # DeleteObjects
PAGE = "index.html"
SINGLE_PAGE = "scene.html"  # with all that it shows in it: a signed link opens one object
# The longest that a link is signed for. It ends before that with the session of the function that signed it.
LINK_LIFE_S = 12 * 3600
REPORT = "report.json"
# What browsers need to be told and Python does not know everywhere.
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
}


def publish(job: JobRow) -> str:
    """Copy what the stages publish (base/stages.py) to results/<scene>/<job_id>/; returns the key of the page there.

    Copying again gives the same objects, so a repeated call is harmless. Raises the failure OUTPUT_MISSING without a
    page, or without the one that links lead to.
    """
    bucket, job_results = job["bucket"], job["results"]
    target = layout.results_prefix(job["scene"], job["job_id"])
    sources: dict[str, str] = {}
    for stage in STAGES:
        if not stage.publishes:
            continue
        if stage.name not in job_results:
            raise failure(
                "OUTPUT_MISSING",
                f"The row of the job has no result of the {stage.name} stage. This is a fault of Spaceport.",
            )
        _, folder = layout.split_uri(job_results[stage.name]["output_uri"])
        if WHOLE_OUTPUT in stage.publishes:
            sources |= {item["Key"].removeprefix(folder): item["Key"] for item in list_keys(bucket, folder)}
        else:
            sources |= {name: folder + name for name in stage.publishes}
    page = sources.pop(PAGE, None)
    _, folder = layout.split_uri(job_results["compress"]["output_uri"])
    if page is None:
        raise failure("OUTPUT_MISSING", f"The compress stage left no {PAGE} in {folder}. This is a fault of Spaceport.")
    if not settings().result_base_url and SINGLE_PAGE not in sources:
        raise failure(
            "OUTPUT_MISSING",
            f"The compress stage left no {SINGLE_PAGE} in {folder}: its image is older than the stack.",
        )
    with ThreadPoolExecutor(max_workers=aws.S3_THREADS // 4) as pool:
        for _ in pool.map(lambda name: _copy(bucket, sources[name], target + name), sorted(sources)):
            pass
    _copy(bucket, page, target + PAGE)
    return target + PAGE


def address(job: JobRow) -> str:
    """Where the published result is, for the job's row: at a web server, else in the bucket, where only links lead."""
    base = settings().result_base_url
    if base:
        return f"{base}/{job['scene']}/{job['job_id']}/{PAGE}"
    return layout.uri(job["bucket"], layout.results_prefix(job["scene"], job["job_id"]) + SINGLE_PAGE)


def link(job: JobRow) -> str:
    """What opens the result of a job that has succeeded; where no web server does, a link that is signed now."""
    if not job["result_url"].startswith("s3://"):
        return job["result_url"]
    bucket, key = layout.split_uri(job["result_url"])
    return aws.signing_s3().generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=LINK_LIFE_S
    )


def unpublish(job: JobRow) -> None:
    """Remove what a job that has not succeeded may have published; nobody must find half a result."""
    bucket = job["bucket"]
    keys = [item["Key"] for item in list_keys(bucket, layout.results_prefix(job["scene"], job["job_id"]))]
    for at in range(0, len(keys), DELETE_LIMIT):
        entries: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys[at : at + DELETE_LIMIT]]
        aws.s3().delete_objects(Bucket=bucket, Delete={"Objects": entries, "Quiet": True})


def _copy(bucket: str, source: str, target: str) -> None:
    """Managed copy, in parts where S3 demands it (over 5 GB).

    Channels upload without a content type, so it is set here.
    """
    try:
        aws.s3().copy(
            {"Bucket": bucket, "Key": source},
            bucket,
            target,
            ExtraArgs={"ContentType": content_type(target), "MetadataDirective": "REPLACE"},
        )
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            raise failure(
                "OUTPUT_MISSING", f"The promised file {source} does not exist. This is a fault of Spaceport."
            ) from error
        raise


def content_type(name: str) -> str:
    return CONTENT_TYPES.get(layout.suffix(name)) or mimetypes.guess_type(name)[0] or "application/octet-stream"


def read_report(job: JobRow) -> ReportSummary:
    """Figures of the compress stage's report.json; none without it: a message without figures beats no message."""
    _, folder = layout.split_uri(job["results"]["compress"]["output_uri"])
    try:
        return summary_of(aws.s3().get_object(Bucket=job["bucket"], Key=folder + REPORT)["Body"].read())
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return ReportSummary()
        raise
