"""check_status: one answer per token."""

import random

import pytest

import check_status
from base import aws
from table import tasks
from tests.unit.cloud import (
    BUCKET,
    JOB,
    TABLE,
    Cloud,
    add_job,
    client_error,
    cloud,
    job_row,
    load_event,
)
from tests.unit.stage_calls import NAME, SFM_RESULT, check, start

__all__ = ["cloud"]


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
        patch.setattr(tasks, "close_task", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            check(cloud)
    assert check(cloud) == "succeeded, nobody waits"
    assert len(cloud.tokens.answers) == 1


def test_one_broken_task_does_not_keep_the_sweep_from_the_others(cloud, monkeypatch):
    running(cloud, monkeypatch)
    tasks.put_task("spaceport-broken-sfm-0", JOB, "sfm", 0, "token-broken")
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
    tasks.put_task(stray, "gone-01KD8E7J9Q3M5V8X2Z4B6C7D9F", "sfm", 0, "token-stray")
    cloud.sagemaker.jobs[stray] = dict(cloud.sagemaker.jobs[NAME])
    for name in (stray, NAME):
        cloud.sagemaker.end(name, "Completed")
    with pytest.raises(RuntimeError, match=r"1 of 2 tasks could not be checked: spaceport-a.* has no row of job gone-"):
        check_status.handler(load_event("schedule"), cloud.context)
    assert [answer[0] for answer in cloud.tokens.answers] == ["success"]


def test_sweep_reads_more_than_one_page(cloud, monkeypatch):
    for number in range(5):
        tasks.put_task(f"spaceport-x-sfm-{number}", JOB, "sfm", number, f"t{number}")
    table = aws.table(TABLE)
    query = table.query
    monkeypatch.setattr(table, "query", lambda **a: query(Limit=2, **a))
    assert sorted(tasks.open_task_names()) == [f"spaceport-x-sfm-{n}" for n in range(5)]
