"""The objects and rows behind the local endpoint: moto's own state, mirrored to files that a new process can load.

Objects lie as plain files under ``<folder>/objects/<bucket>/<key>``; ``objects.jsonl`` says which file belongs to
which key, ``rows/<table>.json`` holds a table. With ``folder`` None nothing touches a disk. moto keeps one open
temporary file per object beyond its buffer size, which ends at the limit of open files; here a key's value is read
from its file when it is asked for.

After a power cut every object is an old one or a new one, never half of one. Which of them, is settled by ``sync``:
whoever notes elsewhere that something is done calls it first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from moto.core.base_backend import BackendDict
from moto.dynamodb.models import dynamodb_backends
from moto.dynamodb.models.dynamo_type import DynamoType
from moto.s3.models import FakeKey, s3_backends

from spaceport.base.durable import sync_file, sync_folder, write_json

BLOCK_BYTES = 1 << 20

ObjectListener = Callable[[str, str, str], None]  # bucket, key, reason

_in_use = threading.Lock()  # moto's state is global: one storage per process at a time


class StorageError(Exception):
    """An object or a row that cannot be stored or read back."""


class FileValue:
    """The value of a key, read from its file; stands in for the temporary file that moto would keep open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, size: int = -1) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read(size)
        self._position += len(data)
        return data

    def close(self) -> None:
        """Nothing is open."""


class Storage:
    """Objects and rows of one account and region. Every method may be called from any thread."""

    def __init__(self, folder: Path | None, account_id: str, region: str) -> None:
        if not _in_use.acquire(blocking=False):
            raise StorageError("another engine runs in this process; close it first, or start a process of its own")
        self.folder = folder
        self.account_id = account_id
        self.region = region
        self.lock = threading.RLock()  # moto is not thread-safe; held around each of its calls
        self.on_created: ObjectListener = lambda bucket, key, reason: None
        self._index: io.TextIOWrapper | None = None
        self._stored: dict[tuple[str, str], Path] = {}
        self._unsynced_folders: set[Path] = set()
        self._index_unsynced = False
        os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 16 if folder else 1 << 40)
        BackendDict.reset()

    def close(self) -> None:
        """Forget everything in memory; files stay."""
        if self._index:
            self._index.close()
        BackendDict.reset()
        _in_use.release()

    @property
    def _s3(self) -> Any:
        return s3_backends[self.account_id]["aws"]

    def create_bucket(self, name: str) -> None:
        with self.lock:
            self._s3.create_bucket(name, self.region)

    def _key(self, bucket: str, key: str) -> FakeKey:
        found = self._s3.get_object(bucket, key)
        if found is None:
            raise StorageError(f"there is no object s3://{bucket}/{key}")
        return found

    # Reading

    def read(self, bucket: str, key: str) -> bytes:
        with self.lock:
            return self._key(bucket, key).value

    def read_part(self, bucket: str, key: str, begin: int, end: int) -> bytes:
        """Bytes ``begin`` up to ``end``, without reading the others where they lie in a file."""
        with self.lock:
            stored = self._stored.get((bucket, key))
            if stored is None:
                return self._key(bucket, key).value[begin:end]
            with stored.open("rb") as file:
                file.seek(begin)
                return file.read(end - begin)

    def exists(self, bucket: str, key: str) -> bool:
        with self.lock:
            return self._s3.get_object(bucket, key) is not None

    def describe(self, bucket: str, key: str) -> dict[str, Any]:
        """``{"size": bytes, "etag": hexadecimal}`` of an object."""
        with self.lock:
            found = self._key(bucket, key)
            return {"size": found.size, "etag": found.etag.strip('"')}

    def list(self, bucket: str, prefix: str) -> list[str]:
        """Keys that begin with ``prefix``, sorted."""
        with self.lock:
            keys = self._s3.get_bucket(bucket).keys
            return sorted(key for key in list(keys) if key.startswith(prefix) and isinstance(keys[key], FakeKey))

    def copy_to(self, bucket: str, key: str, path: Path) -> None:
        """Put an object into a file. On one file system both are the same inode: the reader must not write into it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            stored = self._stored.get((bucket, key))
            data = None if stored else self._key(bucket, key).value
        if stored is None:
            path.write_bytes(data or b"")
            return
        _link_or_copy(stored, path)

    # Writing

    def put_bytes(self, bucket: str, key: str, data: bytes) -> None:
        with self.lock:
            self._s3.put_object(bucket, key, data, disable_notification=True)
        self.created(bucket, key, "PutObject")

    def put_file(self, bucket: str, key: str, source: Path, *, move: bool = False, tell: bool = True) -> None:
        """Store a file. With ``move`` the source may be taken away instead of copied; without ``tell`` no event comes.

        The copy never shares an inode with the source, so that nothing a job does can reach the user's photos.
        """
        if self.folder is None:
            self.put_bytes(bucket, key, source.read_bytes())
            return
        staged = self._staging_file()
        etag = _move_hashed(source, staged) if move else _copy_hashed(source, staged)
        sync_file(staged)  # outside the lock: it may be large
        size = staged.stat().st_size
        with self.lock:
            found = self._s3.put_object(bucket, key, b"", etag=etag, disable_notification=True)
            found.contentsize = size
            self._adopt(found, staged)
        if tell:
            self.on_created(bucket, key, "PutObject")

    def created(self, bucket: str, key: str, reason: str) -> None:
        """Keep an object that moto has just accepted, and tell the listener."""
        with self.lock:
            if self.folder is not None:
                found = self._key(bucket, key)
                staged = self._staging_file()
                found._value_buffer.seek(0)
                with staged.open("wb") as file:
                    shutil.copyfileobj(found._value_buffer, file, BLOCK_BYTES)
                sync_file(staged)
                self._adopt(found, staged)
        self.on_created(bucket, key, reason)

    def deleted(self, bucket: str) -> None:
        """Remove the files of keys that moto no longer has."""
        with self.lock:
            keys = self._s3.get_bucket(bucket).keys
            for name in [key for b, key in self._stored if b == bucket and key not in keys]:
                path = self._stored.pop((bucket, name))
                path.unlink(missing_ok=True)
                self._note_folders(path)
                self._append({"bucket": bucket, "key": name, "deleted": True})

    def _staging_file(self) -> Path:
        assert self.folder is not None
        staging = self.folder / "staging"
        staging.mkdir(parents=True, exist_ok=True)
        return staging / f"{threading.get_ident()}-{os.urandom(6).hex()}"

    def _adopt(self, found: FakeKey, staged: Path) -> None:
        """Move a complete, synced file to its place, note it in the index, and let moto read from there."""
        name = str(found.name)
        etag = found.etag.strip('"')
        path = self._path(str(found.bucket_name), name)
        staged.replace(path)
        self._note_folders(path)
        found._value_buffer.close()
        found._value_buffer = FileValue(path)
        found.multipart = None  # its parts are temporary files
        self._stored[str(found.bucket_name), name] = path
        record = {
            "bucket": found.bucket_name,
            "key": name,
            "file": str(path.relative_to(self.folder or path)),
            "etag": etag,
            "size": path.stat().st_size,
            "metadata": dict(found.metadata),
            "last_modified": found.last_modified.isoformat(),
        }
        self._append(record)

    def _path(self, bucket: str, key: str) -> Path:
        """The file of a key: the key itself where it makes a good path, its hash where it does not."""
        assert self.folder is not None
        if (bucket, key) in self._stored:
            return self._stored[bucket, key]
        root = self.folder / "objects" / bucket
        parts = [urllib.parse.quote(part, safe=" !#$&'()+,;=@[]{}~") for part in key.split("/")]
        path = root.joinpath(*parts)
        clean = all(part and part not in (".", "..") and len(part.encode()) < 200 for part in parts)
        if clean and not path.is_dir():
            with contextlib.suppress(FileExistsError, NotADirectoryError):  # a key "a" beside a key "a/b"
                path.parent.mkdir(parents=True, exist_ok=True)
                return path
        hashed = self.folder / "objects" / ".hashed"
        hashed.mkdir(parents=True, exist_ok=True)
        return hashed / hashlib.sha256(f"{bucket}/{key}".encode()).hexdigest()

    def _append(self, record: dict[str, Any]) -> None:
        if self._index is None:
            assert self.folder is not None
            self._index = (self.folder / "objects.jsonl").open("a", encoding="utf-8")
        self._index.write(json.dumps(record) + "\n")
        self._index.flush()
        self._index_unsynced = True

    def _note_folders(self, path: Path) -> None:
        """The names down to this file have changed; folders above may be new."""
        assert self.folder is not None
        self._unsynced_folders.update(folder for folder in path.parents if folder.is_relative_to(self.folder))

    def sync(self) -> None:
        """Return when everything that was stored is on the disk: once for many objects, before somebody relies on it.

        Names first, then the index, which says what must be there.
        """
        with self.lock:
            for folder in self._unsynced_folders:
                sync_folder(folder)
            self._unsynced_folders.clear()
            if self._index and self._index_unsynced:
                os.fsync(self._index.fileno())
                self._index_unsynced = False

    # Rows

    def table_changed(self, name: str) -> None:
        """Write the rows of a table to its file; readers see the old rows or the new ones."""
        if self.folder is None:
            return
        with self.lock:
            table = dynamodb_backends[self.account_id][self.region].tables[name]
            rows = [item.to_json()["Attributes"] for item in table.all_items()]
            write_json(self.folder / "rows" / f"{name}.json", rows, default=_dynamo_json)

    # Taking over

    def load(self) -> None:
        """Read objects and rows that an earlier process left; buckets and tables must exist already."""
        if self.folder is None:
            raise StorageError("nothing to load: this storage has no folder")
        with self.lock:
            for record in self._read_index():
                self._restore(record)
            for file in sorted((self.folder / "rows").glob("*.json")):
                self._load_rows(file)
        shutil.rmtree(self.folder / "staging", ignore_errors=True)

    def _load_rows(self, file: Path) -> None:
        try:
            table = dynamodb_backends[self.account_id][self.region].tables[file.stem]
            for attributes in json.loads(file.read_text(encoding="utf-8")):
                table.put_item(attributes)
        except (ValueError, LookupError, TypeError) as error:
            raise StorageError(f"{file} does not hold the rows of a table ({error!r})") from error

    def _read_index(self) -> Iterator[dict[str, Any]]:
        """The last record of each key that is not deleted; a torn last line was never acknowledged and is cut off."""
        assert self.folder is not None
        index = self.folder / "objects.jsonl"
        if not index.exists():
            return
        data = index.read_bytes()
        complete = data.rfind(b"\n") + 1
        if complete != len(data):
            os.truncate(index, complete)
        latest: dict[tuple[str, str], dict[str, Any]] = {}
        for number, line in enumerate(data[:complete].splitlines(), 1):
            try:
                record = json.loads(line)
                latest[record["bucket"], record["key"]] = record
            except (ValueError, LookupError, TypeError) as error:
                raise StorageError(f"{index}: line {number} is no record of an object ({error!r})") from error
        yield from (record for record in latest.values() if not record.get("deleted"))

    def _restore(self, record: dict[str, Any]) -> None:
        assert self.folder is not None
        path = self.folder / record["file"]
        if not path.is_file():
            raise StorageError(f"{path} is missing, the file of s3://{record['bucket']}/{record['key']}")
        etag = record["etag"]
        size = path.stat().st_size
        if size != record["size"]:
            etag = _md5(path)  # killed between the new file and its record: the file is complete, the record is older
        found = self._s3.put_object(record["bucket"], record["key"], b"", etag=etag, disable_notification=True)
        found.contentsize = size
        found.set_metadata(dict(record["metadata"]))
        found.last_modified = datetime.fromisoformat(record["last_modified"])
        found._value_buffer.close()
        found._value_buffer = FileValue(path)
        self._stored[record["bucket"], record["key"]] = path


def _dynamo_json(value: Any) -> Any:
    if isinstance(value, DynamoType):
        return value.to_json()
    raise TypeError(f"{type(value).__name__} in a table row")


def _link_or_copy(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, destination)


def _move_hashed(source: Path, destination: Path) -> str:
    etag = _md5(source)
    try:
        source.rename(destination)
    except OSError:  # another file system
        shutil.copyfile(source, destination)
        source.unlink()
    return etag


def _copy_hashed(source: Path, destination: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with source.open("rb") as reader, destination.open("wb") as writer:
        while block := reader.read(BLOCK_BYTES):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
