"""The engine without files and processes, in virtual time, through the real template and functions."""

import itertools
import json
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from base.stages import STAGE_NAMES, STAGES, find_stage
from spaceport.aws.storage import StorageError
from spaceport.base.clock import VirtualClock
from spaceport.jobs.runner import Exit
from spaceport.local_cloud import LocalCloud

PARAMETERS = {
    "SenderEmail": "s@example.org",
    "NotificationEmail": "owner@example.org",
    "ResultBaseUrl": "https://results.example.org",
    "PricesUsdPerHour": "*=0",
}


class Stages:
    """Plays the programs: each takes ten minutes and leaves what the next one promised to read."""

    def __init__(self):
        self.engine: Any = None
        self.outcomes = {}  # (stage, attempt) -> Exit, otherwise success
        self.page = "index.html"
        self.names = []

    def start(self, job, on_exit):
        self.names.append(job.name)
        stage, attempt = job.name.split("-")[-2:]
        result = self.outcomes.get((stage, int(attempt)), Exit(0))
        self.engine.clock.call_later(600, lambda: self.end(job, stage, result, on_exit))

        class Handle:
            def stop(self):
                on_exit(Exit(143))

            kill = stop

        return Handle()

    def end(self, job, stage, result, on_exit):
        if result.status == 0:
            request, put = job.request, self.engine.storage.put_bytes
            if find_stage(stage).is_training:
                base = f"{request['OutputDataConfig']['S3OutputPath']}{job.name}/output/model/"
            else:
                base = request["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"]
            bucket, _, key = base.removeprefix("s3://").partition("/")
            for name in find_stage(stage).writes:
                put(bucket, f"{key.rstrip('/')}/{self.page if name == 'index.html' else name}", b"{}")
        on_exit(result)


def deploy(parameters=PARAMETERS, on_load=lambda modules: None, **options):
    clock, stages = VirtualClock(), Stages()
    events: list[dict[str, Any]] = []

    def load(function, modules):
        modules["base.aws"].now = lambda: clock.now().timestamp()
        on_load(modules)

    engine = LocalCloud(None, parameters, clock, events.append, runner=stages, on_load=load, **options)
    stages.engine = engine
    return engine, stages, events


def upload(engine, scene="house", photos=9, ready=True, **job):
    for index in range(photos):
        engine.storage.put_bytes(engine.bucket, f"uploads/{scene}/{index}.jpg", b"\xff\xd8\xff\xe0" + b"x" * 100)
    if ready:
        engine.storage.put_bytes(
            engine.bucket, f"uploads/{scene}/job.json", json.dumps({"ready": True, **job}).encode()
        )


def executions(engine):
    listed = engine.step_functions.list_executions(engine.machine_arn)
    return [engine.step_functions.describe_execution(e["executionArn"]) for e in listed]


def test_half_an_hour_passes_in_no_time():
    engine, stages, _ = deploy()
    with engine:
        started = engine.clock.now()
        upload(engine)
        engine.clock.advance(7200)
        (execution,) = executions(engine)
        assert execution["status"] == "SUCCEEDED"
        took = execution["stopDate"] - started
        assert timedelta() <= took - len(STAGES) * timedelta(minutes=10) < timedelta(minutes=2)
        assert [name.split("-")[-2] for name in stages.names] == [*STAGE_NAMES]
        (mail,) = engine.outbox.messages
        assert execution["name"] in mail.get_content()
        keys = engine.storage.list(engine.bucket, f"results/house/{execution['name']}/")
        assert {key.rpartition("/")[2] for key in keys} >= {"index.html", "report.json", "scene.ply"}
        assert engine.row(f"JOB#{execution['name']}")["status"] == "SUCCEEDED"


def test_order_inputs_and_outputs_of_all_states():
    """What docs/contracts.md promises of each state, read from the execution's history."""
    engine, _, _ = deploy()
    with engine:
        upload(engine)
        engine.clock.advance(7200)
        (execution,) = executions(engine)
        history = engine.step_functions.get_execution_history(execution["executionArn"])
    entered = [event["stateEnteredEventDetails"] for event in history if "stateEnteredEventDetails" in event]
    exited = [event["stateExitedEventDetails"] for event in history if "stateExitedEventDetails" in event]
    order = [
        *("Settle", "UploadComplete?", "WholeSeconds", "QuietPeriod", "Settle", "UploadComplete?"),
        *("Validate", "StartAt?", *(stage.state for stage in STAGES), "Notify", "Succeeded"),
    ]
    assert [details["name"] for details in entered] == order
    assert [details["name"] for details in exited] == order

    job_id, bucket = execution["name"], engine.bucket
    assert json.loads(entered[0]["input"]) == {"job_id": job_id, "scene": "house", "bucket": bucket}
    for before, after in itertools.pairwise(range(len(order))):
        assert json.loads(exited[before]["output"]) == json.loads(entered[after]["input"])

    own = {"Settle": "settle", "WholeSeconds": "settle"}  # written again in each round
    added = {}
    for name, into, out in zip(order, entered, exited, strict=True):
        given, left = json.loads(into["input"]), json.loads(out["output"])
        given.pop(own.get(name), None)
        assert {key: left[key] for key in given} == given, f"{name} changed what came before it"
        added.setdefault(name, []).append({key: left[key] for key in left.keys() - given.keys()})
    assert added.pop("Settle") == [
        {"settle": {"complete": False, "wait_s": 1}},  # the second of job.json has to be over
        {"settle": {"complete": True, "wait_s": 0}},
    ]
    assert added.pop("UploadComplete?") == [{}, {}]
    added = {name: round for name, (round,) in added.items()}
    assert added["WholeSeconds"] == {"settle": {"wait_s": 1}}
    validated = {"start_at": "sfm", "photos": 9, "rejected": 0, "estimated_usd": 0.0, "training_shortened": False}
    assert added["Validate"] == {"validate": validated}
    ulid = job_id.rpartition("-")[2].lower()
    for stage in STAGES:
        job_name = f"spaceport-{ulid}-{stage.name}-0"
        folder = f"{stage.name}/" + (f"{job_name}/output/model/" if stage.is_training else "")
        assert added[stage.state] == {
            stage.name: {
                "stage": stage.name,
                "job_name": job_name,
                "output_uri": f"s3://{bucket}/work/{job_id}/{folder}",
                "seconds": 600.0,
                "billable_seconds": 600.0,
                "cost_usd": 0.0,
            }
        }
    assert list(added["Notify"]) == ["notify"]
    assert added["QuietPeriod"] == added["StartAt?"] == added["Succeeded"] == {}


def history_of(engine, execution):
    """[(state, input, output)] in order; a state that ends the execution as failed has no output."""
    events = engine.step_functions.get_execution_history(execution["executionArn"])
    exits = [event["stateExitedEventDetails"] for event in events if "stateExitedEventDetails" in event]
    outputs = {(n, e["name"]): json.loads(e["output"]) for n, e in enumerate(exits)}
    entries = [event["stateEnteredEventDetails"] for event in events if "stateEnteredEventDetails" in event]
    return [(e["name"], json.loads(e["input"]), outputs.get((n, e["name"]))) for n, e in enumerate(entries)]


@pytest.mark.parametrize(
    ("failing", "way"),
    [
        ("Validate", ["RecordFailure", "NotifyFailure", "Failed"]),
        ("UploadComplete?", ["MalformedAnswer", "RecordFailure", "NotifyFailure", "Failed"]),
        ("SfM", ["RecordFailure", "NotifyFailure", "Failed"]),
        ("Notify", ["FailUnlessDone", "NotifyFailure", "Failed"]),
    ],
)
def test_the_failure_route_adds_the_error_and_nothing_else(failing, way, monkeypatch):
    """What docs/contracts.md promises of `$.error`: written by every Catch, {"Error", "Cause"}, and kept to the end."""

    def answer_nonsense(modules):
        if "settle" in modules:
            monkeypatch.setattr(modules["settle"], "math", SimpleNamespace(ceil=lambda seconds: -1))

    engine, stages, _ = deploy(on_load=answer_nonsense if failing == "UploadComplete?" else lambda modules: None)
    stages.outcomes = {("sfm", 0): Exit(1, "TOO_FEW_POINTS: Too little to see.")} if failing == "SfM" else {}
    stages.page = "readme.html" if failing == "Notify" else "index.html"
    with engine:
        upload(engine, photos=1 if failing == "Validate" else 9)
        engine.clock.advance(7200)
        (execution,) = executions(engine)
        steps = history_of(engine, execution)
    at = max(index for index, (name, _, _) in enumerate(steps) if name == failing)
    assert [name for name, _, _ in steps[at + 1 :]] == way
    before = steps[at][1]
    for name, given, left in steps[at + 1 :]:
        if name != "MalformedAnswer":
            assert {key: given[key] for key in given.keys() - before.keys()} == {"error": given["error"]}, name
            assert set(given["error"]) == {"Error", "Cause"}
        assert left is None or name == "MalformedAnswer" or left == given, f"{name} changed its input"
    assert (execution["status"], execution["error"]) == ("FAILED", "SceneFailed")


def test_photos_alone_start_after_the_quiet_period():
    engine, stages, _ = deploy()
    with engine:
        upload(engine, ready=False)
        engine.clock.advance(30)
        upload(engine, photos=10, ready=False)
        engine.clock.advance(45)
        assert stages.names == []
        engine.clock.advance(60)
        assert len(stages.names) == 1
        assert len(executions(engine)) == 1


def test_duplicate_events_change_nothing():
    engine, stages, _ = deploy(duplicate_events=True)
    with engine:
        upload(engine)
        engine.clock.advance(7200)
        (execution,) = executions(engine)
        assert execution["status"] == "SUCCEEDED"
        assert len(stages.names) == len(STAGES) and len(engine.outbox.messages) == 1


def test_a_transient_failure_is_tried_again_under_a_new_name():
    engine, stages, _ = deploy()
    stages.outcomes["sfm", 0] = Exit(143)
    with engine:
        upload(engine)
        engine.clock.advance(7200)
        others = [f"{stage}-0" for stage in STAGE_NAMES[1:]]
        assert [name.split("-", 2)[2] for name in stages.names] == ["sfm-0", "sfm-1", *others]
        assert executions(engine)[0]["status"] == "SUCCEEDED"


def test_the_limit_reaches_the_training_and_holds_over_an_interruption():
    """By hand, at 3.60 USD/h, a thousandth a second: stages take 600 s, 0.60 USD, and compression is counted 0.48."""
    engine, stages, _ = deploy({**PARAMETERS, "PricesUsdPerHour": "*=3.6"})
    stages.outcomes["sfm", 0] = stages.outcomes["train", 0] = Exit(143)
    with engine:
        upload(engine, max_cost_usd=3.0)
        engine.clock.advance(7200)
        (execution,) = executions(engine)
        describe = engine.client("sagemaker").describe_training_job
        given = [describe(TrainingJobName=name)["HyperParameters"] for name in stages.names if "-train-" in name]
        row = engine.row(f"JOB#{execution['name']}")
    assert [options["price_usd_per_hour"] for options in given] == ["3.6", "3.6"]
    first, second = (float(options["max_training_usd"]) for options in given)
    assert first == pytest.approx(3.0 - 2 * 0.60 - 0.48 - 0.18)  # finding cameras was interrupted once
    assert second == pytest.approx(first - (0.18 + 0.06 + 0.06))  # start, loading, time since the checkpoint
    assert row["cost_usd"] == pytest.approx(5 * 0.60), "interrupted attempts are in what the user is told"


def test_an_aborted_execution_stops_its_job_and_tells_the_user():
    engine, stages, events = deploy()
    with engine:
        upload(engine)
        engine.clock.advance(60)
        (execution,) = executions(engine)
        engine.client("stepfunctions").stop_execution(executionArn=execution["executionArn"])
        engine.clock.advance(60)
        (mail,) = engine.outbox.messages
        assert mail["To"] == "owner@example.org"
        job = engine.client("sagemaker").describe_processing_job(ProcessingJobName=stages.names[0])
        assert job["ProcessingJobStatus"] == "Stopped"
        assert engine.row(f"JOB#{execution['name']}")["status"] == "ABORTED"
        assert [e["status"] for e in events if e["type"] == "execution_ended"] == ["ABORTED"]


def test_a_lost_event_is_found_by_the_sweep(monkeypatch):
    engine, _, _ = deploy()
    with engine:
        monkeypatch.setattr(engine.sagemaker, "emit", lambda *event: None)
        upload(engine)
        engine.clock.advance(3 * 3600)
        assert executions(engine)[0]["status"] == "SUCCEEDED"


def test_one_engine_at_a_time_and_nothing_left_for_the_next():
    first, _, _ = deploy()
    with first:
        upload(first, ready=False)
        with pytest.raises(StorageError, match="another engine"):
            deploy()
    second, stages, _ = deploy()
    with second:
        second.clock.advance(3600)
        assert second.storage.list(second.bucket, "") == []
        assert stages.names == [] and executions(second) == []


def test_the_users_own_aws_configuration_is_not_used(monkeypatch):
    for name, value in {
        "AWS_PROFILE": "missing",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "mine",
    }.items():
        monkeypatch.setenv(name, value)
    engine, _, _ = deploy()
    with engine:
        upload(engine)
        started = time.monotonic()
        engine.clock.advance(7200)
        assert executions(engine)[0]["status"] == "SUCCEEDED"
        assert time.monotonic() - started < 60
