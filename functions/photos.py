"""Which of the uploaded objects are photos that the stages can read, decided by name and by the first bytes of each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

import aws
import layout

HEAD_BYTES = 16
NAME_LIMIT_BYTES = 255  # of one path component on the stages' file systems


@dataclass
class Inspection:
    """accepted: paths inside the scene, sorted. rejected: [{name, reason}] of every object that is not used."""

    accepted: list[str] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    archives: int = 0  # zip files and videos among the rejected


def inspect(bucket: str, scene: str, objects: Sequence[dict[str, Any]]) -> Inspection:
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
        reason = problem_of_name(path) or ("the file is empty" if item["Size"] == 0 else "")
        if reason:
            found.rejected.append({"name": path, "reason": reason})
            found.archives += layout.suffix(path) in layout.ARCHIVE_SUFFIXES | layout.VIDEO_SUFFIXES
        else:
            candidates.append(path)
    with ThreadPoolExecutor(max_workers=aws.S3_THREADS) as pool:
        heads = pool.map(lambda path: read_head(bucket, prefix + path), candidates)
        for path, head in zip(candidates, heads, strict=True):
            if head is None:
                found.rejected.append({"name": path, "reason": "the file was deleted while the upload was checked"})
            elif image_type(head):
                found.accepted.append(path)
            else:
                found.rejected.append({"name": path, "reason": "the content is not a JPEG, PNG, TIFF or WebP image"})
    found.accepted.sort()
    found.rejected.sort(key=lambda entry: entry["name"])
    return found


def problem_of_name(path: str) -> str:
    """Why an object of this name is not used; empty when it may be a photo."""
    if not path.isprintable():
        return "the name has control characters"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "the name has an empty part, '.' or '..'"
    if any(len(part.encode()) > NAME_LIMIT_BYTES for part in parts):
        return f"a part of the name is longer than {NAME_LIMIT_BYTES} bytes"
    return problem_of_kind(layout.suffix(path))


def problem_of_kind(suffix: str) -> str:
    """Why files of this suffix are not used; empty for photos."""
    if suffix in layout.ARCHIVE_SUFFIXES:
        return "archives are not unpacked: upload the photos themselves"
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
