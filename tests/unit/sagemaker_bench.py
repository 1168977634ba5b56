"""A SageMaker player with its bucket, and requests for jobs of a few lines of Python."""

import json
import tempfile
import time
from pathlib import Path

import pytest

from spaceport.aws.storage import Storage
from spaceport.base.clock import RealClock
from spaceport.jobs.runner import ProcessRunner
from spaceport.jobs.sagemaker import SageMaker

ROLE = "arn:aws:iam::123456789012:role/stage"
BUCKET = "bucket-one"
PROGRAMS = Path(tempfile.gettempdir())


@pytest.fixture(autouse=True)
def programs(tmp_path_factory, monkeypatch):
    monkeypatch.setitem(globals(), "PROGRAMS", tmp_path_factory.mktemp("programs"))


def entrypoint(program):
    """A program of any length as ContainerEntrypoint, whose elements have at most 256 characters."""
    file = PROGRAMS / f"{len(list(PROGRAMS.iterdir()))}.py"
    file.write_text(program)
    return ["python3", str(file)]


def training(name="t-1", program="pass", seconds=60, **changes):
    return {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": "train:1",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": entrypoint(program),
        },
        "HyperParameters": {"preset": "draft"},
        "InputDataConfig": [
            {
                "ChannelName": "sfm",
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/work/j/sfm/"}},
            }
        ],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/work/j/train/", "CompressionType": "NONE"},
        "ResourceConfig": {"InstanceCount": 1, "InstanceType": "ml.g5.xlarge", "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
        "CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/work/j/train/checkpoints/", "LocalPath": "/opt/ml/checkpoints"},
        "Tags": [{"Key": "spaceport:scene", "Value": "a b"}],
        **changes,
    }


def processing(name="p-1", program="pass", uri=f"s3://{BUCKET}/work/j/manifest.json", kind="ManifestFile"):
    return {
        "ProcessingJobName": name,
        "RoleArn": ROLE,
        "AppSpecification": {"ImageUri": "sfm:1", "ContainerEntrypoint": entrypoint(program)},
        "Environment": {"SPACEPORT_OPTION_SCENE": "house"},
        "ProcessingInputs": [
            {
                "InputName": "photos",
                "S3Input": {
                    "S3Uri": uri,
                    "LocalPath": "/opt/ml/processing/input/photos",
                    "S3DataType": kind,
                    "S3InputMode": "File",
                },
            }
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": name,
                    "S3Output": {
                        "S3Uri": f"s3://{BUCKET}/work/j/{name}/",
                        "LocalPath": f"/opt/ml/processing/{name}",
                        "S3UploadMode": mode,
                    },
                }
                for name, mode in (("output", "EndOfJob"), ("progress", "Continuous"))
            ]
        },
        "ProcessingResources": {
            "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.c6i.2xlarge", "VolumeSizeInGB": 30}
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }


class Bench:
    """A player with a storage, and what it told."""

    def __init__(self, folder, clock, runner, **options):
        self.storage = Storage(folder, "123456789012", "us-east-1")
        self.storage.create_bucket(BUCKET)
        self.clock = clock
        self.events, self.progress = [], []
        self.player = SageMaker(
            clock,
            self.storage,
            runner,
            lambda source, kind, detail, resources: self.events.append((kind, detail)),
            on_progress=lambda name, progress: self.progress.append(progress),
            **options,
        )

    def put(self, key, text):
        self.storage.put_bytes(BUCKET, key, text.encode())

    def text(self, key):
        return self.storage.read(BUCKET, key).decode()

    def describe(self, name):
        kind = "Training" if name.startswith("t") else "Processing"
        return self.player.call(f"Describe{kind}Job", {f"{kind}JobName": name})

    def status(self, name):
        description = self.describe(name)
        return description.get("TrainingJobStatus") or description["ProcessingJobStatus"]

    def wait(self, name, statuses=("Completed", "Failed", "Stopped"), timeout_s=30):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.status(name) in statuses:
                return self.describe(name)
            time.sleep(0.02)
        raise AssertionError(self.describe(name))


@pytest.fixture
def bench(tmp_path):
    """Real processes on a real clock."""
    clock = RealClock()
    work = tmp_path / "work"
    work.mkdir()
    made = Bench(
        work, clock, ProcessRunner(tmp_path), jobs_dir=work / "jobs", records_dir=work / "records", logs=tmp_path
    )
    made.work = work
    made.put("work/j/sfm/scene.json", "{}")
    made.put("work/j/sfm/images/a.jpg", "A")
    made.put("uploads/house/a.jpg", "A")
    made.put("uploads/house/more/a.jpg", "other A")
    made.put("work/j/manifest.json", json.dumps([{"prefix": f"s3://{BUCKET}/uploads/house/"}, "a.jpg", "more/a.jpg"]))
    with clock:
        yield made
        made.player.close()
    made.storage.close()
