"""A judge that is not ours: the SageMaker SDK's local mode runs the images from the very request that start_job sends.

S3 is moto's. The request is checked against botocore's service description too, because local mode checks none of it.
What local mode does not look at (code hidden by a mount, time limits, network isolation) is in test_contract.py.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.validate import ParamValidator
from moto.server import ThreadedMotoServer

from base.stages import STAGE_NAMES, StageName
from deploy.images.docker import Docker
from tests.images.player import BUCKET, JOB, OPTIONS, PROMISED, REGION, SDK, Ran, report_missing, stage_request
from tests.unit.cloud import load_template

OPERATIONS = {"sfm": "ProcessingJob", "train": "TrainingJob", "compress": "ProcessingJob"}
FAKE_ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}
NO_TELEMETRY = "SchemaVersion: '1.0'\nSageMaker:\n  PythonSDK:\n    Modules:\n      TelemetryOptOut: true\n"


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_request_fits_the_service(stage: StageName) -> None:
    """Names, types and ranges by botocore; instance types, each that template.yaml allows, by its enumeration."""
    request = stage_request(stage, OPTIONS[stage])
    model = botocore.session.get_session().get_service_model("sagemaker")
    shape: Any = model.operation_model(f"Create{OPERATIONS[stage]}").input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    if stage == "train":
        cluster, cluster_shape = request["ResourceConfig"], shape.members["ResourceConfig"]
    else:
        cluster = request["ProcessingResources"]["ClusterConfig"]
        cluster_shape = shape.members["ProcessingResources"].members["ClusterConfig"]
    parameters = load_template()["Parameters"]
    allowed = parameters[f"{stage.capitalize()}InstanceType"]["AllowedValues"]
    assert cluster["InstanceType"] in allowed
    assert set(allowed) <= set(cluster_shape.members["InstanceType"].enum)


@dataclass
class LocalMode:
    """The SDK beside an S3 of its own."""

    engine: Docker
    folder: Path
    endpoint: str

    @property
    def s3(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def put(self, prefix: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.s3.upload_file(str(path), BUCKET, prefix + path.relative_to(folder).as_posix())

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [item["Key"].removeprefix(prefix) for item in found]

    def run(self, stage: StageName, request: dict[str, Any]) -> tuple[str, str]:
        """How the job ended, and everything that was printed."""
        file = self.folder / "request.json"
        file.write_text(json.dumps(request))
        settings = self.folder / "sdk.yaml"
        settings.write_text(NO_TELEMETRY)
        root = self.folder / "local"
        root.mkdir(exist_ok=True)
        environment = {
            **self.engine.environment,
            **FAKE_ACCOUNT,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "SAGEMAKER_USER_CONFIG_OVERRIDE": str(settings),
            "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(settings),
            "PATH": f"{SDK / 'bin'}:{Path(self.engine.client).parent}:{os.environ['PATH']}",
        }
        operation = "create_training_job" if stage == "train" else "create_processing_job"
        client = Path(__file__).with_name("local_mode_client.py")
        done = subprocess.run(
            [str(SDK / "bin" / "python"), str(client), operation, str(file), str(root)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])["ended"], done.stdout + done.stderr


@pytest.fixture
def local_mode(
    engine: Docker,
    images: Callable[[str], str],
    good_run: Callable[[StageName], tuple[Ran, Path]],
    tmp_path: Path,
) -> Iterator[LocalMode]:
    if not (SDK / "bin" / "python").is_file():
        report_missing(f"the SageMaker SDK is not installed in {SDK}; `make images-test` does it")
    good_run("train")  # before the server starts: both keep their buckets in moto's memory of this process
    tags = []
    for stage in STAGE_NAMES:  # under the name of the request, so that nothing is pulled
        request = stage_request(stage, OPTIONS[stage])
        specification = request.get("AlgorithmSpecification") or request["AppSpecification"]
        tags.append(specification.get("TrainingImage") or specification["ImageUri"])
        engine.docker("tag", images(stage), tags[-1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    mode = LocalMode(engine, tmp_path, f"http://127.0.0.1:{port}")
    mode.s3.create_bucket(Bucket=BUCKET)
    yield mode
    server.stop()
    for tag in tags:
        engine.docker("rmi", tag, check=False)
    left = engine.docker("ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project").stdout.split()
    if left:
        engine.docker("rm", "--force", *left)


def test_processing(
    local_mode: LocalMode, good_run: Callable[[StageName], tuple[Ran, Path]], photos: list[Path], tmp_path: Path
) -> None:
    """SfM. Local mode does not know manifests: it gets the folder of the photos instead."""
    for path in photos:
        local_mode.s3.upload_file(str(path), BUCKET, f"uploads/garden/{path.name}")
    request = stage_request("sfm", OPTIONS["sfm"])
    (source,) = [item["S3Input"] for item in request["ProcessingInputs"]]
    assert source["S3DataType"] == "ManifestFile"
    source |= {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/uploads/garden/"}
    ended, output = local_mode.run("sfm", without_continuous_upload(request))
    assert ended == "Completed", output[-3000:]
    assert set(PROMISED["sfm"]) <= set(local_mode.keys(f"work/{JOB}/sfm/"))


def test_two_inputs(local_mode: LocalMode, good_run: Callable[[StageName], tuple[Ran, Path]]) -> None:
    """Compress, with the output and the report of it in S3."""
    provide(local_mode, good_run, "sfm", "train")
    request = stage_request("compress", OPTIONS["compress"])
    ended, output = local_mode.run("compress", without_continuous_upload(request))
    assert ended == "Completed", output[-3000:]
    assert set(PROMISED["compress"]) <= set(local_mode.keys(f"work/{JOB}/compress/"))


def test_training(local_mode: LocalMode, good_run: Callable[[StageName], tuple[Ran, Path]]) -> None:
    """Training, with the request unchanged. Local mode always packs the model into an archive."""
    provide(local_mode, good_run, "sfm")
    request = stage_request("train", OPTIONS["train"])
    ended, output = local_mode.run("train", request)
    assert ended == "Completed", output[-3000:]
    prefix = f"work/{JOB}/train/"
    archives = [key for key in local_mode.keys(prefix) if key.endswith("model.tar.gz")]
    assert len(archives) == 1, local_mode.keys(prefix)
    body = local_mode.s3.get_object(Bucket=BUCKET, Key=prefix + archives[0])["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        assert set(PROMISED["train"]) <= set(archive.getnames())


def test_failure_is_seen(local_mode: LocalMode, good_run: Callable[[StageName], tuple[Ran, Path]]) -> None:
    """A wrong option: the job fails with exit code 1, and the reason is where SageMaker reads it."""
    provide(local_mode, good_run, "sfm")
    request = stage_request("train", OPTIONS["train"])
    request["HyperParameters"]["preset"] = "enormous"
    ended, output = local_mode.run("train", request)
    assert ended == "Failed"
    assert "exited with code: 1" in output
    prefix = f"work/{JOB}/train/"
    (archive_key,) = [key for key in local_mode.keys(prefix) if key.endswith("output.tar.gz")]
    body = local_mode.s3.get_object(Bucket=BUCKET, Key=prefix + archive_key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        (member,) = [name for name in archive.getnames() if name.endswith("failure")]
        reason = archive.extractfile(member)
        assert reason is not None and reason.read().startswith(b"BAD_OPTION: ")


def without_continuous_upload(request: dict[str, Any]) -> dict[str, Any]:
    """The same request with progress uploaded at the end: local mode refuses UploadMode Continuous."""
    outputs = request["ProcessingOutputConfig"]["Outputs"]
    assert [output["S3Output"]["S3UploadMode"] for output in outputs] == ["EndOfJob", "Continuous"]
    outputs[1]["S3Output"]["S3UploadMode"] = "EndOfJob"
    return request


def provide(local_mode: LocalMode, good_run: Callable[[StageName], tuple[Ran, Path]], *stages: StageName) -> None:
    request = stage_request("compress", OPTIONS["compress"])
    places = {item["InputName"]: item["S3Input"]["S3Uri"] for item in request["ProcessingInputs"]}
    for stage in stages:
        local_mode.put(places[stage].removeprefix(f"s3://{BUCKET}/"), good_run(stage)[1])
