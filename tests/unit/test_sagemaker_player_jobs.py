"""The SageMaker player: requests, statuses, events, files and signals of jobs of a few lines of Python."""

import json
import tempfile
import time
from pathlib import Path

import pytest

from spaceport.aws.endpoint import ServiceError
from spaceport.aws.storage import Storage
from spaceport.base.clock import RealClock, VirtualClock
from spaceport.jobs.files import JobFiles, TransferError
from spaceport.jobs.runner import Exit, ProcessRunner
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


LOOK = """
import json, os, pathlib, sys
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
found = {"files": files, "arguments": sys.argv[1:], "aws": [k for k in os.environ if k.startswith("AWS_")],
         "scene": os.environ.get("SPACEPORT_OPTION_SCENE"), "code": os.environ["PYTHONPATH"]}
target = root / (sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] == "processing/output" else "model")
"""


def test_training_sees_its_contract_and_its_model_is_stored(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_PROFILE", "private")
    monkeypatch.setenv("SPACEPORT_OPTION_SCENE", "private")
    bench.put("work/j/train/checkpoints/old.bin", "old")
    program = LOOK + '(root / "model/sub").mkdir(); (root / "model/sub/found.json").write_text(json.dumps(found))'
    answer = bench.player.call("CreateTrainingJob", training(program=program))
    assert answer == {"TrainingJobArn": "arn:aws:sagemaker:us-east-1:123456789012:training-job/t-1"}
    description = bench.wait("t-1")
    assert description["TrainingJobStatus"] == "Completed", description
    found = json.loads(bench.text("work/j/train/t-1/output/model/sub/found.json"))
    assert found == {
        "files": [
            "checkpoints/old.bin",
            "input/config/hyperparameters.json",
            "input/config/inputdataconfig.json",
            "input/config/resourceconfig.json",
            "input/data/sfm/images/a.jpg",
            "input/data/sfm/scene.json",
        ],
        "arguments": ["train"],
        "aws": ["AWS_REGION"],
        "scene": None,
        "code": str(tmp_path),
    }
    assert description["ModelArtifacts"] == {"S3ModelArtifacts": f"s3://{BUCKET}/work/j/train/t-1/output/model/"}
    steps = [t["Status"] for t in description["SecondaryStatusTransitions"]]
    assert steps == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert list((bench.work / "jobs").iterdir()) == []
    kinds, details = zip(*bench.events, strict=True)
    assert set(kinds) == {"SageMaker Training Job State Change"}
    assert [d["SecondaryStatus"] for d in details] == steps
    last = details[-1]
    assert last["Tags"] == {} and last["HyperParameters"] == {"preset": "draft"}
    assert isinstance(last["TrainingEndTime"], str) and len(last["TrainingEndTime"]) == 13
    assert "Environment" not in last and "FailureReason" not in last


def test_processing_keeps_folders_and_uploads_progress_while_it_runs(bench):
    program = """
import os, pathlib, time
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
(root / "processing/progress/progress.json").write_text('{"stage": "sfm", "step": 1}')
go = root / "go"
while not go.exists(): time.sleep(0.02)
photos = root / "processing/input/photos"
names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
(root / "processing/output/names.txt").write_text(" ".join(names) + os.environ["SPACEPORT_OPTION_SCENE"])
"""
    bench.player.call("CreateProcessingJob", processing(program=program))
    deadline = time.monotonic() + 20
    while not bench.storage.exists(BUCKET, "work/j/progress/progress.json") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert bench.status("p-1") == "InProgress"
    (bench.work / "jobs/p-1/ml/go").touch()
    assert bench.wait("p-1")["ProcessingJobStatus"] == "Completed"
    assert bench.text("work/j/output/names.txt") == "a.jpg more/a.jpghouse"
    assert bench.progress[0] == {"stage": "sfm", "step": 1}
    kind, detail = bench.events[-1]
    assert kind == "SageMaker Processing Job State Change"
    assert isinstance(detail["ProcessingEndTime"], int) and detail["ProcessingJobStatus"] == "Completed"
    assert not {"Tags", "Environment", "ExitMessage"} & set(detail)


FAIL = """
import os, pathlib
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
(root / "model").mkdir(exist_ok=True); (root / "model/half").write_text("half")
{write}
raise SystemExit(3)
"""


def test_a_failing_training_gives_its_reason_and_no_output(bench):
    write = '(root / "output/failure").write_text("BAD_SCENE: Nothing there. Look.")'
    bench.player.call("CreateTrainingJob", training(program=FAIL.format(write=write)))
    description = bench.wait("t-1")
    assert description["FailureReason"] == "AlgorithmError: BAD_SCENE: Nothing there. Look., exit code: 3"
    assert bench.events[-1][1]["FailureReason"] == description["FailureReason"]
    assert bench.storage.list(BUCKET, "work/j/train/t-1/") == []


def test_a_failing_processing_job_gives_its_message(bench):
    write = '(root / "output/message").write_bytes("NO_MODEL: ä".encode() * 200)'
    bench.player.call("CreateProcessingJob", processing(program=FAIL.format(write=write)))
    description = bench.wait("p-1")
    assert description["ProcessingJobStatus"] == "Failed"
    assert description["ExitMessage"].startswith("NO_MODEL: ä") and len(description["ExitMessage"].encode()) <= 1024


@pytest.mark.parametrize(
    ("program", "status"),
    [("import os; os.kill(os.getpid(), 9)", 137), ("import os; os.kill(os.getpid(), 11)", 139), ("1/0", 1)],
)
def test_exit_statuses(bench, program, status):
    bench.player.call("CreateTrainingJob", training(program=program))
    assert bench.wait("t-1")["FailureReason"].endswith(f", exit code: {status}")


def test_a_program_that_is_not_there_ends_with_127(bench):
    request = training()
    request["AlgorithmSpecification"]["ContainerEntrypoint"] = ["/opt/nothing/here"]
    bench.player.call("CreateTrainingJob", request)
    assert bench.wait("t-1")["FailureReason"].endswith("exit code: 127")


@pytest.mark.parametrize("name", ["../../escape.jpg", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_lead_out_of_the_tree(bench, name):
    bench.put("work/j/manifest.json", json.dumps([{"prefix": f"s3://{BUCKET}/uploads/house/"}, name]))
    bench.put(f"uploads/house/{name}", "x")
    bench.player.call("CreateProcessingJob", processing())
    assert "leads out of its folder" in bench.wait("p-1")["FailureReason"]


@pytest.mark.parametrize("uri", [f"s3://{BUCKET}/work/j/none.json", f"s3://{BUCKET}/uploads/house/a.jpg"])
def test_a_wrong_manifest_is_named(bench, uri):
    bench.player.call("CreateProcessingJob", processing(uri=uri))
    reason = bench.wait("p-1")["FailureReason"]
    assert reason.startswith("ClientError: Data download failed:") and uri in reason


WAIT = """
import os, pathlib, signal, sys, time
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
def stop(*_):
    (root / "checkpoints/step.txt").write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
old = root / "checkpoints/step.txt"
if old.exists():
    (root / "model/scene.ply").write_text(old.read_text()); sys.exit(0)
(root / "checkpoints/progress.json").write_text('{"stage": "train", "step": 1}')
while True: time.sleep(0.02)
"""


def wait_until_running(bench, count=1):
    deadline = time.monotonic() + 20
    while len(bench.progress) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(bench.progress) >= count


def test_stop_lets_the_program_save_and_ends_stopped(bench):
    bench.player.call("CreateTrainingJob", training(program=WAIT))
    wait_until_running(bench)
    bench.player.call("StopTrainingJob", {"TrainingJobName": "t-1"})
    assert bench.status("t-1") == "Stopping"
    description = bench.wait("t-1")
    assert (description["TrainingJobStatus"], description["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert bench.text("work/j/train/checkpoints/step.txt") == "saved"
    with pytest.raises(ServiceError, match="status Stopped"):
        bench.player.call("StopTrainingJob", {"TrainingJobName": "t-1"})


def test_the_time_limit_ends_stopped_not_failed(bench):
    bench.player.call("CreateTrainingJob", training(program=WAIT, seconds=1))
    description = bench.wait("t-1")
    assert (description["TrainingJobStatus"], description["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


def test_a_spot_interruption_restarts_from_the_checkpoint_under_the_same_name(bench):
    bench.player.call("CreateTrainingJob", training(program=WAIT))
    wait_until_running(bench)
    bench.player.interrupt("t-1")
    description = bench.wait("t-1")
    assert description["TrainingJobStatus"] == "Completed"
    assert bench.text("work/j/train/t-1/output/model/scene.ply") == "saved"
    steps = [t["Status"] for t in description["SecondaryStatusTransitions"]]
    assert steps[2:6] == ["Training", "Interrupted", "Restarting", "Downloading"]


def test_no_process_of_a_job_outlives_it(bench, tmp_path):
    mark = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True:\n pathlib.Path({str(mark)!r}).touch(); time.sleep(0.02)"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(1)"
    bench.player.call("CreateTrainingJob", training(program=program))
    assert bench.wait("t-1")["TrainingJobStatus"] == "Completed"
    assert mark.exists()
    mark.unlink()
    time.sleep(0.3)
    assert not mark.exists()


def test_a_program_that_writes_into_its_checkpoint_does_not_reach_the_stored_one(bench):
    bench.put("work/j/train/checkpoints/c.bin", "stored")
    program = (
        "import os, pathlib; p = pathlib.Path(os.environ['SPACEPORT_ML_ROOT']) / 'checkpoints/c.bin'\n"
        "f = p.open('r+'); f.write('XX'); f.flush(); os.remove(p)"
    )
    bench.player.call("CreateTrainingJob", training(program=program))
    bench.wait("t-1")
    assert bench.text("work/j/train/checkpoints/c.bin") == "stored"


# Requests


class Stand:
    """A runner that keeps its jobs until the test ends them."""

    def __init__(self):
        self.started, self.stopped, self.killed = {}, [], []

    def start(self, job, on_exit):
        self.started[job.name] = (job, on_exit)
        runner = self

        class Handle:
            def stop(self):
                runner.stopped.append(job.name)

            def kill(self):
                runner.killed.append(job.name)
                on_exit(Exit(137))

        return Handle()

    def end(self, name, status=0, message=""):
        self.started[name][1](Exit(status, message))


@pytest.fixture
def virtual():
    stand = Stand()
    made = Bench(None, VirtualClock(), stand, background=lambda work: work())
    made.stand = stand
    yield made
    made.storage.close()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"Unknown": 1}, "Unknown"),
        ({"RoleArn": None}, "RoleArn"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": "60"}}, "MaxRuntimeInSeconds"),
        ({"TrainingJobName": "a_b"}, "must satisfy pattern"),
        ({"TrainingJobName": "a" * 64}, "a" * 64),
        ({"ResourceConfig": {"InstanceCount": 1, "InstanceType": "ml.none", "VolumeSizeInGB": 1}}, "ml.none"),
        ({"HyperParameters": {"a": "x" * 2501}}, "length at most 2500"),
        ({"AlgorithmSpecification": {"TrainingImage": "a", "TrainingInputMode": "File"}}, "ContainerEntrypoint"),
    ],
)
def test_wrong_requests_are_refused_as_sagemaker_does(virtual, changes, text):
    with pytest.raises(ServiceError, match=text) as caught:
        virtual.player.call("CreateTrainingJob", training(**changes))
    assert caught.value.code == "ValidationException"
    assert virtual.events == []


def test_names_are_unique_for_ever(virtual):
    virtual.player.call("CreateTrainingJob", training())
    with pytest.raises(ServiceError, match="already exists") as caught:
        virtual.player.call("CreateTrainingJob", training())
    assert caught.value.code == "ResourceInUse"


def test_jobs_that_are_not_there(virtual):
    for operation, request in (
        ("DescribeTrainingJob", {"TrainingJobName": "t"}),
        ("StopProcessingJob", {"ProcessingJobName": "p"}),
    ):
        with pytest.raises(ServiceError) as caught:
            virtual.player.call(operation, request)
        assert caught.value.code == "ValidationException"
    with pytest.raises(ServiceError, match="not played locally"):
        virtual.player.call("CreateModel", {})


def test_a_program_that_ignores_sigterm_is_killed_after_120_s(virtual):
    virtual.player.call("CreateTrainingJob", training(seconds=60))
    virtual.clock.advance(60)
    assert virtual.stand.stopped == ["t-1"] and virtual.status("t-1") == "Stopping"
    virtual.clock.advance(119)
    assert virtual.stand.killed == []
    virtual.clock.advance(1)
    assert virtual.stand.killed == ["t-1"]
    assert virtual.describe("t-1")["SecondaryStatus"] == "MaxRuntimeExceeded"
    assert virtual.describe("t-1")["TrainingTimeInSeconds"] == 180


def test_list(virtual):
    for name in ("t-1", "t-2"):
        virtual.player.call("CreateTrainingJob", training(name))
        virtual.clock.advance(1)
    virtual.stand.end("t-1")
    virtual.clock.advance(1)
    listed = virtual.player.call("ListTrainingJobs", {"StatusEquals": "Completed"})["TrainingJobSummaries"]
    assert [job["TrainingJobName"] for job in listed] == ["t-1"]
    names = [j["TrainingJobName"] for j in virtual.player.call("ListTrainingJobs", {})["TrainingJobSummaries"]]
    assert names == ["t-2", "t-1"]


def test_a_killed_engine_goes_on(tmp_path):
    """Jobs restart under their names, training with its checkpoint; ended jobs tell again."""
    work = tmp_path / "work"
    work.mkdir()
    options = {"jobs_dir": work / "jobs", "records_dir": work / "records"}
    options["background"] = lambda work: work()
    first = Bench(work, VirtualClock(), Stand(), **options)
    first.put("work/j/sfm/scene.json", "{}")
    first.put("work/j/manifest.json", json.dumps([{"prefix": f"s3://{BUCKET}/work/j/sfm/"}, "scene.json"]))
    for request in (training("t-1"), training("t-2")):
        first.player.call("CreateTrainingJob", request)
    first.player.call("CreateProcessingJob", processing())
    first.clock.advance(5)
    first.player.runner.end("t-2")
    first.clock.advance(5)
    (work / "jobs/p-1/ml/processing/output/half.bin").write_text("half")
    (work / "jobs/t-1/ml/checkpoints/c.bin").write_text("late")  # written after the last upload
    for running in first.player.running.values():
        running.ended.set()
    first.storage.close()

    second = Bench(work, VirtualClock(), Stand(), **options)
    second.storage.load()
    second.player.resume()
    second.clock.advance(1)
    assert second.status("p-1") == "InProgress" and "p-1" in second.player.runner.started
    assert (work / "jobs/p-1/ml/processing/input/photos/scene.json").read_text() == "{}"
    assert not (work / "jobs/p-1/ml/processing/output/half.bin").exists(), "a new attempt finds a fresh tree"
    second.player.runner.end("p-1")
    assert second.status("t-2") == "Completed" and "t-2" not in second.player.runner.started
    assert [d["TrainingJobStatus"] for _, d in second.events if d.get("TrainingJobName") == "t-2"] == ["Completed"]
    assert (work / "jobs/t-1/ml/checkpoints/c.bin").read_text() == "late"
    second.player.runner.end("t-1")
    second.clock.advance(1)
    assert second.status("t-1") == second.status("p-1") == "Completed"
    second.storage.close()


def test_paths_outside_opt_ml_are_refused(tmp_path):
    files = JobFiles(None, tmp_path, "training", {})
    assert files.local("/opt/ml/a/b") == tmp_path / "ml/a/b"
    for path in ("/etc", "/opt/ml/../x", "relative"):
        with pytest.raises(TransferError):
            files.local(path)
