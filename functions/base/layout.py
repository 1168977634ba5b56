"""Where things lie in the bucket and how scenes, jobs and SageMaker jobs are named (docs/contracts.md, "Names" and
"Bucket")."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from base.stages import StageName, find_stage

SCENE_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
JOB_NAME_LIMIT = 63  # CreateTrainingJob, CreateProcessingJob
UPLOADS = "uploads/"
OPTIONS_FILE = "job.json"

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"})
ARCHIVE_SUFFIXES = frozenset({".zip"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".m4v"})


def split_upload_key(key: str) -> tuple[str, str] | None:
    """(scene folder, path inside it) of a key under uploads/.

    None for folder markers, other keys and files without a scene.
    """
    if not key.startswith(UPLOADS) or key.endswith("/"):
        return None
    scene, slash, path = key[len(UPLOADS) :].partition("/")
    return (scene, path) if slash and scene and path else None


def is_scene(name: str) -> bool:
    return SCENE_PATTERN.fullmatch(name) is not None


def suggest_scene(name: str) -> str:
    """The nearest name that the pattern allows, for the message to a user whose folder is called otherwise."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].rstrip("-") or "my-scene"


def suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def is_hidden(path: str) -> bool:
    """Files that desktops leave beside photos: .DS_Store, ._IMG_1.jpg, __MACOSX/, Thumbs.db. ".." is not one."""
    parts = [part for part in PurePosixPath(path).parts if part != ".."]
    return any(part.startswith((".", "__MACOSX")) for part in parts) or parts[-1:] == ["Thumbs.db"]


def starts_a_job(path: str) -> bool:
    """Whether an object at this path inside a scene is part of an upload: a photo, a zip, a video or the options."""
    if is_hidden(path):
        return False
    return path == OPTIONS_FILE or suffix(path) in PHOTO_SUFFIXES | ARCHIVE_SUFFIXES | VIDEO_SUFFIXES


def uploads_prefix(scene: str) -> str:
    return f"{UPLOADS}{scene}/"


def options_key(scene: str) -> str:
    return uploads_prefix(scene) + OPTIONS_FILE


def job_id(scene: str, ulid: str) -> str:
    return f"{scene}-{ulid}"


def job_name(prefix: str, job: str, stage: StageName, attempt: int) -> str:
    """Name of the SageMaker job of one attempt. Raises ValueError where SageMaker would refuse it."""
    name = f"{prefix}-{job.rpartition('-')[2].lower()}-{stage}-{attempt}"
    if len(name) > JOB_NAME_LIMIT:
        raise ValueError(f"the job name {name!r} has more than {JOB_NAME_LIMIT} characters: shorten JobPrefix")
    return name


def manifest_key(job: str) -> str:
    return f"work/{job}/manifest.json"


def rejected_key(job: str) -> str:
    return f"work/{job}/rejected.json"


def photos_prefix(job: str) -> str:
    """Where Validate gathers the photos of a job whose upload holds archives."""
    return f"work/{job}/photos/"


def progress_prefix(job: str, stage: StageName) -> str:
    return f"work/{job}/progress/{stage}/"


def checkpoints_prefix(job: str) -> str:
    return f"work/{job}/train/checkpoints/"


def output_prefix(job: str, stage: StageName, name: str) -> str:
    """Folder that a stage's job ``name`` fills. A training job's own name is part of it, as SageMaker lays it out."""
    return f"work/{job}/{stage}/" + (f"{name}/output/model/" if find_stage(stage).is_training else "")


def results_prefix(scene: str, job: str) -> str:
    return f"results/{scene}/{job}/"


def uri(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"


def split_uri(s3_uri: str) -> tuple[str, str]:
    """(bucket, key) of an s3:// URI. Raises ValueError for anything else."""
    match = re.fullmatch(r"s3://([^/]+)/(.*)", s3_uri, re.DOTALL)
    if match is None:
        raise ValueError(f"not an S3 address: {s3_uri!r}")
    return match[1], match[2]
