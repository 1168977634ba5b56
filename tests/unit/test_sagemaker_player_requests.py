"""The SageMaker player: requests that are refused, names, lists, limits of time, and a restart."""

import json

import pytest

from spaceport.base.clock import VirtualClock
from spaceport.base.errors import ServiceError
from spaceport.jobs.files import JobFiles, TransferError
from spaceport.jobs.runner import Exit
from tests.unit.sagemaker_bench import BUCKET, Bench, bench, processing, programs, training

__all__ = ["bench", "programs"]


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
