"""The files of a SageMaker job: inputs from S3 into its tree, checkpoints and outputs from the tree into S3.

``folder/ml`` stands for the container's /opt/ml. Layout and S3 names: SageMaker developer guide, "How Amazon
SageMaker AI Provides Training Information", "Use Checkpoints", "How Amazon SageMaker Processing Configures Input and
Output".
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from spaceport.aws.storage import Storage, StorageError

CONTAINER_ROOT = PurePosixPath("/opt/ml")
DEFAULT_CHECKPOINTS = "/opt/ml/checkpoints"
REASON_BYTES = 1024
PROGRESS_INTERVAL_S = 0.25
SYNC_INTERVAL_S = 1.0


class TransferError(Exception):
    """Inputs that cannot be had or outputs that cannot be stored; the text becomes part of the job's FailureReason."""


def split_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/key`` as (bucket, key). Raises TransferError for anything else."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise TransferError(f"{uri!r} is not an S3 URI")
    return bucket, key


def model_uri(request: dict[str, Any]) -> str:
    """Where the model of a training job is or will be; a folder when CompressionType is NONE."""
    config = request["OutputDataConfig"]
    base = f"{config['S3OutputPath'].rstrip('/')}/{request['TrainingJobName']}/output"
    return f"{base}/model/" if config.get("CompressionType") == "NONE" else f"{base}/model.tar.gz"


class JobFiles:
    """The tree of one job. Methods block; none of them may run twice at the same time for one job."""

    def __init__(self, storage: Storage, folder: Path, kind: str, request: dict[str, Any]) -> None:
        self.storage = storage
        self.folder = folder
        self.root = folder / "ml"
        self.kind = kind
        self.request = request
        self._synced: dict[Path, tuple[int, int, int]] = {}

    # Before the program

    def prepare(self) -> None:
        """Make a fresh tree with configuration, inputs and, for training, the checkpoints of earlier attempts."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.root.mkdir(parents=True)
        if self.kind == "training":
            self._prepare_training()
        else:
            self._prepare_processing()

    def watch(self, ended: threading.Event, on_progress: Callable[[dict[str, Any]], None]) -> None:
        """Pass on progress and keep continuous folders uploaded while the program runs."""
        last: dict[str, Any] | None = None
        ticks = 0
        while not ended.wait(PROGRESS_INTERVAL_S):
            try:
                progress = self.progress()
                if progress and progress != last:
                    last = progress
                    on_progress(progress)
                ticks += 1
                if ticks % round(SYNC_INTERVAL_S / PROGRESS_INTERVAL_S) == 0:
                    self.sync()
            except (OSError, ValueError) as error:
                # A full disk or a half-written file: the last upload, after the program, decides about the job.
                on_progress({"warning": f"upload of {self.folder.name} failed, will be repeated: {error}"})

    def _prepare_training(self) -> None:
        config = self.root / "input" / "config"
        _write_json(config / "hyperparameters.json", self.request.get("HyperParameters", {}))
        _write_json(config / "resourceconfig.json", RESOURCE_CONFIG)
        channels = self.request.get("InputDataConfig", [])
        described = {
            channel["ChannelName"]: {
                "TrainingInputMode": "File",
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": "None",
            }
            for channel in channels
        }
        _write_json(config / "inputdataconfig.json", described)
        for folder in ("model", "output/data", "checkpoints"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for channel in channels:
            source = channel["DataSource"]["S3DataSource"]
            self._download(source, self.root / "input" / "data" / channel["ChannelName"])
        checkpoints = self.request.get("CheckpointConfig")
        if checkpoints:
            local = self.local(checkpoints.get("LocalPath", DEFAULT_CHECKPOINTS))
            for key, name in self._under(checkpoints["S3Uri"]):
                self.storage.copy_to(split_uri(checkpoints["S3Uri"])[0], key, _inside(local, name))
            _break_links(local)

    def _prepare_processing(self) -> None:
        _write_json(self.root / "config" / "processingjobconfig.json", self.request)
        _write_json(self.root / "config" / "resourceconfig.json", RESOURCE_CONFIG)
        (self.root / "output").mkdir(parents=True, exist_ok=True)
        for item in self.request.get("ProcessingInputs", []):
            self._download(item["S3Input"], self.local(item["S3Input"]["LocalPath"]))
        for output in self._processing_outputs():
            self.local(output["LocalPath"]).mkdir(parents=True, exist_ok=True)

    def local(self, path: str) -> Path:
        """A path of the container in this tree. Raises TransferError outside /opt/ml."""
        pure = PurePosixPath(path)
        if not pure.is_relative_to(CONTAINER_ROOT) or ".." in pure.parts:
            raise TransferError(f"LocalPath {path} is not below {CONTAINER_ROOT}")
        return self.root / pure.relative_to(CONTAINER_ROOT)

    def _download(self, source: dict[str, Any], target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        if source.get("S3DataType", "S3Prefix") == "ManifestFile":
            pairs = list(self._manifest(source["S3Uri"]))
        else:
            bucket = split_uri(source["S3Uri"])[0]
            pairs = [(bucket, key, name) for key, name in self._under(source["S3Uri"])]
        if not pairs:
            raise TransferError(f"no S3 objects found under {source['S3Uri']}")
        for bucket, key, name in pairs:
            try:
                self.storage.copy_to(bucket, key, _inside(target, name))
            except (StorageError, OSError) as error:
                raise TransferError(f"s3://{bucket}/{key}: {error}") from error

    def _under(self, uri: str) -> Iterator[tuple[str, str]]:
        """Key and relative name of every object with this prefix; folder markers are left out."""
        bucket, prefix = split_uri(uri)
        for key in self.storage.list(bucket, prefix):
            name = key[len(prefix) :].lstrip("/") or key.rpartition("/")[2]
            if name and not key.endswith("/"):
                yield key, name

    def _manifest(self, uri: str) -> Iterator[tuple[str, str, str]]:
        """An S3 ManifestFile: ``[{"prefix": "s3://bucket/folder/"}, "relative/name", ...]``; folders are kept."""
        bucket, key = split_uri(uri)
        try:
            entries = json.loads(self.storage.read(bucket, key))
            prefix = entries[0]["prefix"]
        except (StorageError, ValueError, LookupError, TypeError) as error:
            raise TransferError(f"{uri} is not a manifest: {error}") from error
        source_bucket, base = split_uri(prefix)
        for name in entries[1:]:
            if not isinstance(name, str):
                raise TransferError(f"{uri} is not a manifest: {name!r} is not a name")
            yield source_bucket, base + name, name

    # While it runs

    def sync(self) -> None:
        """Upload what changed in folders that are kept continuously. Files are copied: the program may write on."""
        for local, uri in self._continuous():
            bucket, prefix = split_uri(uri)
            for path in _files(local):
                try:
                    status = path.stat()
                    state = (status.st_mtime_ns, status.st_size, status.st_ino)
                    if self._synced.get(path) != state:
                        self.storage.put_file(bucket, _join(prefix, path.relative_to(local)), path)
                        self._synced[path] = state
                except FileNotFoundError:
                    continue  # replaced or removed by the program since it was listed

    def progress(self) -> dict[str, Any] | None:
        """The newest progress.json of the program, or None before the first."""
        for local, _uri in self._continuous():
            file = local / "progress.json"
            if file.is_file():
                return json.loads(file.read_text(encoding="utf-8"))
        return None

    def _continuous(self) -> list[tuple[Path, str]]:
        if self.kind == "training":
            config = self.request.get("CheckpointConfig")
            return [(self.local(config.get("LocalPath", DEFAULT_CHECKPOINTS)), config["S3Uri"])] if config else []
        return [
            (self.local(output["LocalPath"]), output["S3Uri"])
            for output in self._processing_outputs()
            if output["S3UploadMode"] == "Continuous"
        ]

    def _processing_outputs(self) -> list[dict[str, Any]]:
        outputs = self.request.get("ProcessingOutputConfig", {}).get("Outputs", [])
        return [output["S3Output"] for output in outputs]

    # After it

    def message(self) -> str:
        """The program's failure reason: the first 1,024 bytes of /opt/ml/output/failure or message."""
        file = self.root / "output" / ("failure" if self.kind == "training" else "message")
        if not file.is_file():
            return ""
        with file.open("rb") as stream:
            return stream.read(REASON_BYTES).decode("utf-8", errors="ignore").strip()

    def upload_outputs(self) -> None:
        """Store the results of a program that ended well. Raises TransferError."""
        try:
            if self.kind == "training":
                self._upload_model()
                return
            for output in self._processing_outputs():
                if output["S3UploadMode"] == "EndOfJob":
                    self._upload(self.local(output["LocalPath"]), output["S3Uri"])
        except OSError as error:
            raise TransferError(str(error)) from error

    def _upload_model(self) -> None:
        uri = model_uri(self.request)
        if uri.endswith("/"):
            self._upload(self.root / "model", uri)
            return
        archive = self.folder / "model.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for path in _files(self.root / "model"):
                tar.add(path, path.relative_to(self.root / "model"))
        self.storage.put_file(*split_uri(uri), archive, move=True)

    def _upload(self, local: Path, uri: str) -> None:
        bucket, prefix = split_uri(uri)
        for path in _files(local):
            linked = path.stat().st_nlink > 1  # an input that was linked into the output: its inode is shared
            self.storage.put_file(bucket, _join(prefix, path.relative_to(local)), path, move=not linked)

    def remove(self) -> None:
        """Give the disk back."""
        shutil.rmtree(self.folder, ignore_errors=True)


RESOURCE_CONFIG = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo"}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _inside(folder: Path, name: str) -> Path:
    """``folder/name``. Raises TransferError for a name that would lead out of the folder."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.parts:
        raise TransferError(f"the object name {name!r} leads out of its folder")
    return folder / pure


def _break_links(folder: Path) -> None:
    """Give every file an inode of its own: a program may write into its checkpoints, not into what is stored."""
    for path in _files(folder):
        if path.stat().st_nlink > 1:
            copy = path.with_name(f".{path.name}.copy")
            shutil.copyfile(path, copy)
            copy.replace(path)


def _files(folder: Path) -> list[Path]:
    """Regular files below a folder, sorted; links are left out, as they may lead anywhere."""
    found = []
    for parent, _folders, names in os.walk(folder):
        found += [path for name in names if (path := Path(parent) / name).is_file() and not path.is_symlink()]
    return sorted(found)


def _join(prefix: str, relative: Path) -> str:
    return f"{prefix.rstrip('/')}/{relative.as_posix()}" if prefix else relative.as_posix()
