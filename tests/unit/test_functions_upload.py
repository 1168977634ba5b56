"""ingest and settle: one execution per upload, whatever order the events come in."""

import random

import boto3
import pytest

import ingest
import settle
from base import aws
from base.failures import JobFailure
from table import jobs, scenes
from tests.unit.cloud import BUCKET, Cloud, client_error, cloud, load_event, row

__all__ = ["cloud"]


def upload(cloud: Cloud, path: str, at_s: float | None = None) -> dict:
    return ingest.handler(cloud.created(f"uploads/{path}", at_s), cloud.context)


def ask(cloud: Cloud, job_id: str) -> dict:
    return settle.handler({"job_id": job_id, "scene": job_id.rpartition("-")[0], "bucket": BUCKET}, cloud.context)


def test_first_photo_starts_one_execution_called_like_the_job(cloud):
    answer = ingest.handler(load_event("s3-object-created"), cloud.context)
    assert answer["action"] == "opened"
    assert cloud.executions() == [answer["job_id"]]
    assert answer["job_id"].startswith("my-house-")
    described = boto3.client("stepfunctions").describe_execution(
        executionArn=row(f"JOB#{answer['job_id']}")["execution_arn"]
    )
    assert described["input"] == f'{{"job_id": "{answer["job_id"]}", "scene": "my-house", "bucket": "{BUCKET}"}}'
    assert row(f"JOB#{answer['job_id']}")["status"] == "SETTLING"


@pytest.mark.parametrize(
    "key",
    [
        "my-house/",
        "photo.jpg",
        "my-house/.DS_Store",
        "my-house/__MACOSX/._a.jpg",
        "my-house/notes.txt",
        "my-house/Thumbs.db",
    ],
)
def test_other_objects_are_ignored(cloud, key):
    assert upload(cloud, key)["action"] == "ignored"
    assert cloud.executions() == []


@pytest.mark.parametrize("name", ["a b.jpg", "a+b.jpg", "100%25.jpg", "äöü/日本.JPG", "x" * 900 + ".jpg"])
def test_hostile_photo_names_are_taken_as_they_are(cloud, name):
    assert upload(cloud, f"my-house/{name}")["action"] == "opened"


@pytest.mark.parametrize("folder", ["My House", "a+b", "x" * 41, "-a", "scène", "a_b"])
def test_folder_that_is_no_scene_is_explained_once(cloud, folder):
    assert upload(cloud, f"{folder}/a.jpg")["action"] == "rejected"
    assert upload(cloud, f"{folder}/b.jpg")["action"] == "rejected"
    assert cloud.executions() == []
    (text,) = cloud.messages()
    assert f"uploads/{folder}/" in text


def test_encoded_looking_scene_is_not_decoded(cloud):
    assert upload(cloud, "my%2Dhouse/a.jpg")["action"] == "rejected"


def test_duplicates_and_any_order_make_one_execution(cloud):
    start_s = cloud.clock_s
    times = [start_s - 30 + second for second in range(30)] * 2
    random.Random(7).shuffle(times)
    actions = [upload(cloud, f"my-house/{at}.jpg", at)["action"] for at in times]
    assert actions.count("opened") == 1
    assert len(cloud.executions()) == 1
    assert row("SCENE#my-house")["last_object_at"] == aws.timestamp(start_s - 1)
    assert row("SCENE#my-house")["first_object_at"] == aws.timestamp(start_s - 30)


def test_execution_is_started_by_the_next_event_when_the_first_call_died(cloud, monkeypatch):
    real = aws.stepfunctions

    class Broken:
        def start_execution(self, **_):
            raise client_error("ServiceUnavailable", "try later", "StartExecution", 503)

    monkeypatch.setattr(aws, "stepfunctions", Broken)
    with pytest.raises(Exception, match="try later"):
        upload(cloud, "my-house/a.jpg")
    monkeypatch.setattr(aws, "stepfunctions", real)
    answer = upload(cloud, "my-house/a.jpg")
    assert answer["action"] == "joined"
    assert cloud.executions() == [answer["job_id"]]


def test_execution_that_exists_is_the_same_job(cloud, monkeypatch):
    real = aws.stepfunctions()

    class Exists:
        def start_execution(self, **arguments):
            real.start_execution(**arguments)
            raise client_error("ExecutionAlreadyExists", "Execution Already Exists", "StartExecution")

    monkeypatch.setattr(aws, "stepfunctions", Exists)
    job_id = upload(cloud, "my-house/a.jpg")["job_id"]
    arn = row(f"JOB#{job_id}")["execution_arn"]
    assert real.describe_execution(executionArn=arn)["name"] == job_id


def test_settle_waits_for_the_quiet_period_and_no_longer(cloud):
    job_id = upload(cloud, "my-house/a.jpg")["job_id"]
    assert ask(cloud, job_id) == {"complete": False, "wait_s": 60}
    cloud.wait(40)
    assert ask(cloud, job_id) == {"complete": False, "wait_s": 20}
    upload(cloud, "my-house/b.jpg")
    cloud.wait(59.5)
    assert ask(cloud, job_id) == {"complete": False, "wait_s": 1}
    cloud.wait(1)
    assert ask(cloud, job_id) == {"complete": True, "wait_s": 0}
    assert ask(cloud, job_id) == {"complete": True, "wait_s": 0}, "a repeated call answers the same"


def test_late_events_of_a_closed_upload_start_nothing_but_new_objects_do(cloud):
    first_s = cloud.clock_s
    job_id = upload(cloud, "my-house/a.jpg")["job_id"]
    cloud.wait(61)
    assert ask(cloud, job_id)["complete"]
    assert upload(cloud, "my-house/b.jpg", first_s)["action"] == "late"
    cloud.wait(10)
    second = upload(cloud, "my-house/c.jpg")
    assert second["action"] == "opened"
    assert second["job_id"] != job_id
    assert len(cloud.executions()) == 2
    assert ask(cloud, job_id)["complete"], "the first job is not held up by the second upload"


def test_late_event_does_not_make_the_ready_options_of_the_upload_before_count_again(cloud):
    first_s = cloud.clock_s
    cloud.put("uploads/my-house/job.json", {"ready": True})
    upload(cloud, "my-house/a.jpg")
    cloud.wait(2)
    job_id = upload(cloud, "my-house/job.json")["job_id"]
    cloud.wait(1)
    assert ask(cloud, job_id)["complete"]
    cloud.wait(100)
    second = upload(cloud, "my-house/b.jpg")["job_id"]
    assert upload(cloud, "my-house/a.jpg", first_s) == {"action": "late", "job_id": ""}
    assert ask(cloud, second) == {"complete": False, "wait_s": 60}


def test_late_event_does_not_make_an_upload_a_day_old(cloud):
    first_s = cloud.clock_s
    job_id = upload(cloud, "my-house/a.jpg")["job_id"]
    cloud.wait(61)
    assert ask(cloud, job_id)["complete"]
    cloud.wait(25 * 3600)
    second = upload(cloud, "my-house/b.jpg")["job_id"]
    assert upload(cloud, "my-house/a.jpg", first_s)["action"] == "late"
    assert ask(cloud, second) == {"complete": False, "wait_s": 60}
    assert row("SCENE#my-house")["first_object_at"] == aws.timestamp()


def test_object_between_reading_and_closing_keeps_the_upload_open(cloud, monkeypatch):
    job_id = upload(cloud, "my-house/a.jpg")["job_id"]
    cloud.wait(61)
    seal = scenes.seal_upload

    def racing(*arguments):
        upload(cloud, "my-house/b.jpg")
        return seal(*arguments)

    monkeypatch.setattr(scenes, "seal_upload", racing)
    assert ask(cloud, job_id) == {"complete": False, "wait_s": 60}


def test_ready_options_end_the_wait_at_once(cloud):
    upload(cloud, "my-house/a.jpg")
    cloud.wait(5)
    cloud.put("uploads/my-house/job.json", {"ready": True})
    job_id = upload(cloud, "my-house/job.json")["job_id"]
    assert ask(cloud, job_id) == {"complete": False, "wait_s": 1}, "photos of the same second are still on their way"
    cloud.wait(1)
    assert ask(cloud, job_id) == {"complete": True, "wait_s": 0}


def test_upload_is_closed_as_of_the_second_before(cloud):
    """An object of the closing second may have come after the folder was listed: it opens the next upload."""
    job_id = upload(cloud, "my-house/a.jpg")["job_id"]
    cloud.wait(60.3)
    assert ask(cloud, job_id)["complete"]
    assert row("SCENE#my-house")["sealed_at"] == aws.timestamp(cloud.clock_s - 1.3)
    assert upload(cloud, "my-house/b.jpg", cloud.clock_s - 1.3)["action"] == "late"
    cloud.wait(0.6)
    assert upload(cloud, "my-house/c.jpg")["action"] == "opened"


def test_ready_options_amid_a_stream_of_photos_wait_for_its_end(cloud):
    cloud.put("uploads/my-house/job.json", {"ready": True})
    job_id = upload(cloud, "my-house/job.json")["job_id"]
    for _ in range(300):
        cloud.wait(1)
        upload(cloud, "my-house/a.jpg")
    assert ask(cloud, job_id) == {"complete": False, "wait_s": 3}, "at least 1 % of the time so far"
    cloud.wait(3)
    assert ask(cloud, job_id)["complete"]


def test_ready_options_of_an_earlier_upload_do_not_cut_the_next_one_short(cloud):
    cloud.put("uploads/my-house/job.json", {"ready": True})
    job_id = upload(cloud, "my-house/job.json")["job_id"]
    cloud.wait(1)
    assert ask(cloud, job_id)["complete"]
    cloud.wait(100)
    second = upload(cloud, "my-house/new.jpg")["job_id"]
    assert ask(cloud, second) == {"complete": False, "wait_s": 60}


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": "yes"}', b'{"ready": true, "typo": 1}'])
def test_wrong_options_are_left_for_validate(cloud, body):
    cloud.put("uploads/my-house/job.json", body)
    job_id = upload(cloud, "my-house/job.json")["job_id"]
    assert ask(cloud, job_id) == {"complete": False, "wait_s": 60}


def test_a_day_of_uploading_takes_hundreds_of_rounds_and_then_ends(cloud):
    job_id = upload(cloud, "my-house/0.jpg")["job_id"]
    rounds = 0
    with pytest.raises(JobFailure) as raised:
        while True:
            scenes.note_object("my-house", aws.timestamp(), "unused")
            answer = ask(cloud, job_id)
            assert isinstance(answer["wait_s"], int)
            cloud.wait(answer["wait_s"])
            rounds += 1
    assert type(raised.value).__name__ == "UPLOAD_NEVER_ENDS"
    assert rounds * 12 < 25_000, "the history of an execution holds 25,000 events"


def test_scene_is_free_again_after_a_job_that_died_without_cleaning_up(cloud):
    job_id = upload(cloud, "my-house/a.jpg")["job_id"]
    boto3.resource("dynamodb").Table("jobs").update_item(  # what the state RecordFailure does
        Key={"pk": f"JOB#{job_id}"},
        UpdateExpression="SET #s = :f, ended_at = :t",
        ExpressionAttributeNames={"#s": "status"},
        ExpressionAttributeValues={":f": "FAILED", ":t": aws.timestamp()},
    )
    cloud.wait(10)
    second = upload(cloud, "my-house/b.jpg")
    assert second["action"] == "opened"
    assert second["job_id"] != job_id


def test_photo_in_the_second_in_which_a_collecting_job_ended_is_the_next_upload(cloud):
    cloud.wait(0.2)
    job_id = upload(cloud, "my-house/a.jpg")["job_id"]
    assert jobs.end_job(job_id, "FAILED")
    cloud.wait(0.4)
    assert upload(cloud, "my-house/b.jpg")["action"] == "opened"


def test_two_scenes_do_not_meet(cloud):
    assert upload(cloud, "a/1.jpg")["job_id"] != upload(cloud, "b/1.jpg")["job_id"]
    assert len(cloud.executions()) == 2
