"""start_job and check_status: one SageMaker job per start, one answer per token."""

import random

import pytest

import check_status
import start_job
from base import aws, layout
from base.failures import JobFailure
from base.settings import settings
from stages import sagemaker_jobs
from table import jobs
from tests.unit.fn_cloud import (
    BUCKET,
    JOB,
    MACHINE,
    TABLE,
    ULID,
    Cloud,
    add_job,
    assert_valid,
    client_error,
    cloud,
    job_row,
    load_event,
    row,
)

__all__ = ["cloud"]
NAME = f"spaceport-{ULID.lower()}-sfm-0"
TRAIN = f"spaceport-{ULID.lower()}-train-0"
SFM_RESULT = {
    "stage": "sfm",
    "job_name": NAME,
    "output_uri": f"s3://{BUCKET}/work/{JOB}/sfm/",
    "seconds": 600,
    "billable_seconds": 600,
    "cost_usd": 0,
}
TRAIN_RESULT = {**SFM_RESULT, "stage": "train", "output_uri": f"s3://{BUCKET}/work/{JOB}/train/{TRAIN}/output/model/"}


def start(cloud: Cloud, stage: str = "sfm", attempt: int = 0, token: str = "token-0") -> dict:
    payload = {
        "state": {"job_id": JOB, "scene": "my-house", "bucket": BUCKET},
        "stage": stage,
        "attempt": attempt,
        "task_token": token,
        "execution_arn": MACHINE.replace("stateMachine", "execution") + ":" + JOB,
    }
    return start_job.handler(payload, cloud.context)


def check(cloud: Cloud, name: str = NAME) -> str:
    return check_status.handler({"job_name": name}, cloud.context)["checked"][name]


# start_job -----------------------------------------------------------------------------------------------------------


def test_no_training_is_started_without_money_for_it(cloud):
    dear = {**SFM_RESULT, "cost_usd": 2}
    add_job(results={"sfm": dear}, options={"preset": "standard", "max_cost_usd": 2})
    with pytest.raises(JobFailure) as raised:
        start(cloud, "train")
    assert (raised.value.code, cloud.sagemaker.requests) == ("COST_LIMIT", {})
    assert "open" not in row(f"TASK#{TRAIN}"), "the sweep need not look for it"


@pytest.mark.parametrize("stage", ["sfm", "train", "compress"])
@pytest.mark.parametrize("spot", ["true", "false"])
def test_requests_keep_the_contract(cloud, monkeypatch, stage, spot):
    cloud.set(monkeypatch, USE_SPOT=spot)
    options = {
        "preset": "high",
        "max_iterations": 500,
        "matcher": "spatial",
        "title": "Haus Ä",
        "email": "a@example.com",
    }
    add_job(results={"sfm": SFM_RESULT, "train": TRAIN_RESULT}, options=options, estimated_usd=1)
    name = start(cloud, stage)["job_name"]
    request = cloud.sagemaker.requests[name]  # validated against the service model by FakeSageMaker
    assert len(name) <= 63
    assert request["EnableNetworkIsolation" if stage == "train" else "NetworkConfig"] in (
        True,
        {"EnableNetworkIsolation": True},
    )
    if stage == "train":
        assert request["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python3", "-m", "train"]
        assert request["HyperParameters"] == {
            "job_id": JOB,
            "scene": "my-house",
            "preset": "high",
            "max_iterations": "500",
            "max_training_usd": f"{5 - 0.816 * 480 / 3600 - 0.736 * 180 / 3600:.6f}",  # MaxUsdPerScene is 5
            "price_usd_per_hour": "0.736",
        }
        assert request["OutputDataConfig"] == {
            "S3OutputPath": f"s3://{BUCKET}/work/{JOB}/train/",
            "CompressionType": "NONE",
        }
        assert request["CheckpointConfig"] == {
            "S3Uri": f"s3://{BUCKET}/work/{JOB}/train/checkpoints/",
            "LocalPath": "/opt/ml/checkpoints",
        }
        channel = request["InputDataConfig"][0]
        assert (channel["ChannelName"], channel["DataSource"]["S3DataSource"]["S3Uri"]) == (
            "sfm",
            SFM_RESULT["output_uri"],
        )
        wait = request["StoppingCondition"].get("MaxWaitTimeInSeconds")
        assert request["EnableManagedSpotTraining"] is (spot == "true")
        assert (wait is not None) == (spot == "true")
        assert wait is None or wait >= request["StoppingCondition"]["MaxRuntimeInSeconds"]
        return
    assert request["AppSpecification"]["ContainerEntrypoint"] == ["python3", "-m", stage]
    inputs = {i["InputName"]: (i["S3Input"]["LocalPath"], i["S3Input"]["S3Uri"]) for i in request["ProcessingInputs"]}
    if stage == "sfm":
        assert inputs == {"photos": ("/opt/ml/processing/input/photos", f"s3://{BUCKET}/work/{JOB}/manifest.json")}
        assert request["ProcessingInputs"][0]["S3Input"]["S3DataType"] == "ManifestFile"
        assert request["Environment"]["SPACEPORT_OPTION_MATCHER"] == "spatial"
    else:
        assert inputs == {
            "sfm": ("/opt/ml/processing/input/sfm", SFM_RESULT["output_uri"]),
            "train": ("/opt/ml/processing/input/train", TRAIN_RESULT["output_uri"]),
        }
        names = [
            "JOB_ID",
            "SCENE",
            "PRESET",
            "TITLE",
            "CREATED_AT",
            "PRICE_USD_PER_HOUR",
            "SPENT_USD",
            "ESTIMATED_USD",
            "COST_BASIS",
        ]
        assert set(request["Environment"]) == {f"SPACEPORT_OPTION_{name}" for name in names}
        assert request["Environment"]["SPACEPORT_OPTION_TITLE"] == "Haus Ä"
    outputs = {
        o["OutputName"]: (o["S3Output"]["LocalPath"], o["S3Output"]["S3Uri"], o["S3Output"]["S3UploadMode"])
        for o in request["ProcessingOutputConfig"]["Outputs"]
    }
    assert outputs == {
        "output": ("/opt/ml/processing/output", f"s3://{BUCKET}/work/{JOB}/{stage}/", "EndOfJob"),
        "progress": ("/opt/ml/processing/progress", f"s3://{BUCKET}/work/{JOB}/progress/{stage}/", "Continuous"),
    }


def test_token_is_stored_before_the_job_exists(cloud, monkeypatch):
    add_job()
    seen = []
    create = cloud.sagemaker.create_processing_job

    def recording(**arguments):
        seen.append(row(f"TASK#{NAME}")["task_token"])
        return create(**arguments)

    monkeypatch.setattr(cloud.sagemaker, "create_processing_job", recording)
    start(cloud)
    assert seen == ["token-0"]


def test_repeated_start_is_the_same_job(cloud):
    add_job()
    assert start(cloud) == {"job_name": NAME, "created": True}
    assert start(cloud) == {"job_name": NAME, "created": False}
    assert list(cloud.sagemaker.requests) == [NAME]
    assert cloud.sagemaker.stopped == []


def test_retry_is_a_new_job_and_stops_the_one_before(cloud):
    add_job()
    start(cloud)
    second = start(cloud, attempt=1, token="token-1")
    assert second["job_name"] == NAME[:-1] + "1"
    assert cloud.sagemaker.stopped == [NAME]
    assert "open" in row(f"TASK#{NAME}"), "the call that it belongs to may be creating the job now"


def test_redriven_execution_takes_the_next_free_number(cloud):
    add_job()
    start(cloud)
    cloud.sagemaker.end(NAME, "Failed", FailureReason="AlgorithmError: exit code: 1")
    jobs.close_task(NAME, "FAILED")
    jobs.end_job(JOB, "FAILED")
    again = start(cloud, attempt=0, token="token-after-redrive")
    assert again == {"job_name": NAME[:-1] + "1", "created": True}
    assert row(f"JOB#{JOB}")["status"] == "RUNNING"


@pytest.mark.parametrize(
    ("code", "message", "status", "raised"),
    [
        ("ResourceLimitExceeded", "The account-level service limit is 0", 400, "Spaceport.Transient"),
        ("ThrottlingException", "Rate exceeded", 400, "Spaceport.Transient"),
        ("SomethingNew", "oops", 500, "Spaceport.Transient"),
        ("ValidationException", "RoleArn is wrong", 400, "SAGEMAKER_REJECTED"),
        ("AccessDeniedException", "no", 400, "SAGEMAKER_REJECTED"),
    ],
)
def test_refused_creation(cloud, code, message, status, raised):
    add_job()
    cloud.sagemaker.refuse = client_error(code, message, "CreateProcessingJob", status)
    with pytest.raises(JobFailure) as error:
        start(cloud)
    assert type(error.value).__name__ == raised  # the name that Lambda reports to Step Functions
    assert message in str(error.value)
    assert "open" not in row(f"TASK#{NAME}"), "the sweep has nothing to look after"


def test_name_taken_by_validation_error_is_the_same_job(cloud):
    add_job()
    cloud.sagemaker.refuse = client_error("ValidationException", f"Job {NAME} already exists", "CreateProcessingJob")
    assert start(cloud)["created"] is False


def test_job_without_a_row_or_result_is_refused(cloud):
    with pytest.raises(JobFailure, match="no row of job"):
        start(cloud)
    add_job()
    with pytest.raises(JobFailure, match="no result of the sfm stage"):
        start(cloud, "train")


def test_name_of_a_job_fits_with_the_longest_prefix(cloud):
    assert len(layout.job_name("p" * 20, JOB, "compress", 99)) <= 63
    with pytest.raises(ValueError, match="shorten JobPrefix"):
        layout.job_name("p" * 40, JOB, "compress", 99)


def test_option_longer_than_sagemaker_takes(cloud):
    job = {"job_id": JOB, "scene": "s" * 257, "options": {}, "results": {}}
    with pytest.raises(JobFailure, match="'scene' has 257 characters; 256 are allowed"):
        sagemaker_jobs.stage_options("sfm", job, settings())


@pytest.mark.parametrize("stage", ["Sfm", "Train", "Compress"])
def test_instance_types_of_the_template_exist(stage):
    from tests.unit.fn_cloud import load_template

    for machine in load_template()["Parameters"][f"{stage}InstanceType"]["AllowedValues"]:
        resources = {"InstanceType": machine, "InstanceCount": 1, "VolumeSizeInGB": 10}
        if stage == "Train":
            shape = {
                "TrainingJobName": "a",
                "RoleArn": "arn:aws:iam::123456789012:role/stage",
                "OutputDataConfig": {"S3OutputPath": "s3://b/"},
                "ResourceConfig": resources,
                "StoppingCondition": {},
            }
            assert_valid("sagemaker", "CreateTrainingJob", shape)
        else:
            shape = {
                "ProcessingJobName": "a",
                "RoleArn": "arn:aws:iam::123456789012:role/stage",
                "AppSpecification": {"ImageUri": "i"},
                "ProcessingResources": {"ClusterConfig": resources},
            }
            assert_valid("sagemaker", "CreateProcessingJob", shape)


# check_status --------------------------------------------------------------------------------------------------------


def running(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, stage: str = "sfm") -> str:
    add_job(results={"sfm": SFM_RESULT} if stage == "train" else {})
    name = start(cloud, stage)["job_name"]
    cloud.use_tokens(monkeypatch, "token-0")
    return name


def test_completed_processing_event(cloud, monkeypatch):
    running(cloud, monkeypatch)
    cloud.sagemaker.end(NAME, "Completed", seconds=1020)
    answer = check_status.handler(load_event("sagemaker-processing-completed"), cloud.context)
    assert answer == {"checked": {NAME: "succeeded"}}
    expected = {
        "stage": "sfm",
        "job_name": NAME,
        "output_uri": f"s3://{BUCKET}/work/{JOB}/sfm/",
        "seconds": 1020.0,
        "billable_seconds": 1020.0,
        "cost_usd": round(0.408 * 1020 / 3600, 6),
    }
    assert cloud.tokens.answers == [("success", "token-0", expected)]
    assert job_row()["results"]["sfm"] == expected


def test_completed_training_event_bills_billable_seconds(cloud, monkeypatch):
    name = running(cloud, monkeypatch, "train")
    cloud.sagemaker.end(name, "Completed", TrainingTimeInSeconds=1200, BillableTimeInSeconds=400)
    check_status.handler(load_event("sagemaker-training-completed"), cloud.context)
    ((_, _, result),) = cloud.tokens.answers
    assert result["output_uri"] == f"s3://{BUCKET}/work/{JOB}/train/{name}/output/model/"
    assert (result["seconds"], result["billable_seconds"]) == (1200, 400)
    assert result["cost_usd"] == round(0.736 * 400 / 3600, 6)


@pytest.mark.parametrize(
    ("event", "description", "error", "code"),
    [
        ("training-failed", {"TrainingJobStatus": "Failed", "FailureReason": None}, "DISK_FULL", "DISK_FULL"),
        ("training-stopped", {"SecondaryStatus": "MaxRuntimeExceeded"}, "STAGE_TIMEOUT", "STAGE_TIMEOUT"),
        ("training-stopped", {"SecondaryStatus": "MaxWaitTimeExceeded"}, "Spaceport.Transient", "NO_CAPACITY"),
        ("training-stopped", {"SecondaryStatus": "Stopped"}, "STAGE_STOPPED", "STAGE_STOPPED"),
    ],
)
def test_training_that_did_not_complete(cloud, monkeypatch, event, description, error, code):
    name = running(cloud, monkeypatch, "train")
    detail = load_event(f"sagemaker-{event}")["detail"]
    more = {**description, "FailureReason": detail.get("FailureReason")}
    more.pop("TrainingJobStatus", None)
    cloud.sagemaker.end(name, detail["TrainingJobStatus"], TrainingTimeInSeconds=60, **more)
    check_status.handler(load_event(f"sagemaker-{event}"), cloud.context)
    ((answered, _, cause),) = cloud.tokens.answers
    assert (answered, cause["code"], cause["stage"], cause["job_name"]) == (error, code, "train", name)
    assert job_row()["interrupted"] == {name: {"stage": "train", "cost_usd": round(0.736 * 60 / 3600, 6)}}


@pytest.mark.parametrize(
    ("status", "seconds", "more", "error"),
    [
        (
            "Failed",
            60,
            {
                "FailureReason": "AlgorithmError: See job logs for more information",
                "ExitMessage": "TOO_FEW_MATCHES: The photos do not overlap. Take more.",
            },
            "TOO_FEW_MATCHES",
        ),
        ("Failed", 60, {"FailureReason": "AlgorithmError: , exit code: 137"}, "OUT_OF_MEMORY"),
        (
            "Failed",
            60,
            {"FailureReason": "InternalServerError: We encountered an internal error."},
            "Spaceport.Transient",
        ),
        (
            "Failed",
            60,
            {"FailureReason": "CapacityError: Unable to provision requested ML compute capacity."},
            "Spaceport.Transient",
        ),
        ("Failed", 60, {"FailureReason": "ClientError: Cannot pull the image"}, "SAGEMAKER_REJECTED"),
        ("Failed", 60, {"FailureReason": "AlgorithmError: exit code: 127"}, "IMAGE_BROKEN"),
        ("Failed", 60, {}, "INTERNAL_ERROR"),
        ("Stopped", 14400, {}, "STAGE_TIMEOUT"),
        ("Stopped", 300, {}, "STAGE_STOPPED"),
    ],
)
def test_processing_that_did_not_complete(cloud, monkeypatch, status, seconds, more, error):
    running(cloud, monkeypatch)
    cloud.sagemaker.end(NAME, status, seconds=seconds, **more)
    check(cloud)
    ((answered, _, cause),) = cloud.tokens.answers
    assert answered == error
    assert set(cause) == {"code", "reason", "stage", "job_name"}
    assert cause["reason"]


def test_events_in_any_order_and_number_answer_once(cloud, monkeypatch):
    name = running(cloud, monkeypatch, "train")
    cloud.sagemaker.end(name, "Completed", TrainingTimeInSeconds=10, BillableTimeInSeconds=10)
    events = [
        load_event(f"sagemaker-training-{kind}") for kind in ("completed", "in-progress", "completed", "in-progress")
    ]
    random.Random(3).shuffle(events)
    for event in events:
        check_status.handler(event, cloud.context)
    assert [answer[0] for answer in cloud.tokens.answers] == ["success"]


def test_running_job_is_left_alone_and_kept_alive(cloud, monkeypatch):
    running(cloud, monkeypatch)
    assert check_status.handler(load_event("schedule"), cloud.context) == {"checked": {NAME: "running"}}
    assert cloud.tokens.heartbeats == ["token-0"]
    assert cloud.tokens.answers == []


def test_sweep_finds_the_result_whose_event_never_came(cloud, monkeypatch):
    running(cloud, monkeypatch)
    cloud.sagemaker.end(NAME, "Completed")
    assert check_status.handler(load_event("schedule"), cloud.context) == {"checked": {NAME: "succeeded"}}
    assert check_status.handler(load_event("schedule"), cloud.context) == {"checked": {}}


def test_job_that_nobody_waits_for_is_stopped(cloud, monkeypatch):
    running(cloud, monkeypatch)
    cloud.tokens.open.clear()
    assert check(cloud) == "stopped"
    assert cloud.sagemaker.stopped == [NAME]
    cloud.sagemaker.end(NAME, "Stopped", seconds=360)
    assert check(cloud) == "failed, nobody waits"
    assert job_row()["interrupted"][NAME]["cost_usd"] > 0
    assert check(cloud) == "closed"


@pytest.mark.parametrize(("told", "counted"), [({}, False), ({"message_sent_at": "2026-11-12T09:30:00.000Z"}, True)])
def test_cost_of_a_stage_that_ends_after_its_user_was_told_is_counted(cloud, monkeypatch, told, counted):
    """Otherwise it is part of what notify counts when it tells the user."""
    running(cloud, monkeypatch)
    add_job(job_name=NAME, **told)
    cloud.sagemaker.end(NAME, "Stopped", seconds=360)
    metrics = []
    monkeypatch.setattr(check_status.metrics, "add_metric", lambda name, unit, value: metrics.append((name, value)))
    check(cloud)
    costs = [value for name, value in metrics if name == "CostUsd"]
    assert costs == ([job_row()["interrupted"][NAME]["cost_usd"]] if counted else [])


def test_late_result_is_harmless(cloud, monkeypatch):
    running(cloud, monkeypatch)
    cloud.tokens.open.clear()
    cloud.sagemaker.end(NAME, "Completed")
    assert check(cloud) == "succeeded, nobody waits"
    assert cloud.tokens.answers == []


def test_unknown_job_is_ignored(cloud, monkeypatch):
    cloud.use_tokens(monkeypatch)
    assert check(cloud, "somebody-elses-job") == "unknown"


def test_job_that_was_never_created_fails_its_task_in_the_end(cloud, monkeypatch):
    running(cloud, monkeypatch)
    del cloud.sagemaker.jobs[NAME]
    assert check(cloud) == "not created yet"
    cloud.wait(601)
    check(cloud)
    ((error, _, cause),) = cloud.tokens.answers
    assert (error, cause["code"]) == ("Spaceport.Transient", "STAGE_LOST")


def test_crash_between_answer_and_closing_loses_nothing(cloud, monkeypatch):
    running(cloud, monkeypatch)
    cloud.sagemaker.end(NAME, "Completed")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "close_task", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            check(cloud)
    assert check(cloud) == "succeeded, nobody waits"
    assert len(cloud.tokens.answers) == 1


def test_one_broken_task_does_not_keep_the_sweep_from_the_others(cloud, monkeypatch):
    running(cloud, monkeypatch)
    jobs.put_task("spaceport-broken-sfm-0", JOB, "sfm", 0, "token-broken")
    describe = cloud.sagemaker.describe_processing_job

    def broken(ProcessingJobName):
        if "broken" in ProcessingJobName:
            raise client_error("AccessDeniedException", "no", "DescribeProcessingJob")
        return describe(ProcessingJobName)

    monkeypatch.setattr(cloud.sagemaker, "describe_processing_job", broken)
    cloud.sagemaker.end(NAME, "Completed")
    with pytest.raises(RuntimeError, match="1 of 2 tasks could not be checked: spaceport-broken"):
        check_status.handler(load_event("schedule"), cloud.context)
    assert [answer[0] for answer in cloud.tokens.answers] == ["success"]


def test_a_task_whose_job_has_no_row_does_not_keep_the_sweep_from_the_others(cloud, monkeypatch):
    running(cloud, monkeypatch)
    stray = NAME.replace("spaceport-", "spaceport-a")
    jobs.put_task(stray, "gone-01KD8E7J9Q3M5V8X2Z4B6C7D9F", "sfm", 0, "token-stray")
    cloud.sagemaker.jobs[stray] = dict(cloud.sagemaker.jobs[NAME])
    for name in (stray, NAME):
        cloud.sagemaker.end(name, "Completed")
    with pytest.raises(RuntimeError, match=r"1 of 2 tasks could not be checked: spaceport-a.* has no row of job gone-"):
        check_status.handler(load_event("schedule"), cloud.context)
    assert [answer[0] for answer in cloud.tokens.answers] == ["success"]


def test_sweep_reads_more_than_one_page(cloud, monkeypatch):
    for number in range(5):
        jobs.put_task(f"spaceport-x-sfm-{number}", JOB, "sfm", number, f"t{number}")
    table = aws.table(TABLE)
    query = table.query
    monkeypatch.setattr(table, "query", lambda **a: query(Limit=2, **a))
    assert sorted(jobs.open_task_names()) == [f"spaceport-x-sfm-{n}" for n in range(5)]
