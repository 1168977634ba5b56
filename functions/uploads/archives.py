"""Zip archives among the uploads: checked by their directories first, then the photos in them are unpacked.

An archive is read where it lies, by ranged GETs, and nothing of it is written before all of it has been looked at. What
no honest archive of photos holds ends the job, with a code and a text that names the archive and the member; what is
merely no photo is passed over, as among the uploads themselves.
"""

from __future__ import annotations

import io
import re
import stat
import threading
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from base import aws, layout
from base.failures import JobFailure, failure
from base.objects import list_keys
from uploads import photos
from uploads.remote_zip import DAMAGE, describe, opened, path_in_scene, shown

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectTypeDef

# The first two are for what Validate can do in its time and memory; docs/contracts.md, "Uploads".
MAX_UNPACKED_BYTES = 25_000_000_000
MAX_PHOTO_BYTES = 150_000_000
UNPACK_THREADS = 6  # each holds one photo
MAX_ARCHIVES = 100
MAX_MEMBERS = 50_000  # of any kind, in all archives: desktops add a second file to each photo
MAX_RATIO = 100  # of one photo; cameras' own compression leaves next to nothing to gain
MAX_RATIO_OF_ARCHIVE = 25

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the only ones whose output zipfile bounds while it unpacks
LOCAL_HEADER_BYTES = 30  # APPNOTE 4.3.7, without name and extra field
ENCRYPTED = 0x1 | 0x40 | 0x2000  # APPNOTE 4.4.4: bits 0, 6 and 13
PATCHED = 0x20
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A photo in an archive. item: the archive, as list_objects_v2 gives it. name: what the stages call the photo."""

    item: ObjectTypeDef
    info: zipfile.ZipInfo
    name: str


@dataclass
class Contents:
    """members: what is to be unpacked, in the order of the archives. rejected: all other files."""

    members: list[Member] = field(default_factory=list)
    rejected: list[photos.RejectedFile] = field(default_factory=list)


def inspect(bucket: str, items: Sequence[ObjectTypeDef], taken: Sequence[str]) -> Contents:
    """Look through archives, as list_objects_v2 gives them; nothing is unpacked.

    ``taken`` are the names of other photos. Raises the ARCHIVE_... failures of docs/contracts.md.
    """
    if len(items) > MAX_ARCHIVES:
        raise failure("ARCHIVE_TOO_LARGE", f"The upload holds {len(items):,} archives; {MAX_ARCHIVES} are allowed")
    found = Contents()
    names = dict.fromkeys(taken, 1)
    count = 0
    for item in items:
        folder = path_in_scene(item)
        with opened(bucket, item) as archive:
            infos = archive.infolist()
            count += len(infos)
            if count > MAX_MEMBERS:
                limit = f"{MAX_MEMBERS:,} are allowed in all archives together"
                raise failure("ARCHIVE_TOO_LARGE", f"{shown(folder)} has {len(infos):,} members; {limit}")
            check_overlap(folder, infos, archive.start_dir)
        own = []
        for info in infos:
            path = checked_path(folder, info)
            if path is None:
                continue
            reason = reason_to_pass_over(path, info)
            if reason:
                found.rejected.append({"name": f"{folder}/{path}", "reason": reason})
                continue
            check_photo(folder, path, info)
            own.append(Member(item, info, distinct(f"{folder}/{path}", names)))
        check_ratio(folder, item, own)
        found.members += own
    total = sum(member.info.file_size for member in found.members)
    if total > MAX_UNPACKED_BYTES:
        sizes = f"{total / 1e9:.1f} GB of photos; {MAX_UNPACKED_BYTES / 1e9:.0f} GB are allowed"
        raise failure("ARCHIVE_TOO_LARGE", f"The archives hold {sizes}")
    return found


def check_overlap(folder: str, infos: Sequence[zipfile.ZipInfo], directory_at: int) -> None:
    """Refuse members that share bytes, with which a small archive unpacks to any size."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    ends = [(info.header_offset + LOCAL_HEADER_BYTES + info.compress_size, info.filename) for info in ordered]
    begins = [info.header_offset for info in ordered[1:]] + [directory_at]
    for (end, name), begin in zip(ends, begins, strict=False):
        if end > begin:
            raise unsafe(folder, name, "shares its bytes with other members")


def checked_path(folder: str, info: zipfile.ZipInfo) -> str | None:
    """The member's path below the archive, with "/" whatever the packing system wrote.

    None for folders and for the files that desktops leave beside photos. Raises ARCHIVE_UNSAFE.
    """
    path = info.orig_filename.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or re.match("[A-Za-z]:", path):
        raise unsafe(folder, info.orig_filename, "has a path that leads out of the archive")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise unsafe(folder, info.orig_filename, "is a link or a device, not a file")
    clean = "/".join(parts)
    return None if path.endswith("/") or not clean or layout.is_hidden(clean) else clean


def reason_to_pass_over(path: str, info: zipfile.ZipInfo) -> str:
    """Why a member is not used, by its name and size alone; empty for photos and for nested archives."""
    reason = photos.problem_of_path(path)
    if reason or layout.suffix(path) in layout.ARCHIVE_SUFFIXES:
        return reason
    if PurePosixPath(path).name == layout.OPTIONS_FILE:
        return "options count beside the archive, not in it"
    return photos.problem_of_kind(layout.suffix(path)) or ("the file is empty" if info.file_size == 0 else "")


def check_photo(folder: str, path: str, info: zipfile.ZipInfo) -> None:
    """Whether zipfile can unpack the member, within bounds. Raises ARCHIVE_... failures."""
    member = f"The member {shown(path)} of {shown(folder)}"
    if layout.suffix(path) in layout.ARCHIVE_SUFFIXES:
        raise failure("ARCHIVE_NESTED", f"{member} is an archive itself")
    if info.flag_bits & ENCRYPTED:
        raise failure("ARCHIVE_ENCRYPTED", f"{member} is encrypted")
    if info.compress_type not in METHODS or info.flag_bits & PATCHED:
        method = f"method {info.compress_type} of the zip format, which is not supported"
        raise failure("ARCHIVE_UNSUPPORTED", f"{member} is packed by {method}")
    if info.file_size > MAX_PHOTO_BYTES:
        sizes = f"{info.file_size:,} bytes; {MAX_PHOTO_BYTES:,} are allowed for a photo in an archive"
        raise failure("ARCHIVE_TOO_LARGE", f"{member} has {sizes}")
    if info.file_size > MAX_RATIO * info.compress_size:
        raise unsafe(folder, path, f"unpacks to more than {MAX_RATIO} times its size, as no photo does")


def check_ratio(folder: str, item: ObjectTypeDef, members: Sequence[Member]) -> None:
    if sum(member.info.file_size for member in members) > MAX_RATIO_OF_ARCHIVE * item["Size"]:
        times = f"{MAX_RATIO_OF_ARCHIVE} times its size"
        raise failure("ARCHIVE_UNSAFE", f"{shown(folder)} unpacks to more than {times}, as photos never do")


def distinct(name: str, numbers: dict[str, int]) -> str:
    """The name, or with a number where it is taken: "a (2).jpg". ``numbers`` has the last one that each name got."""
    path = PurePosixPath(name)
    free = name
    while free in numbers:
        numbers[name] += 1
        free = str(path.with_stem(f"{path.stem} ({numbers[name]})"))
    numbers[free] = 1
    return free


def unpack(bucket: str, job_id: str, members: Sequence[Member]) -> photos.Inspection:
    """Put the photos into the job's own photos/; what is there already from an earlier try is left alone.

    Raises ARCHIVE_DAMAGED for the first member that does not come out as its archive says.
    """
    found = photos.Inspection()
    prefix = layout.photos_prefix(job_id)
    there = {item["Key"]: item for item in list_keys(bucket, prefix)}
    todo = []
    for member in members:
        problem = photos.problem_of_path(member.name)  # again: a number may have made it longer
        if problem or len((prefix + member.name).encode()) > photos.KEY_LIMIT_BYTES:
            found.reject(member.name, problem or "the name with its folders is too long")
        elif is_unpacked(member, there.get(prefix + member.name)):
            found.accepted.append(member.name)
        else:
            todo.append(member)
    stop = threading.Event()
    bounds = [len(todo) * index // UNPACK_THREADS for index in range(UNPACK_THREADS + 1)]
    runs = [todo[begin:end] for begin, end in pairwise(bounds)]  # neighbours: one reads on where the last one ended
    with ThreadPoolExecutor(max_workers=UNPACK_THREADS) as pool:
        for accepted, refused in pool.map(lambda run: unpack_run(bucket, prefix, run, stop), runs):
            found.accepted += accepted
            for name in refused:
                found.reject(name, photos.NO_IMAGE)
    return found


def is_unpacked(member: Member, item: ObjectTypeDef | None) -> bool:
    """Whether an object is what an earlier try made of the member; older ones are of an archive replaced since."""
    if item is None or item["Size"] != member.info.file_size:
        return False
    return item["LastModified"] > member.item["LastModified"]


def unpack_run(
    bucket: str, prefix: str, members: Sequence[Member], stop: threading.Event
) -> tuple[list[str], list[str]]:
    """(unpacked, no images) by name. Ends early when another run has failed."""
    accepted, refused = [], []
    try:
        for _, group in groupby(members, key=lambda member: member.item["Key"]):
            own = list(group)
            with opened(bucket, own[0].item) as archive:
                for member in own:
                    if stop.is_set():
                        break
                    photo = read_photo(archive, member)
                    if photo is None:
                        refused.append(member.name)
                        continue
                    aws.s3().put_object(Bucket=bucket, Key=prefix + member.name, Body=photo)
                    accepted.append(member.name)
    except BaseException:
        stop.set()
        raise
    return accepted, refused


def read_photo(archive: zipfile.ZipFile, member: Member) -> io.BytesIO | None:
    """The photo, of the size and checksum that its archive gives, at its beginning; None when it is no image.

    zipfile stops at the size that the directory gives, however much more there is.
    """
    photo = io.BytesIO()
    try:
        with archive.open(member.info) as stream:
            photo.write(stream.read(photos.HEAD_BYTES))
            if not photos.image_type(photo.getvalue()):
                return None
            while block := stream.read(BLOCK_BYTES):
                photo.write(block)
        if photo.tell() != member.info.file_size:
            raise zipfile.BadZipFile(f"{photo.tell():,} of {member.info.file_size:,} bytes")
    except DAMAGE as error:
        origin = f"The member {shown(member.info.filename)} of {shown(path_in_scene(member.item))}"
        raise failure("ARCHIVE_DAMAGED", f"{origin} is damaged ({describe(error)})") from error
    photo.seek(0)
    return photo


def unsafe(folder: str, member: str, what: str) -> JobFailure:
    return failure("ARCHIVE_UNSAFE", f"The member {shown(member)} of {shown(folder)} {what}")
