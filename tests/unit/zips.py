"""Zip archives for the tests: plain ones, hostile ones made by changing bytes, and jobs over them."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile
from collections.abc import Sequence

import boto3
import pytest

import validate
from base.failures import JobFailure
from tests.unit.cloud import BUCKET, JOB, JPEG, Cloud, add_job

CENTRAL = b"PK\x01\x02"
# Offsets in a central directory record and formats (APPNOTE 4.3.12), and where the local header has the same (4.3.7).
FIELDS = {
    "version_needed": (6, "<H", 4),
    "flags": (8, "<H", 6),
    "method": (10, "<H", 8),
    "crc": (16, "<I", 14),
    "compress_size": (20, "<I", 18),
    "file_size": (24, "<I", 22),
    "header_offset": (42, "<I", None),
}

UPLOADS = "uploads/my-house/"
WORK = f"work/{JOB}/photos/"
EIGHT = {f"IMG {number}.jpg": JPEG + bytes([number]) for number in range(8)}
Files = Sequence[tuple[str, bytes]] | dict[str, bytes]


def make(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive with these members, in this order; a name may come twice."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, body in files.items() if isinstance(files, dict) else files:
            info = zipfile.ZipInfo(name.replace("\0", ""))
            info.filename = name
            info.compress_type = method
            archive.writestr(info, body)
    return target.getvalue()


def special(files: dict[str, bytes], name: str, kind: int) -> bytes:
    """The archive with one more member of a Unix file type (stat.S_IFLNK, ...)."""
    target = io.BytesIO(make(files))
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    assert stat.S_IFMT(info.external_attr >> 16) == kind
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    return target.getvalue()


def records(data: bytes) -> list[int]:
    """Where the records of the central directory begin."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at, count = archive.start_dir, len(archive.infolist())
    found = []
    for _ in range(count):
        assert data[at : at + 4] == CENTRAL
        found.append(at)
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
    return found


def changed(data: bytes, member: int, *, local: bool = True, **fields: int) -> bytes:
    """The archive with other values in the records of one member, with ``local`` also in its local header."""
    result = bytearray(data)
    at = records(data)[member]
    (header,) = struct.unpack_from("<I", data, at + FIELDS["header_offset"][0])
    for name, value in fields.items():
        offset, form, local_offset = FIELDS[name]
        struct.pack_into(form, result, at + offset, value)
        if local and local_offset is not None:
            struct.pack_into(form, result, header + local_offset, value)
    return bytes(result)


def overlapping(name: str, body: bytes, times: int) -> bytes:
    """One local member that the directory names ``times`` times (the full overlap of Fifield, "A better zip bomb")."""
    data = make({name: body})
    (at,) = records(data)
    end = data.rindex(b"PK\x05\x06")
    record = data[at:end]
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, times, times, len(record) * times)
    return data[:at] + record * times + bytes(tail)


def run(cloud: Cloud) -> dict:
    return validate.handler({"job_id": JOB, "scene": "my-house", "bucket": BUCKET, "settle": {}}, cloud.context)


def upload(cloud: Cloud, **files: bytes) -> None:
    """Files by name; "_zip" at its end stands for ".zip"."""
    add_job()
    for name, body in files.items():
        cloud.put(UPLOADS + name.replace("_zip", ".zip"), body)


def body(key: str) -> bytes:
    return boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()


def manifest(cloud: Cloud) -> list:
    return cloud.read(f"work/{JOB}/manifest.json")


def rejected(cloud: Cloud) -> dict[str, str]:
    return {entry["name"]: entry["reason"] for entry in cloud.read(f"work/{JOB}/rejected.json")}


def refused(cloud: Cloud) -> JobFailure:
    """The failure, after which nothing has been unpacked that a manifest could name."""
    with pytest.raises(JobFailure) as raised:
        run(cloud)
    assert f"work/{JOB}/manifest.json" not in cloud.keys("work/")
    return raised.value
