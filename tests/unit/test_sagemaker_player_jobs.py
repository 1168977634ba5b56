"""The SageMaker player: statuses, events, files and signals of jobs of a few lines of Python."""

import json
import time

import pytest

from spaceport.base.errors import ServiceError
from tests.unit.sagemaker_bench import BUCKET, bench, processing, programs, training

__all__ = ["bench", "programs"]

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
