"""Which of the uploaded objects are photos that the stages can read, decided by name and by the first bytes of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError
from typing_extensions import TypedDict

from base import aws, layout

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, ObjectTypeDef

HEAD_BYTES = 16
NAME_LIMIT_BYTES = 255  # of one path component on the stages' file systems
KEY_LIMIT_BYTES = 1024  # of S3
DELETED = "the file was deleted while the upload was checked"
NO_IMAGE = "the content is not a JPEG, PNG, TIFF or WebP image"


class ManifestPrefix(TypedDict):
    """First row of manifest.json. The others are the photos' names, each relative to it (S3 ManifestFile)."""

    prefix: str


class RejectedFile(TypedDict):
    """A row of rejected.json: an uploaded file that is not used."""

    name: str
    reason: str


Manifest = list[ManifestPrefix | str]


@dataclass
class Inspection:
    """accepted: paths inside the scene, sorted. rejected: every object that is not used."""

    accepted: list[str] = field(default_factory=list)
    rejected: list[RejectedFile] = field(default_factory=list)
    archives: list[ObjectTypeDef] = field(default_factory=list)  # objects that archives.py has to look into
    videos: int = 0  # among the rejected

    def reject(self, name: str, reason: str) -> None:
        self.rejected.append({"name": name, "reason": reason})


def inspect(bucket: str, scene: str, objects: Sequence[ObjectTypeDef]) -> Inspection:
    """Look at every object of a scene (as list_objects_v2 gives them).

    Photos are read by ranged GETs, 16 bytes each.
    """
    found = Inspection()
    candidates: list[str] = []
    prefix = layout.uploads_prefix(scene)
    for item in objects:
        path = item["Key"].removeprefix(prefix)
        if path == layout.OPTIONS_FILE or layout.is_hidden(path):
            continue
        reason = problem_of_path(path)
        if not reason and layout.suffix(path) in layout.ARCHIVE_SUFFIXES:
            found.archives.append(item)
            continue
        reason = reason or problem_of_kind(layout.suffix(path)) or ("the file is empty" if item["Size"] == 0 else "")
        if reason:
            found.reject(path, reason)
            found.videos += layout.suffix(path) in layout.VIDEO_SUFFIXES
        else:
            candidates.append(path)
    with ThreadPoolExecutor(max_workers=aws.S3_THREADS) as pool:
        heads = pool.map(lambda path: read_head(bucket, prefix + path), candidates)
        for path, head in zip(candidates, heads, strict=True):
            if head is None:
                found.reject(path, DELETED)
            elif image_type(head):
                found.accepted.append(path)
            else:
                found.reject(path, NO_IMAGE)
    found.accepted.sort()
    return found


def below_files(names: Iterable[str]) -> set[str]:
    """Those of ``names`` that lie in a folder which is called like another of them: no file system holds both."""
    files = set(names)
    return {name for name in files if any(str(folder) in files for folder in PurePosixPath(name).parents)}


def copy(bucket: str, scene: str, job_id: str, paths: Sequence[str]) -> Inspection:
    """Copy photos from the uploads to the job's own photos/, under the same names; doing it again changes nothing."""

    def copy_one(path: str) -> str:
        """Why it could not be copied, or nothing."""
        target = layout.photos_prefix(job_id) + path
        if len(target.encode()) > KEY_LIMIT_BYTES:
            return "the name with its folders is too long"
        source: CopySourceTypeDef = {"Bucket": bucket, "Key": layout.uploads_prefix(scene) + path}
        try:  # tags stay behind: reading them needs a right of its own
            aws.s3().copy_object(Bucket=bucket, Key=target, CopySource=source, TaggingDirective="REPLACE")
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return DELETED
            raise
        return ""

    found = Inspection()
    with ThreadPoolExecutor(max_workers=aws.S3_THREADS) as pool:
        for path, reason in zip(paths, pool.map(copy_one, paths), strict=True):
            if reason:
                found.reject(path, reason)
            else:
                found.accepted.append(path)
    return found


def problem_of_path(path: str) -> str:
    """Why no file of this name can be used, whatever is in it; empty for good names."""
    if not path.isprintable():
        return "the name has control characters"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "the name has an empty part, '.' or '..'"
    if any(len(part.encode()) > NAME_LIMIT_BYTES for part in parts):
        return f"a part of the name is longer than {NAME_LIMIT_BYTES} bytes"
    return ""


def problem_of_kind(suffix: str) -> str:
    """Why files of this suffix are not used; empty for photos."""
    if suffix in layout.VIDEO_SUFFIXES:
        return "videos are not supported: upload single photos"
    if suffix in (".heic", ".heif"):
        return "HEIC is not supported: export the photo as JPEG"
    return "" if suffix in layout.PHOTO_SUFFIXES else f"not a photo ({suffix or 'no file type'})"


def read_head(bucket: str, key: str) -> bytes | None:
    """The first bytes; None when the object is not there any more."""
    try:
        answer = aws.s3().get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{HEAD_BYTES - 1}")
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        raise
    return answer["Body"].read()


def image_type(head: bytes) -> str:
    """jpeg, png, tiff or webp by the signature (JFIF/Exif SOI, PNG 5.2, TIFF 6.0 section 2, RIFF).

    Empty for anything else.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "tiff"
    return "webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else ""
