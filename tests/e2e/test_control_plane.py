"""Retry, cancel, sweep and time-out, with real jobs: template.yaml, the functions as processes, the real clock.

The stages are short stand-in programs, run as real processes as the real ones are (which test_pipeline.py runs); what
they do depends on the scene's name. Three numbers are shortened: the period of the schedules (LocalCloud,
``schedule_period_s``), the wait before a second attempt, and in one test the time limit of the machine (both by
UpdateStateMachine).
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from spaceport.base.clock import RealClock
from spaceport.jobs.runner import ProcessRunner
from spaceport.local_cloud import LocalCloud
from spaceport.local_run import OWNER, PARAMETERS

pytestmark = pytest.mark.slow

SFM = """
import os, pathlib, subprocess, sys, time
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
scene, name = os.environ["SPACEPORT_OPTION_SCENE"], os.environ["PROCESSING_JOB_NAME"]
if scene == "retry" and name.endswith("-sfm-0"):
    sys.exit(143)  # as when the machine is taken away
if scene == "late":
    subprocess.run(["sleep", "300"])
photos = [p for p in (root / "processing/input/photos").rglob("*") if p.is_file()]
(root / "processing/output/scene.json").write_text('{"photos": %d}' % len(photos))
"""
TRAIN = """
import json, os, pathlib, subprocess
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
if json.loads((root / "input/config/hyperparameters.json").read_text())["scene"] == "cancel":
    subprocess.run(["sleep", "300"])
(root / "model/scene.ply").write_bytes((root / "input/data/sfm/scene.json").read_bytes())
"""
COMPRESS = """
import os, pathlib
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
out = root / "processing/output"
(out / "report.json").write_text('{"title": "stand-in"}')
(out / "scene.sog").write_bytes((root / "processing/input/train/scene.ply").read_bytes())
(out / "index.html").write_text("<html></html>")
"""
PHOTOS = 3
SWEEP_S = 1.5


class Wire:
    """Stands before the delivery of the event bus: notes what is delivered, and loses what ``loses`` says."""

    def __init__(self, bus):
        self.deliver = bus.deliver
        self.delivered, self.lost = [], []
        self.loses = lambda event: False

    def __call__(self, target, event):
        if self.loses(event):
            self.lost.append(event)
            return
        self.delivered.append(event)
        self.deliver(target, event)


class Bench:
    """A deployed stack with a running clock."""

    def __init__(self, folder: Path):
        for name, source in (("sfm", SFM), ("train", TRAIN), ("compress", COMPRESS)):
            (folder / "stages" / name).mkdir(parents=True)
            (folder / "stages" / name / "__main__.py").write_text(source)
        self.events, self.errors = [], []
        self.clock = RealClock(on_error=self.errors.append)
        parameters = {**PARAMETERS, "MinPhotos": str(PHOTOS), "ResultBaseUrl": "https://results.example.org"}
        self.engine = LocalCloud(
            folder / "work",
            parameters,
            self.clock,
            self.events.append,
            runner=ProcessRunner(folder / "stages"),
            schedule_period_s=SWEEP_S,
        )
        self.wire = self.engine.bus.deliver = Wire(self.engine.bus)
        self.states = self.engine.client("stepfunctions")
        self.definition = copy.deepcopy(self.engine.stack.state_machines[0].definition)
        for state in ("SfM", "Train", "Compress"):
            (retry,) = [
                r for r in self.definition["States"][state]["Retry"] if r["ErrorEquals"] == ["Spaceport.Transient"]
            ]
            retry["IntervalSeconds"] = 1
        self.use(self.definition)

    def use(self, definition):
        step_functions, arn = self.engine.step_functions, self.engine.machine_arn
        _, role_arn = step_functions._machines.pop(arn)
        step_functions.create_state_machine(arn, definition, role_arn)

    def close(self):
        self.clock.stop()
        self.engine.close()

    def upload(self, scene):
        """Photos, then job.json; returns the execution that this starts."""
        s3 = self.engine.client("s3")
        for index in range(PHOTOS):
            s3.put_object(
                Bucket=self.engine.bucket, Key=f"uploads/{scene}/{index}.jpg", Body=b"\xff\xd8\xff\xe0" + bytes(999)
            )
        s3.put_object(Bucket=self.engine.bucket, Key=f"uploads/{scene}/job.json", Body=b'{"ready": true}')
        return self.wait(lambda: self.execution(scene), "the upload started no execution")["executionArn"]

    def execution(self, scene):
        found = self.engine.step_functions.list_executions(self.engine.machine_arn)
        return next((e for e in found if e["name"].startswith(f"{scene}-")), None)

    def ended(self, arn):
        """The execution's description once it has ended."""
        describe = lambda: self.states.describe_execution(executionArn=arn)  # noqa: E731
        return self.wait(lambda: describe()["status"] != "RUNNING" and describe(), f"{arn} did not end")

    def wait(self, condition, problem, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert not self.errors, self.errors
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError(problem)

    def job(self, arn):
        return self.engine.row(f"JOB#{arn.rpartition(':')[2]}")

    def jobs(self, arn):
        """{SageMaker job name without what is the same in all: (status, name)} of an execution."""
        ulid = arn.rpartition("-")[2].lower()
        found = {name: record for (_, name), record in self.engine.sagemaker.jobs.items() if ulid in name}
        return {name.split("-", 2)[2]: (record.status, name) for name, record in found.items()}

    def messages(self, arn):
        """Mails about the job, after two more sweeps, which would send another if they could."""
        seen = len(self.wire.delivered)
        self.wait(lambda: sweeps(self.wire.delivered[seen:]) >= 4, "no sweep came")
        assert self.engine.wait_idle(30)
        return [
            m for m in self.engine.outbox.messages if arn.rpartition(":")[2] in m.get_body(("plain",)).get_content()
        ]

    def assert_no_token_left(self, arn):
        for _, name in self.jobs(arn).values():
            self.wait(lambda name=name: "open" not in self.engine.row(f"TASK#{name}"), f"the task of {name} stays open")
            with pytest.raises(ClientError, match="TaskTimedOut"):
                self.states.send_task_heartbeat(taskToken=self.engine.row(f"TASK#{name}")["task_token"])

    def processes(self, job_name):
        """Command lines of the processes of a job: its launcher, its program and what that has started."""
        variable = f"SPACEPORT_ML_ROOT={self.engine.work_dir / 'jobs' / job_name / 'ml'}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if variable in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # another user's, or one that has just ended
        return found


def sweeps(events):
    """Two functions have a schedule, so each round counts as two."""
    return sum(event["detail-type"] == "Scheduled Event" for event in events)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("control-plane"))
    try:
        bench.clock.start()
        yield bench
        assert [event for event in bench.events if event.get("fault")] == []
    finally:
        bench.close()


@pytest.fixture
def needs_proc():
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to see processes")


def test_a_job_whose_machine_was_taken_away_is_tried_again_under_a_new_name(bench):
    arn = bench.upload("retry")
    assert bench.ended(arn)["status"] == "SUCCEEDED"
    assert {name: status for name, (status, _) in bench.jobs(arn).items()} == {
        "sfm-0": "Failed",
        "sfm-1": "Completed",
        "train-0": "Completed",
        "compress-0": "Completed",
    }
    row = bench.job(arn)
    assert row["status"] == "SUCCEEDED" and "open" not in row
    assert row["results"]["sfm"]["job_name"].endswith("-sfm-1")
    (message,) = bench.messages(arn)
    assert message["To"] == OWNER and row["result_url"] in message.get_body(("plain",)).get_content()
    bench.assert_no_token_left(arn)


def test_a_job_that_is_cancelled_ends_and_is_told_once(bench, needs_proc):
    arn = bench.upload("cancel")
    _, name = bench.wait(lambda: bench.jobs(arn).get("train-0"), "training was not started")
    bench.wait(lambda: any("sleep" in line for line in bench.processes(name)), "the program does not run")
    assert len(bench.processes(name)) == 3
    bench.states.stop_execution(executionArn=arn)
    bench.wait(lambda: bench.job(arn)["status"] == "ABORTED", "the row does not say that the job was cancelled")
    bench.wait(lambda: bench.jobs(arn)["train-0"][0] == "Stopped", "SageMaker goes on")
    bench.wait(lambda: not bench.processes(name), "a process of the job goes on")
    assert bench.job(arn)["failure"]["code"] == "EXECUTION_ABORTED"
    (message,) = bench.messages(arn)
    assert "cancelled" in message.get_body(("plain",)).get_content()
    assert list(bench.jobs(arn)) == ["sfm-0", "train-0"]
    bench.assert_no_token_left(arn)


def test_a_job_whose_events_are_lost_is_found_by_the_sweep(bench, monkeypatch):
    wire, swept = bench.wire, []
    of_jobs = lambda event: event["source"] == "aws.sagemaker"  # noqa: E731
    of_schedules = lambda event: event["detail-type"] == "Scheduled Event"  # noqa: E731
    monkeypatch.setattr(wire, "loses", lambda event: of_jobs(event) or (not swept and of_schedules(event)))
    arn = bench.upload("lost")
    bench.wait(lambda: bench.jobs(arn).get("sfm-0", ("",))[0] == "Completed", "SfM does not end")
    missed = sweeps(wire.lost)
    bench.wait(lambda: sweeps(wire.lost) >= missed + 4, "no sweep was lost")
    assert bench.engine.wait_idle(30)
    assert list(bench.jobs(arn)) == ["sfm-0"], "somebody else than the sweep went on"
    assert bench.states.describe_execution(executionArn=arn)["status"] == "RUNNING"

    swept.append(True)
    assert bench.ended(arn)["status"] == "SUCCEEDED"
    assert not [e for e in wire.delivered if of_jobs(e) and arn.rpartition("-")[2].lower() in json.dumps(e)]
    ends = [e["detail"] for e in wire.lost if of_jobs(e)]
    assert [d.get("ProcessingJobStatus", d.get("TrainingJobStatus")) for d in ends].count("Completed") == 3
    assert bench.job(arn)["status"] == "SUCCEEDED"
    assert len(bench.messages(arn)) == 1
    bench.assert_no_token_left(arn)


def test_an_execution_that_takes_too_long_ends_with_its_job_and_is_told_once(bench, needs_proc):
    bench.use({**bench.definition, "TimeoutSeconds": 12})
    try:
        arn = bench.upload("late")
        _, name = bench.wait(lambda: bench.jobs(arn).get("sfm-0"), "SfM was not started")
        bench.wait(lambda: any("sleep" in line for line in bench.processes(name)), "the program does not run")
        assert bench.ended(arn)["status"] == "TIMED_OUT"
    finally:
        bench.use(bench.definition)
    bench.wait(lambda: bench.job(arn)["status"] == "FAILED", "the row does not say that the job has failed")
    bench.wait(lambda: bench.jobs(arn)["sfm-0"][0] == "Stopped", "SageMaker goes on")
    bench.wait(lambda: not bench.processes(name), "a process of the job goes on")
    assert bench.job(arn)["failure"]["code"] == "EXECUTION_TIMED_OUT"
    (message,) = bench.messages(arn)
    assert "longer than a job may take" in message.get_body(("plain",)).get_content()
    assert list(bench.jobs(arn)) == ["sfm-0"]
    bench.assert_no_token_left(arn)
