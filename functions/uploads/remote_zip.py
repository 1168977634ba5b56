"""A zip archive that is read where it lies in S3, by ranged GETs, and how messages name it."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from base import aws
from base.failures import failure, transient

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectTypeDef

MAX_DIRECTORY_BYTES = 16 << 20  # what Validate can do in its time and memory; docs/contracts.md, "Uploads"
BUFFER_BYTES = 4 << 20
SHOWN_CHARACTERS = 80

# What zipfile and zlib raise over archives that are not as they should be.
DAMAGE = (zipfile.BadZipFile, EOFError, OverflowError, RuntimeError, ValueError, struct.error, zlib.error)


class RemoteFile(io.RawIOBase):
    """An object of S3 as a file that can be read from anywhere, as long as it is the one that was listed."""

    def __init__(self, bucket: str, item: ObjectTypeDef) -> None:
        self.bucket, self.item, self.size = bucket, item, item["Size"]
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if position < 0:
            raise io.UnsupportedOperation("seek before the beginning")
        self.position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` by one request, as far as the object goes. Raises ARCHIVE_CHANGED, for another try."""
        end = min(self.position + len(buffer), self.size)
        if end <= self.position:
            return 0
        try:
            answer = aws.s3().get_object(
                Bucket=self.bucket,
                Key=self.item["Key"],
                IfMatch=self.item["ETag"],
                Range=f"bytes={self.position}-{end - 1}",
            )
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "PreconditionFailed"):
                what = f"{shown(path_in_scene(self.item))} was replaced or deleted while it was read"
                raise transient("ARCHIVE_CHANGED", what) from error
            raise
        body = answer["Body"].read()
        buffer[: len(body)] = body
        self.position += len(body)
        return len(body)


class Buffered(io.BufferedReader):
    """Reads ahead. zipfile reads a directory at once, however long it says that it is: that is where to stop it."""

    raw: RemoteFile

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self.raw.size - self.tell() if size is None or size < 0 else size
        if wanted > MAX_DIRECTORY_BYTES:
            raise failure(
                "ARCHIVE_TOO_LARGE", f"The directory of {shown(path_in_scene(self.raw.item))} has {wanted:,} bytes"
            )
        return super().read(wanted)


@contextmanager
def opened(bucket: str, item: ObjectTypeDef) -> Iterator[zipfile.ZipFile]:
    """The archive, for reading. Raises ARCHIVE_DAMAGED and what reading can raise."""
    with Buffered(RemoteFile(bucket, item), BUFFER_BYTES) as file:
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGE as error:
            what = f"{shown(path_in_scene(item))} is not a complete zip archive ({describe(error)})"
            raise failure("ARCHIVE_DAMAGED", what) from error
        with archive:
            yield archive


def path_in_scene(item: ObjectTypeDef) -> str:
    """The path below uploads/<scene>/ of an object there."""
    return item["Key"].split("/", 2)[2]


def shown(name: str) -> str:
    """A name for a message, its end where it is long: that tells most."""
    return repr(name if len(name) <= SHOWN_CHARACTERS else "…" + name[-SHOWN_CHARACTERS:])


def describe(error: BaseException) -> str:
    """What zipfile says, on one line, or the kind of error where it says nothing."""
    return " ".join(str(error).split())[:SHOWN_CHARACTERS] or type(error).__name__
