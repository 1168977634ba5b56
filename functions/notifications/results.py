"""Publish what the stages made: copy it to results/, the page last, so that nobody ever opens half a result."""

from __future__ import annotations

import json
import mimetypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from botocore.exceptions import ClientError

from base import aws, layout
from base.failures import failure
from base.settings import settings
from base.stages import STAGES, WHOLE_OUTPUT

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


def list_keys(bucket: str, prefix: str) -> list[dict[str, Any]]:
    """Objects under a prefix as [{Key, Size, LastModified, ...}], sorted by key; folder markers left out."""
    pages = aws.s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [dict(item) for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]


def publish(job: dict[str, Any]) -> str:
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


def address(job: dict[str, Any]) -> str:
    """Where the published result is, for the job's row: at a web server, else in the bucket, where only links lead."""
    base = settings().result_base_url
    if base:
        return f"{base}/{job['scene']}/{job['job_id']}/{PAGE}"
    return layout.uri(job["bucket"], layout.results_prefix(job["scene"], job["job_id"]) + SINGLE_PAGE)


def link(job: dict[str, Any]) -> str:
    """What opens the result of a job that has succeeded; where no web server does, a link that is signed now."""
    if not job["result_url"].startswith("s3://"):
        return str(job["result_url"])
    bucket, key = layout.split_uri(job["result_url"])
    return aws.signing_s3().generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=LINK_LIFE_S
    )


def unpublish(job: dict[str, Any]) -> None:
    """Remove what a job that has not succeeded may have published; nobody must find half a result."""
    bucket = job["bucket"]
    keys = [item["Key"] for item in list_keys(bucket, layout.results_prefix(job["scene"], job["job_id"]))]
    for at in range(0, len(keys), DELETE_LIMIT):
        entries: list[Any] = [{"Key": key} for key in keys[at : at + DELETE_LIMIT]]
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


def read_report(job: dict[str, Any]) -> dict[str, Any]:
    """report.json of the compress stage.

    Empty when there is none, for a message without figures is better than no message.
    """
    _, folder = layout.split_uri(job["results"]["compress"]["output_uri"])
    try:
        body = aws.s3().get_object(Bucket=job["bucket"], Key=folder + REPORT)["Body"].read()
        report = json.loads(body)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return {}
        raise
    except (ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}
