"""Calls of notify, and a job that it tells of."""

import notify
from base import layout
from base.stages import STAGE_NAMES, STAGES
from tests.unit.cloud import BUCKET, JOB, Cloud, add_job, load_event

REPORT = {
    "photos": {"total": 20, "registered": 19},
    "training": {"psnr": 27.31, "gaussians": 123456},
    "compression": {"sog_bytes": 2_500_000, "ply_bytes": 30_000_000},
}
LINK = f"https://pages.example.net/my-house/{JOB}/index.html"


def finished(cloud: Cloud, **more) -> None:
    """A job whose stages have all ended."""
    folders = {stage: layout.output_prefix(JOB, stage, "x") for stage in STAGE_NAMES}
    done = {
        stage: {"stage": stage, "output_uri": f"s3://{BUCKET}/{folder}", "cost_usd": 1}
        for stage, folder in folders.items()
    }
    add_job(results=done, **more)
    for stage in STAGES:
        for name in stage.writes:
            cloud.put(folders[stage.name] + name, b"x")
    cloud.put(f"work/{JOB}/train/x/output/model/scene.ply", b"ply")
    for name in ("index.html", "viewer/main.js", "scene.sog", "report.html"):
        cloud.put(f"work/{JOB}/compress/{name}", b"x")
    cloud.put(f"work/{JOB}/compress/report.json", REPORT)


def succeed(cloud: Cloud) -> dict:
    return notify.handler({"kind": "succeeded", "job_id": JOB, "state": {}}, cloud.context)


def fail(cloud: Cloud, error: str = "TOO_FEW_PHOTOS", cause: str = "TOO_FEW_PHOTOS: Only 3 photos") -> dict:
    state = {"job_id": JOB, "error": {"Error": error, "Cause": cause}}
    return notify.handler({"kind": "failed", "job_id": JOB, "state": state}, cloud.context)


def sweep(cloud: Cloud) -> dict[str, str]:
    return notify.handler(load_event("schedule"), cloud.context)["checked"]


def ended(cloud: Cloud, status: str = "ABORTED", **detail) -> dict:
    event = load_event("execution-status-change")
    event["detail"] |= {"status": status, **detail}
    assert event["detail"]["name"] == JOB
    return notify.handler(event, cloud.context)
